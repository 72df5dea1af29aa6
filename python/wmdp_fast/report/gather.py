"""From saved results to what a report shows.

Everything is taken from the questions' scores where they were saved (`--log-samples`), from the results file where not.
"""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.analysis.comparison import compare
from wmdp_fast.analysis.contrast import section_of
from wmdp_fast.analysis.rescoring import contradictions
from wmdp_fast.analysis.statistics import SIGNIFICANT, Letters, correct_answers, letters_of, share
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.report.content import (
    HASH_LENGTH,
    Answers,
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
    Standing,
    TaskQuestions,
)
from wmdp_fast.report.steps import by_step
from wmdp_fast.results.letters import letter_notes
from wmdp_fast.results.paths import sample_lines
from wmdp_fast.results.saved import SavedGroup, SavedResults, SavedTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wmdp_fast.analysis.contrast import Contrast, Difference
    from wmdp_fast.report.content import Aim, Attacked, Unlearning

# A group with more tasks than this directly below it has its tasks in a figure of their own.
_FEW = 6
# More groups and lone tasks than this share one pair of figures.
_MOST_PARTS = 6
# Questions a cell of the calibration figure has at least: of fewer a share of right answers says next to nothing.
_LEAST_IN_CELL = 10
# Margins beyond these are in the outermost cells; nats.
_EDGES = np.arange(-8.0, 8.5, 0.5)

STATISTICS = {
    "Intervals of accuracies": (
        "95 %, Wilson's score interval over the questions (Wilson 1927); for a group over all questions below it."
    ),
    "Intervals of changes": (
        "95 %, Tango's score interval of paired shares (Tango 1998), with a continuity correction of one question where"
        " it would contradict the exact test beside it. Where the runs did not ask the same: treated as"
        " independent."
    ),
    "p (Holm)": (
        "Exact two-sided McNemar test on the answers that flipped (McNemar 1947), corrected by Holm (1979) over all"
        " single tasks and, apart from them, over the groups."
    ),
    "Calibration": (
        "Expected calibration error over 15 bins of equal width of the preferred choice's probability among the choices"
        " (Guo et al. 2017); in the figure neighboring bins are put together until each has at least 10"
        " questions. Brier score: sum over the choices, mean over the questions, as in lm-eval."
    ),
}


def gather(
    runs: Sequence[SavedResults],
    *,
    names: Sequence[str] | None = None,
    forget: Sequence[str] = (),
    unlearning: Unlearning | None = None,
    attacked: Sequence[Attacked] = (),
    include_text: bool = False,
) -> Report:
    """Everything a report of these results shows.

    Args:
        runs: The evaluations, the baseline first. The last one says which tasks there are.
        names: What to call them.
        forget: Tasks and groups that should be forgotten, beside WMDP.
        unlearning: The unlearning run that made the model after.
        attacked: Attacks on models.
        include_text: Whether to show the text of questions.

    Raises:
        DatasetError: No task has the metric `acc`, or a file is not what it should be.
        ValueError: The results have no task in common, or a name is not among them.
    """
    *earlier, latest = runs
    compared = compare(*runs, forget=forget) if earlier else None
    contrasts = compared.contrasts if compared is not None else ()
    if unknown := [name for name in forget if compared is None and name not in latest]:
        raise ValueError(f"there is no task or group {', '.join(unknown)}; there are {', '.join(latest)}")
    rows = list(_rows(runs, contrasts, set(forget)))
    if not rows:
        where = latest.path or latest.model_name
        raise DatasetError(str(where), "no task has the metric `acc`, which a report is about")
    called = _names(runs, names)
    looks = _looks(len(runs))
    return Report(
        title=_title(runs),
        runs=[_run(*one) for one in zip(runs, called, looks, strict=True)],
        rows=rows,
        by_step=by_step(runs, rows),
        parts=list(_parts(runs, called, looks)),
        questions=[
            _questions(task, [one.tasks.get(task.name) for one in runs], include_text=include_text)
            for task in latest.tasks.values()
            if _detailed(task)
        ],
        warnings=[
            *([f"unlearning: {unlearning.verdict}."] if unlearning is not None and unlearning.verdict else []),
            *_warnings(runs, called, contrasts),
        ],
        unlearning=unlearning,
        attacked=attacked,
        statistics=STATISTICS,
    )


