"""A text put into every prompt, in front of the question itself, and the tokens it is read as."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast._rust import Prompts, Requests
from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.prepare import template_of
from wmdp_fast.prompts.tokenizer import BackgroundTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast._rust import Tokenizer
    from wmdp_fast.robustness.subject import Subject

SEPARATOR = "\n\n"
"""Between the text and the question."""


@dataclass(frozen=True)
class Places:
    """Where a text stands in the tokens of some questions' prompts.

    Attributes:
        heads: By question, the tokens before the text's.
        tails: By question, those behind them.
        answers: By question, the tokens of each choice.
    """

    heads: dict[int, list[int]] = field(default_factory=dict)
    tails: dict[int, list[int]] = field(default_factory=dict)
    answers: dict[int, list[list[int]]] = field(default_factory=dict)

    def row(self, question: int, tokens: Sequence[int]) -> list[int]:
        """A prompt's tokens with others in place of the text's."""
        return [*self.heads[question], *tokens, *self.tails[question]]


@dataclass(frozen=True)
class Insertion:
    """The prompts of all questions with a place for a text: before the question, behind description and examples.

    That is where whoever asks can put it: inside the user's turn, where there is a chat template.

    Attributes:
        subject: The model, with its questions.
    """

    subject: Subject

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Reads prompts as the model's own are read."""
        return BackgroundTokenizer(self.subject.questions.selection).of(self.subject.model)

    @cached_property
    def _parts(self) -> list[tuple[str, str]]:
        """Of each question's prompt what stands before the question, and the rest."""
        questions = self.subject.questions
        found = []
        for read, prompts in zip(questions.read, questions.own(self.subject.model)[0], strict=True):
            texts = template_of(read.task, description="").question_texts(read.questions)
            for place, text in enumerate(texts):
                context = prompts.context(place)
                start = context.rfind(text.strip())
                if start < 0:
                    raise ModelError(f"{read.task.name}: the chat template changes the question, so nothing is put in")
                found.append((context[:start], context[start:]))
        return found

    def context(self, question: int, text: str) -> str:
        """A question's prompt with a text in it."""
        before, after = self._parts[question]
        return f"{before}{text}{SEPARATOR}{after}"

    def prompts(self, text: str) -> list[Prompts]:
        """The prompts of each task with a text in them, to be asked."""
        own = self.subject.questions.own(self.subject.model)[0]
        ends = np.cumsum([0, *map(len, own)]).tolist()
        return [
            of_task.with_contexts([self.context(one, text) for one in range(*bounds)], delimiter=of_task.delimiter)
            for of_task, bounds in zip(own, pairwise(ends), strict=True)
        ]

    def encoded(self, texts: Sequence[str], questions: Sequence[int]) -> Requests:
        """The prompts of some questions with each of some texts as tokens: all questions with the first, and so on."""
        own = self.subject.questions.own(self.subject.model)[0]
        starts = np.cumsum([0, *map(len, own)])
        found = []
        for question in questions:
            task = int(np.searchsorted(starts, question, side="right")) - 1
            place = question - int(starts[task])
            choices = range(len(own[task].choices(place)))
            found.append([own[task].continuation(place, choice) for choice in choices])
        prompts = Prompts.from_contexts(
            [self.context(question, text) for text in texts for question in questions],
            found * len(texts),
            [0] * (len(texts) * len(questions)),
        )
        return self.tokenizer.encode_requests([prompts], self.subject.questions.options.length(self.subject.model))

    def places(self, text: str, tokens: Sequence[int], questions: Sequence[int]) -> Places:
        """Where a text stands in prompts that are read with just these tokens for it.

        Left out are questions that are read otherwise, and those that are too long for the model.
        """
        requests, found = self.encoded([text], questions), Places()
        for row, question in enumerate(questions):
            read, choices = requests.context(row).tolist(), answers_of(requests, row)
            start = start_of(tokens, read)
            if start is None or len(read) + max(map(len, choices)) - 1 > requests.max_length:
                continue
            found.heads[question], found.tails[question] = read[:start], read[start + len(tokens) :]
            found.answers[question] = choices
        return found


def start_of(tokens: Sequence[int], row: Sequence[int]) -> int | None:
    """Where some tokens stand in a row, the first time; None if they do not."""
    wanted, read = list(tokens), list(row)
    starts = (start for start in range(len(read) - len(wanted) + 1) if read[start : start + len(wanted)] == wanted)
    return next(starts, None)


def answers_of(requests: Requests, question: int) -> list[list[int]]:
    """The tokens of each of a question's choices."""
    choices = range(*requests.choice_offsets[question : question + 2].tolist())
    return [requests.continuation(choice).tolist() for choice in choices]
