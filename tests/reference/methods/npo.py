"""NPO (Zhang et al. 2024, equation 3): `-(2 / b) E log sigmoid(-b log(p(y|x) / p0(y|x)))`, and a retain loss.

With means in place of sums where a document's log-probability is taken per token, and as in the code of Fan et al. 2024
with the mean over a batch, padding counted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div, logsigmoid

from tests.reference.methods.training import Rows, mean_by_document, sums_and_lengths, token_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def forget_term(number: Callable[[Any, Rows], Tensor], model: Any, reference: Any, rows: Rows, beta: float) -> Tensor:
    """`number` is minus the log-probability of each document, in whatever unit."""
    with torch.no_grad():
        before = number(reference, rows)
    log_ratio = before - number(model, rows)
    return -2 / beta * logsigmoid(-beta * log_ratio).mean()


def by_mean(model: Any, reference: Any, forget: Rows, retain: Rows, *, beta: float) -> tuple[Tensor, Tensor]:
    return (
        forget_term(mean_by_document, model, reference, forget, beta),
        mean_by_document(model, retain).mean(),
    )


def by_sum(model: Any, reference: Any, forget: Rows, retain: Rows, *, beta: float) -> tuple[Tensor, Tensor]:
    sums, lengths = sums_and_lengths(model, retain)
    return (
        forget_term(lambda one, rows: sums_and_lengths(one, rows)[0], model, reference, forget, beta),
        sums.sum() / lengths.sum(),
    )


def by_padded_batch(model: Any, reference: Any, forget: Rows, retain: Rows, *, beta: float) -> tuple[Tensor, Tensor]:
    return (
        forget_term(lambda one, rows: token_losses(one, rows).mean(), model, reference, forget, beta),
        token_losses(model, retain).mean(),
    )


def with_kl(model: Any, reference: Any, forget: Rows, retain: Rows, *, beta: float) -> tuple[Tensor, Tensor]:
    """The retain loss is KL(p0 || p) at every position that predicts a real token."""
    real = retain.mask[:, 1:].bool()
    found, target = (
        one(input_ids=retain.ids, attention_mask=retain.mask).logits[:, :-1][real].log_softmax(-1)
        for one in (model, reference)
    )
    divergence = kl_div(found, target.detach(), reduction="none", log_target=True).sum(-1).mean()
    return forget_term(mean_by_document, model, reference, forget, beta), divergence


LOSSES = {
    "sequence_mean": partial(by_mean, beta=0.5),
    "sum": partial(by_sum, beta=0.02),
    "batch_mean_padded": partial(by_padded_batch, beta=0.5),
    "kl": partial(with_kl, beta=0.5),
}
