"""Quantized weights, one number after the other, as the papers and libraries define them."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rows = Sequence[Sequence[float]]


def int8(rows: Rows) -> list[list[float]]:
    found = []
    for row in rows:
        largest = max(abs(value) for value in row)
        found.append([round(value / largest * 127) * largest / 127 if largest else 0.0 for value in row])
    return found


def int4(rows: Rows, group: int, symmetric: bool) -> list[list[float]]:
    rounded = _symmetric if symmetric else _asymmetric
    return [
        [value for start in range(0, len(row), group) for value in rounded(row[start : start + group])] for row in rows
    ]


def _symmetric(group: Sequence[float]) -> list[float]:
    # The largest weight is half-way between two steps: float32 arithmetic decides.
    scale = np.float32(max(abs(value) for value in group)) / np.float32(7.5)
    if not scale:
        return [0.0] * len(group)
    steps = [round(float(np.float32(value) * (np.float32(1) / scale))) for value in group]
    return [min(7, max(-8, step)) * float(scale) for step in steps]


def _asymmetric(group: Sequence[float]) -> list[float]:
    low, high = min(0.0, *group), max(0.0, *group)
    scale = (high - low) / 15
    if not scale:
        return [0.0] * len(group)
    zero = round(-low / scale)
    return [(min(15, max(0, round(value / scale) + zero)) - zero) * scale for value in group]


def nf4_values() -> list[float]:
    """8 quantiles of a normal distribution above zero, 7 below, and zero, so that the largest is 1 (bitsandbytes)."""

    def quantiles(count: int) -> list[float]:
        # From the outermost down to the median, which is left out.
        outer = 0.9677083
        return [NormalDist().inv_cdf(outer + (0.5 - outer) * step / count) for step in range(count)]

    values = [*quantiles(8), 0.0, *(-value for value in quantiles(7))]
    return sorted(value / max(values) for value in values)


def nf4(rows: Rows) -> list[list[float]]:
    values, width = nf4_values(), len(rows[0])
    flat = [value for row in rows for value in row]
    found: list[float] = []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        largest = max(abs(value) for value in block)
        found += [
            min(values, key=lambda one: abs(value / largest - one)) * largest if largest else 0.0 for value in block
        ]
    return [found[start : start + width] for start in range(0, len(found), width)]
