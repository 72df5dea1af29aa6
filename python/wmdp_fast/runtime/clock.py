"""How long the phases of a run take."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.runtime.tables import in_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


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


def process_started() -> float | None:
    """When this process was started, seconds since 1970; None where the system does not say."""
    try:
        # The name in brackets may hold spaces; the field is the 22nd, in ticks since the machine was started.
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return time.time() - ago


def timings_table(timings: Mapping[str, float], started: float | None) -> str:
    """Where the time went, a phase a line.

    Args:
        timings: Seconds by phase.
        started: When the first phase began, seconds since 1970; with it, what came before and the rest up to now are
            shown too. None if that is not to be said, as of one of several models.
    """
    rows = dict(timings)
    if started is not None:
        now, process = time.time(), process_started()
        begun = started if process is None else min(process, started)
        rest = now - started - sum(timings.values())
        rows = {"start": started - begun, **timings, "other": max(0.0, rest), "all": now - begun}
    return "\n".join(in_columns([(phase, f"{seconds:.2f} s") for phase, seconds in rows.items()], "lr"))
