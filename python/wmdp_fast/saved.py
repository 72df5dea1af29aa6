"""Results read back from files: those of this package and those of lm-eval, for they are the same files.

`read_results` finds the results file and the samples beside it, and makes one frozen `SavedResults` of them.
Comparison, re-scoring and reports start from that, so none of them asks who wrote a file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.exceptions import DatasetError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    from wmdp_fast.results import EvalResult

# `results_2026-11-24T15-00-00.123456.json`, or with another first part where the output path was a `.json` name.
_RESULTS_NAME = re.compile(r"(?P<stem>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.json")

# What a results file says beside its metrics.
_NO_METRICS = frozenset({"alias", "name", "sample_len", "sample_count", "samples"})


@dataclass(frozen=True, kw_only=True)
class SavedTask:
    """One task as it was saved.

    Attributes:
        name: The task's name.
        alias: The name shown in tables.
        n: Number of questions asked, or None where neither the results file nor samples say.
        metrics: Values by lm-eval's name, without the filter (`acc`) unless it is another than `none`
            (`exact_match,strict`).
        stderr: For each metric its standard error, or None.
        num_fewshot: Examples before each question, or None if unknown.
        config: lm-eval's configuration of the task; empty if the file has none.
        near_ties: Near-ties as this package counted them, or None.
        samples: The questions' scores, or None if no samples were saved, or not those of a multiple-choice task.
    """

    name: str
    alias: str
    n: int | None
    metrics: Mapping[str, float]
    stderr: Mapping[str, float | None]
    num_fewshot: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    near_ties: int | None = None
    samples: _rust.Samples | None = None

    @property
    def num_choices(self) -> int | None:
        """Number of choices, if samples tell and all questions have as many."""
        if self.samples is None:
            return None
        counts = np.unique(np.diff(self.samples.choice_offsets))
        return int(counts[0]) if len(counts) == 1 else None

    def loglikelihood_matrix(self) -> npt.NDArray[np.float64]:
        """Log-likelihoods `[n, most choices of a question]`; NaN where a question has fewer choices.

        Raises:
            ValueError: If there are no samples.
        """
        if self.samples is None:
            raise ValueError(f"{self.name} was saved without samples (--log-samples)")
        counts = np.diff(self.samples.choice_offsets)
        matrix = np.full((len(counts), int(counts.max())), np.nan)
        matrix[np.arange(matrix.shape[1]) < counts[:, None]] = self.samples.loglikelihood
        return matrix


@dataclass(frozen=True, kw_only=True)
class SavedGroup:
    """A group of tasks as it was saved.

    Attributes:
        name: The group's name.
        alias: The name shown in tables.
        n: Number of questions in all tasks below, or None if unknown.
        metrics: Values by metric, as in `SavedTask`; empty for a group that only lists its tasks.
        stderr: For each metric its standard error, or None.
        children: Groups and tasks directly below.
        leaves: Tasks below at any depth, in order.
    """

    name: str
    alias: str
    n: int | None
    metrics: Mapping[str, float]
    stderr: Mapping[str, float | None]
    children: tuple[str, ...]
    leaves: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SavedResults:
    """One evaluation as it was saved.

    Attributes:
        path: The results file; None for an evaluation that was never saved.
        model_name: Name or path of the model.
        tasks: By name, in the file's order.
        groups: By name, parents before what is below them.
        settings: How the model was run: lm-eval's `config` section, then version, score mode, chat template and such.
        extra: What only this package writes (the key `wmdp_fast`); empty for a file of lm-eval.
        raw: The whole results file.
        newest_of: How many results the folder held, of which this is the newest.
    """

    path: Path | None
    model_name: str
    tasks: Mapping[str, SavedTask]
    groups: Mapping[str, SavedGroup]
    settings: Mapping[str, Any]
    extra: Mapping[str, Any] = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False)
    newest_of: int = 1

    def __getitem__(self, name: str) -> SavedTask | SavedGroup:
        """The task or group of that name."""
        if name in self.tasks:
            return self.tasks[name]
        if name in self.groups:
            return self.groups[name]
        raise KeyError(f"{name!r} is not among the results; they hold {', '.join(self)}")

    def __contains__(self, name: object) -> bool:
        return name in self.tasks or name in self.groups

    def __iter__(self) -> Iterator[str]:
        return iter((*self.groups, *self.tasks))

    @property
    def made_by(self) -> str:
        """`wmdp-fast` or `lm-eval`, with its version."""
        if self.extra:
            return f"wmdp-fast {self.extra.get('versions', {}).get('wmdp_fast') or '(unknown version)'}"
        return f"lm-eval {self.raw.get('lm_eval_version') or '(unknown version)'}"

    @property
    def has_samples(self) -> bool:
        """Whether any task's questions were saved."""
        return any(task.samples is not None for task in self.tasks.values())

    def hierarchy(self) -> Iterator[tuple[SavedTask | SavedGroup, int]]:
        """Groups, each followed by what is below it and how deep, then the tasks that are in none."""
        below = {child for group in self.groups.values() for child in group.children}

        def walk(name: str, depth: int) -> Iterator[tuple[SavedTask | SavedGroup, int]]:
            found = self[name]
            yield found, depth
            if isinstance(found, SavedGroup):
                for child in found.children:
                    yield from walk(child, depth + 1)

        for name in (*self.groups, *self.tasks):
            if name not in below:
                yield from walk(name, 0)


