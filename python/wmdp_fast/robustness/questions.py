"""The questions of an attack: read, split, and asked."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast._rust import QuestionSet
from wmdp_fast.exceptions import TaskError, WmdpFastWarning
from wmdp_fast.prompts.cautions import Cautions
from wmdp_fast.prompts.tokenizer import BackgroundTokenizer
from wmdp_fast.results.by_task import task_results
from wmdp_fast.results.near_tie import near_tie_of
from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.split import for_choosing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Outcome, Prompts, Requests
    from wmdp_fast.prompts.options import PromptOptions
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.scoring.local import LocalModel
    from wmdp_fast.scoring.scores import Scores
    from wmdp_fast.tasks.resolve import Selection

# Fewer questions than these on either side tell nothing.
LEAST = 10


@dataclass(frozen=True, kw_only=True)
class Questions:
    """All questions of an attack, which half of them is for choosing, and how they are asked.

    Attributes:
        options: How they are asked.
        selection: The tasks.
        read: The questions of each.
        is_for_choosing: Whether each question, all tasks' one after the other, is for choosing and not reported, `[n]`;
            of questions that were not split, none is.
    """

    options: PromptOptions
    selection: Selection
    read: tuple[TaskQuestions, ...]
    is_for_choosing: NDArray[np.bool_]
    # With the tokenizers themselves: the next model's may stand where one was that is gone.
    _asked: list[tuple[PreTrainedTokenizerBase, list[Prompts], Requests]] = field(default_factory=list, repr=False)

    @classmethod
    def from_options(cls, options: PromptOptions, *, split: bool = True) -> Questions:
        """Reads questions, and splits them if they are those that an attack is about.

        Raises:
            TaskError: A task is unknown, or leaves too few questions to choose on or to report.
            DataUnavailableError, DatasetError, TemplateError, ValueError: As `PromptOptions.read`.
        """
        selection = options.select()
        read = tuple(options.read(selection))
        if not split:
            none = np.zeros(sum(len(one.questions) for one in read), dtype=bool)
            return cls(options=options, selection=selection, read=read, is_for_choosing=none)
        chosen = for_choosing([question for one in read for question in one.questions])
        for which, count in (("to choose settings on", chosen.sum()), ("to report", (~chosen).sum())):
            if count < LEAST:
                names = ", ".join(task.name for task in selection.tasks)
                raise TaskError(
                    f"{names}: of {len(chosen)} questions {count} are left {which}, which takes at least {LEAST};"
                    " ask more questions (--limit), or other tasks"
                )
        return cls(options=options, selection=selection, read=read, is_for_choosing=chosen)

    def __len__(self) -> int:
        return len(self.is_for_choosing)

    @cached_property
    def gold(self) -> NDArray[np.int64]:
        """The right choice of each question, `[n]`."""
        return np.array([question.answer for one in self.read for question in one.questions], dtype=np.int64)

    @cached_property
    def chance(self) -> NDArray[np.float64]:
        """How often guessing is right, of each question, `[n]`."""
        return np.array([1 / len(question.choices) for one in self.read for question in one.questions])

    @cached_property
    def choosing(self) -> tuple[QuestionSet, ...]:
        """Of each task the questions for choosing, which examples and training data may be taken from."""
        starts = np.cumsum([0, *(len(one.questions) for one in self.read)])
        return tuple(
            one.questions.select(np.flatnonzero(self.is_for_choosing[start : start + len(one.questions)]).tolist())
            for one, start in zip(self.read, starts, strict=False)
        )

    @property
    def by_letters(self) -> bool:
        """Whether all tasks are answered with letters, and not in full text."""
        return all(one.task.choices == "letters" for one in self.read)

    @property
    def content_hash(self) -> str:
        """Tells these questions, in this order, from others."""
        return QuestionSet.concat([one.questions for one in self.read]).content_hash

    def prompts(
        self, model: LocalModel, change: Callable[[TaskQuestions], TaskQuestions] | None = None
    ) -> list[Prompts]:
        """The prompts of each task as a model is given them.

        Args:
            model: The model, whose chat template may be asked for.
            change: Makes of a task with its questions what is asked instead: other words, examples, another template.
                The same number of questions, each with the same choices in the same order, unless the attack takes
                care of that itself.

        Raises:
            TemplateError: A prompt cannot be rendered.
        """
        changed = [one if change is None else change(one) for one in self.read]
        with warnings.catch_warnings():
            # Of what is unusual about the questions `own` warns; of each variant of an attack would be too much.
            warnings.simplefilter("ignore", WmdpFastWarning)
            return self._render(model, changed)[0]

    def _render(self, model: LocalModel, read: Sequence[TaskQuestions]) -> tuple[list[Prompts], Cautions]:
        cautions = Cautions(read, self.options.system_instruction, log_samples=False)
        return [self.options.prompts(one, model.tokenizer, cautions) for one in read], cautions

    def requests(self, model: LocalModel, prompts: Sequence[Prompts]) -> Requests:
        """Prompts as tokens."""
        found = self.options.requests(model, BackgroundTokenizer(self.selection), prompts)
        if found is None:
            raise ValueError("a model that is loaded here has a tokenizer")
        return found

    def own(self, model: LocalModel) -> tuple[list[Prompts], Requests]:
        """The prompts of the tasks as they are defined and their tokens, made once for a tokenizer.

        Warns:
            WmdpFastWarning: Prompts are cut, give answers away, or choices begin inside a token, as in `evaluate`.
        """
        for tokenizer, prompts, requests in self._asked:
            if tokenizer is model.tokenizer:
                return prompts, requests
        prompts, cautions = self._render(model, self.read)
        requests = self.requests(model, prompts)
        cautions.add_prompts(requests, [one.questions for one in self.read], model)
        self._asked.append((model.tokenizer, prompts, requests))
        return prompts, requests

    def ask(self, model: LocalModel, prompts: Sequence[Prompts] | None = None) -> list[Outcome]:
        """Asks the model as it is now.

        Args:
            model: The model.
            prompts: Other prompts than the tasks' own, one list of them for each task, as `prompts` gives them.

        Returns:
            The outcome of each task.

        Raises:
            ModelError: Its numbers are none any more.
        """
        if prompts is None:
            asked, requests = self.own(model)
        else:
            asked, requests = list(prompts), self.requests(model, prompts)
        return self._outcomes(model, asked, scored(model, requests))

    def _outcomes(self, model: LocalModel, asked: Sequence[Prompts], scores: Scores) -> list[Outcome]:
        results = task_results(self.read, asked, scores, near_tie=near_tie_of(model.dtype))
        return [result.outcome for result in results.values()]

    def answers(self, model: LocalModel, prompts: Sequence[Prompts] | None = None) -> Answers:
        """Asks, and gives the answers by letter or, of tasks that are answered in full text, by text."""
        return Answers.from_outcomes(self.ask(model, prompts), letters=self.by_letters)

    def answers_by(self, model: LocalModel, scores: Scores) -> Answers:
        """The answers that scores of the choices of `own` come to, however those were read off the model."""
        return Answers.from_outcomes(self._outcomes(model, self.own(model)[0], scores), letters=self.by_letters)


def scored(model: LocalModel, requests: Requests) -> Scores:
    """The scores of requests, by the options that the model was opened with.

    Raises:
        ModelError: Its numbers are none any more.
    """
    from wmdp_fast.scoring.trie import score

    options = model.options
    return score(
        model.loaded,
        requests,
        engine=options.engine,
        token_budget=options.token_budget,
        score_mode=options.score_mode,
    )
