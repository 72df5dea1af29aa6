"""`wmdp-fast bench embed`: lm-eval with this package's model beside lm-eval with its own `hf`, in the same process."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.bench.agreement import tolerance
from wmdp_fast.bench.lm_eval_baseline import quiet_lm_eval, task_configs
from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.tasks.resolve import resolve

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

_WORDS = ["the", "wren", "a jay", "one owl", "sings", "hides", "hunts", "near", "under", "above", "oak", "river", "and"]


def bench_embed(
    *,
    model: str,
    tasks: str | None = None,
    data: str | PathLike[str] | None = None,
    num_fewshot: int = 0,
    limit: int = 8,
    dtype: str = "float32",
    device: str = "cpu",
    batch_size: int | str = 8,
) -> BenchReport:
    """Times lm-eval's request types with `hf` and with `wmdp-fast`, and compares their answers.

    Beside the tasks given there are two made-up ones: `texts` asks for the likeliest of four endings of several tokens
    (as hellaswag and arc do), `documents` for the likelihood of whole documents (as wikitext does). What is timed is
    the model's part: tokenizing and scoring, after one request that is not timed. lm-eval's own preparation of prompts
    is the same for both. Both models lie in memory at the same time.

    Args:
        model: Folder or name of a model.
        tasks: Tasks of this package to ask too.
        data: Folder with their datasets.
        num_fewshot: Few-shot examples for them.
        limit: Questions of each task, and of `texts`; of `documents` a quarter of that.
        dtype: Type of the weights. In float32, a difference beyond `tolerance` is a failure.
        device: Where to run.
        batch_size: For `hf`; a number, or `auto`.

    Raises:
        WmdpFastError: lm-eval is not installed.
    """
    with quiet_lm_eval(), tempfile.TemporaryDirectory() as folder:
        from lm_eval.models.huggingface import HFLM

        from wmdp_fast.integrations.lm_eval import FastHFLM

        configs = _made_up(Path(folder), limit)
        if tasks is not None:
            configs += task_configs(resolve(tasks, num_fewshot=num_fewshot).tasks, data)
        asked = _requests(configs, num_fewshot, limit)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size}
        backends = {"wmdp-fast": FastHFLM(model, **options), "hf": HFLM(model, **options)}
        seconds, difference, failures = _compared(backends, asked, dtype)
    counts = {phase: len(requests) for phase, requests in asked.items()}
    fast, hf = (_measurement(seconds[name], counts, difference) for name in ("wmdp-fast", "hf"))
    work: dict[str, Any] = {
        "benchmark": "embed",
        "model": model,
        "tasks": tasks,
        "num_fewshot": num_fewshot,
        "limit": limit,
        "dtype": dtype,
        "device": device,
        "batch_size of hf": batch_size,
        **{f"requests of {phase}": count for phase, count in counts.items()},
        **{f"largest difference in {phase}": f"{value:.2g} nats" for phase, value in difference.items()},
        "machine": machine(),
    }
    ratio = {phase: taken / fast.seconds[phase] for phase, taken in hf.seconds.items()}
    return BenchReport(work, fast, {"hf": hf}, {"hf": ratio}, failures)


def _requests(configs: list[dict[str, Any]], num_fewshot: int, limit: int) -> dict[str, list[Any]]:
    """lm-eval's requests of the two made-up tasks, and of all others together; none of these is empty."""
    from lm_eval.tasks import TaskManager, get_task_dict

    asked: dict[str, list[Any]] = {"texts": [], "documents": [], "tasks": []}
    for name, task in get_task_dict(configs, TaskManager(include_defaults=False)).items():
        is_made_up = name in asked
        task.set_config(key="num_fewshot", value=0 if is_made_up else num_fewshot)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        asked[name if is_made_up else "tasks"] += task.instances
    return {phase: requests for phase, requests in asked.items() if requests}


def _measurement(seconds: dict[str, float], counts: dict[str, int], difference: dict[str, float]) -> Measurement:
    """A backend's figures; `seconds` are by phase."""
    rates = {f"{phase}: requests": counts[phase] / taken for phase, taken in seconds.items()}
    total = {"total": sum(seconds.values())}
    return Measurement(seconds | total, counts, rates, notes={"largest_difference": difference})


def _compared(
    backends: dict[str, Any], asked: dict[str, list[Any]], dtype: str
) -> tuple[dict[str, dict[str, float]], dict[str, float], list[str]]:
    """Seconds by backend and phase, the largest difference in each phase in nats, and what must not be."""
    seconds: dict[str, dict[str, float]] = {name: {} for name in backends}
    difference = {}
    failures = []
    for phase, requests in asked.items():
        answers = {}
        for name, backend in backends.items():
            answer = getattr(backend, requests[0].request_type)
            answer(requests[:1], disable_tqdm=True)
            # The batch size that was found for that one need not do for longer ones.
            backend.batch_sizes.clear()
            begin = time.perf_counter()
            found = answer(requests, disable_tqdm=True)
            seconds[name][phase] = time.perf_counter() - begin
            answers[name] = [one[0] if isinstance(one, tuple) else one for one in found]
        ours, theirs = np.array(answers["wmdp-fast"]), np.array(answers["hf"])
        difference[phase] = float(np.abs(ours - theirs).max())
        failures += _failures(phase, ours, theirs, dtype)
    return seconds, difference, failures


def _failures(phase: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], dtype: str) -> list[str]:
    """What must not be: answers other than those of `hf`, or ones that are no numbers."""
    difference = np.abs(ours - theirs)
    # Not `>`: NaN is not fine.
    wrong = ~(difference <= tolerance(theirs)) if dtype == "float32" else np.isnan(difference)
    if not wrong.any():
        return []
    first = int(wrong.argmax())
    return [
        f"{phase}: {wrong.sum()} of {len(wrong)} log-likelihoods are not those of hf, the first {ours[first]:.6f} where"
        f" hf has {theirs[first]:.6f}"
    ]


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