def read_results(path: str | os.PathLike[str], *, samples: bool = True) -> SavedResults:
    """Reads an evaluation that this package or lm-eval (0.4.0 and later) saved.

    Args:
        path: A results file; or what `output` was when it was saved: a folder with results of one model, in itself or
            one folder down, or a name ending in `.json`, which was given the time. Of several results the newest is
            read.
        samples: Whether to read the samples files beside it, where there are any.

    Raises:
        FileNotFoundError: There is no such file, or no results in the folder.
        DatasetError: A file is not what it should be, or the folder holds results of several models; names the file,
            and row and field where there are such.
    """
    file, count = find_results(path)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(str(file), f"is not a results file: no JSON ({error})") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        raise DatasetError(str(file), "is not a results file: it holds no `results`", field="results")
    match = _RESULTS_NAME.fullmatch(file.name)
    time = match["time"] if match and samples else None
    return _saved(raw, file, count, lambda task: _samples_beside(file, task, time, raw))


def from_evaluation(result: EvalResult) -> SavedResults:
    """An evaluation of this process as `read_results` would read it after `result.save(..., log_samples=True)`."""
    return _saved(
        json.loads(json.dumps(result.to_json(), default=str)),
        None,
        1,
        lambda name: _rust.Samples.from_outcome(
            result.tasks[name].questions, result.tasks[name].prompts, result.tasks[name].outcome
        ),
    )


def find_results(path: str | os.PathLike[str]) -> tuple[Path, int]:
    """The results file that a path means, and how many results there are where it lies.

    Raises:
        FileNotFoundError: There is no such file, or no results in the folder.
        DatasetError: The folder holds results of several models, which it lists, or the file is one of samples.
    """
    given = Path(path)
    if given.is_file():
        if given.suffix == ".jsonl":
            raise DatasetError(str(given), "is a samples file; give the results file or the folder they are in")
        return given, 1
    if not given.is_dir():
        # `--output x.json` adds the time to the name, as lm-eval does.
        named = [one for one in _dated(given.parent) if one[1] == given.stem] if given.parent.is_dir() else []
        if given.suffix != ".json" or not named:
            raise FileNotFoundError(f"{given}: no such file or folder")
        return max(named, key=lambda one: one[2])[0], len(named)
    found = _dated(given) or [one for folder in sorted(given.iterdir()) if folder.is_dir() for one in _dated(folder)]
    if not found:
        raise FileNotFoundError(f"{given}: no results here (results_*.json), nor one folder down")
    homes = sorted({(file.parent, stem) for file, stem, _ in found})
    if len(homes) > 1:
        several = ", ".join(f"{folder if stem == 'results' else folder / stem}" for folder, stem in homes)
        raise DatasetError(str(given), f"holds results of {len(homes)} models; name one of: {several}")
    return max(found, key=lambda one: one[2])[0], len(found)


def _dated(folder: Path) -> list[tuple[Path, str, str]]:
    """Results files of a folder with what their names begin with and their time."""
    matches = [(file, _RESULTS_NAME.fullmatch(file.name)) for file in sorted(folder.iterdir()) if file.is_file()]
    return [(file, match["stem"], match["time"]) for file, match in matches if match]


def _samples_beside(results: Path, task: str, time: str | None, raw: Mapping[str, Any]) -> _rust.Samples | None:
    path = results.with_name(f"samples_{task}_{time}.jsonl")
    config = raw.get("configs", {}).get(task, {})
    if time is None or not path.is_file() or config.get("output_type", "multiple_choice") != "multiple_choice":
        return None
    # In a chat the delimiter is dropped, whatever the task says.
    delimiter = None if raw.get("chat_template") else config.get("target_delimiter")
    return _rust.read_samples(path, delimiter=delimiter)


