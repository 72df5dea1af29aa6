"""Root-mean-square norms in one pass over memory, for the time of a run.

transformers writes such a norm out as six operations, each of which reads and writes all rows. One that reads
and writes them once was measured 2.5 times as fast on a CPU.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast import _rust
from wmdp_fast.models.forwards import replaced_forwards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    _Forward = Callable[[torch.Tensor], torch.Tensor]

# Largest difference between a norm computed either way, over its largest output; float32 has 7 digits.
_TOLERANCE = 1e-6


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """Inside, a model's root-mean-square norms are computed in one pass; for use without gradients.

    That is done for those whose weight is float32 in a CPU's memory, and which are tried to do nothing else; all others
    stay as they are. Afterwards the model is as it was.
    """
    found = ((module, _fused(module)) for module in model.modules() if _may_be(module))
    with replaced_forwards({module: forward for module, forward in found if forward is not None}):
        yield


def _may_be(module: Any) -> bool:
    """Whether a module looks like a norm of transformers' with a float32 weight in a CPU's memory."""
    weight = getattr(module, "weight", None)
    if (
        not type(module).__name__.endswith("RMSNorm")
        or "forward" in vars(module)
        or type(weight) is not torch.nn.Parameter
    ):
        return False
    return weight.ndim == 1 and weight.dtype == torch.float32 and weight.device.type == "cpu" and _epsilon(module) > 0


def _epsilon(module: Any) -> float:
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else 0.0


def _fused(module: Any) -> _Forward | None:
    """What computes a norm in one pass, if that gives what the norm does, tried on two rows."""
    rows = torch.linspace(-3, 1, 2 * module.weight.numel()).view(1, 2, -1)
    with torch.no_grad():
        expected = module.forward(rows)  # not by calling it: hooks on it wait for the model's own inputs
        for forward in (partial(_norm, module, 0.0), partial(_norm, module, 1.0)):
            if isinstance(expected, torch.Tensor) and expected.shape == rows.shape:
                difference = (forward(rows) - expected).abs().max()
                if bool(difference <= _TOLERANCE * expected.abs().max()):
                    return forward
    return None


def _norm(module: Any, offset: float, x: torch.Tensor) -> torch.Tensor:
    """The norm with what is added to its weight: 1 in Gemma's."""
    if x.dtype != torch.float32:
        own: torch.Tensor = type(module).forward(module, x)
        return own
    weight = module.weight.detach() + offset if offset else module.weight.detach()
    out = torch.empty(x.shape)
    rows, outs = (tensor.detach().reshape(-1, len(weight)).numpy() for tensor in (x, out))
    _rust.rms_norm(rows, weight.numpy(), outs, epsilon=_epsilon(module), threads=torch.get_num_threads())
    return out
