"""Models whose layers are read when their turn comes: equal to those in memory, to the bit, or refused."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

from tests.support import tiny_models
from wmdp_fast.checkpoints.weight_files import weight_files
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.load import load_model
from wmdp_fast.models.skeleton import build_skeleton
from wmdp_fast.models.streamed import stream
from wmdp_fast.models.sweep import capture, finish, run_layers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wmdp_fast.models.streamed import StreamedModel

FAMILIES = (*tiny_models.TRIE_FAMILIES, *tiny_models.PADDED_FAMILIES)

BATCHES = tuple(
    torch.arange(1, 1 + rows * length).view(rows, length) % 600 for rows, length in ((1, 7), (2, 5), (1, 20))
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family, in several files."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("streamed") / family
        tiny_models.build(family).save_pretrained(folders[family], max_shard_size="40KB")
    return folders


def streamed(folder: Path, dtype: torch.dtype | None = None) -> StreamedModel:
    files = weight_files(folder)
    assert files is not None
    return stream(build_skeleton(str(folder), {}, files, dtype, torch.device("cpu")), memory=1 << 40)


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(tokens, use_cache=False).logits
    return found


def swept(model: StreamedModel, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The logits of batches, layer by layer over all of them."""
    decoder = model.skeleton.decoder
    with torch.no_grad():
        with model.embedding():
            model.read_ahead()
            caught = [capture(decoder, partial(logits, model.skeleton.model, one), model.form) for one in batches]
        run_layers(model.order, model.layer, caught)
        with model.head():
            return [finish(decoder, one) for one in caught]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_in_memory(family: str, saved: dict[str, Path]) -> None:
    whole = AutoModelForCausalLM.from_pretrained(saved[family]).eval().requires_grad_(False)
    model = streamed(saved[family])
    with torch.no_grad():
        expected = [logits(whole, one) for one in BATCHES]
        with model.on_demand():
            on_demand = [logits(model.skeleton.model, one) for one in BATCHES]
    for found in (on_demand, swept(model, BATCHES)):
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    numbers = [name for name, one in model.skeleton.model.named_parameters() if not one.is_meta]
    assert not [name for name in numbers if "layers." in name or "h." in name or "embed" in name or "lm_head" in name]
    assert model.cost.bytes_read > sum(part.stored_bytes for part in model.skeleton.layers)


def test_layers_of_each_kind_are_tried(saved: dict[str, Path]) -> None:
    assert streamed(saved["llama"]).one_of_each().order == (0,)
    assert streamed(saved["gemma2"]).one_of_each().order == (0, 1)
    assert streamed(saved["deepseek_v3"]).one_of_each().order == (0, 1)


def test_a_model_that_changes_what_a_layer_returns_is_refused(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden) * 2
        return hidden

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="LlamaModel changes what layer 0 returns before layer 1 is given it"):
        streamed(saved["llama"])


def test_a_model_that_calls_its_layers_in_another_order_is_refused(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.embed_tokens(input_ids)
        for layer in reversed(self.layers):
            hidden = layer(hidden)
        return hidden

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="LlamaModel calls layer 1 out of turn"):
        streamed(saved["llama"])


@pytest.mark.parametrize("damage", ["missing tensor", "missing file", "other shape", "cut off", "quantized"])
def test_damage_is_said_as_of_a_model_in_memory(damage: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    config = AutoConfig.from_pretrained(saved["llama"])
    model = tiny_models.build("llama")
    tensors = dict(model.state_dict())
    if damage == "missing tensor":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif damage == "other shape":
        config.intermediate_size = 56
    elif damage == "quantized":
        config.quantization_config = {"quant_method": "fp8"}
    model.save_pretrained(folder, state_dict=tensors, max_shard_size="40KB")
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    shard = folder / sorted(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())[1]
    if damage == "missing file":
        shard.unlink()
    elif damage == "cut off":
        shard.write_bytes(shard.read_bytes()[:-100])
    if damage == "quantized":
        with pytest.raises(ModelError, match="is quantized \\('fp8'\\), which is not streamed"):
            streamed(folder)
        return
    with pytest.raises(ModelError) as of_memory:
        load_model(str(folder), tokenizer=tiny_models.tokenizer(), device="cpu")
    with pytest.raises(ModelError) as of_stream:
        streamed(folder)
    if damage == "cut off":
        assert shard.name in str(of_stream.value)
    else:
        assert str(of_stream.value) == str(of_memory.value)
