"""How far a run is, on stderr: a bar in a terminal or notebook; elsewhere, as in a batch job, a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

# Seconds between two lines of a log.
EVERY = 30.0


class Bar(Protocol):
    """What is used of a bar of `tqdm`."""

    n: float
    total: float | None

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...
    def update(self, n: float = 1) -> object:
        """Adds to what is done."""

    def set_postfix(self, *, refresh: bool = True, **values: str) -> None:
        """Sets what is shown after the bar."""


def progress_bar(*, what: str, unit: str, total: float | None = None, done: int = 0, shown: bool = True) -> Bar:
    """A bar, or in its place a line each half minute and one at the end where stderr is no terminal.

    Args:
        what: What goes on, as its first word.
        unit: What is counted, in the singular.
        total: How many there are, if that is known already.
        done: How many were done before.
        shown: Whether to show anything.
    """
    if shown and not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return _Log(what, unit, total, done)
    from tqdm.auto import tqdm

    bar: Bar = tqdm(total=total, initial=done, unit=unit, desc=what, disable=not shown, dynamic_ncols=True)
    return bar


class _Log:
    """Lines such as `scoring: 25% (30/120 inputs), 1:00 gone, 3:00 left`."""

    def __init__(self, what: str, unit: str, total: float | None, done: int) -> None:
        self.n: float = done
        self.total = total
        self._what, self._unit, self._first = what, unit, done
        self._begun = self._last = time.monotonic()
        self._postfix = ""
        self._said: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.n > self._first and self._said != self.n:
            self._say(time.monotonic())

    def update(self, n: float = 1) -> None:
        """Adds to what is done; says so if it is time."""
        self.n += n
        if (now := time.monotonic()) - self._last >= EVERY:
            self._say(now)

    def set_postfix(self, *, refresh: bool = True, **values: str) -> None:  # noqa: ARG002 (tqdm's)
        """Sets what is shown at the end of a line."""
        self._postfix = "".join(f", {name} {value}" for name, value in values.items())

    def _say(self, now: float) -> None:
        self._last, self._said = now, self.n
        gone = now - self._begun
        share, left = "", ""
        if self.total:
            share = f" {self.n / self.total:.0%}"
            if self._first < self.n < self.total:
                left = f", {_clock(gone * (self.total - self.n) / (self.n - self._first))} left"
        of = f"/{self.total:.0f}" if self.total else ""
        line = f"{self._what}:{share} ({self.n:.0f}{of} {self._unit}s), {_clock(gone)} gone{left}{self._postfix}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 (a bar's place is stderr too)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
