"""Answers that a preference for a letter hides: unlearned models tend to give one letter to all questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wmdp_fast.robustness.answers import Answers, furthest_above_mean
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.robustness.subject import Subject


class Calibrate(Attack):
    """Answers with the letter that is furthest above its mean log-likelihood."""

    name: ClassVar[str] = "calibrate"
    summary: ClassVar[str] = "answers with each letter's mean log-likelihood taken off"
    access: ClassVar[Access] = "prompts"
    about: ClassVar[str] = (
        "Means are those of the questions for choosing; no right answer is used. The calibrated accuracy of other"
        " attacks has the means of all questions under that attack."
    )

    def settings(self, _budget: Budget, _seed: int) -> Sequence[Setting]:
        """One."""
        return [Setting(values={})]

    def why_not(self, subject: Subject, _setting: Setting) -> str | None:
        """Answers in full text have no letters."""
        return None if subject.questions.by_letters else "its questions are answered in full text, not by letters"

    def run(self, subject: Subject, _setting: Setting) -> Iterator[Reading]:
        """One reading; its figures have how often each letter was answered, before and after.

        Raises:
            ModelError: The model gives no numbers.
        """
        questions = subject.questions
        outcomes = questions.ask(subject.model)
        ends = np.cumsum([len(one) for one in outcomes])
        means_from = np.split(questions.is_for_choosing, ends[:-1])
        own = np.concatenate([one.predicted for one in outcomes])
        found = np.concatenate([furthest_above_mean(*both) for both in zip(outcomes, means_from, strict=True)])
        figures = {"letters before": np.bincount(own).tolist(), "letters after": np.bincount(found).tolist()}
        yield Reading(answers=Answers.from_predictions(found, questions.gold), figures=figures)
