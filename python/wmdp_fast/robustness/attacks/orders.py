"""Every choice in every place: what is left of an answer once its letter no longer counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast._rust import Outcome
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.robustness.subject import Subject


class Orders(Attack):
    """Asks in all cyclic orders of the choices, and answers with the choice of the highest mean log-likelihood."""

    name: ClassVar[str] = "orders"
    summary: ClassVar[str] = "each choice in each place, log-likelihoods averaged over the cyclic orders"
    access: ClassVar[Access] = "prompts"
    about: ClassVar[str] = (
        "Unlearned models tend to prefer a letter; in cyclic orders every choice has every letter once, so that a"
        " preference cancels out. It is also a better answer for any model: compare with the base's."
    )

    def settings(self, _budget: Budget, _seed: int) -> Sequence[Setting]:
        """One."""
        return [Setting(values={"orders": "cyclic"})]

    def why_not(self, subject: Subject, _setting: Setting) -> str | None:
        """Answers in full text have no order."""
        return None if subject.questions.by_letters else "its questions show no choices, so these have no order"

    def cost(self, subject: Subject, _setting: Setting) -> float:
        """As many readings as there are places."""
        return float((1 / subject.questions.chance).mean())

    def run(self, subject: Subject, _setting: Setting) -> Iterator[Reading]:
        """One reading.

        Raises:
            ModelError: The model gives no numbers.
        """
        own = subject.questions.ask(subject.model)
        others = subject.questions.ask(subject.model, subject.questions.prompts(subject.model, _permuted))
        predicted = np.concatenate([mean_over_orders(*both) for both in zip(own, others, strict=True)])
        yield Reading(answers=Answers.from_predictions(predicted, subject.questions.gold))


def mean_over_orders(own: Outcome, others: Outcome) -> np.ndarray:
    """The choice with the highest log-likelihood on average over cyclic orders.

    Args:
        own: Of questions in their own order.
        others: Of the same questions in their other cyclic orders, as `QuestionSet.permuted` gives them.

    Returns:
        Of each question, `[n]`.
    """
    predicted, other = [], 0
    for start, stop in zip(own.choice_offsets, own.choice_offsets[1:], strict=False):
        num_choices = int(stop - start)
        total = own.loglikelihood[start:stop].copy()
        for shift in range(1, num_choices):
            # In the order `shift` the first place has the choice of that number.
            begin = int(others.choice_offsets[other])
            total += np.roll(others.loglikelihood[begin : begin + num_choices], shift)
            other += 1
        predicted.append(int(total.argmax()))
    return np.array(predicted, dtype=np.int64)


def _permuted(one: TaskQuestions) -> TaskQuestions:
    return replace(one, questions=one.questions.permuted("cyclic"))
