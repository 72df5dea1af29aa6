"""From saved results to what a report shows.

Everything is taken from the questions' scores where they were saved (`--log-samples`), from the results file where not.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.comparison import compare, section_of
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.report.content import (
    HASH_LENGTH,
    Cell,
    Change,
    Estimate,
    Facts,
    Histogram,
    Part,
    Report,
    Row,
    Run,
    Scores,
    TaskQuestions,
)
from wmdp_fast.saved import SavedGroup, SavedResults, SavedTask
from wmdp_fast.statistics import correct_answers, share

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wmdp_fast.comparison import Contrast, Difference
    from wmdp_fast.report.content import Unlearning

# A group with more tasks than this directly below it has its tasks in a figure of their own.
_FEW = 6
# More groups and lone tasks than this share one pair of figures.
_MOST_PARTS = 6
# Margins beyond these are in the outermost cells; nats.
_EDGES = np.arange(-8.0, 8.5, 0.5)
# The 97.5th percentile of the normal distribution.
_Z = 1.959964

STATISTICS = {
    "Intervals of accuracies": (
        "95 %, Wilson's score interval over the questions (Wilson 1927); for a group over all questions below it. Where"
        " only the results file was saved: the value and 1.96 standard errors either way."
    ),
    "Intervals of changes": (
        "95 %, percentile bootstrap of the difference question by question, 10,000 resamples, seed 0 (Efron and"
        " Tibshirani 1993). Where"
        " the runs did not ask the same: as if they knew nothing of each other."
    ),
    "p": (
        "Exact two-sided McNemar test on the answers that flipped (McNemar 1947), corrected by Holm (1979) over all"
        " single tasks and, apart from them, over the groups."
    ),
    "Calibration": (
        "Expected calibration error over 15 bins of equal width of the preferred choice's probability among the choices"
        " (Guo et al. 2017). Brier score: sum over the choices, mean over the questions, as in lm-eval."
    ),
}


def gather(
    results: SavedResults,
    baseline: SavedResults | None = None,
    *,
    unlearning: Unlearning | None = None,
    include_text: bool = False,
) -> Report:
    """Everything a report of these results shows.

    Args:
        results: The evaluation; with a baseline, the later one.
        baseline: What to compare it with.
        unlearning: The run that made the later model; `wmdp_fast.report.runs.read_run` reads it.
        include_text: Whether to show the text of the questions, which is read again from the samples files.

    Raises:
        DatasetError: No task of the results has `acc`, or a samples file has changed since it was read.
    """
    contrast = None if baseline is None else compare(baseline, results).contrasts[0]
    warnings = list(_warnings(results, baseline, contrast))
    rows = list(_rows(results, baseline, contrast))
    if not rows:
        where = results.path or results.model_name
        raise DatasetError(str(where), "no task has the metric `acc`, which a report is about")
    runs = [(baseline, "before"), (results, "after")] if baseline is not None else [(results, "after")]
    return Report(
        title=_title(results, baseline),
        runs=[_run(saved, name if baseline is not None else "evaluation") for saved, name in runs if saved is not None],
        rows=rows,
        parts=list(_parts(results, baseline)),
        questions=[
            _questions(task, _paired(task, baseline), include_text=include_text)
            for task in results.tasks.values()
            if _detailed(task)
        ],
        warnings=warnings,
        unlearning=unlearning,
        statistics=STATISTICS,
    )


def _detailed(task: SavedTask) -> bool:
    """Whether a task's questions were saved, each with one right choice."""
    return task.samples is not None and bool((task.samples.gold >= 0).all())


def _paired(task: SavedTask, baseline: SavedResults | None) -> SavedTask | None:
    """The baseline's results of the same task."""
    return baseline.tasks.get(task.name) if baseline is not None else None


def _samples(task: SavedTask) -> _rust.Samples:
    if task.samples is None:
        raise ValueError(f"{task.name} was saved without samples (--log-samples)")
    return task.samples


