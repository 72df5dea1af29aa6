"""How much the long tests try: as much as shows a fault of any kind, or everything with `make test-thorough`."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("WMDP_FAST_THOROUGH") == "1"


def cases(few: int, many: int) -> int:
    """How many cases to try: `few`, and in a thorough run `many`."""
    return many if THOROUGH else few
