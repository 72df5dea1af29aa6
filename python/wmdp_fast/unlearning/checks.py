"""What a setting may be, checked before anything is loaded."""

from __future__ import annotations

import math


def check_whole(name: str, value: object, *, least: int) -> None:
    """Raises ValueError if a setting is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_number(name: str, value: object, *, zero_allowed: bool = False) -> None:
    """Raises ValueError if a setting is no finite number above 0, or of at least 0."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < 0 or (value == 0 and not zero_allowed):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number {'of at least' if zero_allowed else 'above'} 0, not {value!r}")
