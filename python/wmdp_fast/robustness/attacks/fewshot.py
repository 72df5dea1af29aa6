"""Answered examples before each question: they show what is asked for, and that answers are given here.

Few-shot prompts of the forgotten domain raise LLMU and RMU (Doshi and Stickland 2024). WMDP has no questions set apart
for it, so examples are taken from those for choosing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wmdp_fast.robustness.examples import example_sets, with_other_answers
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from wmdp_fast._rust import Prompts, QuestionSet
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.robustness.subject import Subject


class FewShot(Attack):
    """Puts answered questions for choosing before each question."""

    name: ClassVar[str] = "fewshot"
    summary: ClassVar[str] = "answered questions of the same task before each question"
    access: ClassVar[Access] = "prompts"
    about: ClassVar[str] = (
        "Examples are questions for choosing, letters in turn. No question is asked after itself or a near-duplicate:"
        " those among the examples are asked after a second set of as many. The control has the same examples with"
        " wrong answers. A prompt that is too long for the model loses examples from its beginning."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """Numbers of examples times sets of them; then the control."""
        counts = (1, 5) if budget == "quick" else (1, 5, 10)
        seeds = {"quick": 1, "standard": 2, "full": 3}[budget]
        drawn = [{"examples": count, "seed": seed + shift} for count in counts for shift in range(seeds)]
        null = Setting(values={"examples": 5, "seed": seed, "answers": "wrong"}, null=True)
        return [*(Setting(values=values) for values in drawn), null]

    def why_not(self, subject: Subject, setting: Setting) -> str | None:
        """A task may have too few questions for choosing."""
        try:
            for one, which in zip(subject.questions.read, _by_task(subject), strict=True):
                example_sets(list(one.questions), which, setting.values["examples"], setting.values["seed"])
        except ValueError as error:
            return f"{one.task.name}: {error}"
        return None

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading; its figures say how many questions were asked after the second set.

        Raises:
            ModelError: The model gives no numbers.
        """
        values, firsts, seconds, second_for = setting.values, [], [], []
        for one, which in zip(subject.questions.read, _by_task(subject), strict=True):
            first, second, flags = example_sets(list(one.questions), which, values["examples"], values["seed"])
            firsts.append(_examples(one, first, values))
            seconds.append(_examples(one, second, values))
            second_for.append(flags)
        after = [
            subject.questions.prompts(subject.model, partial(_after, iter(examples))) for examples in (firsts, seconds)
        ]
        prompts = [_mixed(*of_task) for of_task in zip(*after, second_for, strict=True)]
        figures = {"asked after the second set": sum(map(sum, second_for))}
        yield Reading(answers=subject.ask(prompts), figures=figures)


def _by_task(subject: Subject) -> list[np.ndarray]:
    """Which questions are for choosing, of each task."""
    questions = subject.questions
    ends = np.cumsum([len(one.questions) for one in questions.read])
    return np.split(questions.is_for_choosing, ends[:-1])


def _examples(one: TaskQuestions, places: Sequence[int], values: Mapping[str, Any]) -> QuestionSet:
    drawn = one.questions.select(places)
    return with_other_answers(drawn, values["seed"]) if values.get("answers") == "wrong" else drawn


def _after(examples: Iterator[QuestionSet], one: TaskQuestions) -> TaskQuestions:
    """A task's questions after the next set of examples; tasks come in order."""
    some = next(examples)
    return replace(one, task=replace(one.task, num_fewshot=len(some)), fewshot=some)


def _mixed(first: Prompts, second: Prompts, flags: Sequence[bool]) -> Prompts:
    """The first prompts, but the second where that is flagged."""
    contexts = [(second if flag else first).context(place) for place, flag in enumerate(flags)]
    return first.with_contexts(contexts, delimiter=first.delimiter)
