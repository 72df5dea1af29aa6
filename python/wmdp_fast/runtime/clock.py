"""How long the phases of a run take."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class PhaseClock:
    """Adds up wall time by phase: `with clock("read"): ...`.

    Time in a phase inside another one counts for the inner one only, so that the sum is no more than what has passed.

    Attributes:
        started: When it was made, seconds since 1970.
        seconds: The time spent in each phase so far.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.seconds: dict[str, float] = {}
        self._inside = 0.0  # seconds of phases that ended inside the present one

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time spent inside as that of `phase`."""
        begun = time.perf_counter()
        before, self._inside = self._inside, 0.0
        try:
            yield
        finally:
            taken = time.perf_counter() - begun
            self.seconds[phase] = self.seconds.get(phase, 0.0) + taken - self._inside
            self._inside = before + taken
