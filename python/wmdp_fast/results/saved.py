"""Results read back from files: those of this package and those of lm-eval, for they are the same files.

`read_results` finds the results file and the samples beside it, and makes one frozen `SavedResults` of them.
Comparison, re-scoring and reports start from that, so none of them asks who wrote a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.results.checks import metric_number, read_results_file
from wmdp_fast.results.letters import Collapse, letter_notes
from wmdp_fast.results.near_tie import near_tie_notes
from wmdp_fast.results.paths import find_results, homes, samples_file
from wmdp_fast.results.perplexity import Documents, read_documents_samples
from wmdp_fast.runtime.tables import aligned, frame, html_table, number_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    import pandas as pd


# lm-eval's metrics that are 0 or 1 for a question and follow from its log-likelihoods.
RECOMPUTABLE = ("acc", "acc_norm", "acc_bytes")


# lm-eval's name for what a text is asked for.
_ROLLING = "loglikelihood_rolling"


# To which side the table's columns are moved.
_SIDES = "lrrlrl"


# What a results file says beside its metrics; lm-eval puts a space where a group has no metric.
_NO_METRICS = frozenset({"alias", "name", "sample_len", "sample_count", "samples", " "})


class HasMetrics(Protocol):
    """A task or a group, evaluated just now or saved."""

    @property
    def name(self) -> str:
        """What results call it."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Values by metric."""

    @property
    def stderr(self) -> Mapping[str, float | None]:
        """For each metric its standard error, or None."""


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
        documents: What the model made of the documents of a text, or None if it is no text or no samples were saved.
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
    documents: Documents | None = None

    def __getitem__(self, metric: str) -> float | None:
        """A metric (`acc`) or its standard error (`acc_stderr`); lm-eval's longer names (`acc,none`) work too."""
        return look_up(self, metric)

    @property
    def is_text(self) -> bool:
        """Whether it is a text whose perplexity was measured, and not a task."""
        return self.config.get("output_type") == _ROLLING

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

    def __getitem__(self, metric: str) -> float | None:
        """A metric (`acc`) or its standard error (`acc_stderr`); lm-eval's longer names (`acc,none`) work too."""
        return look_up(self, metric)


