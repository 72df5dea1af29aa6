"""`wmdp-fast lm-eval`: lm-eval's own command line, in which the model `wmdp-fast` is known."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.data.locate import locate_all
from wmdp_fast.exceptions import DataUnavailableError, WmdpFastError
from wmdp_fast.tasks.definitions import TASKS

if TYPE_CHECKING:
    from wmdp_fast.data.locate import Located
    from wmdp_fast.tasks.task import Task

SUMMARY = "Run lm-eval with its model `wmdp-fast`: all of `hf`'s arguments, faster. Takes lm-eval's arguments."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is lm-eval's but `--data`; options are not looked at here."""
    parser.epilog = (
        "`wmdp-fast lm-eval run --help` shows lm-eval's own help. `--data DIR` among its arguments reads WMDP and MMLU"
        " from a folder, in place of the hub."
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what `lm-eval` would be given")
    parser.prefix_chars = "\0"
    parser.set_defaults(explain=parser.print_help)


def run(arguments: argparse.Namespace) -> int:
    """Hands over to lm-eval, which reads `sys.argv`."""
    if arguments.arguments in (["-h"], ["--help"]):
        arguments.explain()
        raise SystemExit(0)
    theirs, data = _take_data(arguments.arguments)
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise WmdpFastError("lm-eval is not installed; pip install 'wmdp-fast[lm-eval]'") from error
    from wmdp_fast.integrations import lm_eval  # noqa: F401 (registers the model)

    if data is not None:
        _read_from(data)
    sys.argv = ["lm-eval", *theirs]
    cli_evaluate()
    return 0


def _take_data(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--data DIR`, and its folder."""
    theirs, data = list(arguments), None
    for place, argument in enumerate(theirs):
        name, equals, value = argument.partition("=")
        if name == "--data":
            data = value if equals else next(iter(theirs[place + 1 : place + 2]), "")
            del theirs[place : place + (1 if equals else 2)]
            break
    if data == "":
        raise WmdpFastError("--data needs a folder: that with copies of the datasets")
    return theirs, data


def _read_from(data: str) -> None:
    """Has `datasets` read the datasets of our tasks from a folder, in which they are found as `eval --data` does."""
    import datasets

    load = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if (task := _task_of(path, name)) is None:
            return load(path, name, **options)
        found = _located(task, data)
        files = {task.test_split: [str(file) for file in found.test]}
        if found.fewshot and task.fewshot_split:
            files[task.fewshot_split] = [str(file) for file in found.fewshot]
        kinds = {file.suffix.removeprefix(".").replace("jsonl", "json") for file in (*found.test, *found.fewshot)}
        if len(kinds) != 1 or not kinds <= {"parquet", "json"}:
            raise WmdpFastError(
                f"{data}: lm-eval reads copies of {path} that are parquet, JSON or JSON lines, not"
                f" {' and '.join(sorted(kinds))}"
            )
        kept = {key: value for key, value in options.items() if key in ("split", "streaming", "keep_in_memory")}
        return load(kinds.pop(), data_files=files, **kept)

    datasets.load_dataset = load_dataset


def _located(task: Task, data: str) -> Located:
    """A task's files in a folder, those for examples too if they are there: lm-eval reads all before it needs them."""
    wanted = replace(task, num_fewshot=1) if task.fewshot_split and task.num_fewshot is None else task
    try:
        [found] = locate_all([wanted], data=data)
    except DataUnavailableError:
        [found] = locate_all([task], data=data)
    return found


def _task_of(path: str, name: str | None) -> Task | None:
    """The task of ours that reads a dataset of the hub."""
    return next((task for task in TASKS.values() if (task.dataset, task.config) == (path, name)), None)
