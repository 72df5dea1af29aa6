"""SCRUB beside its plain form: two models, whole logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import wmdp_fast as wf
from tests.reference.methods.scrub import Scrub
from tests.support import unlearning_runs as runs
from tests.support.method_twins import SETTINGS, assert_same_as_plain, assert_trained_as_plain
from wmdp_fast.unlearning.methods.scrub import SCRUBConfig
from wmdp_fast.unlearning.methods.scrub_method import SCRUB

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import StepInput, StepOutput

CONFIG = SCRUBConfig(**SETTINGS, kl_weight=0.3, retain_weight=0.7, temperature=2.0, forget_share=0.75)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_it_is_the_plain_one(family: str) -> None:
    assert_same_as_plain(family, CONFIG, plain())


def test_it_is_the_plain_one_of_a_mixture() -> None:
    """In float64: where an expert has seen next to no token, AdamW makes whole steps of what float32 loses in p - p0.

    There either one is up to 1e-4 away from what it gives in float64. What is left is transformers' own float32, in
    norms and routers.
    """
    model = runs.model("mixtral", torch.float64)
    model.set_experts_implementation("eager")
    assert_trained_as_plain(model, runs.documents(1), runs.documents(2), CONFIG, plain())


def plain() -> Scrub:
    return Scrub(max_until=6, alpha=0.3, gamma=0.7, temperature=2.0)


def test_topics_have_their_own_turns() -> None:
    corpora = [runs.corpus(runs.documents(seed), str(seed)) for seed in (1, 3)]
    lines: list[str] = []
    result = wf.unlearn(
        runs.model("llama"), forget=corpora, retain=runs.corpus(runs.documents(2)), config=CONFIG, progress=False,
        note=lines.append,
    )  # fmt: skip
    kinds = ["max" if row["retain_loss"] == 0 else "min" for row in result.metrics]
    assert kinds == ["min", "min", "max", "max", "min", "min", "min", "min"]
    assert [row["forget_loss"] == 0 for row in result.metrics] == [kind == "min" for kind in kinds]
    assert "2 of 8 steps are max steps on forget documents, the others min steps on retain documents" in lines
    for row in result.metrics:
        if row["retain_loss"] == 0:
            assert row["forget_loss"] == pytest.approx(-4 * row["kl"])
        else:
            assert row["retain_loss"] == pytest.approx(0.7 * row["nll"] + 0.3 * 4 * row["kl"])


def test_it_is_killed_and_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = runs.folder_with_tokenizer(tmp_path / "base", "llama")
    config = SCRUBConfig(**SETTINGS | {"max_steps": 5}, save_every=2, forget_share=1.0)
    step = SCRUB.step

    def interrupted(self: SCRUB, given: StepInput) -> StepOutput:
        if given.index == 3:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(SCRUB, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(base, config, output=tmp_path / "out")
    runs.unlearn(base, config, output=tmp_path / "out", resume=True)
    runs.unlearn(base, config, output=tmp_path / "straight")
    for name in ("delta.safetensors", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "after 5 steps of SCRUB (Kurmanji et al. 2023, arXiv:2302.09880)" in card


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget_share": 1.5}, "forget_share is a share of the steps, from 0 to 1, not 1.5"),
        ({"temperature": 0}, "temperature must be a number above 0"),
        ({"kl_weight": 0, "retain_weight": 0}, "kl_weight and retain_weight are both 0, so min steps would do nothing"),
        ({"reduction": "sum"}, "reduction of scrub must be one of sequence_mean, not 'sum'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SCRUBConfig(**settings)


def test_runs_of_other_lengths_have_other_steps() -> None:
    assert SCRUBConfig(schedule="constant", warmup=0).depends_on_total
    assert not SCRUBConfig(schedule="constant", warmup=0, forget_share=0).depends_on_total
