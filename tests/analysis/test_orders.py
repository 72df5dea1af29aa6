"""Choices in other orders: what is asked, what is reported, and that the metrics stay those of the original order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.reference import orders as reference
from tests.support import tiny_models
from tests.support.expected_warnings import CUT_PROMPTS
from wmdp_fast import PromptTemplate, QuestionSet
from wmdp_fast._rust import OrderAnswers, Outcome, aggregate, order_effects
from wmdp_fast.exceptions import TaskError

if TYPE_CHECKING:
    from pathlib import Path

# Few texts, so that a question often has one twice.
CHOICES = st.lists(st.sampled_from(["wren", "oak", "é", ""]), min_size=2, max_size=4)


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    drawn = draw(st.lists(CHOICES, min_size=1, max_size=5))
    return [
        {"question": f"q{i}", "choices": choices, "answer": draw(st.integers(0, len(choices) - 1))}
        for i, choices in enumerate(drawn)
    ]


def outcome_of(questions: QuestionSet, places: list[int]) -> Outcome:
    """The outcome for a model that picks these places, one a question; other places get scores of their own."""
    prompts = PromptTemplate().render(questions)
    scores = [
        0.0 if place == pick else -1.0 - place - index
        for index, (question, pick) in enumerate(zip(questions, places, strict=True))
        for place in range(len(question.choices))
    ]
    return aggregate(prompts, np.array(scores), np.zeros(len(scores), dtype=bool), near_tie=0.0)


@given(rows(), st.sampled_from(["cyclic", "all"]), st.data())
def test_orders_and_their_effects_are_the_reference_ones(
    drawn: list[dict[str, Any]], which: str, data: st.DataObject
) -> None:
    questions = QuestionSet.from_rows(drawn)
    permuted = questions.permuted(which)
    expected = reference.permuted(drawn, which)
    assert [(q.question, q.choices, q.answer) for q in permuted] == [
        (q["question"], q["choices"], q["answer"]) for q in expected
    ]
    places = [
        [data.draw(st.integers(0, len(row["choices"]) - 1)) for _ in reference.orders_of(len(row["choices"]), which)]
        for row in drawn
    ]
    original = outcome_of(questions, [picked[0] for picked in places])
    others = outcome_of(permuted, [place for picked in places for place in picked[1:]])
    answers = OrderAnswers(questions, which, original, others)
    found, wanted = order_effects([answers]), reference.effects(drawn, places, which)
    assert [(order, n, pytest.approx(acc)) for order, n, acc in found.orders] == [
        (order, *numbers) for order, numbers in wanted.orders.items()
    ]
    for name in ("mean", "sd", "changed", "consistent"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-12)
    assert {letter: shares for letter, *shares in found.letters} == {
        letter: pytest.approx(shares) for letter, shares in wanted.letters.items()
    }
    # Twice the same task changes nothing but the numbers of questions.
    twice = order_effects([answers, answers])
    assert (twice.mean, twice.changed, twice.consistent) == pytest.approx((found.mean, found.changed, found.consistent))
    for index, (row, picked) in enumerate(zip(drawn, places, strict=True)):
        orders = reference.orders_of(len(row["choices"]), which)
        assert [choice for _, choice in answers.predicted(index)] == [
            order[place] for order, place in zip(orders, picked, strict=True)
        ]
        for order, place, (label, scores) in zip(orders, picked, answers.loglikelihood(index), strict=True):
            assert label == "".join("ABCD"[choice] for choice in order)
            assert scores[order[place]] == 0.0 == max(scores)


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions") / "nature"
    folder.mkdir()
    kinds = ["wren", "oak", "carp", "mint", "toad"]
    for name, first in (("birds", 0), ("trees", 7)):
        rows = [
            {
                "question": f"Which of these is number {i} in the long list of everything that lives here?",
                "choices": [kinds[(i + j) % 5] for j in range(4)],
                "answer": i * i % 4,
            }
            for i in range(first, first + 9)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return tiny_models.build("llama"), tiny_models.tokenizer()


@pytest.mark.parametrize("which", ["cyclic", "all"])
def test_every_order_is_scored_as_if_the_file_were_in_that_order(
    loaded: tuple[Any, Any], birds: Path, tmp_path: Path, which: Any
) -> None:
    model, tokenizer = loaded
    plain = wf.evaluate(model, tokenizer=tokenizer, tasks=birds, progress=False)
    asked = wf.evaluate(model, tokenizer=tokenizer, tasks=birds, permute_choices=which, progress=False)
    # The stems are shared: asking n times as much costs far less than n times as many tokens.
    assert asked.details["engine"] == "trie"
    for name, result in asked.tasks.items():
        np.testing.assert_allclose(
            result.outcome.loglikelihood, plain.tasks[name].outcome.loglikelihood, rtol=0, atol=2e-5
        )
        assert result.metrics == plain.tasks[name].metrics
    for at, order in enumerate(reference.orders_of(4, which)):
        rows = [
            {"question": q.question, "choices": [q.choices[c] for c in order], "answer": order.index(q.answer)}
            for q in asked.tasks["birds"].questions
        ]
        file = tmp_path / f"order{at}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        alone = wf.evaluate(model, tokenizer=tokenizer, tasks=file, progress=False)[f"order{at}"]
        expected = np.empty((9, 4))
        expected[:, order] = alone.outcome.loglikelihood.reshape(9, 4)
        answers = asked.tasks["birds"].order_answers
        found = [answers.loglikelihood(question)[at] for question in range(9)]
        assert {label for label, _ in found} == {"".join("ABCD"[choice] for choice in order)}
        np.testing.assert_allclose([scores for _, scores in found], expected, rtol=0, atol=2e-5)
        assert asked.order_effects("birds").orders[at][2] == pytest.approx(alone["acc"])
        if which == "all" and at == 3:
            break


def test_the_results_the_table_and_the_samples_say_what_the_order_does(
    loaded: tuple[Any, Any], birds: Path, tmp_path: Path
) -> None:
    model, tokenizer = loaded
    result = wf.evaluate(
        model,
        tokenizer=tokenizer,
        tasks=birds,
        permute_choices="cyclic",
        output=tmp_path,
        log_samples=True,
        progress=False,
    )
    assert result.saved_to is not None
    written = json.loads(result.saved_to.read_text(encoding="utf-8"))["wmdp_fast"]["choice_orders"]
    assert written["asked"] == "cyclic"
    assert set(written["results"]) == {"nature", "birds", "trees"}
    effects, entry = result.order_effects("nature"), written["results"]["nature"]
    assert list(entry["orders"]) == ["ABCD", "BCDA", "CDAB", "DABC"]
    assert entry["orders"]["ABCD"] == {"n": 18, "acc": result["nature"]["acc"]}
    assert entry["acc_mean"] == pytest.approx(np.mean([order["acc"] for order in entry["orders"].values()]))
    assert entry["acc_sd"] == pytest.approx(np.std([order["acc"] for order in entry["orders"].values()], ddof=1))
    assert (entry["changed"], entry["consistent"]) == (effects.changed, effects.consistent)
    assert sum(letter["all_orders"] for letter in entry["letters"].values()) == pytest.approx(1)
    lines = result.table().splitlines()
    [at] = [at for at, line in enumerate(lines) if line.startswith("nature in 4 orders of the choices")]
    assert f"mean acc {effects.mean:.4f}, sd {effects.sd:.4f} (ABCD {effects.orders[0][2]:.4f}, BCDA" in lines[at]
    assert f"{effects.changed:.1%} of the answers" in lines[at + 1]
    assert "answers by letter: A " in lines[at + 2]

    [samples] = tmp_path.rglob("samples_birds_*.jsonl")
    lines = samples.read_text(encoding="utf-8").splitlines()
    answers = result.tasks["birds"].order_answers
    for question, line in enumerate(map(json.loads, lines)):
        orders = line["wmdp_fast"]["orders"]
        assert [(order, entry["predicted"]) for order, entry in orders.items()] == answers.predicted(question)
        assert [(order, entry["loglikelihood"]) for order, entry in orders.items()] == answers.loglikelihood(question)
        assert orders["ABCD"]["predicted"] == line["wmdp_fast"]["predicted"]
        assert orders["ABCD"]["loglikelihood"] == [float(response[0][0]) for response in line["resps"]]


def test_without_other_orders_nothing_is_said_of_them(loaded: tuple[Any, Any], birds: Path) -> None:
    model, tokenizer = loaded
    result = wf.evaluate(model, tokenizer=tokenizer, tasks=birds, limit=2, progress=False)
    assert "choice_orders" not in result.to_json()["wmdp_fast"]
    assert "orders" not in result.table()
    with pytest.raises(ValueError, match="asked in several orders"):
        result.order_effects("nature")


@CUT_PROMPTS
def test_examples_and_chats_keep_their_order(loaded: tuple[Any, Any], birds: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded
    rows = [json.loads(line) for line in (birds / "birds.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, some in (("q", rows[:3]), ("q_dev", rows[3:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_fewshot": 2, "progress": False}
    plain = wf.evaluate(model, tasks=tmp_path / "q.jsonl", **options)
    asked = wf.evaluate(model, tasks=tmp_path / "q.jsonl", permute_choices="cyclic", **options)
    assert asked.tasks["q"].prompts.context(0) == plain.tasks["q"].prompts.context(0)
    # What is shared by all orders: the examples as they are, and the question's stem.
    distinct = asked.details["tokens_useful"]
    assert distinct < 3 * plain.details["tokens_useful"]
    np.testing.assert_allclose(
        asked.tasks["q"].outcome.loglikelihood, plain.tasks["q"].outcome.loglikelihood, rtol=0, atol=2e-5
    )


def test_what_has_no_order_or_too_many_is_refused(loaded: tuple[Any, Any], birds: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded
    options: dict[str, Any] = {"tokenizer": tokenizer, "progress": False}
    with pytest.raises(TaskError, match=r"birds, trees: the prompt shows no choices.*answered with letters"):
        wf.evaluate(model, tasks=birds, template="mmlu_continuation", permute_choices="cyclic", **options)
    five = tmp_path / "five.jsonl"
    five.write_text(json.dumps({"question": "?", "choices": list("vwxyz"), "answer": 0}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r'five.jsonl, row 1: 5 choices have 120 orders, .* "cyclic" asks 5 orders'):
        wf.evaluate(model, tasks=five, permute_choices="all", **options)
    assert len(wf.evaluate(model, tasks=five, permute_choices="cyclic", **options).order_effects("five").orders) == 5
    wrong: Any = "some"
    with pytest.raises(ValueError, match='unknown choice orders "some"'):
        wf.evaluate(model, tasks=five, permute_choices=wrong, **options)
