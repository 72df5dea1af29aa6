"""The last decoder layer, of which a token's output is wanted only where something is read off it.

A layer below passes every token on to those that follow it. The last one does so by its keys and values alone; whatever
else it makes of a token serves the distribution after that token, and a trie has few that are asked for: the last of a
question, for most. So the projections of its queries and of its attention's output, and its feed-forward block, are
computed of these tokens, and the others get zeros in their place. That is nearly all of the layer: with 30 layers, 3 %
of a run's products.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast.models.fused.forwards import replaced_forwards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wmdp_fast.models.fused.trials import Trials

# As transformers names them in most models.
_ATTENTION = ("self_attn", "attention", "attn")
_QUERIES_AND_OUTPUTS = ("q_proj", "o_proj", "out_proj")
_FEED_FORWARD = ("mlp", "feed_forward")

# With more of a batch's tokens read than this, picking rows costs more than it saves.
MOST_READ = 0.75

_read: ContextVar[tuple[torch.Tensor, int] | None] = ContextVar("read_rows", default=None)


@contextmanager
def reading(rows: torch.Tensor, tokens: int, most: float = MOST_READ) -> Iterator[None]:
    """Inside, only these rows of a batch's last hidden states are read.

    Args:
        rows: int64 `[R]`, each once.
        tokens: Tokens of the batch.
        most: The share of a batch's tokens up to which what is not read is left out; negative for never.
    """
    token = _read.set((rows, tokens) if len(rows) <= most * tokens else None)
    try:
        yield
    finally:
        _read.reset(token)


def row_wise_parts(layer: nn.Module, trials: Trials) -> list[nn.Module]:
    """The parts of a last layer that can be computed of some rows: what they make of one does not depend on others.

    Of linear layers that is known, and of the feed-forward block it is tried on three rows.
    """
    found: list[nn.Module] = []
    for name, child in layer.named_children():
        if name in _ATTENTION:
            projections = (getattr(child, one, None) for one in _QUERIES_AND_OUTPUTS)
            found += [one for one in projections if type(one) is nn.Linear and "forward" not in vars(one)]
        elif name in _FEED_FORWARD and "forward" not in vars(child):
            kinds = tuple(type(module) for module in child.modules())
            shapes = tuple((one.shape, one.dtype, one.device) for one in child.parameters())
            if trials.outcome(("row-wise", kinds, shapes), partial(_is_row_wise, child)):
                found.append(child)
    return found


@contextmanager
def only_read_rows(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, parts of a last layer are computed of the rows that are read, see `reading`; as they are otherwise."""
    with replaced_forwards({part: partial(_of_read_rows, part.forward) for part in parts}):
        yield


def _of_read_rows(forward: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    read = _read.get()
    if read is None or args or kwargs:
        return forward(x, *args, **kwargs)
    rows, tokens = read
    # A model may be spread over several devices.
    if x.shape[:2] != (1, tokens) or x.device != rows.device:
        return forward(x)
    some = forward(x[:, rows])
    out = some.new_zeros(1, tokens, some.shape[-1])
    out[:, rows] = some
    return out


def _is_row_wise(block: Any) -> bool:
    weights = [one for one in block.parameters() if one.ndim == 2 and one.is_floating_point()]
    size = getattr(block, "hidden_size", None) or (weights[0].shape[1] if weights else 0)
    if not size or any(one.is_meta for one in block.parameters()):
        return False
    rows = torch.linspace(-1, 1, 3 * size, dtype=torch.float32, device="cpu").view(1, 3, -1).to(weights[0])
    with torch.no_grad():
        try:
            whole, some = block.forward(rows), block.forward(rows[:, [0, 2]])
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return False  # it takes something else
        if not all(isinstance(one, torch.Tensor) and one.ndim == 3 for one in (whole, some)):
            return False
        allowed = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()
        return some.shape[1] == 2 and bool((whole[:, [0, 2]] - some).abs().max() <= allowed)
