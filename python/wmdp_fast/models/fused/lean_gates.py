"""Gated feed-forward blocks, `down(act(gate(x)) * up(x))`, of which less is kept for gradients.

Left to torch, four tensors of a block's inner width are kept: what the activation is given, what it gives, what that is
multiplied with, and the product, if the weights that take it are trained. The first and the third are enough, as the
others follow from them at the cost of a pass over memory. They are made again by the operations that made them, so
neither outputs nor gradients differ in a bit.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from wmdp_fast.models.fused.trials import ModulePart

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch import Tensor

    from wmdp_fast.models.fused.trials import Compute

    # Sizes, strides and offset of what is seen of a tensor's memory.
    _View = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]

# transformers names the parts alike in all models.
_PARTS = ("gate_proj", "up_proj", "down_proj")


def _alike(module: Any) -> Hashable | None:
    activation = getattr(module, "act_fn", None)
    layers: list[Any] = [getattr(module, name, None) for name in _PARTS]
    if not callable(activation) or "forward" in vars(module) or not all(isinstance(one, nn.Module) for one in layers):
        return None
    weights = [(one.shape, one.dtype, one.device) for one in module.parameters()]
    # In training some modules drop out what they let through otherwise.
    kinds = [(type(one), one.training) for one in module.modules()]
    return (*kinds, *weights, activation if not isinstance(activation, nn.Module) else type(activation))


def _prove(block: Any) -> Compute | None:
    """How a block is computed, if it does no more than its parts suggest: tried on two rows, to the bit."""
    weight = next(block.parameters())
    size = getattr(block.gate_proj, "in_features", None)
    if size is None or not weight.dtype.is_floating_point:
        return None
    rows = torch.linspace(-1, 1, 2 * size, dtype=torch.float32, device="cpu").view(1, 2, -1).to(weight)
    outputs = []
    # Not by calling it: hooks on it wait for the model's own inputs.
    for compute in (block.forward, partial(_compute, block)):
        # Each drops out the same, if they do, and the next one to draw numbers gets what it would have got.
        with torch.no_grad(), torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            outputs.append(compute(rows))
    expected, found = outputs
    return _compute if isinstance(expected, torch.Tensor) and torch.equal(expected, found) else None


def _compute(block: Any, x: Tensor) -> Tensor:
    gate, up = block.gate_proj(x), block.up_proj(x)
    if not (torch.is_grad_enabled() and gate.requires_grad and up.requires_grad):
        # Without the gradient of both, the product is all that is kept.
        plain: Tensor = block.down_proj(block.act_fn(gate) * up)
        return plain
    product: Tensor = _Product.apply(block.act_fn, gate, up)
    memory = product.untyped_storage().data_ptr()
    gate, up = gate.detach(), up.detach()

    def pack(saved: Tensor) -> Tensor | _View:
        if saved.untyped_storage().data_ptr() != memory:
            return saved
        return saved.size(), saved.stride(), saved.storage_offset()

    def unpack(kept: Tensor | _View) -> Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        with torch.no_grad():
            again: Tensor = block.act_fn(gate) * up
        return again.as_strided(*kept)

    with saved_tensors_hooks(pack, unpack):
        out: Tensor = block.down_proj(product)
    return out


class _Product(torch.autograd.Function):
    """`act(gate) * up`, of which neither `act(gate)` nor the product is kept."""

    @staticmethod
    def forward(ctx: Any, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            product = ctx.act(inputs[0]) * inputs[1]
        return None, *torch.autograd.grad(product, inputs, slope)


LEAN_GATES = ModulePart(_alike, _prove)
