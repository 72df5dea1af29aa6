"""Modules whose weight is read by rows: those that a call needs are read before it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from wmdp_fast.models.fused.forwards import replaced_forwards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wmdp_fast.checkpoints.stored_rows import StoredRows


# Rows of a linear layer at a time.
_PART = 1024


@contextmanager
def rows_when_called(
    module: nn.Module | None, rows: StoredRows | None, *, in_parts: bool = False
) -> Iterator[StoredRows | None]:
    """Inside, a call of a module reads what it needs: an embedding the rows of its tokens, a linear layer all.

    Args:
        module: What has the rows as its weight.
        rows: None if its weight is in memory.
        in_parts: Whether a linear layer computes with some of its rows after the other, so that they are not in memory
            together. That may round in another way than with all at once.
    """
    if module is None or rows is None:
        yield rows
    elif isinstance(module, nn.Embedding):
        with replaced_forwards({module: partial(_read_tokens, rows, module.forward)}):
            yield rows
    elif in_parts and isinstance(module, nn.Linear):
        with replaced_forwards({module: partial(_project_in_parts, rows, module)}):
            yield rows
    else:
        with replaced_forwards({module: partial(_read_all, rows, module.forward)}):
            yield rows


def reads_rows(forward: object) -> bool:
    """Whether a forward function is one that `rows_when_called` has set, which computes what the module's own does."""
    return isinstance(forward, partial) and forward.func in (_read_tokens, _read_all, _project_in_parts)


def _read_tokens(rows: StoredRows, forward: Callable[..., Any], tokens: torch.Tensor) -> Any:
    rows.read(tokens.numpy().ravel())
    return forward(tokens)


def _read_all(rows: StoredRows, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    rows.read_all()
    return forward(*args, **kwargs)


def _project_in_parts(rows: StoredRows, layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    count, bias = layer.out_features, layer.bias
    out = hidden.new_empty(*hidden.shape[:-1], count)
    for start in range(0, count, _PART):
        part = slice(start, start + _PART)
        out[..., part] = F.linear(hidden, rows.part(part.start, part.stop), None if bias is None else bias[part])
    return out
