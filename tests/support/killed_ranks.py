"""Moments at which a rank of an evaluation kills itself, over its whole life, and what is left of the run then.

A moment is a kind of event and how many of them are to pass. No `finally` and no handler runs: it is as with `kill -9`.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast import evaluation_run
from wmdp_fast.models import load
from wmdp_fast.models.read_together import ReadTogether
from wmdp_fast.results import result
from wmdp_fast.scoring import journal, journaled, ranks, sharded
from wmdp_fast.scoring.scores import PartialScores

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

KINDS = {
    "start": 1,  # before anything
    "loading": 1,  # before the weights are read
    "meeting": 1,  # before it waits for the others
    "cutting": 2,  # before tasks, or texts, are cut into shards
    "half a record": 8,  # as half a record of a journal is written
    "batch": 8,  # when a batch is scored and written down
    "exchange": 6,  # before it tells the others what it has
    "saving": 1,  # before the file with the results is there
    "saved": 1,  # when it is, and the journals are too
    "deleting": 2,  # before a journal is deleted
}
"""The kinds, and how many of each there are at least in a run of two ranks that is shared by tasks and texts.

Where they stream a model together there is one more: `layer`, before a layer is read.
"""

# Only the first rank saves.
_OF_THE_FIRST = ("saving", "saved")


@dataclass(frozen=True)
class Moment:
    """When a rank is killed.

    Attributes:
        rank: Which one.
        kind: A kind of event.
        count: How many of them pass before.
    """

    rank: int
    kind: str
    count: int


def drawn(generator: Random) -> list[Moment]:
    """A moment of each kind, by chance which one and of which of two ranks."""
    return [
        Moment(0 if kind in _OF_THE_FIRST else generator.randrange(2), kind, generator.randrange(number))
        for kind, number in KINDS.items()
    ]


def kill_at(moment: Moment, folder: Path) -> None:
    """Has this process kill itself at a moment, once it has said in `killed.json` how many choices it had scored."""
    left, scored = moment.count, count_scored()

    def event() -> None:
        nonlocal left
        if left == 0:
            (folder / "killed.json").write_text(json.dumps(scored), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    if moment.kind == "start":
        event()
    elif moment.kind == "half a record":
        _watch_records(event)
    elif moment.kind == "deleting":
        _watch_journals(event)
    else:
        where: dict[str, tuple[Any, str]] = {
            "loading": (load, "read_pretrained"),
            "meeting": (ranks, "_group"),
            "cutting": (sharded.ShardedRun, "begin"),
            "batch": (PartialScores, "enter"),
            "exchange": (ranks.Ranks, "exchange"),
            "layer": (ReadTogether, "read"),
            "saving": (result, "write_whole"),
            "saved": (evaluation_run.EvalResult, "save"),
        }
        _watch(*where[moment.kind], event, after=moment.kind in ("batch", "saved"))


def count_scored() -> list[int]:
    """Counts the choices that this process scores from now on, in the one item of what is returned."""
    enter, take_in, scored = PartialScores.enter, journaled.take_in, [0]
    # The trial before a run has no journal, and what one journal takes over from others was scored before.
    is_taking_in = False

    def entering(self: PartialScores, choices: Any, *arguments: Any, **options: Any) -> None:
        enter(self, choices, *arguments, **options)
        if self.journal is not None and not is_taking_in:
            scored[0] += len(choices)

    def taking_in(*arguments: Any) -> None:
        nonlocal is_taking_in
        is_taking_in = True
        take_in(*arguments)
        is_taking_in = False

    PartialScores.enter = entering  # type: ignore[method-assign]
    journaled.take_in = sharded.take_in = taking_in
    return scored


def scored_until(folder: Path) -> int:
    """How many choices a rank had scored when it was killed."""
    scored: list[int] = json.loads((folder / "killed.json").read_text(encoding="utf-8"))
    return scored[0]


def scores_in_journals(folder: Path) -> list[tuple[str, int]]:
    """All scores in the journals below a folder, one for each time they were written: of which run, which choice."""
    found = []
    for path in sorted(folder.rglob("unfinished_*.scores")):
        first = next(journal._records(path.read_bytes(), path), None)
        run = {} if first is None else json.loads(first[0][1:])
        run.pop("shard", None)
        found += [(json.dumps(run, sort_keys=True), int(choice)) for choice in journal.finished_in(path)["choice"]]
    return found


def _watch(owner: Any, name: str, event: Callable[[], None], *, after: bool) -> None:
    """Before each call of a function, or after it."""
    function = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        if not after:
            event()
        returned = function(*arguments, **options)
        if after:
            event()
        return returned

    setattr(owner, name, watched)


def _watch_records(event: Callable[[], None]) -> None:
    """When half a record is in a journal."""
    append, write = journal.Journal._append, os.write

    def half(self: journal.Journal, body: bytes) -> None:
        def writing(file: int, record: bytes) -> int:
            written = write(file, record[: len(record) // 2])
            event()
            return written + write(file, record[written:])

        os.write = writing
        try:
            append(self, body)
        finally:
            os.write = write

    journal.Journal._append = half  # type: ignore[method-assign]


def _watch_journals(event: Callable[[], None]) -> None:
    """Before a journal is deleted."""
    unlink = Path.unlink

    def unlinking(self: Path, *, missing_ok: bool = False) -> None:
        if self.name.startswith("unfinished_") and self.exists():
            event()
        unlink(self, missing_ok=missing_ok)

    Path.unlink = unlinking  # type: ignore[method-assign]
