"""Products with float32 weights by oneDNN in place of torch's default on x86 processors, for the time of a run.

`torch.nn.functional.linear` multiplies float32 by MKL, which on processors not of Intel's making leaves AVX-512 unused.
oneDNN, which torch brings along and uses for bfloat16, multiplies by whatever the processor has: on a Zen 5 it was
measured 2.1 times as fast, on an older EPYC without AVX-512 1.1 times. It can also activate and multiply what it has
just computed, which saves a gated feed-forward block two passes over its widest tensors.

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

# By the name of an activation's class in transformers: how oneDNN calls it, and which of its kinds it is.
_ACTIVATIONS = {"SiLUActivation": ("swish", ""), "SiLU": ("swish", ""), "GELUTanh": ("gelu", "tanh")}

# Largest difference between a block computed either way, over its largest output; float32 has 7 digits.
_TOLERANCE = 1e-4

# Width of a part of a gated block. oneDNN adds up a long sum from end to end, MKL in parts, which rounds less: the
# error of a log-likelihood against float64 was 1.7 times MKL's with the whole width, and is 1.3 times with this.
_PART = 256


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
    """`torch.nn.functional.linear` of float32 tensors on a CPU, by oneDNN; without a gradient."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def _replacements(model: nn.Module) -> Iterator[tuple[nn.Module, _Forward]]:
    """The modules that can be computed by oneDNN, and how."""
    alike: dict[type[nn.Module], bool] = {}
    for module in model.modules():
        if _is_plain(module):
            yield module, partial(_linear, module)
        elif _has_gate(module):
            forward = partial(_gated, module, *_ACTIVATIONS[type(module.act_fn).__name__])
            if type(module) not in alike:
                alike[type(module)] = _does_the_same(module, forward)
            if alike[type(module)]:
                yield module, forward


def _linear(layer: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (named as in torch)
    return linear(input, layer.weight, layer.bias)


def _gated(block: Any, activation: str, kind: str, x: torch.Tensor) -> torch.Tensor:
    """down(activation(gate(x)) * up(x)), a part of the width in between after another."""
    gate, up, down = block.gate_proj, block.up_proj, block.down_proj
    pointwise = torch.ops.mkldnn._linear_pointwise
    total = x.new_zeros(*x.shape[:-1], down.out_features)
    for start in range(0, gate.out_features, _PART):
        part = slice(start, start + _PART)
        gate_bias, up_bias = (None if layer.bias is None else layer.bias[part] for layer in (gate, up))
        activated = pointwise(x, gate.weight[part], gate_bias, activation, [], kind)
        inner = pointwise.binary(x, activated, up.weight[part], up_bias, "mul")
        # Copied, as oneDNN is slow with rows that are not one behind the other.
        weight = down.weight[:, part].contiguous()
        total = pointwise.binary(inner, total, weight, None, "add")
    return total if down.bias is None else total + down.bias


def _is_plain(module: object) -> bool:
    """Whether a module is a linear layer that does nothing else, with a float32 weight in a CPU's memory."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    weight = module.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def _has_gate(module: Any) -> bool:
    """Whether a module has the parts of a gated feed-forward block, which transformers names alike in all models."""
    if type(getattr(module, "act_fn", None)).__name__ not in _ACTIVATIONS or "forward" in vars(module):
        return False
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    # A hook on one of them wants it to be called.
    return all(_is_plain(layer) and not layer._forward_hooks and not layer._forward_pre_hooks for layer in layers)


def _does_the_same(block: Any, forward: _Forward) -> bool:
    """Whether a block does no more than its parts suggest, tried on two rows; its class may have other ideas."""
    rows = torch.linspace(-1, 1, 2 * block.gate_proj.in_features).view(1, 2, -1)
    with torch.no_grad():
        expected = block.forward(rows)  # not by calling it: hooks on it wait for the model's own inputs
        if not isinstance(expected, torch.Tensor):
            return False
        return bool((forward(rows) - expected).abs().max() <= _TOLERANCE * expected.abs().max())
