"""Gated feed-forward blocks computed in parts by oneDNN, or with one pass between torch's products."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.support import tiny_models
from tests.support.replaced_parts import assert_close, logits, replaced
from wmdp_fast.models.fused import linear
from wmdp_fast.models.fused.gates import GATED_BLOCKS
from wmdp_fast.models.fused.trials import ModulePart, Trials, replaced_modules
from wmdp_fast.runtime import environment

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from wmdp_fast.models.fused.trials import Compute


@pytest.fixture(autouse=True, params=["oneDNN", "one pass"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Processors on which blocks are computed by oneDNN, and with one pass between torch's products."""
    found: str = request.param
    if found == "oneDNN" and not linear.is_available():
        pytest.skip("this torch or this processor is left as it is")
    monkeypatch.setattr(environment, "is_intel", lambda: found != "oneDNN")
    monkeypatch.setattr(environment, "has_avx512", lambda: True)
    return found


def gated_blocks(model: nn.Module) -> AbstractContextManager[None]:
    return replaced_modules(model, (GATED_BLOCKS,))


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # swish and gelu
def test_gated_blocks_are_found(family: str) -> None:
    model = tiny_models.build(family)
    with gated_blocks(model):
        assert {"model.layers.0.mlp", "model.layers.1.mlp"} == replaced(model)


def test_a_block_that_does_more_is_left_alone() -> None:
    model = tiny_models.build("llama")
    kind = type(model.model.layers[0].mlp)

    class Doubled(kind):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for layer in model.model.layers:
        layer.mlp.__class__ = Doubled
    expected = logits(model)
    with gated_blocks(model):
        assert not replaced(model)
        assert_close(logits(model), expected)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inner=st.sampled_from([1, 255, 256, 257, 2100]),
    bias=st.booleans(),
    tokens=st.integers(0, 80),
    strided=st.booleans(),
)
def test_a_gated_block(inner: int, bias: bool, tokens: int, strided: bool) -> None:
    config = LlamaConfig(hidden_size=32, intermediate_size=inner, mlp_bias=bias)
    block = LlamaMLP(config)
    if bias:
        for one in (block.gate_proj, block.up_proj, block.down_proj):
            nn.init.normal_(one.bias)
    rows = torch.randn(1, tokens, 64)[..., ::2] if strided else torch.randn(1, tokens, 32)
    with torch.no_grad():
        expected = block(rows)
        with gated_blocks(block):
            assert "" in replaced(block)
            found = block(rows)
    assert found.shape == expected.shape
    if expected.numel():
        assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_gated_block_of_another_dtype_is_left_alone(dtype: torch.dtype) -> None:
    block = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48)).to(dtype)
    with gated_blocks(block):
        assert replaced(block) == set()


@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "quick_gelu", "gelu", "relu", "tanh"])
def test_other_activations_than_there_is_code_for_are_left_to_torch(name: str, way: str) -> None:
    block = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=300, hidden_act=name))
    rows = 8 * torch.randn(1, 7, 32)
    with torch.no_grad():
        expected = block(rows)
        with gated_blocks(block):
            assert ("" in replaced(block)) == (way == "oneDNN" or name in ("silu", "gelu_pytorch_tanh", "quick_gelu"))
            assert_close(block(rows), expected)


class Swish(nn.Module):
    """With a slope that its class does not tell."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.slope * x)


def test_activations_of_one_class_that_differ_are_told_apart(way: str) -> None:
    blocks = nn.ModuleList(LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48)) for _ in range(2))
    for block, slope in zip(blocks, (1.0, 1.5), strict=True):
        block.act_fn = Swish(slope)
    rows = 8 * torch.randn(1, 7, 32)
    with torch.no_grad():
        expected = [block(rows) for block in blocks]
        with gated_blocks(blocks):
            assert replaced(blocks) == ({"0", "1"} if way == "oneDNN" else {"0"})
            for block, one in zip(blocks, expected, strict=True):
                assert_close(block(rows), one)


def test_hooks_on_parts_are_called() -> None:
    for part in ("act_fn", "gate_proj", "down_proj"):
        block = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48))
        called = []
        getattr(block, part).register_forward_hook(lambda *_args, part=part, called=called: called.append(part))
        with gated_blocks(block), torch.no_grad():
            block(torch.randn(1, 3, 32))
        assert called == [part]


def test_blocks_that_are_alike_are_tried_once() -> None:
    blocks = [LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48)) for _ in range(3)]
    tanh = partial(nn.functional.gelu, approximate="tanh")
    for block, activation in zip(blocks, (nn.functional.silu, tanh, nn.functional.silu), strict=True):
        del block.act_fn
        block.act_fn = activation
    tried = []

    def prove(block: nn.Module) -> Compute | None:
        tried.append(block)
        return GATED_BLOCKS.prove(block)

    part, trials = ModulePart(GATED_BLOCKS.alike, prove), Trials()
    for _ in range(2):
        with replaced_modules(nn.ModuleList(blocks), (part,), trials):
            assert all(replaced(block) == {""} for block in blocks)
    assert tried == blocks[:2]
