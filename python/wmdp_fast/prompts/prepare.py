"""From task definitions to prompts and batches: everything before the model, all of it done in Rust.

Knows nothing of torch. `evaluate` and the benchmarks are built on these steps, and so can a harness of your own be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast._rust import PromptTemplate, QuestionSet, read_many
from wmdp_fast.data.locate import locate_all
from wmdp_fast.exceptions import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from wmdp_fast._rust import PaddedBatch, Prompts, Requests
    from wmdp_fast.tasks.task import Task

# Tokens in a batch of `plan`, unless the caller knows better.
DEFAULT_TOKEN_BUDGET = 8192


@dataclass(frozen=True)
class TaskQuestions:
    """The questions of a task, read and checked.

    Attributes:
        task: The task.
        questions: The questions to ask, after `limit`.
        fewshot: The questions that examples are taken from, or None if the task takes none.
        available: How many questions there are without `limit`.
        revision: Commit of the dataset if it is the hub's, else None.
    """

    task: Task
    questions: QuestionSet
    fewshot: QuestionSet | None
    available: int
    revision: str | None


def read_tasks(
    tasks: Sequence[Task],
    *,
    data: str | PathLike[str] | None = None,
    dataset_revision: str | Mapping[str, str] | None = None,
    limit: float | None = None,
) -> list[TaskQuestions]:
    """Finds and reads the questions of tasks, all files in parallel.

    Args:
        tasks: The tasks, as `wmdp_fast.tasks.resolve.resolve` gives them.
        data: Folder with the datasets, in place of the hub.
        dataset_revision: Commit, branch or tag of the dataset in place of the pinned one; a mapping gives one for each
            dataset by name.
        limit: Only the first questions of each task: a number of them, or, below 1, a share (lm-eval's rule, rounded
            up).

    Raises:
        DataUnavailableError: Files are missing, gated or out of reach; says what to do.
        DatasetError: A file holds something else than questions; names file, row and field.
        TaskError: A description is the name of a column, which lm-eval would put in its place.
        ValueError: `limit` is no positive, finite number.
    """
    _check_limit(limit)
    located = locate_all(tasks, data=data, dataset_revision=dataset_revision)
    paths = list(dict.fromkeys(path for files in located for path in (*files.test, *files.fewshot)))
    sets = dict(zip(paths, read_many(paths), strict=True))
    read = [
        TaskQuestions(
            task=task,
            questions=_first(every := _join(files.test, sets), limit),
            fewshot=_join(files.fewshot, sets) if files.fewshot else None,
            available=len(every),
            revision=files.revision,
        )
        for task, files in zip(tasks, located, strict=True)
    ]
    for one in read:
        if one.task.description and one.task.description in one.questions.columns:
            raise TaskError(
                f"{one.task.name}: the description is {one.task.description!r}, and so is a column of"
                f" {one.questions.file}, whose texts lm-eval would take; write another description"
            )
    return read


def _check_limit(limit: float | None) -> None:
    if limit is None:
        return
    is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not is_number or not limit > 0 or (isinstance(limit, float) and math.isinf(limit)):
        raise ValueError(
            f"limit must be a positive, finite number, not {limit!r}: a number of questions, or a share of them below"
            " 1; leave it out to ask all"
        )


def _join(paths: Sequence[Path], sets: Mapping[Path, QuestionSet]) -> QuestionSet:
    return sets[paths[0]] if len(paths) == 1 else QuestionSet.concat([sets[path] for path in paths])


def _first(questions: QuestionSet, limit: float | None) -> QuestionSet:
    if limit is None:
        return questions
    wanted = math.ceil(len(questions) * limit) if limit < 1 else int(limit)
    return questions if wanted >= len(questions) else questions.head(wanted)


def template_of(task: Task, *, description: str | None = None) -> PromptTemplate:
    """The prompt template of a task, with another description if one is given."""
    return PromptTemplate(
        task.doc_to_text,
        choices=task.choices,
        description=task.description if description is None else description,
        target_delimiter=task.target_delimiter,
        fewshot_delimiter=task.fewshot_delimiter,
    )


def try_templates(read: Sequence[TaskQuestions]) -> None:
    """Renders the first question of each template, before a model is loaded for prompts that cannot be made.

    Raises:
        TemplateError: A template does not compile, or fails on that question.
    """
    for one in {one.task.doc_to_text: one for one in reversed(read)}.values():
        template_of(one.task).question_texts(one.questions.head(1))


def render(read: TaskQuestions, *, description: str | None = None) -> Prompts:
    """The prompts of a task, few-shot examples included, without a chat template.

    Args:
        read: The task's questions.
        description: Text before everything else, in place of the task's own.

    Raises:
        TemplateError: A question cannot be rendered; names file and row.
        ValueError: There are fewer few-shot examples than asked for.
    """
    template = template_of(read.task, description=description)
    return template.render(read.questions, read.fewshot, read.task.num_fewshot or 0)


def plan(
    requests: Requests, *, token_budget: int = DEFAULT_TOKEN_BUDGET, cuts: Sequence[int] = ()
) -> Iterator[PaddedBatch]:
    """Cuts requests into batches for a forward pass of your own, in PyTorch or anything else that takes numpy arrays.

    The longest rows come first. A batch says what to read from the model's answer: at each of `readouts` (row,
    position) the next-token distribution, and from it the log-probability of `target_tokens`; the sum over the targets
    of a choice is its log-likelihood.

    Args:
        requests: What `Tokenizer.encode_requests` made of prompts.
        token_budget: Maximum tokens per batch, padding included; a longer row is a batch by itself.
        cuts: Lengths that part batches: none holds rows shorter than one of these beside rows at least as long. For
            models whose rotary angles go by the longest row of a batch (`longrope`).

    Yields:
        Batches of int64 arrays.

    Example:
        >>> from wmdp_fast import Requests, plan
        >>> requests = Requests.from_tokens([[1, 2, 3], [1, 4]], [[[7], [8]], [[7], [8]]], max_length=2048)
        >>> [batch.input_ids.shape for batch in plan(requests, token_budget=3)]
        [(1, 3), (1, 2)]
    """
    start = 0
    while (batch := requests.padded_batch(start, token_budget, list(cuts))) is not None:
        yield batch
        start = batch.stop
