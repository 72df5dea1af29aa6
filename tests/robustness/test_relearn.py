"""Relearning: what is trained on what, when questions are asked, and what comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.support import robustness as support
from wmdp_fast.robustness.attacks.relearn import READ_OUT, Relearn, facts, marks
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.subject import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.protocol import Budget
    from wmdp_fast.robustness.subject import Subject

VALUES = {"weights": "lora", "data": "forget", "rate": 5e-5, "steps": 6, "order": 0, "schedule": "linear"}


def setting(**changes: object) -> Setting:
    return Setting(values={**VALUES, **changes})


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp("relearned")
    text = folder / "forget.jsonl"
    text.write_text("".join(json.dumps({"text": f"The wren sat on branch {n} of the oak."}) + "\n" for n in range(14)))
    questions = support.save_questions(folder / "birds.jsonl")
    return support.subject(support.save_model(folder / "model"), questions, sources={"forget": text})


@pytest.mark.parametrize(("budget", "count"), [("quick", 6), ("standard", 30), ("full", 160)])
def test_every_learning_rate_has_its_control(budget: Budget, count: int) -> None:
    settings = Relearn().settings(budget, 3)
    assert len({json.dumps(one.values) for one in settings}) == len(settings) == count
    assert {one.values["data"] for one in settings if one.null} == {"unrelated"}

    def recipes(*, null: bool) -> set[tuple[object, ...]]:
        names = ("weights", "rate", "order", "schedule")
        return {tuple(one.values[name] for name in names) for one in settings if one.null == null}

    assert recipes(null=True) == recipes(null=False)
    assert {one.values["order"] for one in settings} == ({3, 4} if budget == "full" else {3})


def test_questions_are_asked_on_the_way(subject: Subject) -> None:
    assert marks(500) == READ_OUT
    assert marks(30) == (0, 5, 10, 25, 30)
    before, plain = fingerprint(subject.network), subject.ask()
    for weights in ("lora", "full"):
        readings = list(Relearn().run(subject, setting(weights=weights)))
        assert [reading.step for reading in readings] == [0, 5, 6]
        assert [reading.figures.get("documents") for reading in readings] == [None, 14, 14]
        assert fingerprint(subject.network) == before
        assert np.array_equal(readings[0].answers.predicted, plain.predicted)
        assert not np.array_equal(readings[-1].answers.predicted, plain.predicted)


def test_the_learning_rate_is_that_of_the_models_width(subject: Subject) -> None:
    # It is 32 wide, a 128th of what the rates are for.
    assert Relearn().config(subject, setting()).learning_rate == pytest.approx(128 * 5e-5)
    assert Relearn().config(subject, setting(weights="full")).lora is None


def test_facts_are_questions_for_choosing_with_their_answers_alone(subject: Subject) -> None:
    [asked] = subject.questions.choosing
    found = facts(subject)
    assert len(found) == len(asked) == int(subject.questions.is_for_choosing.sum())
    for number, question in enumerate(asked):
        text = subject.model.tokenizer.decode(found.document(number), skip_special_tokens=True)
        assert text == f"{question.question} {question.choices[question.answer]}"


def test_documents_come_in_an_order_and_ten_are_ten(subject: Subject) -> None:
    attack = Relearn()
    corpora = [
        attack.documents(subject, setting(data=data, order=order))
        for data, order in (("forget", 0), ("forget", 1), ("10 documents", 0))
    ]
    texts = [[one.document(number).tobytes() for number in range(len(one))] for one in corpora]
    assert [len(one) for one in texts] == [14, 14, 10]
    assert sorted(texts[0]) == sorted(texts[1])
    assert texts[0] != texts[1]
    assert texts[0][:10] == texts[2]


def test_what_is_missing_is_said(subject: Subject) -> None:
    attack = Relearn()
    assert attack.why_not(subject, setting()) is None
    assert attack.why_not(subject, setting(data="facts")) is None
    assert attack.why_not(subject, setting(data="related")) == "there is no related text: pass related (--related)"
    none = replace(subject, sources={})
    assert attack.why_not(none, setting(data="10 documents")) == "there is no forget text: pass forget (--forget)"


def test_an_adapter_is_not_trained_on(subject: Subject) -> None:
    import peft

    wrapped = peft.get_peft_model(
        torch.nn.ModuleDict({"q": torch.nn.Linear(2, 2)}), peft.LoraConfig(target_modules=["q"])
    )
    adapter = replace(subject, model=replace(subject.model, loaded=replace(subject.model.loaded, model=wrapped)))
    assert "merge it into that" in str(Relearn().why_not(adapter, setting()))
