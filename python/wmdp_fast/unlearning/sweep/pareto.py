"""Which of some runs are worth a look: those that no other beats in forgetting without losing in keeping."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one dominates, in ascending order of the first coordinate, then as given.

    A point is dominated if another is at most as large in the first and at least as large in the second coordinate, and
    not equal in both. Equal points are all on the front, or all not. Takes O(n log n).

    Args:
        points: For each run what should be low and what should be high.

    Returns:
        Indices into `points`.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    found: list[int] = []
    highest: tuple[float, float] | None = None
    for index in order:
        if highest is None or points[index][1] > highest[1] or points[index] == highest:
            found.append(index)
            highest = points[index]
    return found
