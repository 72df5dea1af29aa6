"""Ratios of sums over documents, and how sure they are: words of one document are not independent, documents are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast.results.student import quantile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def ratio(sums: ArrayLike, sizes: ArrayLike, confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """`sum(sums) / sum(sizes)` with Student's interval over documents (delta method).

    Args:
        sums: Of each document, `[documents]`.
        sizes: Of each document, `[documents]`.
        confidence: Of the interval.

    Returns:
        The ratio and the ends of its interval; None for these with fewer than two documents.
    """
    over, under = np.asarray(sums, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    value = math.fsum(over) / math.fsum(under)
    count = len(over)
    if count < 2:
        return value, None, None
    influence = (over - value * under) / under.sum()
    error = math.sqrt(count / (count - 1) * math.fsum(influence**2))
    half = quantile(confidence, count - 1) * error
    return value, value - half, value + half
