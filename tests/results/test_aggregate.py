"""Scores, groups and samples files made in Rust equal plain Python's."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.reference import aggregate as reference
from wmdp_fast._rust import Outcome, Prompts, QuestionSet, aggregate, pool, write_samples

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
# Few distinct values, so that ties are common.
LOGLIKELIHOOD = st.one_of(
    st.sampled_from([-math.inf, -1.5, -1.0, -0.5, -0.0, 0.0]),
    st.floats(max_value=0.0, allow_nan=False),
)


@st.composite
def scored_questions(draw: st.DrawFn) -> list[tuple[list[str], list[float], list[bool], int]]:
    """Choices, their log-likelihoods and greedy flags, and the answer."""
    questions = []
    for _ in range(draw(st.integers(1, 12))):
        choices = draw(st.lists(TEXT, min_size=2, max_size=6))
        n = len(choices)
        scores = draw(st.lists(LOGLIKELIHOOD, min_size=n, max_size=n))
        greedy = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        questions.append((choices, scores, greedy, draw(st.integers(0, n - 1))))
    return questions


def flat(lists: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def prompts_of(choices: list[list[str]], answers: list[int]) -> Prompts:
    return Prompts.from_contexts([""] * len(choices), choices, answers)


def outcome_of(prompts: Prompts, scores: list[float], greedy: list[bool], near_tie: float = 0.01) -> Outcome:
    return aggregate(prompts, np.array(scores, dtype=np.float64), np.array(greedy, dtype=bool), near_tie=near_tie)


@given(scored_questions())
@settings(max_examples=200, deadline=None)
def test_outcome_equals_reference(questions: list[tuple[list[str], list[float], list[bool], int]]) -> None:
    choices, scores, greedy, answers = (list(column) for column in zip(*questions, strict=True))
    outcome = outcome_of(prompts_of(choices, answers), flat(scores), flat(greedy))
    expected = reference.aggregate(scores, choices, answers)

    assert len(outcome) == len(questions)
    assert outcome.predicted.tolist() == expected.predicted
    assert outcome.predicted_norm.tolist() == expected.predicted_norm
    assert outcome.correct.tolist() == [a == b for a, b in zip(expected.predicted, answers, strict=True)]
    assert outcome.correct_norm.tolist() == [a == b for a, b in zip(expected.predicted_norm, answers, strict=True)]
    assert outcome.margin.tolist() == expected.margin
    assert outcome.near_tie.tolist() == [margin <= 0.01 for margin in expected.margin]
    assert outcome.acc == pytest.approx(expected.acc, rel=1e-12)
    assert outcome.acc_norm == pytest.approx(expected.acc_norm, rel=1e-12)
    if len(questions) == 1:
        assert outcome.acc_stderr is outcome.acc_norm_stderr is None
    else:
        assert outcome.acc_stderr == pytest.approx(expected.acc_stderr, rel=1e-12)
        assert outcome.acc_norm_stderr == pytest.approx(expected.acc_norm_stderr, rel=1e-12)

    assert outcome.answers.tolist() == answers
    assert outcome.loglikelihood.tolist() == flat(scores)
    assert outcome.is_greedy.tolist() == flat(greedy)
    assert outcome.choice_offsets.tolist() == [0, *np.cumsum([len(texts) for texts in choices])]


def test_arrays_of_an_outcome_are_read_only() -> None:
    outcome = outcome_of(prompts_of([["A", "B"]], [0]), [-1.0, -2.0], [True, False])
    assert outcome.predicted.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        outcome.margin[0] = 3.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_log_likelihood_names_its_question(bad: float) -> None:
    prompts = Prompts.from_contexts(["", ""], [["A", "B"]] * 2, [0, 0])
    with pytest.raises(ValueError, match="row 2: the log-likelihood of choice 1"):
        outcome_of(prompts, [-1.0, -2.0, -1.0, bad], [False] * 4)


@pytest.mark.parametrize(("scores", "greedy"), [([-1.0], [True, False]), ([-1.0, -2.0], [True]), ([], [])])
def test_scores_must_fit_the_prompts(scores: list[float], greedy: list[bool]) -> None:
    with pytest.raises(ValueError, match="do not fit prompts with 2 choices"):
        outcome_of(prompts_of([["A", "B"]], [0]), scores, greedy)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.integers(2, 2000)),
        min_size=1,
        max_size=60,
    )
)
@settings(max_examples=100, deadline=None)
def test_groups_are_pooled_by_lm_evals_formulas(tasks: list[tuple[float, float, int]]) -> None:
    means, stderrs, sizes = (list(column) for column in zip(*tasks, strict=True))
    assert pool(means, stderrs, sizes) == pytest.approx(reference.pool(means, stderrs, sizes), rel=1e-9)
    unweighted = pool(means, stderrs, sizes, weight_by_size=False)
    assert unweighted == pytest.approx(reference.pool_unweighted(means, stderrs), rel=1e-9)


def test_a_group_with_a_task_of_one_question_has_no_standard_error() -> None:
    assert pool([0.5, 1.0], [0.1, None], [3, 1]) == (0.625, None)
    assert pool([0.5, 1.0], [0.1, None], [3, 1], weight_by_size=False) == (0.75, None)


@pytest.mark.parametrize("bad", [([], [], []), ([0.5], [0.1, 0.2], [3]), ([0.5], [0.1], [0])])
def test_what_is_no_group_is_refused(bad: tuple[list[float], list[float], list[int]]) -> None:
    with pytest.raises(ValueError, match="group"):
        pool(*bad)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a question file; all have the same columns, in any order."""
    extra = draw(st.lists(TEXT.map("extra {}".format), max_size=2, unique=True))
    columns = draw(st.permutations(["question", "choices", "answer", "subject", *extra]))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        choices = draw(st.lists(TEXT.filter(bool), min_size=2, max_size=4))
        row = {"question": draw(TEXT.filter(bool)), "choices": choices, "subject": draw(TEXT.filter(bool))}
        row["answer"] = draw(st.integers(0, len(choices) - 1))
        rows.append({column: row[column] if column in row else draw(JSON) for column in columns})
    return rows


