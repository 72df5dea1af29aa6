"""Measures models that are open; what is done is on the disk and is not done again."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wmdp_fast.exceptions import InternalError, WmdpFastError
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.robustness.retained.measure import Measured
from wmdp_fast.scoring.padded import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from wmdp_fast.robustness.retained.measure import RetainedMeasure
    from wmdp_fast.robustness.subject import Role, Subject

MEASURED = "measured.jsonl"


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is to be measured of each model, and what has been.

    Attributes:
        measures: The measures, in the order in which they are taken.
        note: Takes lines meant for the user.
        done: What has been measured, by key.
    """

    measures: Sequence[RetainedMeasure] = ()
    note: Callable[[str], None] = lambda _line: None
    done: dict[str, Measured] = field(default_factory=dict)

    @contextmanager
    def kept_in(self, folder: Path | None, controls: Path | None) -> Iterator[Callable[[Measured], None]]:
        """Inside, measurements can be kept in a folder, and those in it and of the controls of another are known.

        Args:
            folder: The folder; None keeps nothing.
            controls: A folder with attacks on the same base and never-learned model, or None.

        Yields:
            What keeps a measurement.

        Raises:
            JournalError: What is in the folder is damaged, or another process writes it.
        """
        if controls is not None and (controls / MEASURED).is_file():
            lines = (controls / MEASURED).read_text(encoding="utf-8").splitlines()
            self._know([one for line in lines if (one := Measured.from_json(json.loads(line))).role != "unlearned"])
        if folder is None:
            yield lambda _measured: None
            return
        with RunsFile(folder / MEASURED) as file:
            self._know([Measured.from_json(line) for line in file.lines])
            yield lambda measured: file.add(measured.to_json())

    def _know(self, measured: Sequence[Measured]) -> None:
        # What failed is tried again.
        self.done.update({one.key: one for one in measured if one.found is not None})

    def missing(self, role: Role) -> list[RetainedMeasure]:
        """What is still to be measured of a model."""
        return [one for one in self.measures if one.why_not(role) is None and _planned(role, one).key not in self.done]

    def measure(self, subject: Subject, keep: Callable[[Measured], None]) -> None:
        """Measures what is missing of a model."""
        for one in self.missing(subject.role):
            self.note(f"{subject.role}: measuring {one.kind}, {one.name}")
            ended = _ended(one, subject)
            if ended.failed is not None:
                self.note(f"{subject.role}, {one.kind}, {one.name}: not run: {ended.failed}")
            keep(ended)
            self.done[ended.key] = ended

    def of(self, roles: Sequence[Role]) -> list[Measured]:
        """What was measured of models, in order, and what failed."""
        keys = [_planned(role, one).key for role in roles for one in self.measures if one.why_not(role) is None]
        return [self.done[key] for key in keys]


def _planned(role: Role, measure: RetainedMeasure) -> Measured:
    return Measured(role=role, kind=measure.kind, name=measure.name, identity=measure.identity())


def _ended(measure: RetainedMeasure, subject: Subject) -> Measured:
    """What came of a measure."""
    found, failed, begin = None, None, time.perf_counter()
    try:
        found = measure.measure(subject)
    except (WmdpFastError, RuntimeError) as error:
        if isinstance(error, InternalError) or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
            raise
        failed = str(error).splitlines()[0]
    return replace(_planned(subject.role, measure), found=found, failed=failed, seconds=time.perf_counter() - begin)
