"""Scores that lie in a journal until the results are saved."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.scoring.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from wmdp_fast.scoring.scores import PartialScores


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
    if warn and len(journal.choices) == 0:
        warnings.warn(
            f"there is nothing to resume in {folder}: starting from the beginning", WmdpFastWarning, stacklevel=4
        )
    partial = PartialScores.resumed(number, journal)
    try:
        yield partial
    except BaseException as error:
        done = int(partial.finished.sum())
        if done:
            error.add_note(
                f"{done} of {number} {what} are scored and kept in {journal.path}: the same again with"
                " --resume (resume=True) goes on from there"
            )
            journal.close()
        else:
            journal.remove()
        raise
    journal.remove()
