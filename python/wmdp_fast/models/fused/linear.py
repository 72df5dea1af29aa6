"""Linear layers with float32 weights by oneDNN in place of torch's default on AMD processors with AVX-512.

`torch.nn.functional.linear` multiplies float32 by MKL, which on an AMD processor with AVX-512 (Zen 5) is no faster than
AVX2 allows. oneDNN, which torch brings along and uses for bfloat16, was measured 2.1 times as fast there. On an AMD
processor without AVX-512 (Zen 3) it was 0.85 times as fast forwards and 0.75 backwards, scoring with it 0.8; on an
Intel processor with AVX-512 (Sapphire Rapids) 5 % slower. The choice goes by what the processor is and not by a
measurement, so that the same run gives the same bits again.

Sums are added up in another order, so results differ from the default's by rounding.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from wmdp_fast.models.fused.trials import ModulePart
from wmdp_fast.runtime import environment

if TYPE_CHECKING:
    from collections.abc import Hashable

# MKL's parts.
_LONGEST_SUM = 192


def is_available() -> bool:
    """Whether this torch has what `linear` needs, on a processor that it knows the instructions of."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    backend: Any = torch.backends.mkldnn
    return x86 and bool(backend.is_available() and backend.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_faster() -> bool:
    """Whether it is available and faster than MKL, which makes use of AVX-512 on its maker's processors alone."""
    return is_available() and environment.has_avx512() and not environment.is_intel()


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


def _linear(layer: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (named as in torch)
    return linear(input, layer.weight, layer.bias)


def is_plain(module: object) -> bool:
    """Whether a module is a linear layer that does nothing else, with a float32 weight in a CPU's memory."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    # A weight of another type may be spread over devices, or quantized.
    plain = type(weight) is nn.Parameter and weight.is_contiguous()
    return plain and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _alike(module: nn.Module) -> Hashable | None:
    return nn.Linear if is_plain(module) and is_faster() else None


# Nothing to try: what torch's own class does is known.
LINEAR_LAYERS = ModulePart(_alike, lambda _: _linear)
