"""Pruned weights, one after the other, and the inputs that Wanda weighs them with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rows = Sequence[Sequence[float]]


def by_magnitude(rows: Rows, share: float) -> list[list[float]]:
    width = len(rows[0])
    flat = [value for row in rows for value in row]
    lowest = sorted(range(len(flat)), key=lambda place: abs(flat[place]))[: int(len(flat) * share)]
    kept = [0.0 if place in set(lowest) else value for place, value in enumerate(flat)]
    return [kept[start : start + width] for start in range(0, len(kept), width)]


def by_wanda(rows: Rows, inputs: Rows, share: float) -> list[list[float]]:
    """`inputs` are all vectors that the matrix was multiplied by."""
    norms = [sum(vector[place] ** 2 for vector in inputs) ** 0.5 for place in range(len(rows[0]))]
    found = []
    for row in rows:
        scores = [abs(value) * norm for value, norm in zip(row, norms, strict=True)]
        lowest = set(sorted(range(len(row)), key=scores.__getitem__)[: int(len(row) * share)])
        found.append([0.0 if place in lowest else value for place, value in enumerate(row)])
    return found