def _saved(
    raw: dict[str, Any], file: Path | None, count: int, samples_of: Callable[[str], _rust.Samples | None]
) -> SavedResults:
    where = "results" if file is None else str(file)
    extra = raw.get("wmdp_fast") or {}
    below = {name: tuple(children) for name, children in (raw.get("group_subtasks") or {}).items() if children}
    tasks: dict[str, SavedTask] = {}
    groups: dict[str, SavedGroup] = {}
    for name, entry in raw["results"].items():
        if not isinstance(entry, dict):
            raise DatasetError(where, f"must hold metrics by name, not {entry!r}", field=f"results.{name}")
        metrics, stderr = _metrics(where, name, entry)
        counted = entry.get("sample_len") or (raw.get("n-samples") or {}).get(name, {}).get("effective")
        alias = str(entry.get("alias", name)).lstrip(" -")
        if name in below:
            groups[name] = SavedGroup(
                name=name,
                alias=alias,
                n=counted,
                metrics=metrics,
                stderr=stderr,
                children=below[name],
                leaves=tuple(dict.fromkeys(_leaves(name, below))),
            )
            continue
        samples = samples_of(name)
        tasks[name] = SavedTask(
            name=name,
            alias=alias,
            n=counted if counted is not None or samples is None else len(samples),
            metrics=metrics,
            stderr=stderr,
            num_fewshot=(raw.get("n-shot") or {}).get(name),
            config=(raw.get("configs") or {}).get(name) or {},
            near_ties=extra.get("tasks", {}).get(name, {}).get("near_ties"),
            samples=samples,
        )
    # Parents first, as they are shown.
    top_down = [name for name in below if name in groups] + [name for name in groups if name not in below]
    return SavedResults(
        path=file,
        model_name=_model_name(raw),
        tasks=tasks,
        groups={name: _counted(groups[name], tasks) for name in top_down},
        settings=_settings(raw, extra),
        extra=extra,
        raw=raw,
        newest_of=count,
    )


def _metrics(where: str, name: str, entry: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float | None]]:
    metrics: dict[str, float] = {}
    stderr: dict[str, float | None] = {}
    for key, value in entry.items():
        if key in _NO_METRICS:
            continue
        metric, _, filtered = key.partition(",")
        if isinstance(value, bool) or not (isinstance(value, (int, float)) or value in ("N/A", None)):
            raise DatasetError(where, f"must be a number, not {value!r}", field=f"results.{name}.{key}")
        number = float(value) if isinstance(value, (int, float)) else None
        suffix = "" if filtered in ("", "none") else f",{filtered}"
        if metric.endswith("_stderr"):
            stderr[metric.removesuffix("_stderr") + suffix] = number
        elif number is not None:
            metrics[metric + suffix] = number
    return metrics, {metric: stderr.get(metric) for metric in metrics}


def _leaves(name: str, below: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for child in below[name]:
        if child in below:
            yield from _leaves(child, below)
        else:
            yield child


def _counted(group: SavedGroup, tasks: Mapping[str, SavedTask]) -> SavedGroup:
    """A group whose number of questions the file did not say gets that of its tasks."""
    sizes = [tasks[leaf].n if leaf in tasks else None for leaf in group.leaves]
    known = [size for size in sizes if size is not None]
    if group.n is not None or len(known) < len(sizes):
        return group
    return SavedGroup(**{**vars(group), "n": sum(known)})


def _model_name(raw: Mapping[str, Any]) -> str:
    arguments = (raw.get("config") or {}).get("model_args")
    pretrained = arguments.get("pretrained") if isinstance(arguments, dict) else None
    return str(raw.get("model_name") or pretrained or arguments or "unknown model")


def _settings(raw: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about the numbers, besides the tasks' own definitions."""
    settings = dict(raw.get("config") or {})
    for key in ("lm_eval_version", "transformers_version", "fewshot_as_multiturn", "max_length"):
        settings[key] = raw.get(key)
    for key in ("system_instruction", "chat_template"):
        # lm-eval's own hash; the text may be long.
        settings[key] = raw.get(f"{key}_sha")
    for key in ("score_mode", "lm_eval_compat", "near_tie"):
        if key in extra:
            settings[key] = extra[key]
    return settings
