"""What methods with a forget and a retain loss share: going on after an interruption, what is found, the card."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
import torch

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SHORT_CORPORA
from tests.support.method_twins import SETTINGS
from wmdp_fast.exceptions import DivergedError, WmdpFastWarning
from wmdp_fast.unlearning.methods.effect import Effect, advice
from wmdp_fast.unlearning.methods.finetune import FinetuneConfig
from wmdp_fast.unlearning.methods.forget_retain import ForgetRetain
from wmdp_fast.unlearning.methods.graddiff import GradDiffConfig
from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.methods.npo_sam import NPOSAMConfig
from wmdp_fast.unlearning.methods.sharpness_aware import SharpnessAware
from wmdp_fast.unlearning.methods.simnpo import SimNPOConfig

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import StepInput, StepOutput
    from wmdp_fast.unlearning.methods.config import LanguageModelConfig

CONFIGS = (
    GradDiffConfig(**SETTINGS, save_every=2),
    NPOConfig(**SETTINGS, save_every=2, retain_loss="kl"),
    NPOConfig(**SETTINGS, save_every=3, reduction="batch_mean_padded"),
    SimNPOConfig(**SETTINGS, save_every=2, grad_accum=2),
    FinetuneConfig(**SETTINGS, save_every=3, gradient_checkpointing=True),
    NPOSAMConfig(**SETTINGS, save_every=2, dtype="float32"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    model = runs.model("llama", torch.bfloat16)
    model.resize_token_embeddings(640)
    model.save_pretrained(folder)
    tokenizers_zoo.tokenizer("llama3").save_pretrained(folder)
    return folder


@SHORT_CORPORA
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method_name)
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    config: LanguageModelConfig, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = SharpnessAware if isinstance(config, NPOSAMConfig) else ForgetRetain
    step = method.step
    # Whichever it is, the state is of a step before.
    killed = 3 + len(config.method_name) % 4

    def interrupted(self: ForgetRetain, given: StepInput) -> StepOutput:
        if given.index == killed:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(method, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(base, config, output=tmp_path / "out")
    resumed = runs.unlearn(base, config, output=tmp_path / "out", resume=True)
    straight = runs.unlearn(base, config, output=tmp_path / "straight")
    assert resumed.findings == straight.findings
    assert [row["step"] for row in resumed.metrics] == [row["step"] for row in straight.metrics]
    for name in ("delta.safetensors", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_run_tells_what_it_did(base: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS[1], learning_rate=1e-12)
    with pytest.warns(WmdpFastWarning, match="this run unlearned nothing: on unseen forget documents the loss is"):
        result = runs.unlearn(base, config, output=tmp_path / "out")
    (effect,) = result.findings.record["effects"]
    assert effect["forget_nll"] == effect["forget_nll_before"]
    assert effect["retain_kl"] == 0.0
    assert not effect["forgotten"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "NPO (Zhang et al. 2024, arXiv:2404.05868)" in card
    assert "On unseen forget documents the loss is" in card
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert Effect.from_json(record["effects"][0]) == Effect.from_json(effect)


def test_damage_is_told_from_forgetting() -> None:
    effect = Effect(0, True, 6.0, 3.0, 3.0, 3.0, 0.01)
    nothing = dataclasses.replace(effect, forget_nll=3.05)
    damaged = dataclasses.replace(effect, retain_nll=3.6)
    assert advice([effect], forgets=True) is None
    assert "unlearned nothing" in str(advice([nothing], forgets=True))
    assert advice([nothing], forgets=False) is None
    assert "damaged what it should keep" in str(advice([damaged], forgets=True))
    both = dataclasses.replace(damaged, forget_nll=3.0)
    assert "did not unlearn what it should forget, and damaged" in str(advice([both], forgets=True))


def test_a_loss_that_diverges_stops_the_run_and_says_what_to_lower() -> None:
    config = GradDiffConfig(**SETTINGS | {"learning_rate": 1e37})
    with pytest.raises(DivergedError, match=r"lower the learning rate \(now 1e\+37\), then lower forget_weight"):
        runs.unlearn(runs.model("llama"), config)


def test_several_topics_have_references_of_their_own() -> None:
    corpora = [runs.corpus(runs.documents(seed), str(seed)) for seed in (1, 3)]
    retain = runs.corpus(runs.documents(2))
    result = wf.unlearn(
        runs.model("llama"), forget=corpora, retain=retain, config=NPOConfig(**SETTINGS), progress=False
    )
    assert [row["topic"] for row in result.metrics] == [0, 1] * 4
    # Nothing has been learned before the first step, whose learning rate is 0, and the second one.
    for row in result.metrics[:2]:
        assert row["forget_loss"] == pytest.approx(2 / 0.1 * 0.693147)
    assert len(result.findings.record["effects"]) == 2
