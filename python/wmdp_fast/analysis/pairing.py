"""Which questions two runs of a task both asked, in the same words: only these are compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.analysis.statistics import correct_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from wmdp_fast.results.saved import SavedTask


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which questions of two runs of a task are the same: for each pair its place in either run."""

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]


def pair(before: SavedTask, after: SavedTask) -> Pairing | str:
    """The questions that two runs of a task both asked, or why they cannot be compared question by question.

    They can if the same questions were asked with the same prompts, choices and answers, where numbers of questions are
    in both runs (one may have had a limit). lm-eval's hash of a whole document covers more, so that one of these is the
    same where it differs; `document_note` tells of that.
    """
    ours, theirs = before.samples, after.samples
    if ours is None or theirs is None:
        return "neither run has samples of it" if ours is theirs else "one of the runs has no samples of it"
    common, mine, other = np.intersect1d(ours.doc_ids, theirs.doc_ids, return_indices=True)
    if not len(common):
        return f"{len(ours)} and {len(theirs)} questions, none in common"
    for what, hashes in (
        ("prompts", (ours.prompt_hashes, theirs.prompt_hashes)),
        ("answers", (ours.target_hashes, theirs.target_hashes)),
    ):
        if any("" in one for one in hashes):
            return "the samples have no hashes (lm-eval before 0.4.3), so that it cannot be checked what was asked"
        pairs = [(hashes[0][one], hashes[1][two]) for one, two in zip(mine, other, strict=True)]
        if reason := _differing(what, pairs, common):
            return reason
    choices = [(ours.continuations(one), theirs.continuations(two)) for one, two in zip(mine, other, strict=True)]
    return _differing("choices", choices, common) or Pairing(before=mine, after=other)


def answer_pairs(before: SavedTask, after: SavedTask) -> Iterator[dict[str, Any]]:
    """For each question that both runs asked what either answered."""
    pairing, mine, other = pair(before, after), before.samples, after.samples
    if isinstance(pairing, str) or mine is None or other is None:
        return
    correct = [correct_answers(task, "acc") for task in (before, after)]
    for one, two in zip(pairing.before.tolist(), pairing.after.tolist(), strict=True):
        gold = int(mine.gold[one])
        yield {
            "task": before.name,
            "doc_id": int(mine.doc_ids[one]),
            "gold": gold if gold >= 0 else None,
            "predicted_before": int(mine.predicted("acc")[one]),
            "predicted_after": int(other.predicted("acc")[two]),
            "correct_before": None if correct[0] is None else bool(correct[0][one]),
            "correct_after": None if correct[1] is None else bool(correct[1][two]),
        }


def document_note(before: SavedTask, after: SavedTask, pairing: Pairing) -> str | None:
    """Says if the documents of two runs differ in what was not asked (another column, for instance)."""
    if before.samples is None or after.samples is None:
        return None
    mine, other = before.samples.doc_hashes, after.samples.doc_hashes
    pairs = zip(pairing.before, pairing.after, strict=True)
    differing = sum(mine[one] != other[two] for one, two in pairs)
    if not differing:
        return None
    return (
        f"{before.name}: {differing} of {len(pairing.before)} documents differ in something that was not asked;"
        " prompts, choices and answers are the same"
    )


def _differing(what: str, pairs: Sequence[tuple[Any, Any]], doc_ids: npt.NDArray[np.int64]) -> str | None:
    differing = [index for index, (mine, other) in enumerate(pairs) if mine != other]
    if not differing:
        return None
    first = int(doc_ids[differing[0]])
    return f"the {what} of {len(differing)} of {len(pairs)} questions differ, question {first} first"