def _names(runs: Sequence[SavedResults], names: Sequence[str] | None) -> list[str]:
    """What the runs are called: two are before and after, more the baseline and their models, unlike each other."""
    if names is not None:
        if len(names) != len(runs) or len(set(names)) < len(names):
            raise ValueError(f"{len(runs)} runs need as many names, unlike each other, not {', '.join(names)}")
        return list(names)
    if len(runs) <= 2:
        return ["before", "after"] if len(runs) == 2 else ["evaluation"]
    models = [_short_name(one.model_name) for one in runs]
    return [model if models.count(model) == 1 else f"{model} ({place})" for place, model in enumerate(models, start=1)]


def _looks(count: int) -> list[str]:
    """How the runs are drawn: the baseline in its own look, the others in the rest, again from the start if need be."""
    rest = itertools.cycle(["after", "third", "fourth"])
    return (["before"] if count > 1 else []) + list(itertools.islice(rest, max(1, count - 1)))


def _detailed(task: SavedTask) -> bool:
    """Whether a task's questions were saved, each with one right choice."""
    return task.samples is not None and bool((task.samples.gold >= 0).all())


def _samples(task: SavedTask) -> _rust.Samples:
    if task.samples is None:
        raise ValueError(f"{task.name} was saved without samples (--log-samples)")
    return task.samples


def _warnings(runs: Sequence[SavedResults], names: Sequence[str], contrasts: Sequence[Contrast]) -> Iterator[str]:
    for saved, name in zip(runs, names, strict=True):
        yield from _warnings_of_one(saved, f"{name}: " if contrasts else "")
    if not contrasts:
        yield from (told for saved in runs for told in contradictions(saved))
    for name, contrast in zip(names[1:], contrasts, strict=True):
        whose = f" of {name}" if len(contrasts) > 1 else ""
        for reason, tasks in contrast.unpaired.items():
            yield f"not compared question by question{whose}: {_listed(tasks)}: {reason}."
        for setting, (before, after) in contrast.settings.items():
            yield f"the runs differ in {setting}: {before} in {names[0]}, {after} in {name}."
        for which, only in ((names[0], contrast.only_before), (name, contrast.only_after)):
            if only:
                yield f"evaluated only in {which}: {_listed(only)}."
        yield from contrast.notes


def _warnings_of_one(saved: SavedResults, lead: str) -> Iterator[str]:
    collapsed = {task.name: letters_of([task]).collapse for task in saved.tasks.values()}
    notes = letter_notes({name: collapse for name, collapse in collapsed.items() if collapse is not None})
    # Results of this package say the same themselves.
    told_once = dict.fromkeys([*(saved.extra.get("warnings") or []), *notes])
    yield from (f"{lead}{told}" for told in told_once)
    if ties := sum(task.near_ties or 0 for task in saved.tasks.values()):
        total = sum(task.n or 0 for task in saved.tasks.values())
        yield f"{lead}{ties:,} of {total:,} predictions are near-ties, where rounding may have decided."
    if without := [task.name for task in saved.tasks.values() if task.samples is None]:
        yield f"{lead}no samples were saved (--log-samples) for {_listed(without)}: their questions are not shown."


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _rows(runs: Sequence[SavedResults], contrasts: Sequence[Contrast], forget: set[str]) -> Iterator[Row]:
    latest = runs[-1]
    many = _subjects(latest)
    differences = [{row.name: row for row in contrast.rows if row.metric == "acc"} for contrast in contrasts]
    aims = _aims(latest, forget)
    for found, depth in latest.hierarchy():
        leaves = _leaves(latest, found)
        same = [(one[found.name], one) if found.name in one else None for one in runs]
        accuracies = [pair and _accuracy(pair[0], _leaves(pair[1], pair[0])) for pair in same]
        if accuracies[-1] is None:
            continue
        chance = _chance(leaves)
        yield Row(
            name=found.name,
            label=found.alias,
            depth=depth,
            is_group=isinstance(found, SavedGroup),
            is_subject=found.name in many,
            aim=aims.get(found.name),
            count=found.n or sum(task.n or 0 for task in leaves),
            chance=chance,
            accuracies=accuracies,
            standings=[
                _standing(accuracy, accuracies[0], chance, letters_of(_leaves(pair[1], pair[0])) if pair else Letters())
                for accuracy, pair in zip(accuracies, same, strict=True)
            ],
            changes=[
                _change(those.get(found.name), accuracies[0], accuracy)
                for those, accuracy in zip(differences, accuracies[1:], strict=True)
            ],
        )


