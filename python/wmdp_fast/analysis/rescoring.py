"""Every metric again from saved samples, of this package or of lm-eval: no model, no questions.

`rescore` computes what a results file says, and what it does not say (intervals, calibration, near-ties, letter bias),
from the log-likelihoods in its samples, and reports where the two disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.analysis.statistics import Description, correct_answers, describe_group, describe_task, near_tie_margin
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results.paths import SAMPLES_NAME, find_results, samples_file
from wmdp_fast.results.saved import RECOMPUTABLE, SavedGroup, SavedResults, SavedTask, read_results

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

# Sums taken in another order differ by this much at most, relative to their size.
_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """Metrics computed from samples.

    Attributes:
        results: What was read.
        tasks: Statistics by task, of those that have samples.
        groups: Statistics by group, of those whose tasks all have samples.
        mismatches: Where a file says something else than its samples give, one sentence each.
        unchecked: Tasks without samples, whose numbers could not be computed.
    """

    results: SavedResults
    tasks: Mapping[str, Description]
    groups: Mapping[str, Description]
    mismatches: tuple[str, ...]
    unchecked: tuple[str, ...]

    def __getitem__(self, name: str) -> Description:
        """The statistics of a task or group."""
        return self.tasks[name] if name in self.tasks else self.groups[name]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "model_name": self.results.model_name,
            "results": None if self.results.path is None else str(self.results.path),
            "made_by": self.results.made_by,
            "tasks": {name: found.to_json() for name, found in self.tasks.items()},
            "groups": {name: found.to_json() for name, found in self.groups.items()},
            "mismatches": list(self.mismatches),
            "unchecked": list(self.unchecked),
        }


def rescore(
    source: str | os.PathLike[str] | SavedResults, *, near_tie: float | None = None, confidence: float = 0.95
) -> Rescored:
    """Computes every metric of an evaluation again from its samples.

    Args:
        source: A samples file (`samples_*.jsonl`); a results file or a folder, for all samples beside it; or results
            already read. A folder may hold samples alone.
        near_tie: Margin in nats up to which a prediction counts as a near-tie; None takes the recorded one, or that of
            the model's dtype.
        confidence: Confidence level of the intervals.

    Raises:
        FileNotFoundError: There is no such file, or nothing in the folder.
        DatasetError: A file is not what it should be; names file, row and field.
        ValueError: There are no samples, or log-likelihoods that give no probabilities.

    Example:
        >>> from wmdp_fast import demo, evaluate, rescore
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> again = rescore(result.save("scores", log_samples=True))
        >>> list(again.tasks) == list(result.tasks)
        True
    """
    results = source if isinstance(source, SavedResults) else _read(Path(source))
    if not results.has_samples:
        raise ValueError(f"{results.path}: no samples beside it; evaluate with --log-samples to have them")
    margin = near_tie_margin(results) if near_tie is None else near_tie
    tasks = {
        name: describe_task(task, near_tie=margin, confidence=confidence)
        for name, task in results.tasks.items()
        if task.samples is not None
    }
    groups = {
        name: describe_group(group, results.tasks, near_tie=margin, confidence=confidence)
        for name, group in results.groups.items()
        if all(leaf in tasks for leaf in group.leaves)
    }
    return Rescored(
        results=results,
        tasks=tasks,
        groups=groups,
        mismatches=tuple(_mismatches(results, tasks, groups)),
        unchecked=tuple(name for name in results.tasks if name not in tasks),
    )


def _read(path: Path) -> SavedResults:
    """Results with samples, from whatever the path is."""
    if path.is_file() and (path.suffix == ".jsonl" or SAMPLES_NAME.fullmatch(path.name)):
        return _read_one_samples_file(path)
    try:
        find_results(path)
    except FileNotFoundError:
        samples = [file for file in sorted(path.iterdir()) if _is_samples(file)] if path.is_dir() else []
        if not samples:
            raise
        return _samples_alone(path, samples)
    return read_results(path)


def _is_samples(file: Path) -> bool:
    return file.name.startswith("samples_") and file.suffix in (".json", ".jsonl")


def _read_one_samples_file(path: Path) -> SavedResults:
    """The one task of a samples file, with what the results file it was saved with says, if that is there."""
    for beside in _results_beside(path):
        results = read_results(beside, samples=False)
        for task in results.tasks.values():
            if samples_file(beside, task.name, results.raw) == path:
                delimiter = None if results.raw.get("chat_template") else task.config.get("target_delimiter")
                task = replace(task, samples=_rust.read_samples(path, delimiter=delimiter))
                return replace(results, tasks={task.name: task}, groups={})
    return _samples_alone(path, [path])


def _results_beside(path: Path) -> Iterator[Path]:
    """Results files that may be those of a samples file."""
    if match := SAMPLES_NAME.fullmatch(path.name):
        files = sorted(path.parent.glob(f"*_{match['time']}.json"))
        yield from (file for file in files if not SAMPLES_NAME.fullmatch(file.name))
        return
    for file in sorted(path.parent.glob("*.json")):
        try:
            find_results(file)
            read_results(file, samples=False)
        except DatasetError:
            continue  # Some other file, which nobody asked for.
        yield file


def _samples_alone(path: Path, files: list[Path]) -> SavedResults:
    """Results of samples that no results file tells of; of several times, the newest."""
    named = [(file, SAMPLES_NAME.fullmatch(file.name)) for file in files]
    newest = max((match["time"] for _, match in named if match), default=None)
    tasks = {}
    for file, match in named:
        if (match is None and newest is not None) or (match is not None and match["time"] != newest):
            continue
        name = match["task"] if match else file.stem
        samples = _rust.read_samples(file)
        tasks[name] = SavedTask(name=name, alias=name, n=len(samples), metrics={}, stderr={}, samples=samples)
    return SavedResults(path=None, model_name=path.parent.name, tasks=tasks, groups={}, settings={}, extra={}, raw={})


def _mismatches(
    results: SavedResults, tasks: Mapping[str, Description], groups: Mapping[str, Description]
) -> Iterator[str]:
    """Where the results file, or a samples file about itself, says something else than was computed."""
    for name, description in {**tasks, **groups}.items():
        saved = results[name]
        if saved.n is not None and saved.n != description.n:
            yield f"{name}: the results file counts {saved.n} questions, its samples are {description.n}"
        for metric, estimate in description.metrics.items():
            for what, said, found in (
                (metric, saved.metrics.get(metric), estimate.value),
                (f"{metric}_stderr", saved.stderr.get(metric), estimate.stderr),
            ):
                if said is not None and (
                    found is None or not math.isclose(said, found, rel_tol=_TOLERANCE, abs_tol=1e-12)
                ):
                    yield f"{name}: the results file says {what} = {said!r}, its samples give {found!r}"
        if name in tasks:
            yield from _mismatched_lines(results.tasks[name])


def contradictions(results: SavedResults) -> Iterator[str]:
    """Where a results file or its samples say another accuracy than the log-likelihoods give, without all statistics.

    What is compared or reported takes its values from the one and its intervals from the other.
    """
    for name, task in results.tasks.items():
        for metric, said in task.metrics.items():
            correct = correct_answers(task, metric)
            if correct is not None and not math.isclose(said, correct.mean(), rel_tol=_TOLERANCE, abs_tol=1e-12):
                yield f"{name}: the results file says {metric} = {said!r}, its samples give {float(correct.mean())!r}"
        yield from _mismatched_lines(task)
    for group in results.groups.values():
        yield from _contradicted_group(group, results.tasks)


def _contradicted_group(group: SavedGroup, tasks: Mapping[str, SavedTask]) -> Iterator[str]:
    """Where a group's accuracy is no mean of its tasks' as the file has it, over questions or (lm-eval) over tasks."""
    leaves = [tasks[leaf] for leaf in group.leaves if leaf in tasks]
    for metric, said in group.metrics.items() if len(leaves) == len(group.leaves) else ():
        having = [task for task in leaves if metric in task.metrics]
        sizes = [task.n for task in having]
        if metric not in RECOMPUTABLE or not having or None in sizes or not all(sizes):
            continue
        values = [task.metrics[metric] for task in having]
        over_questions = float(np.average(values, weights=np.array(sizes, dtype=np.float64)))
        means = (over_questions, float(np.mean(values)))
        if not any(math.isclose(said, mean, rel_tol=_TOLERANCE, abs_tol=1e-12) for mean in means):
            yield f"{group.name}: the results file says {metric} = {said!r}, its tasks give {over_questions!r}"


def _mismatched_lines(task: SavedTask) -> Iterator[str]:
    """Metrics that single lines of a samples file record otherwise than their log-likelihoods give."""
    samples = task.samples
    if samples is None:
        return
    for metric in RECOMPUTABLE:
        recorded, correct = samples.recorded(metric), correct_answers(task, metric)
        if recorded is None or correct is None:
            continue
        wrong = (recorded > 0.5) != correct
        if wrong.any():
            first = int(samples.doc_ids[wrong.argmax()])
            yield (
                f"{task.name}: {int(wrong.sum())} of {len(samples)} lines record another {metric} than their"
                f" log-likelihoods give, question {first} first"
            )