@dataclass(frozen=True, kw_only=True, repr=False)
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

    Example:
        >>> from wmdp_fast import demo, evaluate, read_results
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> saved = read_results(result.save("saved", log_samples=True))
        >>> list(saved) == list(result), saved.has_samples
        (True, True)
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

    def __repr__(self) -> str:
        return f"{self.model_name}\n{self.table()}"

    def table(self) -> str:
        """The numbers as aligned text, tasks indented below their groups."""
        return "\n".join([*aligned(self._rows(), _SIDES), *self._remarks()])

    def _remarks(self) -> list[str]:
        """What stands below the table, as far as this package has recorded it."""
        known = [task for task in self.tasks.values() if task.near_ties is not None and task.n is not None]
        near_ties, total = sum(task.near_ties or 0 for task in known), sum(task.n or 0 for task in known)
        bound = self.extra.get("near_tie")
        return [*(near_tie_notes(near_ties, total, bound) if bound is not None else ()), *self.letter_notes()]

    def letter_notes(self) -> list[str]:
        """What to be told of tasks to nearly all of whose questions one letter is answered; usually nothing."""
        recorded = {name: (of or {}).get("one_letter") for name, of in (self.extra.get("tasks") or {}).items()}
        return letter_notes({name: Collapse(**one) for name, one in recorded.items() if one and name in self.tasks})

    @property
    def group_subtasks(self) -> dict[str, list[str]]:
        """For each group the tasks and groups directly below it."""
        return {name: list(group.children) for name, group in self.groups.items()}

    @property
    def warnings(self) -> list[str]:
        """What this package warned of when it made them; nothing of lm-eval's."""
        return list(self.extra.get("warnings") or ())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self._rows(), _SIDES, [f"{self.model_name} ({self.made_by})", *self._remarks()])

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("task", "n", "shots", "metric", "value", "stderr")]
        for one, depth in self.hierarchy():
            shots = self._shots(one)
            lead = ("  " * depth + one.alias, *("" if count is None else str(count) for count in (one.n, shots)))
            for metric, value in one.metrics.items():
                error = one.stderr[metric]
                rows.append((*lead, metric, number_text(value), "N/A" if error is None else f"± {number_text(error)}"))
                lead = ("", "", "")
        return rows

    def _shots(self, one: SavedTask | SavedGroup) -> int | None:
        """Examples before each question; None of texts, and where they are unknown or tasks of a group differ."""
        tasks = [self.tasks.get(leaf) for leaf in one.leaves] if isinstance(one, SavedGroup) else [one]
        shots = {None if task is None or task.is_text else task.num_fewshot for task in tasks}
        return shots.pop() if len(shots) == 1 else None

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame with a row for each task or group and metric; `value` and `stderr` are shares.

        Columns: name, alias, group (whether it is one), n, num_fewshot (of a task), metric, value, stderr.

        Raises:
            WmdpFastError: pandas is not installed.
        """
        records = [
            {
                "name": one.name,
                "alias": one.alias,
                "group": isinstance(one, SavedGroup),
                "n": one.n,
                "num_fewshot": one.num_fewshot if isinstance(one, SavedTask) else None,
                "metric": metric,
                "value": value,
                "stderr": one.stderr[metric],
            }
            for name in self
            for one in [self[name]]
            for metric, value in one.metrics.items()
        ]
        return frame(records, ("name", "alias", "group", "n", "num_fewshot", "metric", "value", "stderr"))

    def samples_frame(self) -> pd.DataFrame:
        """A pandas frame with a row for each question that was saved.

        Columns: task, doc_id, gold (the right choice, None where a target names no single one), predicted (by `acc`),
        correct, margin (how far the best choice is ahead, in nats), loglikelihood (of each choice, in nats, a list).

        Raises:
            ValueError: No samples were saved.
            WmdpFastError: pandas is not installed.
        """
        if not self.has_samples:
            raise ValueError(f"{self.path or self.model_name}: no samples were saved (--log-samples)")
        records = [record for task in self.tasks.values() for record in _questions(task)]
        return frame(records, ("task", "doc_id", "gold", "predicted", "correct", "margin", "loglikelihood"))

    @property
    def made_by(self) -> str:
        """`wmdp-fast` or `lm-eval`, with its version."""
        if self.extra:
            versions = self.extra.get("versions") or {}
            return f"wmdp-fast {versions.get('wmdp_fast') or '(unknown version)'}"
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


def look_up(result: HasMetrics, metric: str) -> float | None:
    """A metric or its standard error, by its own name or lm-eval's longer one.

    Raises:
        KeyError: There is no such metric; names those that there are.
    """
    key = metric.removesuffix(",none")
    if key in result.metrics:
        return result.metrics[key]
    if key.endswith("_stderr") and key.removesuffix("_stderr") in result.stderr:
        return result.stderr[key.removesuffix("_stderr")]
    raise KeyError(f"{result.name} has no metric {metric!r}; it has {', '.join(result.metrics)}")


def _questions(task: SavedTask) -> Iterator[dict[str, Any]]:
    samples = task.samples
    if samples is None:
        return
    correct = samples.correct("acc")
    scores = np.split(samples.loglikelihood, samples.choice_offsets[1:-1])
    predicted, gold = samples.predicted("acc").tolist(), samples.gold.tolist()
    for question, doc_id in enumerate(samples.doc_ids.tolist()):
        yield {
            "task": task.name,
            "doc_id": doc_id,
            "gold": gold[question] if gold[question] >= 0 else None,
            "predicted": predicted[question],
            "correct": None if correct is None else bool(correct[question]),
            "margin": float(samples.margin[question]),
            "loglikelihood": scores[question].tolist(),
        }


def read_results(path: str | os.PathLike[str], *, samples: bool = True) -> SavedResults:
    """Reads an evaluation that this package or lm-eval (0.4.0 and later) saved.

    Args:
        path: A results file; or what `output` was when it was saved: a folder with results of one model, in itself or
            one folder down, or a name ending in `.json`, which was given the time. Of several results the newest is
            read. lm-eval 0.4.0 to 0.4.2 wrote `results.json`, and samples beside it that are named by the model's
            arguments; these are found too.
        samples: Whether to read the samples files beside it, where there are any.

    Raises:
        FileNotFoundError: There is no such file, or no results in the folder.
        DatasetError: A file is not what it should be, or the folder holds results of several models; names the file,
            and row and field where there are such.

    Example:
        >>> from wmdp_fast import demo, evaluate, read_results
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> _ = result.save("base")
        >>> read_results("base").model_name == result.model_name
        True
    """
    file, count = find_results(path)
    raw = read_results_file(file)
    return saved_results(raw, file, count, lambda task: _samples_beside(file, task, raw) if samples else None)


def read_runs(path: str | os.PathLike[str]) -> list[SavedResults]:
    """Reads what a path means: one evaluation, or of a folder with results of several models the newest of each.

    Args:
        path: As for `read_results`; or a folder with results of several models, in it or up to two folders down.

    Returns:
        The evaluations, the earliest first.

    Raises:
        FileNotFoundError: There is no such file, or no results in the folder.
        DatasetError: A file is not what it should be; names file, row and field.
    """
    given = Path(path)
    if given.is_file():
        return [read_results(given)]
    found = homes(given, levels=2)
    read = [replace(read_results(files[-1]), newest_of=len(files)) for _, files in sorted(found.items())]
    return sorted(read, key=lambda one: one.raw.get("date") or 0)


def each_once(read: Sequence[Sequence[SavedResults]]) -> list[SavedResults]:
    """The runs of several paths; where one stands for several runs, none of them a second time.

    A file that was named twice was meant twice.

    Args:
        read: By path, what `read_runs` has found.
    """
    runs = [run for found in read for run in found]
    if all(len(found) == 1 for found in read):
        return runs
    first: dict[object, SavedResults] = {}
    for place, run in enumerate(runs):
        first.setdefault(place if run.path is None else run.path.resolve(), run)
    return list(first.values())


def _samples_beside(results: Path, task: str, raw: Mapping[str, Any]) -> _rust.Samples | Documents | None:
    path = samples_file(results, task, raw)
    config = (raw.get("configs") or {}).get(task) or {}
    kind = config.get("output_type") or "multiple_choice"
    if path is not None and kind == _ROLLING:
        return read_documents_samples(path)
    if path is None or kind != "multiple_choice":
        return None
    # In a chat the delimiter is dropped, whatever the task says.
    delimiter = None if raw.get("chat_template") else config.get("target_delimiter")
    return _rust.read_samples(path, delimiter=delimiter)


def saved_results(
    raw: dict[str, Any], file: Path | None, count: int, samples_of: Callable[[str], _rust.Samples | Documents | None]
) -> SavedResults:
    """A results file's content as an object.

    Args:
        raw: The file's JSON, checked.
        file: The file; None for an evaluation of this process.
        count: How many results there are where it lies.
        samples_of: From the name of a task or a text to its samples or documents, or None if there are none.
    """
    where = "results" if file is None else str(file)
    extra = raw.get("wmdp_fast") or {}
    below = {name: tuple(children) for name, children in (raw.get("group_subtasks") or {}).items() if children}
    tasks: dict[str, SavedTask] = {}
    groups: dict[str, SavedGroup] = {}
    # A group without metrics may have no entry.
    for name, entry in ({group: {} for group in below} | raw["results"]).items():
        metrics, stderr = _metrics(where, name, entry)
        counted = entry.get("sample_len") or ((raw.get("n-samples") or {}).get(name) or {}).get("effective")
        alias = (entry.get("alias") or name).lstrip(" -")
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
            near_ties=((extra.get("tasks") or {}).get(name) or {}).get("near_ties"),
            samples=None if isinstance(samples, Documents) else samples,
            documents=samples if isinstance(samples, Documents) else None,
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
        of_error = metric.endswith("_stderr")
        number = metric_number(where, f"results.{name}.{key}", value, share=metric in RECOMPUTABLE, error=of_error)
        suffix = "" if filtered in ("", "none") else f",{filtered}"
        if of_error:
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
    if isinstance(arguments, str):
        # As lm-eval 0.4.0 to 0.4.2 record it: pretrained=NAME,dtype=float32.
        pretrained = dict(pair.partition("=")[::2] for pair in arguments.split(",")).get("pretrained")
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
