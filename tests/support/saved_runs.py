"""Results of toy models on the same questions, saved by the real lm-eval and by this package."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import evaluations
from tests.support.evaluations import MODEL_INFO, TOKENIZER, eval_result, write_lm_eval_tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def score(model: str, context: str, continuation: str) -> tuple[float, bool]:
    """What a model says: a pure function of its name and the text, coarse enough that choices often tie."""
    rng = random.Random(model + context + continuation)
    return -round(rng.random() * 3, 1), rng.random() < 0.5


def lm_eval_run(
    folder: Path,
    model: str,
    *,
    num_fewshot: int = 0,
    limit: int | None = None,
    says: Callable[[str, str], tuple[float, bool]] | None = None,
) -> Path:
    """Lets lm-eval evaluate and save; returns the results file.

    Args:
        folder: Where everything goes; results to `results`.
        model: The model's name.
        num_fewshot: Examples of each question.
        limit: Most questions of each task.
        says: Log-likelihood and whether greedy of a continuation after a context; None is `score` of the model.
    """
    says = says or partial(score, model)
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `lm-eval`)")
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Toy(LM):
        tokenizer = TOKENIZER
        eot_token_id = TOKENIZER.eos_token_id
        max_length = 64

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            return [says(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any) -> Any:
            raise NotImplementedError

        def get_model_info(self) -> dict[str, Any]:
            return MODEL_INFO

    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    write_lm_eval_tasks(tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        # Describing the machine takes lm-eval seconds.
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
        tracker = EvaluationTracker(output_path=str(folder / "results"))
        results = lm_eval.simple_evaluate(
            Toy(),
            tasks=["nature", "clouds"],
            model_args={"pretrained": model},
            num_fewshot=num_fewshot,
            batch_size=8,
            limit=limit,
            log_samples=True,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results, samples)
        for task in results["configs"]:
            tracker.save_results_samples(task, samples[task])
    return max((folder / "results").rglob("results_*.json"))


def our_result(model: str, *, num_fewshot: int = 0, limit: int | None = None) -> Any:
    """The same evaluation by this package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "score", lambda *text: score(model, *text))
        return eval_result(num_fewshot, limit, model_name=model)


def our_run(folder: Path, model: str, *, num_fewshot: int = 0, limit: int | None = None) -> Path:
    """Lets this package evaluate and save; returns the results file."""
    path: Path = our_result(model, num_fewshot=num_fewshot, limit=limit).save(folder, log_samples=True)
    return path


def changed(
    results: Path, folder: Path, task: str, change: Callable[[dict[str, Any]], None], *, every: bool = False
) -> Path:
    """A copy of a run, one line (or every line) of one task's samples changed."""
    folder.mkdir()
    for file in results.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    samples = folder / f"samples_{task}_{results.stem.removeprefix('results_')}.jsonl"
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for line in lines if every else lines[1:2]:
        change(line)
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
