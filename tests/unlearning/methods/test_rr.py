"""RR against the plain algorithm, and what is peculiar to it: its layers, its weights over a run, its first step."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
import torch

from tests.reference.methods import training
from tests.reference.methods.rr import Rerouting as PlainRerouting
from tests.reference.methods.rr import layer_outputs
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.unlearning.methods.rerouting import Rerouting
from wmdp_fast.unlearning.methods.rr import PRESETS, RRConfig

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import StepInput, StepOutput

CONFIG = RRConfig(
    target_layers=(1, 2),
    rerouting_coeff=10.0,
    learning_rate=1e-3,
    schedule="linear",
    batch_size=2,
    max_steps=8,
    max_length=30,
    retain_max_length=30,
    save_every=3,
)


# Learning rates at which these models, whose weights are large, do not make much of a rounding error.
@pytest.mark.parametrize(
    ("family", "parameters", "rate"),
    [("llama", "mlp.down_proj", 1e-4), ("mixtral", "self_attn", 3e-4), ("gemma3_text", "mlp", 1e-3)],
)
def test_losses_and_weights_are_those_of_the_plain_algorithm(family: str, parameters: str, rate: float) -> None:
    config = dataclasses.replace(CONFIG, parameters=parameters, learning_rate=rate)
    result = runs.unlearn(runs.model(family), config)
    plain = training.train(
        runs.model(family),
        runs.documents(1),
        runs.documents(2),
        PlainRerouting(CONFIG.target_layers, CONFIG.rerouting_coeff, steps=8, seed=CONFIG.seed),
        trained=f".{parameters}.",
        learning_rate=rate,
        steps=8,
        batch_size=2,
        max_length=30,
        pad=runs.PAD,
        warmup_steps=0,
    )
    for name, losses in (("forget_loss", plain.forget_losses), ("retain_loss", plain.retain_losses)):
        found = torch.tensor([row[name] for row in result.metrics])
        torch.testing.assert_close(found, torch.tensor(losses), rtol=1e-5, atol=1e-5)
    before, after = (dict(one.model.named_parameters()) for one in (runs.model(family), plain.model))
    assert {name for name, one in after.items() if not torch.equal(one, before[name])} == result.tensors.keys()
    assert max(float((after[name] - before[name]).detach().abs().max()) for name in after) > 4 * rate
    for name, tensor in result.tensors.items():
        differences = (tensor - after[name].detach()).abs()
        # Where a gradient is next to nothing, AdamW makes a part of a step of how it was rounded.
        assert float((differences > 1e-5).float().mean()) <= 1 / 500
        assert float(differences.max()) < rate


def test_a_killed_run_of_the_first_layers_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    straight = runs.unlearn(folder, CONFIG, output=tmp_path / "straight")
    step = Rerouting.step

    def interrupted(self: Rerouting, given: StepInput) -> StepOutput:
        assert self._setup.model is None
        assert len(self._setup.decoder.layers) == 3
        if given.index == 5:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Rerouting, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(folder, CONFIG, output=tmp_path / "out")
    resumed = runs.unlearn(folder, CONFIG, output=tmp_path / "out", resume=True)
    assert resumed.findings == straight.findings
    for path in (tmp_path / "straight").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    whole = runs.unlearn(runs.model("llama"), CONFIG)
    assert all(torch.equal(whole.tensors[name.removeprefix("model.")], one) for name, one in straight.tensors.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the outputs of layers 1, 2 were turned away from what they were" in card
    assert json.loads((tmp_path / "out" / "unlearn.json").read_text())["effects"] == straight.findings.record["effects"]


def test_it_reroutes_and_its_findings_are_those_of_the_weights() -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.02, max_steps=12)
    result = runs.unlearn(runs.model("llama"), config)
    (effect,) = result.findings.record["effects"]
    assert effect["rerouted"]
    assert effect["unseen"]
    assert effect["forget_cosine"] < 0.9
    rows = [training.Rows.of([row[:30] for row in runs.documents(seed)[24:26]], pad=runs.PAD) for seed in (1, 2)]
    model = runs.model("llama")
    with torch.no_grad():
        before = [layer_outputs(model, one) for one in rows]
        for name, tensor in result.tensors.items():
            model.model.get_parameter(name).copy_(tensor)
        now = [layer_outputs(model, one) for one in rows]
    cosines = [torch.cosine_similarity(now[0][layer], before[0][layer], dim=-1).relu() for layer in (1, 2)]
    assert effect["forget_cosine"] == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-4)
    shares = [((a - b).norm(dim=-1) / b.norm(dim=-1)) for a, b in zip(now[1][:3], before[1][:3], strict=True)]
    assert effect["retain_distance"] == pytest.approx(float(torch.stack(shares).mean()), rel=1e-4)


def test_a_step_does_nothing_to_layers_below_the_trained_ones_and_they_count_as_still() -> None:
    config = dataclasses.replace(CONFIG, update_layer_ids=(2,), target_layers=(2,), max_steps=3)
    result = runs.unlearn(runs.model("llama"), config)
    assert {name.split(".")[1] for name in result.tensors} == {"2"}
    # Noise of a hundredth of the length makes a cosine of 1 / sqrt(1 + 1e-4).
    assert result.metrics[0]["forget_cosine"] == pytest.approx(1 - 5e-5, abs=2e-5)
    assert [row["retain_distance"] > 0 for row in result.metrics] == [False, True, True]
    other = runs.unlearn(runs.model("llama"), dataclasses.replace(config, seed=7))
    assert any(not torch.equal(other.tensors[name], one) for name, one in result.tensors.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_layers": ()}, "target_layers is empty"),
        ({"target_layers": (-1,)}, "target_layers must be a whole number of at least 0, not -1"),
        ({"target_layers": (1, 1)}, "target_layers names a layer twice: 1, 1"),
        ({"update_layer_ids": ()}, "update_layer_ids is empty"),
        ({"update_layer_ids": (3,)}, "layer 3, which is above the highest target layer, 2"),
        ({"update_layer_ids": (2,)}, "target_layers has layer 1, which is below the lowest trained layer, 2"),
        ({"rerouting_coeff": 0}, "rerouting_coeff must be a number above 0"),
    ],
)
def test_layers_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **settings)


def test_a_model_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has 4 layers, 0 to 3; layer 19 does not exist"):
        runs.unlearn(runs.saved_model(tmp_path, "llama"), RRConfig(**PRESETS["llama-3-8b"].for_topics(1)))
