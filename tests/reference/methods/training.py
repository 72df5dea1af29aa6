"""An ordinary trainer: two models, padded rows, whole logits, and `torch.optim`."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A batch: `ids` and `mask` are [B, S], padded on the right unless told otherwise."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], *, pad: int, length: int | None = None) -> Rows:
        """With a `length`, padded on the left to it."""
        width = length or max(map(len, documents))
        ids, mask = torch.full((len(documents), width), pad), torch.zeros(len(documents), width, dtype=torch.long)
        for row, document in enumerate(documents):
            place = slice(width - len(document), width) if length else slice(0, len(document))
            ids[row, place], mask[row, place] = torch.tensor(document), 1
        return cls(ids, mask)


def token_losses(model: Any, rows: Rows) -> Tensor:
    """The cross-entropy of every token but the first, padding included: [B, S - 1]."""
    logits = model(input_ids=rows.ids, attention_mask=rows.mask).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), rows.ids[:, 1:], reduction="none")


def sums_and_lengths(model: Any, rows: Rows) -> tuple[Tensor, Tensor]:
    """Of each document the cross-entropy of its tokens, added up, and how many they are."""
    real = rows.mask[:, 1:].float()
    return (token_losses(model, rows) * real).sum(dim=1), real.sum(dim=1)


def mean_by_document(model: Any, rows: Rows) -> Tensor:
    """Of each document the mean cross-entropy of its tokens."""
    sums, lengths = sums_and_lengths(model, rows)
    return sums / lengths


@dataclass
class Record:
    """What a run did: the terms of the loss at each step, and the model it ended with."""

    model: Any
    forget_losses: list[float] = field(default_factory=list)
    retain_losses: list[float] = field(default_factory=list)


def train(
    model: Any,
    forget: Sequence[Sequence[int]],
    retain: Sequence[Sequence[int]],
    loss: Callable[[Any, Any, Rows, Rows], tuple[Tensor, Tensor]],
    *,
    trained: str,
    learning_rate: float,
    steps: int,
    batch_size: int,
    max_length: int,
    pad: int,
    warmup_steps: int,
    padded_to: int | None = None,
    rho: float = 0.0,
) -> Record:
    """Minimizes the sum of the two terms that `loss` makes of model, original model, forget and retain rows.

    With a `rho`, the gradient of the first one is taken where weights are moved so far along it.
    """
    reference = copy.deepcopy(model).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup_steps, steps)
    record = Record(model)
    for step in range(steps):
        rows = [
            Rows.of([one[:max_length] for one in corpus[step * batch_size :][:batch_size]], pad=pad, length=padded_to)
            for corpus in (forget, retain)
        ]
        terms = loss(model, reference, *rows)
        if rho:
            with moved_along_gradient(terms[0], parameters, rho):
                loss(model, reference, *rows)[0].backward()
            loss(model, reference, *rows)[1].backward()
        else:
            sum(terms).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        record.forget_losses.append(float(terms[0].detach()))
        record.retain_losses.append(float(terms[1].detach()))
    return record


@contextmanager
def moved_along_gradient(loss: Tensor, parameters: Sequence[Tensor], rho: float) -> Iterator[None]:
    """Inside, weights are moved along the gradient of a loss, as far as `rho` says."""
    slopes = torch.autograd.grad(loss, parameters, materialize_grads=True)
    norm = torch.cat([one.flatten() for one in slopes]).norm()
    before = [one.detach().clone() for one in parameters]
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter += rho * slope / norm
    yield
    for parameter, weights in zip(parameters, before, strict=True):
        parameter.data = weights
