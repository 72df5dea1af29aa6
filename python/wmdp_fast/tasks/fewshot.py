"""Where few-shot examples come from, and how many of them a task gets.

They are the first questions of a split (`Task.fewshot_split`: `dev` of MMLU), in its order. Of local files that is a
file beside the one with the questions, `birds_dev.jsonl` beside `birds.jsonl` (`wmdp_fast.data.locate` finds it),
unless another one is named.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from wmdp_fast.data.locate import without_extension
from wmdp_fast.exceptions import TaskError
from wmdp_fast.tasks.task import Task

if TYPE_CHECKING:
    from pathlib import Path

# More examples than any prompt has room for.
_MOST_FEWSHOT = 1_000_000


def check_num_fewshot(num_fewshot: int | None) -> None:
    """Makes sure that it is a possible number.

    Raises:
        TaskError: It is no whole number, negative, or more than any prompt has room for.
    """
    whole = isinstance(num_fewshot, int) and not isinstance(num_fewshot, bool)
    if num_fewshot is not None and not (whole and 0 <= num_fewshot <= _MOST_FEWSHOT):
        raise TaskError(f"num_fewshot is {num_fewshot!r}; it must be a whole number from 0 to {_MOST_FEWSHOT}")


def with_fewshot_file(tasks: dict[str, Task], file: Path, num_fewshot: int | None) -> dict[str, Task]:
    """The tasks, those of local files with their few-shot examples in this file.

    Raises:
        FileNotFoundError: There is no such file.
        TaskError: It is no question file, or no examples are asked for.
    """
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file with few-shot examples", str(file))
    if without_extension(file.name) is None:
        raise TaskError(f"{file}: few-shot examples are in a question file, whose name ends in {Task.extensions}")
    if not num_fewshot:
        raise TaskError("fewshot_file names examples, but none are asked for; say how many with num_fewshot")
    return {
        name: replace(task, fewshot_split="dev", fewshot_files=(file,)) if task.test_files else task
        for name, task in tasks.items()
    }


def with_num_fewshot(tasks: dict[str, Task], num_fewshot: int | None) -> tuple[dict[str, Task], tuple[str, ...]]:
    """Settles every task's number of few-shot examples, by the rule of lm-eval: an explicit 0 cannot be overridden.

    Args:
        tasks: By name.
        num_fewshot: How many are asked for; None is 0.

    Returns:
        The tasks, and what the user should be told.

    Raises:
        TaskError: A task has no examples.
    """
    shots = num_fewshot or 0
    fixed = [task.name for task in tasks.values() if task.num_fewshot == 0]
    settled = {
        name: task if task.num_fewshot == 0 else replace(task, num_fewshot=shots) for name, task in tasks.items()
    }
    for task in settled.values():
        if task.num_fewshot and task.fewshot_split is None:
            stem = task.test_files[0].name
            raise TaskError(
                f"{task.dataset} has no few-shot examples for num_fewshot={shots}; name a file that holds them with"
                f" fewshot_file (--few-shot-file), put them into a file {without_extension(stem)}_dev beside {stem},"
                " with the same extension, or ask for 0"
            )
    if not (shots and fixed):
        return settled, ()
    verb = "is" if len(fixed) == 1 else "are"
    return settled, (f"{', '.join(fixed)} {verb} defined as 0-shot: num_fewshot={shots} is ignored, as in lm-eval",)
