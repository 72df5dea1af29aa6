"""Gated feed-forward blocks computed in parts by oneDNN."""

from __future__ import annotations

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


pytestmark = pytest.mark.skipif(not linear.is_available(), reason="this torch or this processor is left as it is")


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor on which oneDNN is faster."""
    monkeypatch.setattr(environment, "is_intel", lambda: False)
    monkeypatch.setattr(environment, "has_avx512", lambda: True)


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


@pytest.mark.parametrize(("question", "answer"), [("is_intel", True), ("has_avx512", False)])
def test_processors_on_which_mkl_is_faster_stay_with_it(
    question: str, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, question, lambda: answer)
    block = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48))
    with gated_blocks(block):
        assert replaced(block) == set()


def test_blocks_that_are_alike_are_tried_once() -> None:
    blocks = [LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=48)) for _ in range(3)]
    for block, activation in zip(blocks, (nn.functional.silu, nn.functional.gelu, nn.functional.silu), strict=True):
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