def _warnings(results: SavedResults, baseline: SavedResults | None, contrast: Contrast | None) -> Iterator[str]:
    if baseline is None or contrast is None:
        yield from _warnings_of_one(results, "")
        return
    yield from _warnings_of_one(baseline, "before: ")
    yield from _warnings_of_one(results, "after: ")
    for reason, names in contrast.unpaired.items():
        yield f"not compared question by question: {_listed(names)}: {reason}."
    for name, (before, after) in contrast.settings.items():
        yield f"the runs differ in {name}: {before} before, {after} after."
    for which, only in (("before", contrast.only_before), ("after", contrast.only_after)):
        if only:
            yield f"evaluated only {which}: {_listed(only)}."
    yield from contrast.notes


def _warnings_of_one(saved: SavedResults, lead: str) -> Iterator[str]:
    yield from (f"{lead}{told}" for told in saved.extra.get("warnings", []))
    if ties := sum(task.near_ties or 0 for task in saved.tasks.values()):
        total = sum(task.n or 0 for task in saved.tasks.values())
        yield f"{lead}{ties:,} of {total:,} predictions are near-ties, where rounding may have decided."
    if without := [task.name for task in saved.tasks.values() if task.samples is None]:
        yield f"{lead}no samples were saved (--log-samples) for {_listed(without)}: their questions are not shown."


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _rows(results: SavedResults, baseline: SavedResults | None, contrast: Contrast | None) -> Iterator[Row]:
    many = _subjects(results)
    differences = {row.name: row for row in (contrast.rows if contrast is not None else ()) if row.metric == "acc"}
    for found, depth in results.hierarchy():
        leaves = _leaves(results, found)
        after = _accuracy(found, leaves)
        if after is None:
            continue
        before = None
        if baseline is not None and found.name in differences:
            same = baseline[found.name]
            before = _accuracy(same, _leaves(baseline, same))
        yield Row(
            name=found.name,
            label=found.alias,
            depth=depth,
            is_group=isinstance(found, SavedGroup),
            is_subject=found.name in many,
            is_near=section_of(found.name) == "near",
            count=found.n or sum(task.n or 0 for task in leaves),
            chance=_chance(leaves),
            after=after,
            before=before,
            change=None if before is None else _change(differences.get(found.name), before, after),
        )


def _subjects(results: SavedResults) -> set[str]:
    """Tasks that have so many beside them that they get a figure of their own."""
    grouped = [[name for name in group.children if name in results.tasks] for group in results.groups.values()]
    in_groups = {name for names in grouped for name in names}
    lone = [name for name in results.tasks if name not in in_groups]
    return {name for names in (*grouped, lone) if len(names) > _FEW for name in names}


def _leaves(results: SavedResults, found: SavedTask | SavedGroup) -> list[SavedTask]:
    if isinstance(found, SavedTask):
        return [found]
    return [results.tasks[name] for name in found.leaves if name in results.tasks]


def _accuracy(found: SavedTask | SavedGroup, leaves: Sequence[SavedTask]) -> Estimate | None:
    correct = [correct_answers(task, "acc") for task in leaves]
    known = [answers for answers in correct if answers is not None]
    if known and len(known) == len(leaves):
        found_share = share(np.concatenate(known))
        return Estimate(value=found_share.value, low=found_share.low, high=found_share.high)
    value, error = found.metrics.get("acc"), found.stderr.get("acc")
    if value is None:
        return None
    half = _Z * error if error is not None else 1.0  # an unknown error rules nothing out
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _chance(leaves: Sequence[SavedTask]) -> float | None:
    """What guessing gives over all questions; None if the number of choices is not known."""
    shares, sizes = [], []
    for task in leaves:
        choices = task.config.get("doc_to_choice")
        if task.samples is not None:
            shares.append(float((1 / np.diff(task.samples.choice_offsets)).mean()))
        elif isinstance(choices, list) and choices:
            shares.append(1 / len(choices))
        else:
            return None
        sizes.append(task.n or 1)
    return float(np.average(shares, weights=sizes))


def _change(difference: Difference | None, before: Estimate, after: Estimate) -> Change | None:
    if difference is None:
        return None
    low, high = difference.low, difference.high
    if low is None or high is None:
        # Of two numbers that know nothing of each other: half-widths are 1.96 standard errors, which add in squares.
        half = float(np.hypot(after.high - after.low, before.high - before.low)) / 2
        low, high = difference.difference - half, difference.difference + half
    return Change(
        value=difference.difference,
        low=low,
        high=high,
        p=difference.p_holm,
        gained=difference.wrong_to_right,
        lost=difference.right_to_wrong,
    )


