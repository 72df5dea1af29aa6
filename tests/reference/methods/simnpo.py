"""SimNPO (Fan et al. 2024, equation 4): `-(2 / b) E log sigmoid(-(b / |y|) log p(y|x) - margin)`, and a retain loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.functional import logsigmoid

from tests.reference.methods.training import Rows, mean_by_document, sums_and_lengths

if TYPE_CHECKING:
    from torch import Tensor


def loss(
    model: Any, _reference: Any, forget: Rows, retain: Rows, *, beta: float, margin: float
) -> tuple[Tensor, Tensor]:
    sums, lengths = sums_and_lengths(model, forget)
    log_probability = -sums
    term = -2 / beta * logsigmoid(-(beta / lengths) * log_probability - margin).mean()
    return term, mean_by_document(model, retain).mean()
