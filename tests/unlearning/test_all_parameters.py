"""`parameters="all"`: embeddings, norms and a head are trained, saved and resumed as matrices of layers are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.ascent import Ascent, AscentConfig
from wmdp_fast.checkpoints.checkpoint import apply_delta

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import StepInput, StepOutput

CONFIG = AscentConfig(
    parameters="all", learning_rate=1e-3, batch_size=2, max_steps=3, max_length=20, save_every=1, master_weights=True
)


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32, *, tied: bool) -> Path:
    model = runs.model(family, dtype)
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    else:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    tokenizers_zoo.tokenizer("llama3").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "tied", "dtype"),
    [("llama", False, torch.bfloat16), ("gemma3_text", True, torch.float32), ("mixtral", True, torch.float32)],
)
def test_every_tensor_is_trained_and_saved(tmp_path: Path, family: str, tied: bool, dtype: torch.dtype) -> None:
    base = saved(tmp_path / "base", family, dtype, tied=tied)
    result = runs.unlearn(base, CONFIG, output=tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert ("lm_head.weight" in before) is not tied
    assert result.tensors.keys() == before.keys() == after.keys()
    # In bfloat16 a step may be too small to change a norm's weights of 4.
    assert [name for name in before if torch.equal(before[name], after[name]) and before[name].dim() > 1] == []
    apply_delta(base, tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()
    # What was trained in memory is what is loaded.
    model = AutoModelForCausalLM.from_pretrained(base)
    in_memory = runs.unlearn(model, CONFIG)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert in_memory.steps == 3
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_head_that_the_checkpoint_has_beside_its_embedding_is_written_too(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "llama", tied=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    result = runs.unlearn(base, CONFIG, output=tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], tensors["lm_head.weight"])
    assert "lm_head.weight" in result.tensors
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_with_masters_it_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(tmp_path / "base", "llama", torch.bfloat16, tied=True)
    notes: list[str] = []
    runs.unlearn(base, CONFIG, output=tmp_path / "straight", note=notes.append)
    assert [note for note in notes if "the optimizer keeps weights and moments in float32" in note]
    step = Ascent.step

    def interrupted(self: Ascent, given: StepInput) -> StepOutput:
        if given.index == 2:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Ascent, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(base, CONFIG, output=tmp_path / "out")
    runs.unlearn(base, CONFIG, output=tmp_path / "out", resume=True)
    for name in ("model.safetensors", "delta.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_failed_run_leaves_the_model_as_it_was() -> None:
    model = runs.model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Exception, match="diverged"):
        runs.unlearn(model, dataclasses.replace(CONFIG, learning_rate=1e38))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_method_that_runs_some_layers_refuses_it(tmp_path: Path) -> None:
    config = dataclasses.replace(runs.CONFIG, parameters="all")
    with pytest.raises(ValueError, match="all is for methods that run the whole model; rmu runs its first 3"):
        runs.unlearn(runs.saved_model(tmp_path, "llama"), config)