def _parts(results: SavedResults, baseline: SavedResults | None) -> Iterator[Part]:
    roots = [found for found, depth in results.hierarchy() if depth == 0]
    parts = [(found.alias, _leaves(results, found)) for found in roots]
    if len(parts) > _MOST_PARTS:
        parts = [("all questions", list(results.tasks.values()))]
    for label, leaves in parts:
        scored = [task for task in leaves if _detailed(task)]
        scores = [_scores("after", scored)] if scored else []
        if baseline is not None:
            others = [baseline.tasks[task.name] for task in scored if task.name in baseline.tasks]
            if others and len(others) == len(scored) and all(map(_detailed, others)):
                scores.insert(0, _scores("before", others))
        if scores:
            yield Part(label=label, scores=scores)


def _scores(series: Any, tasks: Sequence[SavedTask]) -> Scores:
    samples = [_samples(task) for task in tasks]
    sizes = np.concatenate([np.diff(one.choice_offsets) for one in samples])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    loglikelihood = np.concatenate([one.loglikelihood for one in samples])
    gold = np.concatenate([one.gold for one in samples])
    found = _rust.calibration(loglikelihood, offsets, gold)
    width = 1 / len(found.counts)
    cells = []
    for cell, count in enumerate(found.counts.tolist()):
        low, high = _rust.wilson(round(found.accuracy[cell] * count), count) if count else (0.0, 1.0)
        cells.append(
            Cell(
                low=cell * width,
                high=(cell + 1) * width,
                count=count,
                confidence=float(found.confidence[cell]) if count else 0.0,
                accuracy=Estimate(value=float(found.accuracy[cell]) if count else 0.0, low=low, high=high),
            )
        )
    leads = np.concatenate([_leads(task) for task in tasks])
    counts, _ = np.histogram(np.clip(leads, _EDGES[0], np.nextafter(_EDGES[-1], 0)), bins=_EDGES)
    return Scores(
        name=series,
        series=series,
        calibration=cells,
        ece=found.ece,
        brier=found.brier,
        margins=Histogram(edges=_EDGES.tolist(), counts=counts.tolist(), median=float(np.median(leads))),
    )


def _leads(task: SavedTask) -> npt.NDArray[np.float64]:
    """By how many nats the right choice leads the best wrong one: float64 [n], at most 99 either way."""
    gold = _samples(task).gold
    scores = np.nan_to_num(task.loglikelihood_matrix(), nan=-np.inf, neginf=-np.inf)
    each = np.arange(len(scores))
    right = scores[each, gold]
    scores[each, gold] = -np.inf
    with np.errstate(invalid="ignore"):
        # Two impossible choices are a tie.
        leads = np.nan_to_num(right - scores.max(axis=1), nan=0.0, posinf=99.0, neginf=-99.0)
    bounded: npt.NDArray[np.float64] = np.clip(leads, -99.0, 99.0)
    return bounded


def _shares(task: SavedTask) -> npt.NDArray[np.float64]:
    """Probability of the right choice among the choices: float64 [n]."""
    samples = _samples(task)
    shares: npt.NDArray[np.float64] = _rust.probabilities(samples.loglikelihood, samples.choice_offsets)
    right: npt.NDArray[np.int64] = samples.choice_offsets[:-1] + samples.gold
    return shares[right]


