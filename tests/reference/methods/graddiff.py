"""Gradient difference (Liu et al. 2022): minus the cross-entropy of forget text, plus that of retain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.reference.methods.training import Rows, mean_by_document

if TYPE_CHECKING:
    from torch import Tensor


def loss(model: Any, _reference: Any, forget: Rows, retain: Rows) -> tuple[Tensor, Tensor]:
    return -mean_by_document(model, forget).mean(), mean_by_document(model, retain).mean()
