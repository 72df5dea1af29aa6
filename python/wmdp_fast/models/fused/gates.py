"""Gated feed-forward blocks on a GPU, for the time of a run: what is between their products takes one pass.

On a CPU they are computed whole, see `onednn`.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.models.fused.forwards import replaced_forwards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    _Forward = Callable[[torch.Tensor], torch.Tensor]

# transformers names the parts alike in all models.
_PARTS = ("gate_proj", "up_proj", "down_proj")

# Largest difference between a block computed either way, over its largest output.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@contextmanager
def fused_gates(model: nn.Module, tried: dict[Any, Any] | None = None) -> Iterator[None]:
    """Inside, `silu(gate) * up` is one pass over memory in a model's feed-forward blocks; for use without gradients.

    That is done for blocks in a GPU's memory that are tried to do nothing else; all others stay as they are.

    Args:
        model: The model.
        tried: What came of that in earlier calls with the same model, filled here.
    """
    replacements: dict[nn.Module, _Forward] = {}
    tried = {} if tried is None else tried
    for module in model.modules():
        if (weight := _weight_of(module)) is not None:
            alike = type(module), type(module.act_fn), weight.shape, weight.dtype, weight.device
            if alike not in tried:
                tried[alike] = _does_no_more(module, weight)
            if tried[alike]:
                replacements[module] = partial(_gated, module)
    with replaced_forwards(replacements):
        yield


def _weight_of(module: Any) -> torch.Tensor | None:
    """The weight of a block's first layer, if a module looks like such a block in a GPU's memory."""
    layers = [getattr(module, name, None) for name in _PARTS]
    if not all(isinstance(layer, torch.nn.Linear) for layer in layers) or "forward" in vars(module):
        return None
    weight: Any = module.gate_proj.weight
    known = callable(getattr(module, "act_fn", None)) and weight.dtype in _TOLERANCE
    return weight if known and weight.is_cuda else None


def _does_no_more(block: Any, weight: torch.Tensor) -> bool:
    """Whether a block does no more than its parts suggest and by SiLU, tried on two rows."""
    rows = torch.linspace(-1, 1, 2 * weight.shape[1], dtype=torch.float32, device="cpu").view(1, 2, -1).to(weight)
    with torch.no_grad():
        expected = block.forward(rows)  # not by calling it: hooks on it wait for the model's own inputs
        if not isinstance(expected, torch.Tensor) or expected.shape != rows.shape:
            return False
        difference = (_gated(block, rows) - expected).abs().max()
        return bool(difference <= _TOLERANCE[weight.dtype] * expected.abs().max())


def _gated(block: Any, x: torch.Tensor) -> torch.Tensor:
    """down(silu(gate(x)) * up(x))."""
    from wmdp_fast.models.fused.gpu_kernels import silu_times

    opened, inner = block.gate_proj(x), block.up_proj(x)
    out: torch.Tensor = block.down_proj(silu_times(opened.contiguous(), inner.contiguous()))
    return out
