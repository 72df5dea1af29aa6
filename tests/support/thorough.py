"""How much the long tests try: as much as shows a fault of any kind, or everything with `make test-thorough`."""

from __future__ import annotations

import itertools
import os
from typing import Any

THOROUGH = os.environ.get("WMDP_FAST_THOROUGH") == "1"


def cases(few: int, many: int) -> int:
    """How many cases to try: `few`, and in a thorough run `many`."""
    return many if THOROUGH else few


def every_other(*options: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Half of all combinations, such that any values of all options but one occur together; all in a thorough run."""
    places = itertools.product(*(range(len(values)) for values in options))
    chosen = [place for place in places if THOROUGH or sum(place) % 2 == 0]
    return [tuple(values[index] for values, index in zip(options, place, strict=True)) for place in chosen]
