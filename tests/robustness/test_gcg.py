"""Greedy coordinate gradient: what is chosen in a step, what is asked, and on which questions it is searched for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.reference import gcg as plain
from tests.support import robustness as support
from tests.support.expected_warnings import LONG_PROMPTS
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness import coordinate_gradient
from wmdp_fast.robustness.attacks.catalog import attacks_of
from wmdp_fast.robustness.attacks.gcg import BATCH, GCG, _Search, decoded, printable
from wmdp_fast.robustness.insertion import SEPARATOR, Insertion
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.subject import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.subject import Subject

VALUES = {"tokens": 4, "steps": 6, "candidates": 6, "top_k": 16, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("searched")
    support.save_model(made / "model")
    support.save_questions(made / "birds.jsonl")
    return made


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    return support.subject(folder / "model", folder / "birds.jsonl")


def search(subject: Subject) -> _Search:
    return _Search.begun(Insertion(subject), printable(subject), VALUES, np.random.default_rng(0))


def test_a_step_is_that_of_one_hot_vectors(subject: Subject, folder: Path) -> None:
    found = search(subject)
    batch, begun, gold = list(found.places.heads)[:BATCH], found.tokens, subject.questions.gold
    found.waiting, found.rng = list(batch), np.random.default_rng(3)
    assert [len(choice) for choice in found.places.answers[batch[0]]] == [1, 1, 1, 2]
    prompts = [
        (found.places.heads[one], found.places.tails[one], found.places.answers[one], int(gold[one])) for one in batch
    ]
    expected = plain.gradient(subject.network, prompts, begun)
    gradient = coordinate_gradient.coordinate_gradient(subject, found.places, begun, batch)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    # What survives by transformers' own tokenizer.
    theirs = AutoTokenizer.from_pretrained(folder / "model")
    contexts = [found.insertion.context(one, "{}").split("{}") for one in batch]

    def survives(tokens: list[int]) -> bool:
        text = theirs.decode(tokens)
        return all(
            theirs(before + text + after)["input_ids"] == found.places.row(one, tokens)
            for one, (before, after) in zip(batch, contexts, strict=True)
        )

    chosen, loss = plain.step(subject.network, prompts, begun, found.allowed, 16, 6, np.random.default_rng(3), survives)
    found.step()
    assert found.tokens == chosen
    assert found.tokens != begun
    assert found.figures["loss"] == pytest.approx(loss, rel=1e-4)
    tried = found.figures["candidates"]
    assert found.figures["forward passes"] == BATCH * (1 + tried)
    assert found.figures["backward passes"] == BATCH


def test_candidates_that_are_read_as_other_tokens_are_left_out(subject: Subject) -> None:
    found, tokenizer = search(subject), subject.model.tokenizer
    texts = {tokenizer.decode([token]): int(token) for token in np.flatnonzero(found.allowed)}
    # A token in two parts that are tokens: the whole is what their text is read as.
    whole, parts = next(
        (token, (texts[text[:cut]], texts[text[cut:]]))
        for text, token in texts.items()
        for cut in range(1, len(text))
        if text[:cut] in texts and text[cut:] in texts and tokenizer.encode(text, add_special_tokens=False) == [token]
    )
    a, b, *_ = found.tokens
    drawn = [found.tokens, (*parts, a, b), (whole, a, b, b)]
    batch = list(found.places.heads)[:BATCH]
    tried = coordinate_gradient.tried(
        found.insertion, found.places, drawn, [decoded(subject, one) for one in drawn], batch
    )
    assert tried.survivors[0] == found.tokens
    assert (*parts, a, b) not in tried.survivors
    assert len(tried.losses) == len(tried.survivors)


def test_the_text_is_asked_in_front_of_the_question(subject: Subject) -> None:
    found = search(subject)
    text = decoded(subject, found.tokens)
    [asked], [own] = found.insertion.prompts(text), subject.questions.own(subject.model)[0]
    assert asked.context(3).replace(text + SEPARATOR, "") == own.context(3)
    assert asked.context(3).endswith(f"{text}{SEPARATOR}{own.context(3).removeprefix(own.prefix)}")
    requests = found.insertion.encoded([text], [3])
    row, letters = requests.context(0).tolist(), [requests.continuation(choice).tolist() for choice in range(4)]
    assert row == subject.model.tokenizer(asked.context(3))["input_ids"]
    scores = []
    for letter in letters:  # the last one is two tokens
        with torch.no_grad():
            predicted = subject.network(torch.tensor([[*row, *letter]])).logits[0].log_softmax(dim=-1)
        scores.append(sum(float(predicted[len(row) - 1 + place, token]) for place, token in enumerate(letter)))
    assert found.reading(0).answers.predicted[3] == int(np.argmax(scores))


@LONG_PROMPTS
def test_it_stands_before_the_question_itself_in_a_chat_and_behind_examples(subject: Subject, folder: Path) -> None:
    tokenizer = subject.model.tokenizer
    tokenizer.chat_template = "{% for one in messages %}[{{ one.role }}]{{ one.content | trim }}[/]{% endfor %}[answer]"
    tasks = [str(folder / "birds.jsonl")]
    examples = folder / "examples.jsonl"
    examples.write_text((folder / "birds.jsonl").read_text().replace("branch", "twig"))
    given = {"template": "mmlu", "fewshot_file": examples, "num_fewshot": 2}
    try:
        for options in (
            {**given, "apply_chat_template": True},
            {"template": "mmlu", "apply_chat_template": True},
            given,
        ):
            asked = replace(
                subject, questions=Questions.from_options(PromptOptions(tasks=tasks, max_length=512, **options))
            )
            [own], insertion = asked.questions.own(asked.model)[0], Insertion(asked)
            found = insertion.context(20, "<text>")
            assert found.replace(f"<text>{SEPARATOR}", "") == own.context(20)
            question = next(iter(asked.questions.read[0].questions.select([20]))).question
            assert f"<text>{SEPARATOR}{question}" in found
            if options.get("apply_chat_template"):
                assert found.rpartition("[user]")[2].startswith("<text>")
    finally:
        tokenizer.chat_template = None


def test_questions_for_choosing_alone_are_searched_on(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    encoded = Insertion.encoded

    def seeing(self, texts, questions):
        seen.update(questions)
        return encoded(self, texts, questions)

    monkeypatch.setattr(Insertion, "encoded", seeing)
    before, plain_answers = fingerprint(subject.network), subject.ask()
    readings = list(GCG().run(subject, Setting(values=VALUES)))
    assert seen
    assert subject.questions.is_for_choosing[sorted(seen)].all()
    assert [one.step for one in readings] == [0, 5, 6]
    assert fingerprint(subject.network) == before
    assert np.array_equal(subject.ask().predicted, plain_answers.predicted)
    again = list(GCG().run(subject, Setting(values=VALUES)))
    assert [one.figures for one in again] == [one.figures for one in readings]
    assert readings[-1].figures["text"] != readings[0].figures["text"]
    assert readings[-1].figures["questions cut"] == 0
    null = list(GCG().run(subject, Setting(values={"tokens": 4, "random": 3, "seed": 0}, null=True)))
    assert len({one.figures["text"] for one in null}) == 3


def test_tokens_that_cannot_be_typed_are_left_out(subject: Subject) -> None:
    allowed, tokenizer = printable(subject), subject.model.tokenizer
    assert not allowed[tokenizer.all_special_ids].any()
    texts = [tokenizer.decode([token]) for token in np.flatnonzero(allowed)]
    assert all(text.isprintable() and "\ufffd" not in text for text in texts)


def test_all_has_it_at_budget_full_alone() -> None:
    names = {budget: [one.name for one in attacks_of("all", budget)] for budget in ("quick", "standard", "full")}
    assert GCG.name in names["full"]
    assert GCG.name not in names["quick"] + names["standard"]
    assert GCG.name in [one.name for one in attacks_of("gcg", "quick")]
