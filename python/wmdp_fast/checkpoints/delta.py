"""The tensors of a delta put on a model in memory, without a checkpoint of their sum on disk."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

from wmdp_fast.checkpoints.checkpoint import Checkpoint, added_types, by_stored_name, read_delta
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel


def put_file_on(model: PreTrainedModel, folder: Path, delta: Path, *, keep_dtype: bool = False) -> None:
    """Writes a delta into a model that was loaded from its base.

    Args:
        model: The model.
        folder: The base's, that the model was read from.
        delta: The file.
        keep_dtype: Whether the model keeps its type, where the delta has a wider one.

    Raises:
        ModelError: The file is damaged or belongs to another base, or the model has no place for one of its tensors.
        OSError: It cannot be read.
    """
    base = Checkpoint.open(folder)
    changed = read_delta(delta, base)
    put_on(model, base, {name: one.to(model.dtype) for name, one in changed.items()} if keep_dtype else changed)


def put_on(model: PreTrainedModel, base: Checkpoint, changed: Mapping[str, Tensor]) -> None:
    """Writes the tensors of a delta into a model that was loaded from its base.

    The model takes a type that holds them if they are in one that the base has them not in, as the checkpoint that
    `apply_delta` writes has it.

    Args:
        model: The model.
        base: The checkpoint that it was read from.
        changed: Tensors by the checkpoint's names, as `read_delta` gives them.

    Raises:
        ModelError: The model has no place for one of them.
    """
    wider = functools.reduce(torch.promote_types, added_types(base, changed), model.dtype)
    if wider != model.dtype:
        nn.Module.to(model, wider)
    left = set(changed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shapes = by_stored_name(model, {name: torch.empty_like(parameter, device="meta")}, base)
            if not left.isdisjoint(shapes):
                _exchange(model, name, parameter, base, changed)
                left -= set(shapes)
    if left:
        raise ModelError(f"{type(model).__name__} has no parameter that {min(left)} of the delta would replace")


def _exchange(
    model: PreTrainedModel, name: str, parameter: Tensor, base: Checkpoint, changed: Mapping[str, Tensor]
) -> None:
    """Exchanges what a delta has of a parameter, which may be the experts of a layer that a file has one by one."""
    # Where the numbers of each stored tensor are in the parameter: what takes it apart says so.
    places = torch.arange(parameter.numel()).view(parameter.shape)
    flat = parameter.view(-1)
    for stored, where in by_stored_name(model, {name: places}, base).items():
        if stored in changed:
            values = changed[stored].to(parameter.device, parameter.dtype)
            flat[where.reshape(-1).to(parameter.device)] = values.reshape(-1)
