"""Prompts as a model would get them, with their tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.prompts.prepare import TaskQuestions


@dataclass(frozen=True)
class RenderedContinuation:
    """What a model is scored on after a prompt: one of the choices.

    Attributes:
        text: The text after the prompt, with the delimiter before the choice.
        tokens: Its token ids.
        pieces: What the vocabulary calls each of them.
        tokens_cut: Tokens that the prompt loses at its beginning before this continuation, because the model reads no
            more at once.

    Example:
        >>> from wmdp_fast import demo, rendered_prompts
        >>> [prompt] = rendered_prompts(demo.model_path(), tasks=demo.questions_path("forget"))
        >>> right = prompt.continuations[prompt.answer]
        >>> len(right.tokens) == len(right.pieces), right.tokens_cut
        (True, 0)
    """

    text: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    tokens_cut: int


@dataclass(frozen=True)
class RenderedPrompt:
    """A question as a model would get it.

    Attributes:
        task: Name of the task.
        question: Number of the question in the task, from 1.
        order: 0 for the choices as they are in the file, else the number of the other order, from 1.
        prompt: The whole text before the continuations: system instruction, description, examples, question, in the
            chat template if one is applied.
        tokens: Its token ids, those included that the tokenizer adds by itself.
        pieces: What the vocabulary calls each of them.
        continuations: One for each choice.
        answer: Index of the right one.

    Example:
        >>> from wmdp_fast import demo, rendered_prompts
        >>> first, second = rendered_prompts(demo.model_path(), tasks=demo.questions_path("forget"), count=2)
        >>> first.question, second.question, first.prompt.endswith("Answer:")
        (1, 2, True)
    """

    task: str
    question: int
    order: int
    prompt: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    continuations: tuple[RenderedContinuation, ...]
    answer: int


def render_requests(
    read: Sequence[TaskQuestions],
    prompts: Sequence[Prompts],
    requests: Requests,
    tokenizer: PreTrainedTokenizerBase | None,
    orders: str | None,
) -> Iterator[RenderedPrompt]:
    """Shows the prompts of tasks with their tokens.

    Args:
        read: The questions of each task.
        prompts: Their prompts, then those in the other orders, task after task.
        requests: All of these as tokens.
        tokenizer: The tokenizer of transformers that made them.
        orders: `permute_choices`.
    """
    first_choices = requests.choice_offsets.tolist()
    texts = [(own, index) for own in prompts for index in range(len(own))]
    for row, ((task, number, order), (own, index)) in enumerate(zip(_places(read, orders), texts, strict=True)):
        context = requests.context(row).tolist()
        continuations = []
        for place in range(len(own.choices(index))):
            tokens = requests.continuation(first_choices[row] + place).tolist()
            # The last token is predicted, not read.
            cut = max(0, len(context) + len(tokens) - 1 - requests.max_length)
            continuations.append(
                RenderedContinuation(own.continuation(index, place), tuple(tokens), _pieces(tokenizer, tokens), cut)
            )
        yield RenderedPrompt(
            task=task,
            question=number,
            order=order,
            prompt=own.context(index),
            tokens=tuple(context),
            pieces=_pieces(tokenizer, context),
            continuations=tuple(continuations),
            answer=own.answers[index],
        )


def _places(read: Sequence[TaskQuestions], orders: str | None) -> Iterator[tuple[str, int, int]]:
    """Task, number and order of each question, in the order of the prompts."""
    for one in read:
        for number in range(1, len(one.questions) + 1):
            yield one.task.name, number, 0
    if orders is None:
        return
    for one in read:
        for number, question in enumerate(one.questions, start=1):
            num_choices = len(question.choices)
            num_orders = num_choices if orders == "cyclic" else math.factorial(num_choices)
            for order in range(1, num_orders):
                yield one.task.name, number, order


def _pieces(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, ...]:
    # Of an id that the vocabulary lacks there is no piece.
    return tuple("" if piece is None else str(piece) for piece in tokenizer.convert_ids_to_tokens(list(tokens)))
