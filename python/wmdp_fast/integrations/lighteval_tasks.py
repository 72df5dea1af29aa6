"""WMDP for lighteval, by log-likelihood and with lm-eval's prompts: `wmdp:bio`, `wmdp:chem`, `wmdp:cyber`.

To be named to lighteval as `--custom-tasks`. They work with every model of lighteval that gives log-probabilities.
`WMDP_FAST_WMDP` names a copy of the dataset, in place of the hub.
"""

from __future__ import annotations

import os
import string
from typing import Any

from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

from wmdp_fast.tasks.definitions import TASKS


def wmdp_prompt(line: dict[str, Any], task_name: str) -> Doc:
    """A question as lm-eval asks it. The description is part of it: lighteval would put blank lines after its own."""
    letters = string.ascii_uppercase[: len(line["choices"])]
    task = TASKS[f"wmdp_{task_name.partition(':')[2].partition('|')[0]}"]
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, line["choices"], strict=True))
    return Doc(
        task_name=task_name,
        query=f"{task.description}{line['question'].strip()}{listed}\nAnswer:",
        choices=[f"{task.target_delimiter}{letter}" for letter in letters],
        gold_index=int(line["answer"]),
    )


def _task(part: str) -> LightevalTaskConfig:
    local = os.environ.get("WMDP_FAST_WMDP")
    ours = TASKS[f"wmdp_{part}"]
    return LightevalTaskConfig(
        name=f"wmdp:{part}",
        prompt_function=wmdp_prompt,
        hf_repo=local or ours.dataset,
        hf_subset=f"wmdp-{part}",
        hf_revision=None if local else ours.revision,
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[Metrics.loglikelihood_acc],
        generation_size=1,
        version=1,
    )


TASKS_TABLE = [_task(part) for part in ("bio", "chem", "cyber")]
