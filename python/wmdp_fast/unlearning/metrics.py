"""The numbers of a run: kept, written to its file, and passed on to experiment trackers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.unlearning import reporting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Metrics:
    """The metrics of a run, kept, written and passed on."""

    def __init__(self, work: Path | None, last_step: int, trackers: Sequence[reporting.Tracker]) -> None:
        self._file = None if work is None else reporting.MetricsFile(work / checkpoint.METRICS, last_step)
        self._trackers = trackers
        self.rows: list[dict[str, Any]] = [] if self._file is None else self._file.rows

    def add(self, row: dict[str, Any]) -> None:
        """Takes the numbers of a step, or an evaluation."""
        if self._file is None:
            self.rows.append(row)
        else:
            self._file.add(row)
        numbers = {
            name: value
            for name, value in row.items()
            if isinstance(value, (int, float)) and math.isfinite(value) and name != "step"
        }
        for task, scores in row.get("evaluation", {}).items():
            numbers |= {f"{task}/{metric}": value for metric, value in scores.items()}
        for tracker in self._trackers:
            tracker.log(numbers, row["step"])

    def close(self) -> None:
        """Closes the file and the trackers."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()
