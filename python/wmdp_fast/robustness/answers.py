"""What a model answered to all questions of an attack, question by question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from wmdp_fast._rust import Outcome
    from wmdp_fast.analysis.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was answered.

    Attributes:
        predicted: The choice that was answered, `[n]`.
        correct: Whether it is right, `[n]`.
        calibrated: Whether the choice that is furthest above its letter's mean log-likelihood over the task's questions
            is right, `[n]`: what is left of knowledge behind a preference for a letter. None where no letters were
            scored.
    """

    predicted: NDArray[np.int64]
    correct: NDArray[np.bool_]
    calibrated: NDArray[np.bool_] | None = None

    @classmethod
    def from_outcomes(cls, outcomes: Sequence[Outcome], *, metric: str = "acc", letters: bool = True) -> Answers:
        """From the outcomes of tasks, one after the other.

        Args:
            outcomes: Of each task.
            metric: `acc`, or `acc_norm` for answers in full text, longer ones not disadvantaged.
            letters: Whether the choices are letters, whose means tell of a preference.
        """
        norm = metric == "acc_norm"
        return cls(
            predicted=np.concatenate([one.predicted_norm if norm else one.predicted for one in outcomes]),
            correct=np.concatenate([one.correct_norm if norm else one.correct for one in outcomes]),
            calibrated=np.concatenate([calibrated(one) for one in outcomes]) if letters else None,
        )

    @classmethod
    def from_predictions(cls, predicted: Sequence[int] | NDArray[np.int64], gold: NDArray[np.int64]) -> Answers:
        """From choices that were found in another way than by the model's own answers."""
        chosen = np.asarray(predicted, dtype=np.int64)
        return cls(predicted=chosen, correct=chosen == gold)

    def accuracy(self, which: NDArray[np.bool_], *, calibrated: bool = False) -> Estimate | None:
        """The share of right answers among some questions, with Wilson's interval.

        Args:
            which: Which of all questions, `[n]`.
            calibrated: By the calibrated answers; then None if there are none.
        """
        from wmdp_fast.analysis.statistics import share

        right = self.calibrated if calibrated else self.correct
        return None if right is None else share(right[which])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: a text of `0` and `1` for each question."""
        found: dict[str, Any] = {"predicted": self.predicted.tolist(), "correct": _bits(self.correct)}
        return found if self.calibrated is None else found | {"calibrated": _bits(self.calibrated)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Answers:
        """From what `to_json` gave."""
        return cls(
            predicted=np.array(found["predicted"], dtype=np.int64),
            correct=_from_bits(found["correct"]),
            calibrated=_from_bits(found["calibrated"]) if "calibrated" in found else None,
        )


def calibrated(outcome: Outcome) -> NDArray[np.bool_]:
    """Whether each question's right choice is furthest above its letter's mean, `[n]`; see `Answers.calibrated`."""
    right: NDArray[np.bool_] = furthest_above_mean(outcome, np.ones(len(outcome), dtype=bool)) == outcome.answers
    return right


def furthest_above_mean(outcome: Outcome, means_from: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The choice of each question that is furthest above its letter's mean log-likelihood, `[n]`.

    Args:
        outcome: Of a task.
        means_from: Which of its questions the means are taken over, `[n]`: those of them with as many choices as the
            question has; of all with as many, if there are none of them.
    """
    offsets, chosen = outcome.choice_offsets, np.zeros(len(outcome), dtype=np.int64)
    counts = np.diff(offsets)
    for num_choices in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == num_choices)
        scores = outcome.loglikelihood[offsets[rows][:, None] + np.arange(num_choices)]
        some = scores[means_from[rows]]
        chosen[rows] = (scores - (some if len(some) else scores).mean(axis=0)).argmax(axis=1)
    return chosen


def _bits(flags: NDArray[np.bool_]) -> str:
    return "".join("1" if flag else "0" for flag in flags.tolist())


def _from_bits(text: str) -> NDArray[np.bool_]:
    return np.array([bit == "1" for bit in text], dtype=bool)
