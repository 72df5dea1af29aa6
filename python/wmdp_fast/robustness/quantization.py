"""Weights rounded to a quantized format and put back: what a model computes with once it was quantized.

A model that is quantized to weights of 8 or 4 bits multiplies by the same numbers, up to how a kernel rounds. So this
needs no library and no GPU. Every format takes a matrix `[out, in]` and gives its values after the round trip; scales
are float32.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

# The 16 values of NormalFloat (Dettmers et al. 2023, QLoRA, appendix E): quantiles of a normal distribution between -1
# and 1, with zero among them.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_NF4_BLOCK = 64

# The scale of a group of zeros, whose reciprocal is finite.
_SMALLEST = 1e-30


def int8(weight: Tensor) -> Tensor:
    """Integers from -127 to 127 times a scale for each output, as bitsandbytes' LLM.int8 has them without outliers."""
    values = weight.float()
    largest = values.abs().amax(dim=1, keepdim=True).clamp_min(_SMALLEST)
    return (values * (127 / largest)).round() * (largest / 127)


def int4(weight: Tensor, *, group: int, symmetric: bool) -> Tensor:
    """Integers of 4 bits times a scale for each group of inputs, as torchao's `IntxWeightOnlyConfig` has them.

    Args:
        weight: [out, in].
        group: Inputs that share a scale. The last group of a row may have fewer.
        symmetric: -8 to 7 with the scale `absmax / 7.5`; otherwise 0 to 15 between the smallest and the largest
            weight, moved by whole steps so that zero stays zero.
    """
    groups = _in_groups(weight.float(), group)
    low, high = groups.amin(dim=-1, keepdim=True).clamp_max(0), groups.amax(dim=-1, keepdim=True).clamp_min(0)
    if symmetric:
        scale = (torch.maximum(-low, high) / 7.5).clamp_min(_SMALLEST)
        found = (groups * (1 / scale)).round().clamp(-8, 7) * scale
    else:
        scale = ((high - low) / 15).clamp_min(_SMALLEST)
        zero = (-8 - (low / scale).round()).clamp(-8, 7)
        found = (((groups * (1 / scale)).round() + zero).clamp(-8, 7) - zero) * scale
    return found.flatten(1)[:, : weight.shape[1]]


def nf4(weight: Tensor) -> Tensor:
    """The nearest of 16 quantiles of a normal distribution times the largest of 64 weights, as bitsandbytes has them.

    Blocks run over the rows one after the other, as they do there. Scales are not quantized a second time.
    """
    blocks = _in_groups(weight.float().reshape(1, -1), _NF4_BLOCK)
    code = torch.tensor(_NF4, device=weight.device)
    largest = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(_SMALLEST)
    nearest = torch.bucketize((blocks * (1 / largest)).clamp(-1, 1), (code[1:] + code[:-1]) / 2)
    return (code[nearest] * largest).flatten()[: weight.numel()].view(weight.shape)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": int8,
    **{
        f"int4 {name} groups of {group}": partial(int4, group=group, symmetric=name == "symmetric")
        for group in (128, 64, 32)
        for name in ("symmetric", "asymmetric")
    },
    "nf4": nf4,
}
"""What rounds a matrix to a format, by the format's name; the gentlest of each kind first."""


def _in_groups(rows: Tensor, size: int) -> Tensor:
    """Rows `[out, in]` cut into groups `[out, groups, size]`, zeros after the last, which change no scale."""
    return functional.pad(rows, (0, -rows.shape[1] % size)).reshape(len(rows), -1, size)
