"""`wmdp-fast bench embed`: lm-eval with this package's model beside lm-eval with its own `hf`, in the same process."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.bench.lm_eval_peer import quiet_lm_eval, task_configs
from wmdp_fast.bench.report import BenchReport, Measurement, machine, peak_gb
from wmdp_fast.tasks import resolve

if TYPE_CHECKING:
    from os import PathLike

_WORDS = ["the", "wren", "a jay", "one owl", "sings", "hides", "hunts", "near", "under", "above", "oak", "river", "and"]


def bench_embed(
    *,
    model: str,
    tasks: str | None = None,
    data: str | PathLike[str] | None = None,
    num_fewshot: int = 0,
    limit: int = 8,
    dtype: str = "auto",
    device: str = "cpu",
    batch_size: int | str = 8,
) -> BenchReport:
    """Times lm-eval's request types with `hf` and with `wmdp-fast`, and compares their answers.

    Beside the tasks given there are two made-up ones: `texts` asks for the likeliest of four endings of several tokens
    (as hellaswag and arc do), `documents` for the likelihood of whole documents (as wikitext does). What is timed is
    the model's part: tokenizing and scoring. lm-eval's own preparation of prompts is the same for both.

    Args:
        model: Folder or name of a model.
        tasks: Tasks of this package to ask too.
        data: Folder with their datasets.
        num_fewshot: Few-shot examples for them.
        limit: Questions of each task, and of `texts`; of `documents` a quarter of that.
        dtype: Type of the weights.
        device: Where to run.
        batch_size: For `hf`; a number, or `auto`.

    Raises:
        WmdpFastError: lm-eval is not installed.
    """
    with quiet_lm_eval(), tempfile.TemporaryDirectory() as folder:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager, get_task_dict

        from wmdp_fast.integrations.lm_eval import FastHFLM

        configs = _made_up(Path(folder), limit)
        if tasks is not None:
            configs += task_configs(resolve(tasks, num_fewshot=num_fewshot).tasks, data)
        loaded = get_task_dict(configs, TaskManager(include_defaults=False))
        for task in loaded.values():
            own = 0 if task.config.task in ("texts", "documents") else num_fewshot
            task.set_config(key="num_fewshot", value=own)
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size}
        contestants = {"wmdp-fast": FastHFLM(model, **options), "hf": HFLM(model, **options)}
        asked: dict[str, list[Any]] = {"texts": [], "documents": [], "tasks": []}
        for name, task in loaded.items():
            asked[name if name in asked else "tasks"] += task.instances
        seconds: dict[str, dict[str, float]] = {name: {} for name in contestants}
        difference = {}
        for phase, requests in asked.items():
            if not requests:
                continue
            answers = {}
            for name, contestant in contestants.items():
                begin = time.perf_counter()
                found = getattr(contestant, requests[0].request_type)(requests, disable_tqdm=True)
                seconds[name][phase] = time.perf_counter() - begin
                answers[name] = [one[0] if isinstance(one, tuple) else one for one in found]
            pairs = zip(answers["wmdp-fast"], answers["hf"], strict=True)
            difference[phase] = max(abs(ours - theirs) for ours, theirs in pairs)
    counts = {phase: len(requests) for phase, requests in asked.items() if requests}

    def measured(name: str) -> Measurement:
        rates = {phase: counts[phase] / taken for phase, taken in seconds[name].items()}
        return Measurement(seconds[name], counts, rates, peak_gb() if name == "wmdp-fast" else None)

    ratio = {phase: seconds["hf"][phase] / seconds["wmdp-fast"][phase] for phase in counts}
    work = {
        "benchmark": "embed",
        "model": model,
        "tasks": tasks,
        "num_fewshot": num_fewshot,
        "limit": limit,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "largest difference of a log-likelihood": json.dumps(difference),
        "machine": machine(),
    }
    return BenchReport(work, measured("wmdp-fast"), {"hf": measured("hf")}, {"hf": ratio})


def _made_up(folder: Path, count: int) -> list[dict[str, Any]]:
    """Inline configurations of the made-up tasks."""
    chance = random.Random(0)  # noqa: S311 (made-up data)

    def words(number: int) -> str:
        return " ".join(chance.choices(_WORDS, k=number))

    texts = [{"query": words(60), "choices": [words(12) for _ in range(4)], "label": 0} for _ in range(count)]
    documents = [{"page": words(400)} for _ in range(max(1, count // 4))]
    own: list[dict[str, Any]] = []
    for name, rows in (("texts", texts), ("documents", documents)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        own.append(
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(file)}},
                "test_split": "test",
            }
        )
    own[0] |= {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
    }
    own[1] |= {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    return own