def _questions(task: SavedTask, other: SavedTask | None, *, include_text: bool) -> TaskQuestions:
    samples = _samples(task)
    ids = samples.doc_ids.tolist()
    before = before_permille = None
    if other is not None and other.samples is not None and _detailed(other):
        # Only if it answered all of them: a table with holes would say less than it seems to.
        at = {doc_id: place for place, doc_id in enumerate(other.samples.doc_ids.tolist())}
        if all(doc_id in at for doc_id in ids):
            places = np.array([at[doc_id] for doc_id in ids])
            before = other.samples.predicted("acc")[places].tolist()
            before_permille = _permille(_shares(other)[places])
    return TaskQuestions(
        task=task.name,
        ids=ids,
        hashes="".join(one[:HASH_LENGTH].ljust(HASH_LENGTH) for one in samples.doc_hashes),
        answers=samples.gold.tolist(),
        after=samples.predicted("acc").tolist(),
        after_permille=_permille(_shares(task)),
        margins=np.rint(_leads(task) * 100).astype(int).tolist(),
        before=before,
        before_permille=before_permille,
        texts=_texts(samples.file, ids) if include_text else None,
    )


def _permille(shares: npt.NDArray[np.float64]) -> list[int]:
    return [int(value) for value in np.rint(shares * 1000)]


def _texts(file: str, ids: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Question and choices of each line of a samples file, in the order of `ids`."""
    found: dict[int, tuple[str, list[str]]] = {}
    with Path(file).open(encoding="utf-8") as lines:
        for row, line in enumerate(lines, start=1):
            sample = json.loads(line)
            doc = sample["doc"]
            if "question" not in doc or not isinstance(doc.get("choices"), list):
                raise DatasetError(file, "has no `question` and `choices`; leave out --include-text", row, "doc")
            found[sample["doc_id"]] = (str(doc["question"]), [str(choice) for choice in doc["choices"]])
    return [found[doc_id] for doc_id in ids]


def _title(results: SavedResults, baseline: SavedResults | None) -> str:
    after = _short_name(results.model_name)
    if baseline is None:
        return f"What {after} knows"
    before = _short_name(baseline.model_name)
    return f"{after} against {before}" if after != before else f"{after}: after against before"


def _short_name(model: str) -> str:
    """A hub name as it is, a folder's path by its last part."""
    parts = Path(model).parts
    return parts[-1] if len(parts) > 2 or model.startswith((".", "/")) else model


def _run(saved: SavedResults, name: str) -> Run:
    raw, extra = saved.raw, saved.extra
    of_tasks: Mapping[str, Any] = extra.get("tasks", {})
    hashes = [(f"{task}: dataset revision", of.get("dataset_revision")) for task, of in of_tasks.items()]
    hashes += [(f"{task}: content", of.get("content_hash")) for task, of in of_tasks.items()]
    hashes += [(f"{task}: samples", value) for task, value in (raw.get("task_hashes") or {}).items()]
    seconds = {**extra.get("seconds", {}), "total": raw.get("total_evaluation_time_seconds")}
    ours = {key: value for key, value in extra.items() if key not in _SHOWN_APART}
    return Run(
        name=name,
        model=_short_name(saved.model_name),
        date=_date(raw.get("date")),
        records=[
            records("Settings", {"made by": saved.made_by, **saved.settings, **ours, "n-shot": raw.get("n-shot")}),
            records("Seconds", {phase: _seconds(value) for phase, value in seconds.items()}),
            records("Hardware", extra.get("hardware", {})),
            records("Versions", {**extra.get("versions", {}), "git commit": raw.get("git_hash")}),
            records("Hashes", dict(hashes)),
        ],
    )


# What of the key `wmdp_fast` has a place of its own in the report.
_SHOWN_APART = frozenset({"tasks", "seconds", "versions", "hardware", "warnings"})


def records(title: str, values: Mapping[str, Any]) -> Facts:
    """Names and values as a table; what is nested gets its names joined, what is not known is left out."""
    return Facts(title=title, facts=list(_flat(values)))


def _flat(values: Mapping[str, Any], lead: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{lead}{key}"
        if isinstance(value, dict):
            if len(set(map(str, value.values()))) == 1 and len(value) > 1:
                yield name, f"{next(iter(value.values()))} (all {len(value)})"
            else:
                yield from _flat(value, f"{name}: ")
        elif isinstance(value, list):
            if value:
                yield name, "\n".join(one if isinstance(one, str) else json.dumps(one) for one in value)
        elif value is not None and value != "":
            yield name, str(value)


def _seconds(value: Any) -> str | None:
    return None if value is None else f"{float(value):.2f}"


def _date(seconds: Any) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""
