"""Products with float32 weights by oneDNN in place of torch's default on x86 processors, for the time of a run.

`torch.nn.functional.linear` multiplies float32 by MKL, which on processors not of Intel's making leaves AVX-512 unused.
oneDNN, which torch brings along and uses for bfloat16, multiplies by whatever the processor has: on a Zen 5 it was
measured 2.1 times as fast, on an older EPYC without AVX-512 1.1 times.

Sums are added up in another order, so results differ from the default's by rounding.
"""

from __future__ import annotations

import platform
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Forward = Callable[[torch.Tensor], torch.Tensor]

# Longest part of a sum. oneDNN adds up a long sum from end to end, MKL in parts of this length, which rounds less. With
# whole sums a log-likelihood's error against float64 was 1.7 times MKL's; with these it is the same.
_LONGEST_SUM = 192

# Columns of a result that are computed together, few enough for the caches to hold them while parts are added.
_COLUMNS = 512

# With fewer rows than this a product gains nothing: parts of the weights have to be copied for it.
_FEW_ROWS = 32

# Largest difference between a block computed either way, over its largest output; float32 has 7 digits.
_TOLERANCE = 1e-4


def is_available() -> bool:
    """Whether this torch has what `onednn_products` needs, on a kind of processor that it was measured on."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    backend: Any = torch.backends.mkldnn
    return x86 and bool(backend.is_available() and backend.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def onednn_products(model: nn.Module) -> Iterator[None]:
    """Inside, a model's linear layers and gated feed-forward blocks are computed by oneDNN; for use without gradients.

    That is done for those whose weights are float32 in a CPU's memory, where `is_available`; all others stay as they
    are. Afterwards the model is as it was.
    """
    replaced = dict(_replacements(model)) if is_available() else {}
    try:
        for module, forward in replaced.items():
            # Set on the module itself, not on its class: hooks and whatever else surrounds `forward` go on as before.
            module.forward = forward
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` of float32 tensors on a CPU, by oneDNN; without a gradient.

    Args:
        rows: [..., in].
        weight: [out, in].
        bias: [out].
    """
    blocks = [_block(rows, weight, bias, columns) for columns in _columns(len(weight))]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


def _columns(width: int) -> Iterator[slice]:
    """A result's columns, in blocks."""
    block = width if width <= 2 * _COLUMNS else _COLUMNS
    return (slice(start, start + block) for start in range(0, width, block))


def _block(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, columns: slice) -> torch.Tensor:
    """Some columns of a linear layer's result, part by part of their sums."""
    pointwise = torch.ops.mkldnn._linear_pointwise
    summands = torch.split(rows, _LONGEST_SUM, dim=-1)
    # Copied, as oneDNN is slow with a matrix whose rows are not one behind the other.
    parts = (part.contiguous() for part in torch.split(weight[columns], _LONGEST_SUM, dim=-1))
    result: torch.Tensor = pointwise(summands[0], next(parts), None if bias is None else bias[columns], "none", [], "")
    for summand, part in zip(summands[1:], parts, strict=True):
        result = pointwise.binary(summand, result, part, None, "add")
    return result


def _replacements(model: nn.Module) -> Iterator[tuple[nn.Module, _Forward]]:
    """The modules that can be computed by oneDNN, and how."""
    alike: dict[type[nn.Module], bool] = {}
    for module in model.modules():
        if _is_plain(module):
            yield module, partial(_forward, module, _linear)
        elif _has_gate(module):
            if type(module) not in alike:
                alike[type(module)] = _does_no_more(module)
            if alike[type(module)]:
                yield module, partial(_forward, module, _gated)


def _forward(module: Any, compute: Callable[[Any, torch.Tensor], torch.Tensor], input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (named as in torch)
    enough = input.numel() >= _FEW_ROWS * input.shape[-1]
    return compute(module, input) if enough else type(module).forward(module, input)


def _linear(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    return linear(rows, layer.weight, layer.bias)


def _gated(block: Any, rows: torch.Tensor) -> torch.Tensor:
    """down(act_fn(gate(x)) * up(x)), activated and multiplied while what that takes is in the caches."""
    gate, up = block.gate_proj, block.up_proj
    inner = [
        block.act_fn(_block(rows, gate.weight, gate.bias, columns)).mul_(_block(rows, up.weight, up.bias, columns))
        for columns in _columns(gate.out_features)
    ]
    return _linear(block.down_proj, torch.cat(inner, dim=-1))


def _is_plain(module: object) -> bool:
    """Whether a module is a linear layer that does nothing else, with a float32 weight in a CPU's memory."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"


def _has_gate(module: Any) -> bool:
    """Whether a module has the parts of a gated feed-forward block, which transformers names alike in all models."""
    if not callable(getattr(module, "act_fn", None)) or "forward" in vars(module):
        return False
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    # A hook on one of them wants it to be called.
    return all(_is_plain(layer) and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)


def _does_no_more(block: Any) -> bool:
    """Whether a block does no more than its parts suggest, tried on two rows; its class may have other ideas."""
    rows = torch.linspace(-1, 1, 2 * block.gate_proj.in_features).view(1, 2, -1)
    with torch.no_grad():
        expected = block.forward(rows)  # not by calling it: hooks on it wait for the model's own inputs
        if not isinstance(expected, torch.Tensor):
            return False
        return bool((_gated(block, rows) - expected).abs().max() <= _TOLERANCE * expected.abs().max())
