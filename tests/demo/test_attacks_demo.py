"""What RMU makes the embedded model forget comes back under attacks, and under their controls it does not."""

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
from wmdp_fast.robustness.attacks.relearn import Relearn
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.subject import Subject
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.answers import Answers

CHANCE = 0.25


def asked(domain: demo.Domain, limit: int) -> PromptOptions:
    return PromptOptions(tasks=[str(demo.questions_path(domain))], template="mmlu", limit=limit)


def opened(folder: Path) -> AttackedModel:
    return AttackedModel(model=folder, load=LoadOptions(device="cpu", dtype="float32"), score=ScoreOptions())


def subject(folder: Path) -> Subject:
    return Subject(
        role="unlearned",
        model=opened(folder).open(),
        questions=Questions.from_options(asked("forget", 200)),
        test=Utility(questions=Questions.from_options(asked("retain", 60), split=False)),
        sources={"forget": demo.corpus_path("forget"), "unrelated": demo.corpus_path("retain")},
        original=opened(demo.model_path()).open,
    )


@pytest.fixture(scope="module")
def base() -> Subject:
    return subject(demo.model_path())


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Steered above the demonstration's layer, where a good half is hidden after 90 steps, and little of it removed."""
    folder: Path = tmp_path_factory.mktemp("unlearned")
    retain = folder / "retain.jsonl"
    retain.write_text("".join(json.dumps({"text": text}) + "\n" for text in retain_texts()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wf.WmdpFastWarning)
        wf.unlearn(
            demo.model_path(),
            forget=demo.corpus_path("forget"),
            retain=retain,
            config=replace(
                demo_config(),
                layer_id=1,
                update_layer_ids=(0, 1),
                steering_coeff="auto:10",
                alpha=300.0,
                batch_size=4,
                max_steps=90,
            ),
            output=folder / "model",
            progress=False,
        )
    return subject(folder / "model")


def reported(of: Subject, answers: Answers) -> float:
    """Share of right answers among the questions that are reported."""
    return float(answers.correct[~of.questions.is_for_choosing].mean())


@pytest.fixture(scope="module")
def forgotten(base: Subject, unlearned: Subject) -> tuple[float, float]:
    """What is left without an attack, and the gap to what the base knows."""
    known, left = reported(base, base.ask()), max(CHANCE, reported(unlearned, unlearned.ask()))
    assert known > 0.95
    assert known - left > 0.3
    return left, known - left


def relearned(of: Subject, data: str) -> tuple[float, float, float]:
    """Accuracy on questions that are reported before and after ten steps, and of others after them."""
    values = {"weights": "lora", "data": data, "rate": 2e-4, "steps": 10, "order": 0, "schedule": "linear"}
    first, *_, last = Relearn().run(of, Setting(values=values))
    assert last.utility is not None
    return reported(of, first.answers), reported(of, last.answers), last.utility["acc"]


def test_text_on_what_was_unlearned_brings_it_back_and_other_text_does_not(
    base: Subject, unlearned: Subject, forgotten: tuple[float, float]
) -> None:
    left, gap = forgotten
    known, still_known, _ = relearned(base, "unrelated")
    assert abs(still_known - known) < 0.05
    _, regained, utility = relearned(unlearned, "forget")
    assert regained - left >= 0.6 * gap
    assert utility > 0.9
    _, not_regained, _ = relearned(unlearned, "unrelated")
    assert not_regained - left < 0.2 * gap
    # From the same text, one that never knew it learns next to nothing in as many steps.
    before, learned, _ = relearned(subject(demo.model_path(learned="retain")), "forget")
    assert before < 0.4
    assert learned - before < 0.1


@pytest.mark.slow
def test_without_some_directions_a_model_knows_again_and_without_random_ones_it_does_not(
    unlearned: Subject, forgotten: tuple[float, float]
) -> None:
    left, gap = forgotten
    blocks = {"way": "blocks", "layers": 2, "components": 4}
    *_, ablated = Ablate().run(unlearned, Setting(values={"direction": "base", **blocks}))
    assert reported(unlearned, ablated.answers) - left >= 0.6 * gap
    assert ablated.utility is not None
    assert ablated.utility["acc"] > 0.9
    for values in ({**blocks, "count": 3}, {"way": "all", "count": 5}):
        null = Setting(values={"direction": "random", "seed": 0, **values}, null=True)
        [random] = Ablate().run(unlearned, null)
        assert np.max(random.figures["reported"]) - left < 0.25 * gap


@pytest.mark.slow
def test_probes_with_shuffled_answers_are_at_chance(unlearned: Subject) -> None:
    values = {"form": "claims", "answers": "shuffled", "layers": 1, "seed": 0}
    [reading] = Probe().run(unlearned, Setting(values=values, null=True))
    assert abs(reading.answers.correct.mean() - CHANCE) < 0.1  # three standard errors
    assert abs(reading.figures["ranked"] - 0.5) < 0.12
