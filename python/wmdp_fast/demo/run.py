"""What `wmdp-fast demo` does: measures the embedded model, unlearns one of its two domains, and measures again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from wmdp_fast import demo
from wmdp_fast.demo.templates import Shares, accuracies
from wmdp_fast.demo.world import DOMAINS

if TYPE_CHECKING:
    from os import PathLike

    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.unlearning.result import UnlearnResult


ASKED = 100  # questions of each domain that are asked in all ways, by all models


@dataclass(frozen=True)
class DemoRun:
    """What came of a run.

    Attributes:
        before: Accuracy of the embedded model on both domains.
        unlearned: How it was unlearned; the checkpoint is in the folder `unlearned`.
        after: Accuracy of the unlearned model.
        shares: The shares of right answers of the models `before`, `after` and `never learned`, each by name of
            template and domain, on the first `ASKED` questions of each domain.
        folder: Holds `before` and `after`, each with results and samples in lm-eval's format, and `unlearned`.
    """

    before: EvalResult
    unlearned: UnlearnResult
    after: EvalResult
    shares: dict[str, Shares]
    folder: Path


def run_demo(output: str | PathLike[str], *, progress: bool = True) -> DemoRun:
    """Evaluates the embedded model on both domains, unlearns the one to forget, and evaluates again, in several ways.

    What an earlier run to the same folder has left is replaced.

    Args:
        output: Folder for results, the unlearned model and the retain data, made if missing.
        progress: Whether to show progress bars on stderr.

    Raises:
        FileExistsError: There is something in the folder that is no earlier run's.
    """
    from wmdp_fast.demo.unlearning import demo_config, retain_texts
    from wmdp_fast.unlearning.api import unlearn

    folder = Path(output)
    _clear(folder)
    retain = folder / "retain.jsonl"
    retain.write_text("".join(json.dumps({"text": text}) + "\n" for text in retain_texts()), encoding="utf-8")
    before = evaluate_domains(demo.model_path(), progress=progress)
    before.save(folder / "before", log_samples=True)
    unlearned = unlearn(
        demo.model_path(),
        forget=demo.corpus_path("forget"),
        retain=retain,
        config=demo_config(),
        output=folder / "unlearned",
        progress=progress,
    )
    after = evaluate_domains(folder / "unlearned", progress=progress)
    after.save(folder / "after", log_samples=True)
    models = {
        "before": demo.model_path(),
        "after": folder / "unlearned",
        "never learned": demo.model_path(learned="retain"),
    }
    return DemoRun(before, unlearned, after, {name: _shares(path) for name, path in models.items()}, folder)


def _shares(model: Path) -> Shares:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path(), local_files_only=True)
    loaded = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, dtype="float32")
    return accuracies(loaded, tokenizer, limit=ASKED)


def evaluate_domains(model: Path, folder: Path = demo.FOLDER, *, progress: bool = True) -> EvalResult:
    """Evaluates a model on the test questions of both domains, 0-shot with WMDP's prompt, in float32.

    Args:
        model: The model's folder.
        folder: Where `wmdp_fast.demo.train` has put the questions.
        progress: Whether to show progress bars on stderr.

    Returns:
        One task a domain, named after its subject; tables say which domain it is.
    """
    domains: dict[str, demo.Domain] = {DOMAINS[domain].file_name: domain for domain in get_args(demo.Domain)}
    from wmdp_fast.evaluation import evaluate

    result = evaluate(
        model,
        tasks=[demo.questions_path(domain, folder) for domain in domains.values()],
        template="mmlu",
        dtype="float32",
        progress=progress,
    )
    tasks = {
        name: replace(task, task=replace(task.task, alias=f"{name} ({domains[name]})"))
        for name, task in result.tasks.items()
    }
    return replace(result, tasks=tasks)


# What a run leaves, and by which file each folder shows that it is one's own.
_LEFT = {"before": "*/results_*.json", "after": "*/results_*.json", "unlearned": "unlearn.json"}


def _clear(folder: Path) -> None:
    """Removes what an earlier run has left, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mark in _LEFT.items():
        old = folder / name
        if old.exists() and not any(old.glob(mark)):
            raise FileExistsError(f"{old} is in the way and not from an earlier demo; pass another --output")
        if old.exists():
            shutil.rmtree(old)