def _aims(results: SavedResults, forget: set[str]) -> dict[str, Aim]:
    """Which tasks and groups should be forgotten, and which kept; nothing if none should be forgotten."""
    aims: dict[str, Aim] = {}
    for found, _ in results.hierarchy():
        chosen = found.name in forget
        if isinstance(found, SavedGroup) and chosen:
            forget = forget | set(found.leaves)
        if chosen or section_of(found.name) == "forget" or found.alias.endswith("(forget)"):
            aims[found.name] = "forget"
        else:
            aims[found.name] = "near" if section_of(found.name) == "near" else "retain"
    return aims if "forget" in aims.values() else {}


def _standing(
    accuracy: Estimate | None, before: Estimate | None, chance: float | None, letters: Letters
) -> Standing | None:
    """Where an accuracy is beside guessing.

    At it only if the right choices' ranks say so too, where they are known, and if its interval ends below halfway
    between guessing and a baseline that is above it: of few questions the interval holds guessing and much else.
    """
    if accuracy is None or chance is None:
        return None
    if (one := letters.collapse) is not None:
        return Standing(place="unclear", why=f"{one.letter} is answered to {one.predicted:,} of {one.n:,} questions")
    if accuracy.low > chance:
        return Standing(place="above")
    if accuracy.high < chance:
        return Standing(place="below")
    if (rank := letters.rank) is not None and rank.p < SIGNIFICANT:
        higher = "higher" if rank.z > 0 else "lower"
        why = f"but the right choices rank {higher} than guessing would have them (z {rank.z:+.1f})"
        return Standing(place="unclear", why=why)
    if before is not None and before.low > chance and accuracy.high > (chance + before.value) / 2:
        return Standing(place="unclear", why="too few questions: guessing fits, and so does half of what was known")
    return Standing(place="at")


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
    value = found.metrics.get("acc")
    if value is None:
        return None
    # A standard error of 0 (all answers right, or all wrong) rules out nothing; of an unknown number, nothing is.
    low, high = _rust.wilson(round(value * found.n), found.n) if found.n else (0.0, 1.0)
    return Estimate(value=value, low=low, high=high)


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


def _change(difference: Difference | None, before: Estimate | None, after: Estimate | None) -> Change | None:
    if difference is None or before is None or after is None:
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


def _parts(runs: Sequence[SavedResults], names: Sequence[str], looks: Sequence[str]) -> Iterator[Part]:
    latest = runs[-1]
    roots = [found for found, depth in latest.hierarchy() if depth == 0]
    parts = [(found.alias, _leaves(latest, found)) for found in roots]
    if len(parts) > _MOST_PARTS:
        parts = [("all questions", list(latest.tasks.values()))]
    for label, leaves in parts:
        scored = [task.name for task in leaves if _detailed(task)]
        scores = []
        for saved, name, look in zip(runs, names, looks, strict=True):
            tasks = [saved.tasks[task] for task in scored if task in saved.tasks and _detailed(saved.tasks[task])]
            # Only a run that was asked all of it: less would be another part.
            if tasks and len(tasks) == len(scored):
                scores.append(_scores(name, look, tasks))
        if scores:
            yield Part(label=label, scores=scores)


def _scores(name: str, look: str, tasks: Sequence[SavedTask]) -> Scores:
    samples = [_samples(task) for task in tasks]
    sizes = np.concatenate([np.diff(one.choice_offsets) for one in samples])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    loglikelihood = np.concatenate([one.loglikelihood for one in samples])
    gold = np.concatenate([one.gold for one in samples])
    found = _rust.calibration(loglikelihood, offsets, gold)
    leads = np.concatenate([_leads(task) for task in tasks])
    counts, _ = np.histogram(np.clip(leads, _EDGES[0], np.nextafter(_EDGES[-1], 0)), bins=_EDGES)
    return Scores(
        name=name,
        look=look,
        calibration=_cells(found),
        ece=found.ece,
        brier=found.brier,
        margins=Histogram(edges=_EDGES.tolist(), counts=counts.tolist(), median=float(np.median(leads))),
    )


def _cells(found: _rust.Calibration) -> list[Cell]:
    """Neighboring bins put together until each has enough questions for its share to mean something."""
    cells: list[Cell] = []
    # Empty bins have no mean.
    rights, sures = (np.where(found.counts > 0, of * found.counts, 0.0) for of in (found.accuracy, found.confidence))
    for members in _together(found.counts.tolist()):
        count = int(found.counts[members].sum())
        right = round(float(rights[members].sum()))
        low, high = _rust.wilson(right, count)
        cells.append(
            Cell(
                low=members.start / len(found.counts),
                high=members.stop / len(found.counts),
                count=count,
                confidence=float(sures[members].sum() / count),
                accuracy=Estimate(value=right / count, low=low, high=high),
            )
        )
    return cells


