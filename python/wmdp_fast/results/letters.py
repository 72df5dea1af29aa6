"""Answers that are one letter whatever is asked: their accuracy says how often that letter is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast.exceptions import WmdpFastWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

# One choice that is answered to more than this share of the questions says more about the model's letters than about
# what it knows; of fewer questions than these it may be chance.
COLLAPSED_SHARE = 0.9
_COLLAPSED_LEAST = 10
# More tasks than these are told of in one sentence.
_COLLAPSES_TOLD = 3


class OneLetterWarning(WmdpFastWarning):
    """A task is answered with one letter; of its own kind since tables say it too."""


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """One choice that is answered to nearly all questions, whatever is asked.

    Attributes:
        letter: The choice's letter.
        predicted: To how many questions it is the answer.
        right: Of how many it is the right one.
        n: Number of questions.
    """

    letter: str
    predicted: int
    right: int
    n: int

    def __str__(self) -> str:
        return (
            f"{self.letter} is answered to {self.predicted} of {self.n} questions, of {self.right} of which it is the"
            " right choice: this accuracy tells how often that letter is right, not what the model knows"
        )


def collapse(predicted: npt.NDArray[np.int64], gold: npt.NDArray[np.int64]) -> Collapse | None:
    """The choice that is answered to more than 90 % of the questions (10 or more), if it is not right that often too.

    Args:
        predicted: The choice answered to each question, `[n]`.
        gold: The right one, `[n]`.
    """
    n = len(predicted)
    if n < _COLLAPSED_LEAST:
        return None
    most = int(np.bincount(predicted).argmax())
    count, right = int((predicted == most).sum()), int((gold == most).sum())
    # Where nearly all answers are the same letter, answering it is no sign of anything.
    if count <= COLLAPSED_SHARE * n or right > COLLAPSED_SHARE * count:
        return None
    return Collapse(letter=letter_of(most), predicted=count, right=right, n=n)


def letter_notes(found: Mapping[str, Collapse]) -> list[str]:
    """One sentence for each task that is answered with one letter; of many tasks one for all."""
    if len(found) <= _COLLAPSES_TOLD:
        return [f"{name}: {one}" for name, one in found.items()]
    letters = sorted({one.letter for one in found.values()})
    several = ", ".join(list(found)[:_COLLAPSES_TOLD]) + f" and {len(found) - _COLLAPSES_TOLD} more"
    return [
        f"{len(found)} tasks ({several}) are answered with one letter ({', '.join(letters)}) to more than"
        f" {COLLAPSED_SHARE:.0%} of their questions: their accuracies tell how often that letter is right, not what the"
        " model knows"
    ]


def letter_of(choice: int) -> str:
    """The letter of a choice; a number beyond Z."""
    return chr(ord("A") + choice) if choice < 26 else str(choice + 1)
