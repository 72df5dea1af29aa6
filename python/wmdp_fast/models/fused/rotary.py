"""Rotary position embedding in one pass over memory, for the time of a run.

transformers writes it out as five operations on queries and five on keys, each of which reads and writes all of them;
in one pass it was measured 3 times as fast on a CPU, to the same bits.

A model's attention calls it as a function of the file that its class is in. That function is replaced while a run
lasts, and does what it did before for everyone but the thread of the run.
"""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast import _rust
from wmdp_fast.models.fused.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set
    from types import ModuleType

    from torch import nn

    _Kind = tuple[torch.device, torch.dtype]

# transformers gives the function this name in all models.
_NAME = "apply_rotary_pos_emb"

# What there are kernels for.
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}

_in_a_run: ContextVar[bool] = ContextVar("in_a_run", default=False)
_lock = threading.Lock()


@contextmanager
def fused_rotary(model: nn.Module, trials: Trials | None = None) -> Iterator[None]:
    """Inside, queries and keys are rotated in one pass; for use without gradients.

    That is done for the devices and dtypes of the model's parameters, in a CPU's memory float32 and bfloat16, with
    which the model's own function is tried to do nothing else; elsewhere it stays as it is.

    Args:
        model: The model.
        trials: Those of earlier calls; filled here.
    """
    trials = Trials() if trials is None else trials
    files = {type(module).__module__ for module in model.modules()} & sys.modules.keys()
    # Some models compute in float32 whatever they are given, so it is tried with each.
    kinds = {(parameter.device, parameter.dtype) for parameter in model.parameters()}
    kinds = {(device, dtype) for device, dtype in kinds if dtype in _DTYPES.get(device.type, ())}
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(_replaced(sys.modules[file], kinds, trials))
        stack.callback(_in_a_run.reset, _in_a_run.set(True))
        yield


@contextmanager
def _replaced(file: ModuleType, kinds: Set[_Kind], trials: Trials) -> Iterator[None]:
    with _lock:
        found = getattr(file, _NAME, None)
        original = found.original if isinstance(found, _Fused) else found
        if original is not None:
            known = found.kinds if isinstance(found, _Fused) else set()
            rotating = {
                kind
                for kind in kinds - known
                if trials.outcome((original, kind), partial(_only_rotates, original, *kind))
            }
            if not isinstance(found, _Fused):
                found = _Fused(original) if rotating else None
        if found is not None:
            found.kinds |= rotating
            found.runs += 1
            setattr(file, _NAME, found)
    try:
        yield
    finally:
        with _lock:
            if found is not None:
                found.runs -= 1
                if found.runs == 0:
                    setattr(file, _NAME, found.original)


class _Fused:
    """Stands in for a file's function while runs are under way.

    Attributes:
        original: The function.
        kinds: Devices and dtypes with which it does nothing else than rotate.
        runs: How many.
    """

    def __init__(self, original: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.original = original
        self.kinds: set[_Kind] = set()
        self.runs = 0

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotates `q` [1, heads, T, size] and `k` [1, key heads, T, size] by `cos` and `sin` [1, T, size]."""
        if args or kwargs or not _in_a_run.get() or not all(self._fits(rows, cos, sin) for rows in (q, k)):
            return self.original(q, k, cos, sin, *args, **kwargs)
        return _rotated(q, cos, sin), _rotated(k, cos, sin)

    def _fits(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
        """Whether `_rotated` can do it; partial rotations have fewer angles than numbers."""
        kind = rows.device, rows.dtype
        plain = kind in self.kinds and all((tensor.device, tensor.dtype) == kind for tensor in (cos, sin))
        return plain and rows.ndim == 4 and cos.shape == sin.shape == (1, *rows.shape[2:]) and rows.shape[0] == 1


def _rotated(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rows, cos, sin = (tensor.detach()[0] for tensor in (rows, cos, sin))
    if rows.is_cuda:
        from wmdp_fast.models.fused.gpu_kernels import rotate

        return rotate(rows, cos, sin).unsqueeze(0)
    heads, tokens, size = rows.shape
    out = torch.empty(tokens, heads, size, dtype=rows.dtype, device="cpu")
    tensors = [rows, cos, sin, out]
    if rows.dtype == torch.float32:
        arrays = [tensor.numpy() for tensor in tensors]
        _rust.rotate(*arrays, threads=torch.get_num_threads())
    else:
        halves = [tensor.view(torch.uint16).numpy() for tensor in tensors]
        _rust.rotate_bfloat16(*halves, threads=torch.get_num_threads())
    return out.transpose(0, 1).unsqueeze(0)


def _only_rotates(function: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a function does to queries and keys what `_rotated` does, to the last bit, tried on three tokens."""
    plain: Any = {"dtype": torch.float32, "device": "cpu"}
    q = torch.linspace(-3, 2, 48, **plain).view(1, 2, 3, 8).to(device, dtype)
    k = torch.linspace(1, -2, 24, **plain).view(1, 1, 3, 8).to(device, dtype)
    angles = torch.linspace(0, 4, 24, **plain).view(1, 3, 8)
    cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    try:
        found = function(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it takes something else
    expected = [_rotated(rows, cos, sin) for rows in (q, k)]
    tensors = isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, torch.Tensor) for one in found)
    return tensors and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
