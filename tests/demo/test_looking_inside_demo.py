"""What RMU hides from the embedded model's answers is behind one direction, as long as it is not damaged."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.demo.unlearning import demo_config, retain_texts
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.robustness.attacks.ablate import Ablate
from wmdp_fast.robustness.attacks.probe import Probe
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.subject import Subject
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from pathlib import Path

CHANCE = 0.25


def asked(domain: demo.Domain, limit: int) -> PromptOptions:
    return PromptOptions(tasks=[str(demo.questions_path(domain))], template="mmlu", limit=limit)


def opened(folder: Path) -> AttackedModel:
    return AttackedModel(model=folder, load=LoadOptions(device="cpu", dtype="float32"), score=ScoreOptions())


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Unlearned by half the demonstration's steering: with all of it the facts are damaged, not only hidden."""
    folder: Path = tmp_path_factory.mktemp("unlearned")
    retain = folder / "retain.jsonl"
    retain.write_text("".join(json.dumps({"text": text}) + "\n" for text in retain_texts()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wf.WmdpFastWarning)
        wf.unlearn(
            demo.model_path(),
            forget=demo.corpus_path("forget"),
            retain=retain,
            config=replace(demo_config(), max_steps=100, steering_coeff="auto:5"),
            output=folder / "model",
            progress=False,
        )
    return Subject(
        role="unlearned",
        model=opened(folder / "model").open(),
        questions=Questions.from_options(asked("forget", 200)),
        test=Utility(questions=Questions.from_options(asked("retain", 60), split=False)),
        original=opened(demo.model_path()).open,
    )


@pytest.mark.slow
def test_without_its_direction_a_model_knows_again_and_without_a_random_one_it_does_not(subject: Subject) -> None:
    chosen = subject.questions.is_for_choosing
    known = float(subject.questions.answers(opened(demo.model_path()).open()).correct[~chosen].mean())
    forgotten = max(CHANCE, float(subject.ask().correct[~chosen].mean()))
    assert known - forgotten > 0.2
    settings = [one for one in Ablate().settings("quick", 0) if one.values["direction"] == "utility questions"]
    readings = [reading for setting in settings for reading in Ablate().run(subject, setting)]
    kept = [one for one in readings if one.utility is not None and one.utility["acc"] > 0.9]
    best = max(kept, key=lambda one: one.answers.correct[chosen].sum())
    assert best.answers.correct[~chosen].mean() - forgotten >= 0.6 * (known - forgotten)
    null = Setting(values={"direction": "random", "way": "all", "count": 5, "seed": 0}, null=True)
    [random] = Ablate().run(subject, null)
    assert np.abs(np.array(random.figures["reported"]) - forgotten).max() < 0.25 * (known - forgotten)


@pytest.mark.slow
def test_probes_with_shuffled_answers_are_at_chance(subject: Subject) -> None:
    values = {"form": "claims", "answers": "shuffled", "layers": 2, "seed": 0}
    [reading] = Probe().run(subject, Setting(values=values, null=True))
    assert abs(reading.answers.correct.mean() - CHANCE) < 0.1  # three standard errors
    assert abs(reading.figures["ranked"] - 0.5) < 0.12
