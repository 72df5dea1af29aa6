"""Scores that lie in a journal until the results are saved."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.scoring.journal import Journal, finished_in, shard_journals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from wmdp_fast.scoring.scores import PartialScores


GOES_ON = "the same again with --resume (resume=True) goes on from there"


@contextlib.contextmanager
def journaled_scores(
    folder: Path | None,
    identity: Mapping[str, Any] | None,
    number: int,
    what: str,
    *,
    resume: bool,
    warn: bool,
) -> Iterator[PartialScores]:
    """Scores to be entered; if the run can be known again, they lie in a journal until the results are saved."""
    from wmdp_fast.scoring.scores import PartialScores

    if folder is None or identity is None:
        yield PartialScores.empty(number)
        return
    journal = Journal.open(folder, identity, resume=resume)
    if warn and len(journal.choices) == 0 and not shard_journals(folder, identity):
        warn_of_nothing(folder)
    partial = PartialScores.resumed(number, journal)
    try:
        take_in(partial, shard_journals(folder, identity))
        yield partial
    except BaseException as error:
        done = int(partial.finished.sum())
        if done:
            error.add_note(f"{done} of {number} {what} are scored and kept in {journal.path}: {GOES_ON}")
            journal.close()
        else:
            journal.remove()
        raise
    journal.remove()


def take_in(partial: PartialScores, journals: Sequence[Path]) -> None:
    """Enters what journals of a run's shards hold into the scores of the whole run, and deletes them.

    Raises:
        JournalError: Another process writes one of them, or it is damaged.
    """
    for path in journals:
        scores = finished_in(path)
        scores = scores[~partial.finished[scores["choice"]]]
        partial.enter(scores["choice"].astype("int64"), scores["loglikelihood"], scores["is_greedy"])
        # Only now, as they are in the run's own journal.
        path.unlink()
    partial.num_resumed = int(partial.finished.sum())


def warn_of_nothing(folder: Path) -> None:
    """Says that a run begins which was to be resumed, and which results are there already of runs that ended."""
    ended = sorted(path.name for path in folder.glob("results_*.json"))
    there = f"; {ended[-1]} there is of a run that ended, and is kept" if ended else ""
    warnings.warn(
        f"there is nothing to resume in {folder}: starting from the beginning{there}", WmdpFastWarning, stacklevel=5
    )