def assert_samples_equal_reference(
    rows: list[dict[str, Any]], contexts: list[str], scores: list[list[float]], greedy: list[list[bool]]
) -> None:
    choices = [row["choices"] for row in rows]
    prompts = Prompts.from_contexts(contexts, choices, [row["answer"] for row in rows], delimiter=" ")
    outcome = outcome_of(prompts, flat(scores), flat(greedy))
    expected = [
        reference.sample(
            i,
            row,
            contexts[i],
            [f" {choice}" for choice in choices[i]],
            list(zip(scores[i], greedy[i], strict=True)),
            row["answer"],
            {"acc": float(outcome.correct[i]), "acc_norm": float(outcome.correct_norm[i])},
            {
                "predicted": int(outcome.predicted[i]),
                "predicted_norm": int(outcome.predicted_norm[i]),
                "margin": float(outcome.margin[i]),
                "near_tie": bool(outcome.near_tie[i]),
            },
        )
        for i, row in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        written = write_samples(path, QuestionSet.from_rows(rows), prompts, outcome, ["acc", "acc_norm"])
        lines = path.read_text(encoding="utf-8").split("\n")
    assert lines == [*(json.dumps(line, ensure_ascii=False) for line in expected), ""]
    assert written == reference.task_hash(expected)


@given(documents(), st.data())
@settings(max_examples=100, deadline=None)
def test_samples_equal_reference(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    choices = [row["choices"] for row in rows]
    assert_samples_equal_reference(
        rows,
        [data.draw(TEXT) for _ in rows],
        [[data.draw(LOGLIKELIHOOD) for _ in texts] for texts in choices],
        [[data.draw(st.booleans()) for _ in texts] for texts in choices],
    )


# Where Python turns to scientific notation, and the ends of what a float is.
EDGES = [
    *(0.0, -0.0, 5e-324, -2.2250738585072014e-308, 1e-5, 1e-4, 0.00012345, 0.1 + 0.2),
    *(1e15, 9007199254740993.0, 1e16, 1e17, 123456789012345680.0, 1e22, sys.float_info.max),
]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=10, max_size=26))
@example(EDGES)
@settings(max_examples=100, deadline=None)
def test_floats_are_written_as_python_writes_them(values: list[float]) -> None:
    """In a document, by `json.dumps`; as log-likelihoods, by `str`."""
    row = {"question": "q", "choices": [str(value) for value in values], "answer": 0, "values": values}
    greedy = [False] * len(values)
    assert_samples_equal_reference([row], [""], [[-abs(value) for value in values]], [greedy])


@given(JSON, JSON)
@settings(max_examples=200, deadline=None)
def test_documents_are_written_as_python_writes_them(one: Any, other: Any) -> None:
    row = {"question": "q", "choices": ["a", "b"], "answer": 0, "one": one, "other": other}
    assert_samples_equal_reference([row], [""], [[-1.0, -math.inf]], [[True, False]])


def test_samples_of_another_task_are_refused(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["a", "b"], "answer": 0}
    prompts = Prompts.from_contexts(["", ""], [["A", "B"]] * 2, [0, 0])
    outcome = outcome_of(prompts, [-1.0, -2.0] * 2, [True] * 4)
    with pytest.raises(ValueError, match="1 questions, 2 prompts and 2 scored questions"):
        write_samples(tmp_path / "samples.jsonl", QuestionSet.from_rows([row]), prompts, outcome, ["acc"])
    with pytest.raises(ValueError, match='unknown metric "f1"'):
        write_samples(tmp_path / "samples.jsonl", QuestionSet.from_rows([row] * 2), prompts, outcome, ["f1"])
    assert list(tmp_path.iterdir()) == []
