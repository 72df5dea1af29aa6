"""Ratios of sums over documents, and how sure they are: words of one document are not independent, documents are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast.results.student import quantile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
    if len(over) < 2:
        return value, None, None
    half = quantile(confidence, len(over) - 1) * error(influence(over, under, value))
    return value, value - half, value + half


def influence(
    sums: NDArray[np.float64], sizes: NDArray[np.float64] | NDArray[np.int64], ratio: float
) -> NDArray[np.float64]:
    """By how much each document moves a ratio of sums, to first order, `[documents]`; they add up to 0."""
    moved: NDArray[np.float64] = (sums - ratio * sizes) / sizes.sum()
    return moved


def error(influence: NDArray[np.float64]) -> float:
    """The standard error of what at least two documents move by so much."""
    count = len(influence)
    return math.sqrt(count / (count - 1) * math.fsum(influence**2))
