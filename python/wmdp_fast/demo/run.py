"""What `wmdp-fast demo` does: measures what the embedded model knows of its made-up world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import wmdp_fast
from wmdp_fast import demo
from wmdp_fast.demo.world import DOMAINS

if TYPE_CHECKING:
    from os import PathLike

    from wmdp_fast.results import EvalResult


@dataclass(frozen=True)
class DemoRun:
    """What came of a run.

    Attributes:
        result: Accuracy on both domains.
        results_file: Where it was saved in lm-eval's format, with the samples beside it.
    """

    result: EvalResult
    results_file: Path


def run_demo(output: str | PathLike[str], *, progress: bool = True) -> DemoRun:
    """Evaluates the embedded model on both domains and saves the results.

    Unlearning the forget domain and evaluating again belong here, after the first evaluation.

    Args:
        output: Folder for the results, made if missing.
        progress: Whether to show progress bars on stderr.
    """
    result = evaluate_domains(progress=progress)
    return DemoRun(result, result.save(Path(output) / "results.json", log_samples=True))


def evaluate_domains(folder: Path = demo.FOLDER, *, progress: bool = True) -> EvalResult:
    """Evaluates a demonstration model on its test questions, 0-shot with WMDP's prompt, in float32.

    Args:
        folder: Where `wmdp_fast.demo.train` has put model and data.
        progress: Whether to show progress bars on stderr.

    Returns:
        One task a domain, named after its subject; tables say which domain it is.
    """
    domains: dict[str, demo.Domain] = {DOMAINS[domain].file_name: domain for domain in get_args(demo.Domain)}
    result = wmdp_fast.evaluate(
        demo.model_path(folder),
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
