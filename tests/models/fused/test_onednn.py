"""Products by oneDNN beside torch's default."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support import tiny_models
from tests.support.replaced_parts import assert_close, logits, replaced
from wmdp_fast.models.fused import linear
from wmdp_fast.models.fused.gates import GATED_BLOCKS
from wmdp_fast.models.fused.linear import LINEAR_LAYERS
from wmdp_fast.models.fused.trials import replaced_modules
from wmdp_fast.runtime import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


pytestmark = pytest.mark.skipif(not linear.is_available(), reason="this torch or this processor is left as it is")


@pytest.fixture(autouse=True, scope="module")
def _where_onednn_is_faster() -> Iterator[None]:
    """Elsewhere MKL is; what oneDNN computes is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "is_intel", lambda: False)
        patch.setattr(environment, "has_avx512", lambda: True)
        yield


def onednn_linears(model: nn.Module) -> AbstractContextManager[None]:
    return replaced_modules(model, (LINEAR_LAYERS,))


def onednn_products(model: nn.Module) -> AbstractContextManager[None]:
    return replaced_modules(model, (LINEAR_LAYERS, GATED_BLOCKS))


@settings(deadline=None)  # the first product of a shape has its code made
@given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    widths=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_a_linear_layer(shape: list[int], widths: tuple[int, int], bias: bool, strided: bool) -> None:
    layer = nn.Linear(*widths, bias=bias)
    rows = torch.randn(*shape, widths[0] * 2)[..., ::2] if strided else torch.randn(*shape, widths[0])
    with torch.no_grad():
        expected = layer(rows)
        with onednn_products(layer):
            assert replaced(layer) == {""}
            found = layer(rows)
    assert found.shape == expected.shape
    if expected.numel():
        assert_close(found, expected)


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    widths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    bias=st.booleans(),
    trained=st.booleans(),
)
def test_the_gradient_of_a_linear_layer(shape: list[int], widths: tuple[int, int], bias: bool, trained: bool) -> None:
    layer = nn.Linear(*widths, bias=bias).requires_grad_(trained)
    rows = torch.randn(*shape, widths[0]).requires_grad_()
    wanted = [rows, *(layer.parameters() if trained else ())]
    weights = torch.randn(*shape, widths[1])
    expected = torch.autograd.grad((layer(rows) * weights).sum(), wanted)
    with onednn_linears(layer):
        assert replaced(layer) == {""}
        product = layer(rows)
    with torch.no_grad(), onednn_linears(layer):
        assert torch.equal(layer(rows), product)
    absolute, positive = copy.deepcopy(layer), rows.detach().abs().requires_grad_()
    for parameter in absolute.parameters():
        parameter.data.abs_()
    sizes = torch.autograd.grad(
        (absolute(positive) * weights.abs()).sum(), [positive, *(absolute.parameters() if trained else ())]
    )
    gradients = torch.autograd.grad((product * weights).sum(), wanted)
    for found, other, size in zip(gradients, expected, sizes, strict=True):
        assert_close(found, other, float(size.max()))


@pytest.mark.parametrize("width", [1, 191, 192, 193, 1400])
@pytest.mark.parametrize("rows", [(), (3,), (2, 5)])
def test_a_linear_layer_whose_sums_are_cut(width: int, rows: tuple[int, ...]) -> None:
    layer = nn.Linear(width, 40)
    x = torch.randn(*rows, width)
    with torch.no_grad():
        found = linear.linear_of_short_sums(x, layer.weight, layer.bias)
        assert_close(found, layer(x))


@pytest.mark.parametrize("family", [*tiny_models.TRIE_FAMILIES, *tiny_models.PADDED_FAMILIES])
def test_a_model_gives_the_same_logits_and_is_left_as_it_was(family: str) -> None:
    model = tiny_models.build(family)
    expected = logits(model)
    with onednn_products(model):
        found = logits(model)
    assert_close(found, expected)
    assert not replaced(model)
    assert torch.equal(logits(model), expected)


def test_hooks_are_called() -> None:
    model = tiny_models.build("llama")
    called = []
    names = ("model.layers.0.mlp", "model.layers.1.mlp.gate_proj", "model.layers.0.self_attn.o_proj")
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    with onednn_products(model):
        logits(model)
    assert sorted(called) == sorted(names)


def test_other_dtypes_and_other_layers_are_left_alone() -> None:
    class Louder(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return 2 * super().forward(input)

    quiet = nn.Linear(3, 3)
    quiet.forward = torch.zeros_like
    model = nn.ModuleList([nn.Linear(3, 3).double(), nn.Linear(3, 3).bfloat16(), Louder(3, 3), quiet])
    with onednn_products(model):
        assert replaced(model) == {"3"}
        assert quiet(torch.ones(1, 3)).eq(0).all()
    assert replaced(model) == {"3"}


def test_a_model_is_left_as_it_was_after_an_error() -> None:
    model = tiny_models.build("llama")
    with pytest.raises(ZeroDivisionError), onednn_products(model):
        raise ZeroDivisionError
    assert not replaced(model)


@pytest.mark.parametrize(("question", "answer"), [("is_intel", True), ("has_avx512", False)])
def test_processors_on_which_mkl_is_faster_stay_with_it(
    question: str, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, question, lambda: answer)
    model = nn.ModuleList([nn.Linear(3, 4)])
    with onednn_linears(model):
        assert replaced(model) == set()
