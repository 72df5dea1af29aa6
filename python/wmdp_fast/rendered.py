"""Prompts as a model would get them, with their tokens, without the model."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.asking import Asking, Cautions, Encoder, check_counts
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.tokenizer_only import TokenizerOnly
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
    """

    task: str
    question: int
    order: int
    prompt: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    continuations: tuple[RenderedContinuation, ...]
    answer: int


def rendered_prompts(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    count: int = 1,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **asking: Any,
) -> list[RenderedPrompt]:
    """The first prompts of each task with their tokens, exactly as `evaluate` scores them.

    No weights are read: of a folder or a name on the hub the tokenizer's files and `config.json` are enough.

    Args:
        model: A folder or a name on the Hugging Face hub; or a model in memory, which needs `tokenizer`.
        count: How many questions of each task.
        tokenizer: Another tokenizer than the model's own: one in memory, a folder, or a name on the hub.
        revision: Commit, branch or tag of the model on the hub.
        trust_remote_code: Whether code that comes with the model may run.
        asking: What is asked and how: the parameters of `evaluate` from `tasks`, which is needed, to
            `fewshot_as_multiturn`, and `max_length`.

    Returns:
        Task after task, question after question; with `permute_choices` a task's questions in their other orders come
        after those of all tasks.

    Warns:
        WmdpFastWarning: As `evaluate`, about the prompts that are returned.

    Raises:
        ModelError: There is no configuration.
        TypeError: There is no parameter of that name, or the model is served.
        ValueError: `count` is below 1, or an option has an impossible value.
        WmdpFastError: As `evaluate`, for whatever is wrong with tasks, questions, templates or tokenizer.
    """
    if isinstance(model, Server):
        raise TypeError(
            "the prompts of a served model are shown by its tokenizer: name the folder, or the hub name, that has it"
            " and config.json, in place of the server"
        )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number of questions of at least 1, not {count!r}")
    how = Asking(**asking)
    check_counts(max_length=how.max_length)
    selection = how.select()
    every = how.read(selection)
    about = Cautions(every, how.system_instruction, log_samples=False)
    loaded = _load(model, tokenizer, revision, trust_remote_code)
    read = [replace(one, questions=one.questions.head(min(count, len(one.questions)))) for one in every]
    others = how.in_other_orders(read)
    prompts = [how.prompts(one, loaded.tokenizer, about) for one in (*read, *others)]
    requests = how.requests(loaded, Encoder(selection), prompts)
    if requests is None:
        raise ValueError("without a tokenizer there are no tokens")
    about.add_prompts(requests, [one.questions for one in (*read, *others)])
    places = list(_places(read, how.permute_choices))
    return list(_rendered(places, prompts, requests, loaded.tokenizer))


def _load(
    model: str | PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None,
    revision: str | None,
    trust_remote_code: bool,
) -> LoadedModel | TokenizerOnly:
    from wmdp_fast.models.load import load_tokenizer, wrap_model
    from wmdp_fast.models.tokenizer_only import load_tokenizer_only

    if isinstance(tokenizer, os.PathLike):
        tokenizer = os.fspath(tokenizer)
    if isinstance(model, (str, os.PathLike)):
        return load_tokenizer_only(
            os.fspath(model), tokenizer=tokenizer, revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer is None:
        raise ValueError("a model in memory needs its tokenizer: rendered_prompts(model, tokenizer=..., tasks=...)")
    return wrap_model(model, load_tokenizer(tokenizer))


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


def _rendered(
    places: Sequence[tuple[str, int, int]],
    prompts: Sequence[Prompts],
    requests: Requests,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[RenderedPrompt]:
    first_choices = requests.choice_offsets.tolist()
    texts = [(own, index) for own in prompts for index in range(len(own))]
    for row, ((task, number, order), (own, index)) in enumerate(zip(places, texts, strict=True)):
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


def _pieces(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, ...]:
    # Of an id that the vocabulary lacks there is no piece.
    return tuple("" if piece is None else str(piece) for piece in tokenizer.convert_ids_to_tokens(list(tokens)))
