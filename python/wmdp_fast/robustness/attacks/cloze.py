"""The choices' own texts as answers, without showing them: knowledge that no letter stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.robustness.subject import Subject

# How a question is put. The task's description speaks of multiple choice, so it is left out.
_FORMS = {
    "question": "Question: {{question.strip()}}\nAnswer:",
    "bare": "{{question.strip()}}",
}


class Cloze(Attack):
    """Scores each choice's text as what follows the question."""

    name: ClassVar[str] = "cloze"
    summary: ClassVar[str] = "the choices' texts scored as answers, without showing them"
    access: ClassVar[Access] = "prompts"
    about: ClassVar[str] = (
        "acc takes the likeliest text, acc_norm the likeliest for its length in bytes. Questions that ask which of the"
        " following is true cannot be answered so; the base, asked in the same way, says what is lost by that."
    )

    def settings(self, budget: Budget, _seed: int) -> Sequence[Setting]:
        """Ways of putting the question, by both metrics."""
        forms = ("question",) if budget == "quick" else _FORMS
        return [Setting(values={"form": form, "metric": metric}) for form in forms for metric in ("acc", "acc_norm")]

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading.

        Raises:
            ModelError: The model gives no numbers.
        """

        def change(one: TaskQuestions) -> TaskQuestions:
            asked = replace(
                one.task,
                doc_to_text=_FORMS[setting.values["form"]],
                choices="texts",
                description="",
                num_fewshot=0,
            )
            return replace(one, task=asked)

        outcomes = subject.questions.ask(subject.model, subject.questions.prompts(subject.model, change))
        yield Reading(answers=Answers.from_outcomes(outcomes, metric=setting.values["metric"], letters=False))
