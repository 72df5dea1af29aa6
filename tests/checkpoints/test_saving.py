"""Weights on disk are those that were measured, in a type that does not take back what training did."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import ONE_LETTER, VERDICTS
from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.checkpoints.saved_dtype import choose
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.unlearning.rmu.config import RMUConfig

pytestmark = [ONE_LETTER, VERDICTS]

SETTINGS = {
    "layer_id": 2,
    "steering_coeff": 2.0,
    "alpha": 50.0,
    "batch_size": 2,
    "max_steps": 4,
    "max_length": 30,
    "dtype": "float32",
}
TRAINED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2)]


@pytest.fixture
def base(tmp_path):
    """A bfloat16 checkpoint in several files, with a tokenizer and questions."""
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="60KB")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path / "base")
    rows = [
        {"question": f"What is {i}?", "choices": ["the wren", "an owl", "a jay", "a tit"], "answer": i % 4}
        for i in range(12)
    ]
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    return tmp_path / "base"


def stored(folder):
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("learning_rate", "wanted", "dtype", "warns"),
    [
        (1e-4, "auto", torch.float32, "saved in float32, not in the checkpoint's type: rounding to that would"),
        (0.05, "auto", torch.bfloat16, None),
        (1e-4, "checkpoint", torch.bfloat16, "rounding changes them by"),
        (0.05, "float32", torch.float32, "saved in float32"),
        (0.05, "float16", torch.float16, "saved in float16"),
    ],
)
def test_what_is_saved_is_what_was_measured(base, tmp_path, learning_rate, wanted, dtype, warns):
    config = RMUConfig(**SETTINGS, learning_rate=learning_rate, save_dtype=wanted)
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = runs.unlearn(
            base, config, output=tmp_path / "out", eval_tasks=str(tmp_path / "birds.jsonl"), note=notes.append
        )
    said = [str(one.message) for one in caught if "trained in float32" in str(one.message)]
    assert [warns in one for one in said] == ([] if warns is None else [True])
    before, after = stored(base), stored(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: dtype if name in TRAINED else torch.bfloat16 for name in before
    }
    assert all(torch.equal(before[name], after[name]) for name in before if name not in TRAINED)
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["saved"]["dtype"] == str(dtype).removeprefix("torch.")
    if warns is None:
        assert any("are saved in bfloat16, the checkpoint's" in note for note in notes)
    # Whoever loads it has the weights that the last evaluation measured, to the last bit.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name in TRAINED:
        assert torch.equal(loaded.state_dict()[name].float(), after[name].float())
        assert torch.equal(result.model.state_dict()[name], after[name].float())
    separate = wf.evaluate(tmp_path / "out", tasks=str(tmp_path / "birds.jsonl"), dtype="float32", progress=False)
    kept = wf.read_results(tmp_path / "out" / result.evaluations[-1]["results"])
    np.testing.assert_array_equal(
        kept["birds"].samples.loglikelihood, separate["birds"].outcome.loglikelihood, strict=True
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in after.values())
    apply_delta(base, tmp_path / "out", tmp_path / "again")
    for path in sorted((tmp_path / "out").iterdir()):
        if path.is_file():
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_in_a_sweep_points_are_measured_as_their_commands_save_them(base, tmp_path):
    config = RMUConfig(**{**SETTINGS, "mode": "masked"}, save_dtype="checkpoint")
    asked = {"forget_tasks": str(tmp_path / "birds.jsonl"), "retain_tasks": str(tmp_path / "birds.jsonl")}
    corpora = {"forget": runs.corpus(runs.documents(1)), "retain": runs.corpus(runs.documents(2))}
    result = wf.sweep(
        base,
        **corpora,
        over={"learning_rate": [2e-3], "max_steps": [2, 4]},
        config=config,
        **asked,
        output=tmp_path / "sweep",
        progress=False,
    )
    for index, run in enumerate(result.runs):
        alone = tmp_path / f"alone{index}"
        wf.unlearn(base, **corpora, config=result.config_of(index), output=alone, progress=False)
        separate = wf.evaluate(alone, tasks=str(tmp_path / "birds.jsonl"), dtype="float32", progress=False)
        kept = wf.read_results(tmp_path / "sweep" / run.results)
        np.testing.assert_array_equal(
            kept["birds"].samples.loglikelihood, separate["birds"].outcome.loglikelihood, strict=True
        )


def test_a_wide_checkpoint_loses_nothing(tmp_path):
    folder = runs.saved_model(tmp_path / "base", "llama")
    for dtype in ("float32", "bfloat16"):
        result = runs.unlearn(folder, RMUConfig(**{**SETTINGS, "dtype": dtype}, learning_rate=1e-3))
        assert (result.saving.lost, result.saving.reason) == (0.0, None)
        assert {tensor.dtype for tensor in result.tensors.values()} == {torch.float32}


def test_a_model_in_memory_is_saved_as_it_is():
    model = runs.model("llama", torch.bfloat16)
    config = {**SETTINGS, "dtype": "auto"}
    assert runs.unlearn(model, RMUConfig(**config, learning_rate=1e-3)).saving.reason is None
    with pytest.raises(ValueError, match="save_dtype is for a model on disk"):
        runs.unlearn(model, RMUConfig(**config, save_dtype="float32"))
    with pytest.raises(ValueError, match="save_dtype must be checkpoint or one of auto"):
        RMUConfig(save_dtype="int8")


def test_fused_experts_are_saved_in_the_wider_type_too(tmp_path):
    folder = runs.saved_model(tmp_path / "base", "mixtral", torch.bfloat16)
    config = RMUConfig(**SETTINGS, learning_rate=1e-4)
    with pytest.warns(WmdpFastWarning, match="saved in float32"):
        result = runs.unlearn(folder, config, output=tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert len(result.tensors) == 3 * 4
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    memory = runs.unlearn(whole, RMUConfig(**{**SETTINGS, "dtype": "auto"}, learning_rate=1e-4))
    for name, tensor in memory.tensors.items():
        assert torch.equal(loaded[f"model.{name}"], tensor)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]),
    st.sampled_from(["auto", "checkpoint", "float16", "bfloat16"]),
)
def test_what_rounding_loses_is_the_share_by_its_definition(seed, scale, wanted):
    generator = torch.Generator().manual_seed(seed)
    before = {name: torch.randn(7, generator=generator).bfloat16().float() for name in "ab"}
    after = {name: tensor + scale * torch.randn(7, generator=generator) for name, tensor in before.items()}
    kinds = {"a": torch.bfloat16, "b": torch.bfloat16}
    found = choose(wanted, after, before, kinds)
    old, new = (np.concatenate([one[name].numpy() for name in "ab"]).astype(np.float64) for one in (before, after))

    def lost(dtype):
        rounded = torch.from_numpy(new).float().to(dtype).double().numpy()
        return np.linalg.norm(new - rounded) / np.linalg.norm(new - old)

    assert found.lost_as_checkpoint == pytest.approx(lost(torch.bfloat16), rel=1e-4, abs=1e-12)
    if wanted == "auto":
        assert found.as_checkpoint == (found.lost_as_checkpoint <= 0.1)
        assert found.lost == (found.lost_as_checkpoint if found.as_checkpoint else 0.0)
    elif wanted == "float16":
        assert found.lost == pytest.approx(lost(torch.float16), rel=1e-4, abs=1e-12)


def test_an_exchanged_file_has_every_other_tensor_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    kinds = [torch.bfloat16, torch.float32, torch.float16, torch.int8, torch.bool]
    old = {f"t{i}": torch.from_numpy(rng.integers(0, 2, (i, 3))).to(kinds[i % 5]) for i in range(12)}
    save_file(old, tmp_path / "old.safetensors", metadata={"format": "pt"})
    new = {"t5": torch.rand(5, 3), "t1": torch.rand(1, 3).half()}
    tensor_file.exchange(tmp_path / "old.safetensors", tmp_path / "new.safetensors", new)
    found = load_file(tmp_path / "new.safetensors")
    assert found.keys() == old.keys()
    for name, tensor in (old | new).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "new.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
