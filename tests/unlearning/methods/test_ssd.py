"""SSD beside the paper's formulas in their plainest form."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import wmdp_fast as wf
from tests.reference.methods.ssd import dampened
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import DivergedError
from wmdp_fast.unlearning.methods.ssd import SSDConfig
from wmdp_fast.unlearning.methods.ssd_method import SSD

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import StepInput, StepOutput

CONFIG = SSDConfig(threshold=1.5, dampening=0.5, num_documents=8, batch_size=5, max_length=30, retain_max_length=24)


def cut(seed: int, max_length: int) -> list[list[int]]:
    return [row[:max_length] for row in runs.documents(seed)[:8]]


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
def test_weights_are_those_of_the_formula(family: str) -> None:
    config = dataclasses.replace(CONFIG, parameters="proj|mlp")
    result = runs.unlearn(runs.model(family), config)
    original = runs.model(family)
    names = {name: f"model.{name}" for name in result.tensors}
    plain = dampened(original, names.values(), cut(1, 30), cut(2, 24), alpha=1.5, dampening=0.5)
    changed = 0
    for mine, name in names.items():
        expected = plain.get_parameter(name).detach()
        torch.testing.assert_close(result.tensors[mine], expected, rtol=1e-5, atol=1e-5)
        changed += int((expected != original.get_parameter(name)).sum())
    share = changed / sum(one.numel() for one in result.tensors.values())
    assert 0.05 < share < 0.95
    assert result.metrics[0]["dampened"] == pytest.approx(share, abs=1e-3)
    assert result.metrics[0]["tokens"] == sum(map(len, cut(1, 30) + cut(2, 24)))


def test_batches_have_no_influence_and_topics_are_taken_together() -> None:
    results = [runs.unlearn(runs.model("llama"), dataclasses.replace(CONFIG, batch_size=size)) for size in (2, 7)]
    rows = runs.documents(1)
    parts = [runs.corpus(rows[:4]), runs.corpus(rows[4:8])]
    retain = runs.corpus(runs.documents(2))
    results.append(wf.unlearn(runs.model("llama"), forget=parts, retain=retain, config=CONFIG, progress=False))
    for name, tensor in results[0].tensors.items():
        for other in results[1:]:
            assert torch.equal(tensor, other.tensors[name])
    assert [one.findings.record["documents"] for one in results] == [{"forget": 8, "retain": 8}] * 3


def test_bfloat16_weights_are_rounded_once() -> None:
    # Many factors are so near to 1 that they are lost in rounding.
    config = dataclasses.replace(CONFIG, parameters="mlp.up_proj", threshold=1.0, dampening=1.0)
    result = runs.unlearn(runs.model("llama", torch.bfloat16), config)
    before = runs.model("llama", torch.bfloat16).model
    changed = [(tensor != before.get_parameter(name)).flatten() for name, tensor in result.tensors.items()]
    assert result.metrics[0]["dampened"] == pytest.approx(float(torch.cat(changed).float().mean()), rel=1e-6)
    for name, tensor in result.tensors.items():
        assert tensor.dtype == torch.bfloat16
        ratio = tensor.float() / before.get_parameter(name).detach().float()
        assert float(ratio.max()) <= 1
        assert 0.05 < float((ratio < 1).float().mean()) < 0.95


def test_it_is_killed_and_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = runs.folder_with_tokenizer(tmp_path / "base", "llama")
    with monkeypatch.context() as patch:
        patch.setattr(SSD, "findings", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(base, CONFIG, output=tmp_path / "out")

    def again(_self: SSD, _given: StepInput) -> StepOutput:
        raise AssertionError("the step was done before")

    with monkeypatch.context() as patch:
        patch.setattr(SSD, "step", again)
        runs.unlearn(base, CONFIG, output=tmp_path / "out", resume=True)
    runs.unlearn(base, CONFIG, output=tmp_path / "straight")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("base", "out", "straight")]
    assert files[0] != files[1] == files[2]
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["documents"] == {"forget": 8, "retain": 8}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Without training, {record['dampened']:.2%} of the weights above were made smaller" in card
    assert "more than 1.5 times as large on 8 documents of the forget corpora as on 8 of the retain" in card


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -1}, "threshold must be a number of at least 0"),
        ({"dampening": float("nan")}, "dampening must be a number of at least 0"),
        ({"num_documents": 0}, "num_documents must be a whole number of at least 1"),
        ({"learning_rate": 1e-3}, "ssd changes the weights once, without an optimizer: learning_rate cannot be set"),
        ({"max_steps": 2}, "max_steps cannot be set"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSDConfig(**settings)


def test_what_cannot_be_done_is_said() -> None:
    model = runs.model("llama")
    short = runs.corpus([[5], [6], [7]])
    with pytest.raises(ValueError, match="two tokens or more"):
        wf.unlearn(model, forget=short, retain=runs.corpus(runs.documents(2)), config=CONFIG, progress=False)
    nothing = dataclasses.replace(CONFIG, threshold=1e9)
    verdict = runs.unlearn(model, nothing).findings.verdict
    assert verdict is not None
    assert verdict.startswith("this run unlearned nothing")
    assert verdict.endswith("Lower threshold, or lower dampening")


def test_a_step_beyond_the_budget_is_taken_back(tmp_path: Path) -> None:
    base = runs.folder_with_tokenizer(tmp_path / "base", "llama")
    with pytest.warns(wf.WmdpFastWarning, match="nothing was unlearned\\. Take other settings of ssd"):
        result = runs.unlearn(base, CONFIG, output=tmp_path / "out", max_kl=1e-6)
    assert result.best_step == 0
    assert str(result.findings.verdict).endswith("Take other settings of ssd, with which weights change less")
    assert result.findings.record["dampened"] == 0
    assert result.metrics[0]["dampened"] > 0.05
    assert "0.00% of the weights above were made smaller" in (tmp_path / "out" / "README.md").read_text()


def test_gradients_that_overflow_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from wmdp_fast.unlearning.language_model import LanguageModel

    gradients = LanguageModel.gradients

    def too_large(self: LanguageModel, *given: Any, **more: Any) -> dict[str, torch.Tensor]:
        return {name: one * float("inf") for name, one in gradients(self, *given, **more).items()}

    monkeypatch.setattr(LanguageModel, "gradients", too_large)
    monkeypatch.setattr(LanguageModel, "why_padded", lambda *_: None)
    with pytest.raises(DivergedError, match="compute in float32"):
        runs.unlearn(runs.model("llama"), CONFIG)
