"""The Pareto front by its definition: every point against every other."""

from __future__ import annotations


def dominates(one, other):
    """Whether a point is at least as good (low, high) in both coordinates, and better in one."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def front(points):
    """Indices of the points that no other dominates, by their first coordinate, then as given."""
    found = [index for index, point in enumerate(points) if not any(dominates(another, point) for another in points)]
    return sorted(found, key=lambda index: (points[index][0], index))
