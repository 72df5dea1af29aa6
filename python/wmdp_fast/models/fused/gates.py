"""Gated feed-forward blocks, `down(act(gate(x)) * up(x))`, for the time of a run and without gradients.

On a CPU, in float32, they are computed whole by oneDNN where that is faster (see `linear`), a part of the width in
between after the other. Elsewhere on a CPU, and on a GPU, what is between their products takes one pass over memory.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast import _rust
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

# Activations `x * sigmoid(scale * (x + cubic * x^3))`: SiLU, GELU by the hyperbolic tangent, and by the sigmoid.
_SCALES_AND_CUBICS = ((1.0, 0.0), (2 * math.sqrt(2 / math.pi), 0.044715), (1.702, 0.0))

# Largest difference between such an activation and the module's, over its largest result here.
_ACTIVATION_TOLERANCE = 1e-6

# Largest difference between a block computed either way, over its largest output: on a CPU, where sums are added up in
# another order, and on a GPU by dtype.
_CPU_TOLERANCE = 1e-4
_GPU_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def _alike(module: Any) -> Hashable | None:
    activation = getattr(module, "act_fn", None)
    # A hook on a part wants it to be called.
    if not callable(activation) or "forward" in vars(module) or _has_hooks(activation):
        return None
    layers: list[Any] = [getattr(module, name, None) for name in _PARTS]
    if not all(isinstance(layer, nn.Linear) for layer in layers):
        return None
    weight = module.gate_proj.weight
    # Of one that several processes hold together (a DTensor) there is no whole to be tried until it runs.
    on_gpu = weight.is_cuda and weight.dtype in _GPU_TOLERANCE and not hasattr(weight, "full_tensor")
    if not on_gpu and not all(map(_is_silent, layers)):
        return None
    found = _activated(activation, torch.linspace(-4, 4, 17, dtype=torch.float32, device="cpu").to(weight))
    if found is None:
        return None
    # Not its class: two of one class may differ in what they were made with.
    return type(module), tuple(found.tolist()), weight.shape, weight.dtype, weight.device


def _is_silent(layer: Any) -> bool:
    return is_plain(layer) and not _has_hooks(layer)


def _has_hooks(module: Any) -> bool:
    return isinstance(module, nn.Module) and bool(module._forward_hooks or module._forward_pre_hooks)


def _activated(activation: Any, points: torch.Tensor) -> torch.Tensor | None:
    """What an activation makes of each of some numbers, if that is what it does."""
    with torch.no_grad():
        try:
            found = activation(points.clone())
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return None  # it takes something else
    alike = isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (points.shape, points.dtype)
    return found if alike else None


def _prove(block: Any) -> Compute | None:
    weight = block.gate_proj.weight
    if weight.is_cuda:
        return _on_gpu if _gives_the_same(block, _on_gpu, _GPU_TOLERANCE[weight.dtype]) else None
    on_cpu = _by_onednn if is_faster() else _in_one_pass_by_rust(block)
    return on_cpu if on_cpu is not None and _gives_the_same(block, on_cpu, _CPU_TOLERANCE) else None


def _in_one_pass_by_rust(block: Any) -> Compute | None:
    """How the block is computed so, if its activation is one of those that there is code for."""
    points = torch.linspace(-12, 12, 4001, dtype=torch.float32, device="cpu")
    expected = _activated(block.act_fn, points)
    if expected is None:
        return None
    for scale, cubic in _SCALES_AND_CUBICS:
        found = points.clone()
        _gate(found, torch.ones_like(points), scale, cubic)
        if (found - expected).abs().max() <= _ACTIVATION_TOLERANCE * expected.abs().max():
            return partial(_on_cpu, scale=scale, cubic=cubic)
    return None


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


def _on_cpu(block: Any, x: torch.Tensor, *, scale: float, cubic: float) -> torch.Tensor:
    opened, inner = block.gate_proj(x), block.up_proj(x)
    _gate(opened, inner, scale, cubic)
    out: torch.Tensor = block.down_proj(opened)
    return out


def _gate(opened: torch.Tensor, inner: torch.Tensor, scale: float, cubic: float) -> None:
    """Overwrites `opened`, float32 and contiguous as `inner`."""
    flat, others = (one.detach().view(-1).numpy() for one in (opened, inner))
    _rust.gate_in_place(flat, others, scale=scale, cubic=cubic, threads=torch.get_num_threads())


def _by_onednn(block: Any, x: torch.Tensor) -> torch.Tensor:
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
