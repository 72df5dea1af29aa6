"""The last layer, computed of the tokens that are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support import tiny_models
from wmdp_fast.models.decoder import unwatched_last_layer
from wmdp_fast.models.fused import fused_parts
from wmdp_fast.models.fused.last_layer import only_read_rows, reading, row_wise_parts
from wmdp_fast.models.fused.trials import Trials

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parts_of(model: PreTrainedModel) -> set[str]:
    """The names of what is computed of some rows."""
    layer = unwatched_last_layer(model)
    found = [] if layer is None else row_wise_parts(layer, Trials())
    return {name for name, module in model.named_modules() if module in found}


def hidden(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = model.base_model(torch.arange(1, 21).view(1, 20)).last_hidden_state
    return states


@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
@settings(deadline=None, max_examples=10)
@given(rows=st.sets(st.integers(0, 19), max_size=19))
def test_rows_that_are_read_are_those_of_the_whole_batch(family: str, rows: set[int]) -> None:
    model, read = tiny_models.build(family).eval(), torch.tensor(sorted(rows), dtype=torch.long)
    expected = hidden(model)
    with fused_parts(model, last_layer=unwatched_last_layer(model)):
        with reading(read, 20):
            found = hidden(model)
        everything = hidden(model)
    torch.testing.assert_close(found[:, read], expected[:, read], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(everything, expected, rtol=1e-4, atol=1e-5)
    assert found.isfinite().all()
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_others_are_left_out() -> None:
    model = tiny_models.build("llama").eval()
    block = model.model.layers[-1].mlp
    seen = []
    own = type(block).forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(block), "forward", lambda self, x: (seen.append(x.shape[1]), own(self, x))[1])
        with only_read_rows([block]), reading(torch.tensor([3, 19]), 20):
            hidden(model)
        with only_read_rows([block]), reading(torch.arange(16), 20):
            hidden(model)
    # Of 16 of 20 rows it is not worth while.
    assert seen == [20] * (len(model.model.layers) - 1) + [2] + [20] * len(model.model.layers)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_what_is_found(family: str) -> None:
    model = tiny_models.build(family).eval()
    last = len(model.model.layers) - 1
    names = {f"model.layers.{last}.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp")}
    assert parts_of(model) == names


class Mixing(nn.Module):
    """Makes something of the rows before a row, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1) * self.weight[0]


def test_a_block_that_mixes_rows_is_left_alone() -> None:
    layer = nn.Module()
    layer.mlp = Mixing()
    assert row_wise_parts(layer, Trials()) == []


@pytest.mark.parametrize("where", ["model.norm", "model.layers.-1", "model.layers.-1.mlp", ""])
def test_whoever_looks_at_all_rows_sees_all(where: str) -> None:
    model = tiny_models.build("llama").eval()
    where = where.replace("-1", str(len(model.model.layers) - 1))
    handle = model.get_submodule(where).register_forward_hook(lambda *_: None)
    assert unwatched_last_layer(model) is None
    handle.remove()
    model.model.layers[0].register_forward_hook(lambda *_: None)
    assert unwatched_last_layer(model) is model.model.layers[-1]
