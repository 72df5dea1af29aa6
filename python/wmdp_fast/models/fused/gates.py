"""Gated feed-forward blocks, `down(act(gate(x)) * up(x))`, for the time of a run and without gradients.

On a CPU, in float32, they are computed whole by oneDNN (see `linear`), a part of the width in between after the other.
On a GPU what is between their products takes one pass over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast.models.fused.linear import is_faster, is_plain, linear
from wmdp_fast.models.fused.trials import ModulePart

if TYPE_CHECKING:
    from collections.abc import Hashable

    from wmdp_fast.models.fused.trials import Compute

# transformers names the parts alike in all models.
_PARTS = ("gate_proj", "up_proj", "down_proj")

# A block's width is computed in at most so many parts, each at least so wide. What is made in between stays in the
# caches, and sums are shorter: oneDNN adds up a long one from end to end, which rounds more than MKL's way.
_MOST_PARTS, _LEAST_WIDTH = 8, 256

# Largest difference between a block computed either way, over its largest output: on a CPU, where sums are added up in
# another order, and on a GPU by dtype.
_CPU_TOLERANCE = 1e-4
_GPU_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def _alike(module: Any) -> Hashable | None:
    activation = getattr(module, "act_fn", None)
    if not callable(activation) or "forward" in vars(module):
        return None
    layers: list[Any] = [getattr(module, name, None) for name in _PARTS]
    if not all(isinstance(layer, nn.Linear) for layer in layers):
        return None
    weight = module.gate_proj.weight
    if not (weight.is_cuda and weight.dtype in _GPU_TOLERANCE) and not _is_for_onednn(layers):
        return None
    kind = type(activation) if isinstance(activation, nn.Module) else activation
    return type(module), kind, weight.shape, weight.dtype, weight.device


def _is_for_onednn(layers: list[Any]) -> bool:
    # A hook on one of them wants it to be called.
    plain = all(is_plain(layer) and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)
    return plain and is_faster()


def _prove(block: Any) -> Compute | None:
    weight = block.gate_proj.weight
    if weight.is_cuda:
        return _on_gpu if _gives_the_same(block, _on_gpu, _GPU_TOLERANCE[weight.dtype]) else None
    return _on_cpu if _gives_the_same(block, _on_cpu, _CPU_TOLERANCE) else None


def _gives_the_same(block: Any, compute: Compute, tolerance: float) -> bool:
    """Whether a block does no more than its parts suggest, tried on two rows; its class may have other ideas."""
    weight = block.gate_proj.weight
    rows = torch.linspace(-1, 1, 2 * weight.shape[1], dtype=torch.float32, device="cpu").view(1, 2, -1).to(weight)
    with torch.no_grad():
        expected = block.forward(rows)  # not by calling it: hooks on it wait for the model's own inputs
        if not isinstance(expected, torch.Tensor):
            return False
        found = compute(block, rows)
        return found.shape == expected.shape and bool(
            (found - expected).abs().max() <= tolerance * expected.abs().max()
        )


def _on_cpu(block: Any, x: torch.Tensor) -> torch.Tensor:
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


def _on_gpu(block: Any, x: torch.Tensor) -> torch.Tensor:
    """With SiLU for an activation; of a block that has another one a trial says so."""
    from wmdp_fast.models.fused.gpu_kernels import silu_times

    opened, inner = block.gate_proj(x), block.up_proj(x)
    out: torch.Tensor = block.down_proj(silu_times(opened.contiguous(), inner.contiguous()))
    return out


GATED_BLOCKS = ModulePart(_alike, _prove)