def _together(counts: Sequence[int]) -> list[slice]:
    """Which neighbors make cells of at least `_LEAST_IN_CELL`; what is left over at the end joins the last cell."""
    cells: list[slice] = []
    begin, held = 0, 0
    for place, count in enumerate(counts):
        begin = place if held == 0 else begin  # empty bins before a cell are no part of it
        held += count
        if held >= _LEAST_IN_CELL:
            cells.append(slice(begin, place + 1))
            held = 0
    if held:
        last = max(place for place, count in enumerate(counts) if count) + 1
        cells = [*cells[:-1], slice(cells[-1].start, last)] if cells else [slice(begin, last)]
    return cells


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


def _questions(task: SavedTask, runs: Sequence[SavedTask | None], *, include_text: bool) -> TaskQuestions:
    samples = _samples(task)
    ids = samples.doc_ids.tolist()
    return TaskQuestions(
        task=task.name,
        ids=ids,
        hashes="".join(one[:HASH_LENGTH].ljust(HASH_LENGTH) for one in samples.doc_hashes),
        right=samples.gold.tolist(),
        answers=[_answers(one, ids) for one in runs],
        texts=_texts(samples.file, ids) if include_text else None,
    )


def _answers(task: SavedTask | None, ids: Sequence[int]) -> Answers | None:
    """A run's answers to these questions; None if it was not asked all of them: a table with holes would mislead."""
    if task is None or not _detailed(task):
        return None
    samples = _samples(task)
    at = {doc_id: place for place, doc_id in enumerate(samples.doc_ids.tolist())}
    if not all(doc_id in at for doc_id in ids):
        return None
    places = np.array([at[doc_id] for doc_id in ids])
    return Answers(
        chosen=samples.predicted("acc")[places].tolist(),
        permille=_permille(_shares(task)[places]),
        margins=np.rint(_leads(task)[places] * 100).astype(int).tolist(),
    )


def _permille(shares: npt.NDArray[np.float64]) -> list[int]:
    return [int(value) for value in np.rint(shares * 1000)]


def _texts(file: str, ids: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Question and choices of each line of a samples file, in the order of `ids`."""
    lines = sample_lines(Path(file))
    found = []
    for doc_id in ids:
        doc = lines[doc_id].get("doc") if doc_id in lines else None
        if not isinstance(doc, dict) or "question" not in doc or not isinstance(doc.get("choices"), list):
            problem = f"question {doc_id} has no `question` and `choices`; leave out --include-text"
            raise DatasetError(file, problem, field="doc")
        found.append((str(doc["question"]), [str(choice) for choice in doc["choices"]]))
    return found


def _title(runs: Sequence[SavedResults]) -> str:
    before, *others = [_short_name(one.model_name) for one in runs]
    if not others:
        return f"What {before} knows"
    if set(others) == {before}:
        return f"{before}: after against before" if len(others) == 1 else f"{before}, asked {len(runs)} times"
    if len(others) > 2:
        return f"{len(others)} models against {before}"
    return f"{' and '.join(others)} against {before}"


def _short_name(model: str) -> str:
    """A hub name as it is, a folder's path by its last part."""
    parts = Path(model).parts
    return parts[-1] if len(parts) > 2 or model.startswith((".", "/")) else model


def _run(saved: SavedResults, name: str, look: str) -> Run:
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
        asked=_asked(saved),
        made_by=saved.made_by,
        look=look,
        records=[
            records("Settings", {"made by": saved.made_by, **saved.settings, **ours, "n-shot": raw.get("n-shot")}),
            records("Seconds", {phase: _seconds(value) for phase, value in seconds.items()}),
            records("Hardware", extra.get("hardware", {})),
            records("Versions", {**extra.get("versions", {}), "git commit": raw.get("git_hash")}),
            records("Hashes", dict(hashes)),
        ],
    )


def _asked(saved: SavedResults) -> str:
    """How the questions were put, in a few words."""
    shots = sorted({task.num_fewshot for task in saved.tasks.values() if task.num_fewshot is not None})
    told = [f"{'/'.join(map(str, shots))}-shot"] if shots else []
    if saved.settings.get("chat_template"):
        told.append("chat template")
    if any(task.config.get("description") for task in saved.tasks.values()):
        told.append("with a description in front")
    if dtype := saved.settings.get("model_dtype"):
        told.append(str(dtype).removeprefix("torch."))
    return ", ".join(told)


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
