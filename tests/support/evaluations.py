"""Results of evaluations that never ran: made-up scores of made-up questions."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wmdp_fast._rust import PromptTemplate, QuestionSet
from wmdp_fast.results.lm_eval_files import config_section, tokenizer_info
from wmdp_fast.results.result import EvalResult, GroupResult, TaskResult
from wmdp_fast.tasks.task import DOC_TO_TEXT, Group, Task

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = {
    "birds": ("question", "subject", "choices", "answer"),
    "fish": ("answer", "choices", "question", "subject"),
    "moss": ("question", "choices", "answer", "subject"),
    "clouds": ("question", "subject", "choices", "answer"),
}


SIZES = {"birds": 9, "fish": 5, "moss": 1, "clouds": 4}


GROUPS = {
    "nature": Group("nature", "nature", ("animals", "plants"), version="3"),
    "animals": Group("animals", "living animals", ("birds", "fish"), version="2"),
    "plants": Group("plants", "plants", ("moss",), version="2"),
}


TOKENIZER = SimpleNamespace(
    pad_token="<pad>", pad_token_id=0, eos_token="</s>", eos_token_id=2, bos_token=None, bos_token_id=None
)


MODEL_INFO = {"model_num_parameters": 7, "model_dtype": "torch.float32", "model_revision": "main", "model_sha": ""}


NEAR_TIE = 0.05


def task_of(name: str, num_fewshot: int = 0) -> Task:
    texts = name == "birds"
    return Task(
        name=name,
        alias=f"about {name}" if name == "fish" else name,
        dataset="parquet",
        config=None,
        fewshot_split="dev",
        description=f"About {name}.\n\n",
        doc_to_text="question" if texts else "mmlu",
        choices="texts" if texts else "letters",
        num_fewshot=num_fewshot,
        metrics=("acc", "acc_norm") if texts else ("acc",),
        version=1.0,
    )


def rows_of(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"{name} {seed}")
    rows = []
    for i in range(count):
        row = {
            "question": f' What of {name} {i}?\n"é" \\ {rng.random()}\t',
            "subject": name,
            "choices": ["".join(rng.choices("aé 日\n", k=rng.randint(1, 9))) for _ in range(4)],
            "answer": rng.randrange(4),
        }
        rows.append({column: row[column] for column in COLUMNS[name]})
    return rows


def score(context: str, continuation: str) -> tuple[float, bool]:
    """What the model says: a pure function of the text, and coarse enough that choices often tie."""
    rng = random.Random(context + continuation)
    return -round(rng.random() * 3, 1) - rng.choice([0.0, 1e-5]), rng.random() < 0.5


def task_result(task: Task, limit: int | None = None) -> TaskResult:
    test = rows_of(task.name, SIZES[task.name], seed=1)
    questions = QuestionSet.from_rows(test[:limit], file=f"{task.name}.parquet")
    fewshot = QuestionSet.from_rows(rows_of(task.name, 3, seed=2))
    template = PromptTemplate(task.doc_to_text, choices=task.choices, description=task.description)
    prompts = template.render(questions, fewshot, task.num_fewshot or 0)
    scores = [
        score(prompts.context(i), prompts.continuation(i, j))
        for i in range(len(prompts))
        for j in range(len(prompts.choices(i)))
    ]
    loglikelihood, is_greedy = zip(*scores, strict=True)
    return TaskResult.from_scores(
        task,
        questions,
        prompts,
        np.array(loglikelihood),
        np.array(is_greedy),
        near_tie=NEAR_TIE,
        num_available=len(test),
        dataset_revision="0" * 40,
    )


def eval_result(num_fewshot: int = 0, limit: int | None = None, **options: Any) -> EvalResult:
    tasks = {name: task_result(task_of(name, num_fewshot), limit) for name in ("birds", "fish", "moss", "clouds")}
    leaves = {"nature": ["birds", "fish", "moss"], "animals": ["birds", "fish"], "plants": ["moss"]}
    groups = {
        name: GroupResult.from_tasks(group, [tasks[task] for task in leaves[name]]) for name, group in GROUPS.items()
    }
    defaults: dict[str, Any] = {
        "tasks": tasks,
        "groups": groups,
        "model_name": "org/toy",
        "model_source": "hf",
        "config": config_section("hf", {"pretrained": "org/toy"}, model_info=MODEL_INFO, batch_size=8, limit=limit),
        "timings": {"forward": 1.5},
        "num_tokens": 1234,
        "started": 1795469312.5,
        "total_seconds": 2.5,
        "score_mode": "float32",
        "near_tie": NEAR_TIE,
        "tokenizer": tokenizer_info(TOKENIZER, max_length=64),
        "fewshot_as_multiturn": True,
    }
    return EvalResult(**(defaults | options))


def write_lm_eval_tasks(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in SIZES:
        files = {}
        for split, count, seed in (("test", SIZES[name], 1), ("dev", 3, 2)):
            files[split] = str(folder / f"{name}-{split}.parquet")
            parquet.write_table(pa.Table.from_pylist(rows_of(name, count, seed)), files[split])
        task = task_of(name)
        letters = task.choices == "letters"
        config = {
            "task": name,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "description": task.description,
            "doc_to_text": DOC_TO_TEXT[task.doc_to_text],
            "doc_to_choice": list("ABCD") if letters else "{{choices}}",
            "doc_to_target": "answer",
            "metadata": {"version": 1.0},
        }
        if task.alias != name:
            config["task_alias"] = task.alias
        if letters:
            config["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        # JSON is YAML, and needs no library to be written.
        (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")
    for name, group in GROUPS.items():
        config = {
            "group": name,
            "group_alias": group.alias,
            "task": list(group.children),
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
            "metadata": {"version": int(group.version)},
        }
        (folder / f"_{name}.yaml").write_text(json.dumps(config), encoding="utf-8")
