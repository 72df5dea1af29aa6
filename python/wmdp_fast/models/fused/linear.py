"""Products with float32 weights by oneDNN in place of torch's default on AMD processors, for the time of a run.

`torch.nn.functional.linear` multiplies float32 by MKL, which on an AMD processor with AVX-512 (Zen 5) is no faster than
AVX2 allows. oneDNN, which torch brings along and uses for bfloat16, was measured 2.1 times as fast there, and 1.1 times
on an older AMD processor without AVX-512. On an Intel processor with AVX-512 (Sapphire Rapids) it was 5 % slower.

Sums are added up in another order, so results differ from the default's by rounding.
"""

from __future__ import annotations

import platform
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.runtime import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Forward = Callable[[torch.Tensor], torch.Tensor]

# A gated block's width is computed in at most so many parts, each at least so wide. What is made in between stays in
# the caches, and sums are shorter: oneDNN adds up a long one from end to end, which rounds more than MKL's way.
_MOST_PARTS, _LEAST_WIDTH = 8, 256

# MKL's parts.
_LONGEST_SUM = 192

# Largest difference between a block computed either way, over its largest output; float32 has 7 digits.
_TOLERANCE = 1e-4


def is_available() -> bool:
    """Whether this torch has what `onednn_products` needs, on a processor that it knows the instructions of."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    backend: Any = torch.backends.mkldnn
    return x86 and bool(backend.is_available() and backend.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_faster() -> bool:
    """Whether it is available and faster than MKL, which is at its best on its maker's processors."""
    return is_available() and not environment.is_intel()


@contextmanager
def onednn_products(model: nn.Module, tried: dict[Any, Any] | None = None) -> Iterator[None]:
    """Inside, a model's linear layers and gated feed-forward blocks are computed by oneDNN; for use without gradients.

    That is done for those whose weights are float32 in a CPU's memory, where `is_faster`; all others stay as they are.
    Afterwards the model is as it was.

    Args:
        model: The model.
        tried: Which blocks were tried in earlier calls with the same model, and what came of it; filled here.
    """
    tried = {} if tried is None else tried
    with replaced_forwards(dict(_replacements(model, tried)) if is_faster() else {}):
        yield


@contextmanager
def onednn_linears(model: nn.Module) -> Iterator[None]:
    """As `onednn_products`, for linear layers only, with gradients."""
    layers = [module for module in model.modules() if _is_plain(module)] if is_faster() else []
    with replaced_forwards({layer: partial(_linear, layer) for layer in layers}):
        yield


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` of float32 tensors on a CPU, by oneDNN; with a gradient.

    Args:
        rows: [..., in].
        weight: [out, in], contiguous: oneDNN is very slow with one that is not.
        bias: [out].
    """
    wanted = [one is not None and one.requires_grad for one in (rows, weight, bias)]
    if torch.is_grad_enabled() and any(wanted):
        differentiable: torch.Tensor = _Linear.apply(rows, weight, bias)
        return differentiable
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """`linear` as torch differentiates it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        return linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        by_column = gradient.flatten(0, -2).t()
        return (
            linear(gradient, weight.t().contiguous()) if for_rows else None,
            linear(by_column.contiguous(), rows.flatten(0, -2).t().contiguous()) if for_weight else None,
            by_column.sum(dim=1) if for_bias else None,
        )


def linear_of_short_sums(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `linear`, with sums added up in parts of at most 192, as MKL does, which rounds less."""
    width = -(-weight.shape[1] // -(-weight.shape[1] // _LONGEST_SUM))
    first, *others = (slice(start, start + width) for start in range(0, weight.shape[1], width))
    total = linear(rows[..., first].contiguous(), weight[:, first].contiguous(), bias)
    for part in others:
        inner, outer = rows[..., part].contiguous(), weight[:, part].contiguous()
        total = torch.ops.mkldnn._linear_pointwise.binary(inner, total, outer, None, "add")
    return total


def _replacements(model: nn.Module, tried: dict[Any, Any]) -> Iterator[tuple[nn.Module, _Forward]]:
    """The modules that can be computed by oneDNN, and how."""
    # The projection onto the vocabulary is left out, as its rounding goes straight into the scores, which
    # `ChunkedLMHead` takes care of.
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for module in model.modules():
        if _is_plain(module) and module is not head:
            yield module, partial(_linear, module)
        elif _has_gate(module):
            if type(module) not in tried:
                tried[type(module)] = _does_no_more(module)
            if tried[type(module)]:
                yield module, partial(_gated, module)


def _linear(layer: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (named as in torch)
    return linear(input, layer.weight, layer.bias)


def _gated(block: Any, x: torch.Tensor) -> torch.Tensor:
    """down(act_fn(gate(x)) * up(x)), a part of the width in between after the other."""
    gate, up, down = block.gate_proj, block.up_proj, block.down_proj
    width = max(_LEAST_WIDTH, -(-gate.out_features // _MOST_PARTS))
    total = x.new_zeros(*x.shape[:-1], down.out_features)
    for start in range(0, gate.out_features, width):
        part = slice(start, start + width)
        opened, inner = (
            linear(x, layer.weight[part], None if layer.bias is None else layer.bias[part]) for layer in (gate, up)
        )
        inner = block.act_fn(opened).mul_(inner)
        total = torch.ops.mkldnn._linear_pointwise.binary(inner, total, down.weight[:, part].contiguous(), None, "add")
    return total if down.bias is None else total + down.bias


def _is_plain(module: object) -> bool:
    """Whether a module is a linear layer that does nothing else, with a float32 weight in a CPU's memory."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    # A weight of another type may be spread over devices, or quantized.
    plain = type(weight) is nn.Parameter and weight.is_contiguous()
    return plain and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _has_gate(module: Any) -> bool:
    """Whether a module has the parts of a gated feed-forward block, which transformers names alike in all models."""
    if not callable(getattr(module, "act_fn", None)) or "forward" in vars(module):
        return False
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    # A hook on one of them wants it to be called.
    return all(_is_plain(layer) and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)


def _does_no_more(block: Any) -> bool:
    """Whether a block does no more than its parts suggest, tried on two rows; its class may have other ideas."""
    rows = torch.linspace(-1, 1, 2 * block.gate_proj.in_features, dtype=torch.float32, device="cpu").view(1, 2, -1)
    with torch.no_grad():
        expected = block.forward(rows)  # not by calling it: hooks on it wait for the model's own inputs
        if not isinstance(expected, torch.Tensor):
            return False
        return bool((_gated(block, rows) - expected).abs().max() <= _TOLERANCE * expected.abs().max())
