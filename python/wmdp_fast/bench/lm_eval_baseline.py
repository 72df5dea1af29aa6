"""lm-eval as a baseline: its own code, given the same questions as this package.

The tasks are handed over as inline configurations that read local files, so that lm-eval's own task index (10 s to
build) and the network stay out of the comparison.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from typing import TYPE_CHECKING, Any

from wmdp_fast.data.locate import locate_all
from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from wmdp_fast.tasks.task import Task

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


def task_config(task: Task, test: Sequence[PathLike[str]], fewshot: Sequence[PathLike[str]]) -> dict[str, Any]:
    """A task of ours as an inline configuration of lm-eval that reads local files."""
    files = {task.test_split: [os.fspath(path) for path in test]}
    if fewshot and task.fewshot_split:
        files[task.fewshot_split] = [os.fspath(path) for path in fewshot]
    config = task.lm_eval_config()
    for key in ("dataset_name", "fewshot_config", "unsafe_code", "task_alias"):
        config.pop(key, None)
    config |= {
        "dataset_path": _BUILDERS[os.path.splitext(os.fspath(test[0]))[1]],  # noqa: PTH122 (a PathLike)
        "dataset_kwargs": {"data_files": files},
    }
    if fewshot and task.fewshot_split:
        config["fewshot_config"] = {"sampler": "first_n"}
    else:
        config.pop("fewshot_split", None)
    return config


def task_configs(tasks: Sequence[Task], data: str | PathLike[str] | None) -> list[dict[str, Any]]:
    """Inline configurations of several tasks, whose files are found as this package finds them."""
    return [
        task_config(task, located.test, located.fewshot)
        for task, located in zip(tasks, locate_all(tasks, data=data), strict=True)
    ]


@contextlib.contextmanager
def quiet_lm_eval() -> Iterator[Any]:
    """lm-eval with its log turned down and its dataset cache in a temporary folder.

    Yields:
        The module `lm_eval`.

    Raises:
        WmdpFastError: lm-eval is not installed.
    """
    try:
        import datasets
        import lm_eval
    except ImportError as error:
        raise WmdpFastError("lm-eval is not installed; pip install 'wmdp-fast[lm-eval]'") from error
    logger = logging.getLogger("lm_eval")
    level = logger.level
    cache, progress = datasets.config.HF_DATASETS_CACHE, datasets.is_progress_bar_enabled()
    with tempfile.TemporaryDirectory() as folder:
        logger.setLevel(logging.ERROR)
        datasets.config.HF_DATASETS_CACHE = folder
        datasets.disable_progress_bars()
        try:
            yield lm_eval
        finally:
            logger.setLevel(level)
            datasets.config.HF_DATASETS_CACHE = cache
            if progress:
                datasets.enable_progress_bars()
