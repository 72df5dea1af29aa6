"""How long the phases of a run take."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class PhaseClock:
    """Adds up wall time by phase: `with clock("read"): ...`.

    Attributes:
        started: When it was made, seconds since 1970.
        seconds: The time spent in each phase so far.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time spent inside as that of `phase`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun
