"""Evaluations of several models over the same questions, side by side.

`compare` takes results of this package or of lm-eval, one of each if need be. Whether two runs asked the same is
checked question by question, by lm-eval's hashes; only then are they compared in pairs (score interval, exact McNemar
test, flips). Where they did not, or samples are missing, the values stand side by side and the reason is said.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.analysis.statistics import Letters, correct_answers, letters_of, share
from wmdp_fast.results.letters import letter_notes
from wmdp_fast.results.perplexity import METRICS, change
from wmdp_fast.results.result import from_evaluation
from wmdp_fast.results.saved import SavedGroup, SavedResults, SavedTask, read_runs
from wmdp_fast.runtime.tables import frame, html_table, in_columns, number_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    import pandas as pd

    from wmdp_fast.results.perplexity import Documents
    from wmdp_fast.results.result import EvalResult

Section = Literal["forget", "near", "general", "other"]

# The parts of a comparison in the order they are shown, and what they are called.
SECTIONS: dict[Section, str] = {
    "forget": "forget targets",
    "near": "near domains",
    "general": "general ability",
    "other": "other",
}

# Subjects of MMLU closest to what WMDP asks about, which unlearning is likeliest to damage; Li et al. 2024 report them.
NEAR_SUBJECTS = ("virology", "college_biology", "computer_security", "college_computer_science")

# Settings that may decide about numbers. Names of models and files differ by nature.
_SETTINGS = (
    "model_dtype",
    "limit",
    "fewshot_as_multiturn",
    "system_instruction",
    "chat_template",
    "max_length",
    "score_mode",
    "lm_eval_compat",
    "lm_eval_version",
    "transformers_version",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One task or group, by one metric: a run against the baseline.

    Attributes:
        name: Name of the task or group.
        alias: The name shown in tables.
        is_group: Whether it is a group.
        leaves: The tasks it stands for: those below a group, or itself.
        section: Which part of the comparison it belongs to.
        metric: lm-eval's name of the metric.
        n: Number of questions, or None if it is unknown or the runs differ in it and are not compared in pairs.
        asked: How many questions each run asked. If these are more than `n`, only those that both asked are compared,
            and `before` and `after` are values over these.
        before: The baseline's value.
        after: The other run's.
        stderr_before: Standard error of `before`, or None.
        stderr_after: Standard error of `after`, or None.
        low: Lower end of Tango's score interval of the difference over pairs; None without pairs. Of a text's
            perplexity Student's, over documents.
        high: Its upper end.
        clustered_stderr: For a group in pairs, the standard error of the difference that lets questions of one task
            depend on each other.
        p: The exact McNemar test's p-value; None without pairs. Of a text's perplexity that of Student's paired test of
            its logarithm, over documents.
        p_holm: The same after Holm's correction over the tasks (for a group, over the groups) of this run and metric.
        right_to_wrong: Questions that the baseline got right and the other run wrong; None without pairs, and of texts.
        wrong_to_right: The other way round.
        why_unpaired: Why there are no pairs, or None.
        caveat: What makes the two values of other kinds (other numbers of shots), or None.
        letters_before: What is left of the baseline's `acc` without a preference for letters; empty for other metrics
            and without samples.
        letters_after: The same of the other run.
    """

    name: str
    alias: str
    is_group: bool
    leaves: tuple[str, ...]
    section: Section
    metric: str
    n: int | None
    asked: tuple[int | None, int | None]
    before: float
    after: float
    stderr_before: float | None
    stderr_after: float | None
    low: float | None = None
    high: float | None = None
    clustered_stderr: float | None = None
    p: float | None = None
    p_holm: float | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    why_unpaired: str | None = None
    caveat: str | None = None
    letters_before: Letters = field(default_factory=Letters)
    letters_after: Letters = field(default_factory=Letters)

    @property
    def difference(self) -> float:
        """By how much the value changed."""
        return self.after - self.before

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        letters = {name: getattr(self, name).to_json() for name in ("letters_before", "letters_after")}
        return {**vars(self), "difference": self.difference, **letters}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One run against the baseline.

    Attributes:
        before: Name of the baseline.
        after: Name of the other run.
        rows: What both evaluated: by section, groups before the tasks below them.
        only_before: Tasks that only the baseline has.
        only_after: Tasks that only the other run has.
        settings: Settings that differ, with both values.
        notes: What else a reader should know, one sentence each.
    """

    before: str
    after: str
    rows: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    settings: Mapping[str, tuple[Any, Any]]
    notes: tuple[str, ...]

    def section(self, section: Section) -> tuple[Difference, ...]:
        """The rows of one section."""
        return tuple(row for row in self.rows if row.section == section)

    @property
    def unpaired(self) -> dict[str, list[str]]:
        """For each reason why tasks could not be compared in pairs, those tasks; groups follow from them."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.why_unpaired is not None and not row.is_group and row.name not in reasons.get(row.why_unpaired, []):
                reasons.setdefault(row.why_unpaired, []).append(row.name)
        return reasons


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Several runs: the first is the baseline, each other one is compared with it.

    Attributes:
        names: What the runs are called, unlike each other.
        results: The runs.
        contrasts: For each run but the first, how it differs from the first.
        confidence: How often intervals are to cover.

    Example:
        >>> from wmdp_fast import compare, demo, evaluate
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> comparison = compare(result, result, names=["before", "after"])
        >>> [row.difference for row in comparison.contrasts[0].rows if row.metric == "acc"]
        [0.0]
        >>> "before" in comparison.table()
        True
    """

    names: tuple[str, ...]
    results: tuple[SavedResults, ...] = field(repr=False)
    contrasts: tuple[Contrast, ...] = field(repr=False)
    confidence: float

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return "".join(_html(self, contrast) for contrast in self.contrasts)

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame with a row for each task or group and metric of each run but the first.

        Columns: before_run, after_run, then the attributes of `Difference` up to the flips, `difference` among them.

        Raises:
            WmdpFastError: pandas is not installed.
        """
        shown = ("name", "section", "metric", "n", "before", "after", "difference", "low", "high", "p", "p_holm")
        counts = ("right_to_wrong", "wrong_to_right")
        records = [
            {"before_run": contrast.before, "after_run": contrast.after}
            | {name: getattr(row, name) for name in (*shown, *counts)}
            for contrast in self.contrasts
            for row in contrast.rows
        ]
        return frame(records, ("before_run", "after_run", *shown, *counts))

    def samples_frame(self) -> pd.DataFrame:
        """A pandas frame with a row for each pair of answers to the same question.

        Columns: after_run, task, doc_id, gold, then predicted and correct (by `acc`) before and after.

        Raises:
            WmdpFastError: pandas is not installed.
        """
        baseline = self.results[0]
        records = [
            {"after_run": contrast.after, **record}
            for contrast, run in zip(self.contrasts, self.results[1:], strict=True)
            for name in baseline.tasks
            if name in run.tasks
            for record in _pairs(baseline.tasks[name], run.tasks[name])
        ]
        answers = ("predicted_before", "predicted_after", "correct_before", "correct_after")
        return frame(records, ("after_run", "task", "doc_id", "gold", *answers))

    def table(self) -> str:
        """Aligned text, a table for each run but the first."""
        return "\n\n".join("\n".join(_text(self, contrast)) for contrast in self.contrasts)

    def markdown(self) -> str:
        """The same as GitHub-flavoured Markdown."""
        return "\n\n".join("\n".join(_markdown(self, contrast)) for contrast in self.contrasts)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "runs": [
                {
                    "name": name,
                    "model_name": one.model_name,
                    "results": None if one.path is None else str(one.path),
                    "made_by": one.made_by,
                }
                for name, one in zip(self.names, self.results, strict=True)
            ],
            "confidence": self.confidence,
            "contrasts": [
                {
                    "before": contrast.before,
                    "after": contrast.after,
                    "rows": [row.to_json() for row in contrast.rows],
                    "unpaired": contrast.unpaired,
                    "only_before": list(contrast.only_before),
                    "only_after": list(contrast.only_after),
                    "settings": {name: list(values) for name, values in contrast.settings.items()},
                    "notes": list(contrast.notes),
                }
                for contrast in self.contrasts
            ],
        }


def compare(
    *results: str | os.PathLike[str] | EvalResult | SavedResults,
    names: Sequence[str] | None = None,
    forget: Sequence[str] = (),
    near: Sequence[str] = (),
    confidence: float = 0.95,
) -> Comparison:
    """Compares runs with the first of them, in pairs wherever they asked the same questions in the same words.

    Args:
        results: Two runs or more: results files or folders of this package or of lm-eval, results already read, or what
            `evaluate` returned. A folder with results of several models, in it or up to two folders down, stands for
            the newest of each, the first evaluated first.
        names: What to call the runs; None takes the models' names, with the place of a run where they are the same.
        forget: Tasks and groups to count among the forget targets, beside WMDP.
        near: Tasks and groups to count among the near domains, beside the MMLU subjects that are near to WMDP.
        confidence: How often intervals are to cover.

    Raises:
        FileNotFoundError: There is no such file, or no results in a folder.
        DatasetError: A file is not what it should be; names file, row and field.
        ValueError: There are fewer than two runs, they have no task in common, or an option has an impossible value.

    Example:
        >>> from wmdp_fast import compare, demo, evaluate
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> [contrast] = compare(result, result).contrasts
        >>> [(row.n, row.right_to_wrong, row.p) for row in contrast.rows if row.metric == "acc"]
        [(8, 0, 1.0)]
    """
    read = tuple(run for one in results for run in _read(one))
    if len(read) < 2:
        raise ValueError("a comparison needs two runs or more")
    called = _names(read, names)
    chosen: dict[str, Section] = {**dict.fromkeys(near, "near"), **dict.fromkeys(forget, "forget")}
    if unknown := [name for name in chosen if not any(name in one for one in read)]:
        raise ValueError(f"no run has a task or group {', '.join(unknown)}; they have {', '.join(read[0])}")
    options = _Options(sections=chosen, confidence=confidence)
    contrasts = tuple(
        _contrast(called[0], read[0], name, one, options) for name, one in zip(called[1:], read[1:], strict=True)
    )
    return Comparison(names=called, results=read, contrasts=contrasts, confidence=confidence)


def section_of(name: str, chosen: Mapping[str, Section] | None = None, *, alias: str = "") -> Section:
    """The section of a comparison that a task or group belongs to.

    Args:
        name: Its name.
        chosen: Sections by name that somebody has chosen.
        alias: The name shown, which may end in `(forget)`.
    """
    if chosen and name in chosen:
        return chosen[name]
    if name == "wmdp" or name.startswith("wmdp_") or alias.endswith("(forget)"):
        return "forget"
    if name.removeprefix("mmlu_").removesuffix("_continuation") in NEAR_SUBJECTS and name.startswith("mmlu_"):
        return "near"
    return "general" if name == "mmlu" or name.startswith("mmlu_") else "other"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which questions of two runs of a task are the same: for each pair its place in either run."""

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]


def pair(before: SavedTask, after: SavedTask) -> Pairing | str:
    """The questions that two runs of a task both asked, or why they cannot be compared question by question.

    They can if the same questions were asked with the same prompts, choices and answers, where numbers of questions are
    in both runs (one may have had a limit). lm-eval's hash of a whole document covers more, so that one of these is the
    same where it differs; `document_note` tells of that.
    """
    ours, theirs = before.samples, after.samples
    if ours is None or theirs is None:
        return "neither run has samples of it" if ours is theirs else "one of the runs has no samples of it"
    common, mine, other = np.intersect1d(ours.doc_ids, theirs.doc_ids, return_indices=True)
    if not len(common):
        return f"{len(ours)} and {len(theirs)} questions, none in common"
    for what, hashes in (
        ("prompts", (ours.prompt_hashes, theirs.prompt_hashes)),
        ("answers", (ours.target_hashes, theirs.target_hashes)),
    ):
        if any("" in one for one in hashes):
            return "the samples have no hashes (lm-eval before 0.4.3), so that it cannot be checked what was asked"
        pairs = [(hashes[0][one], hashes[1][two]) for one, two in zip(mine, other, strict=True)]
        if reason := _differing(what, pairs, common):
            return reason
    choices = [(ours.continuations(one), theirs.continuations(two)) for one, two in zip(mine, other, strict=True)]
    return _differing("choices", choices, common) or Pairing(before=mine, after=other)


def _pairs(before: SavedTask, after: SavedTask) -> Iterator[dict[str, Any]]:
    """For each question that both runs asked what either answered."""
    pairing, mine, other = pair(before, after), before.samples, after.samples
    if isinstance(pairing, str) or mine is None or other is None:
        return
    correct = [correct_answers(task, "acc") for task in (before, after)]
    for one, two in zip(pairing.before.tolist(), pairing.after.tolist(), strict=True):
        gold = int(mine.gold[one])
        yield {
            "task": before.name,
            "doc_id": int(mine.doc_ids[one]),
            "gold": gold if gold >= 0 else None,
            "predicted_before": int(mine.predicted("acc")[one]),
            "predicted_after": int(other.predicted("acc")[two]),
            "correct_before": None if correct[0] is None else bool(correct[0][one]),
            "correct_after": None if correct[1] is None else bool(correct[1][two]),
        }


def document_note(before: SavedTask, after: SavedTask, pairing: Pairing) -> str | None:
    """Says if the documents of two runs differ in what was not asked (another column, for instance)."""
    if before.samples is None or after.samples is None:
        return None
    mine, other = before.samples.doc_hashes, after.samples.doc_hashes
    pairs = zip(pairing.before, pairing.after, strict=True)
    differing = sum(mine[one] != other[two] for one, two in pairs)
    if not differing:
        return None
    return (
        f"{before.name}: {differing} of {len(pairing.before)} documents differ in something that was not asked;"
        " prompts, choices and answers are the same"
    )


def _differing(what: str, pairs: Sequence[tuple[Any, Any]], doc_ids: npt.NDArray[np.int64]) -> str | None:
    differing = [index for index, (mine, other) in enumerate(pairs) if mine != other]
    if not differing:
        return None
    first = int(doc_ids[differing[0]])
    return f"the {what} of {len(differing)} of {len(pairs)} questions differ, question {first} first"


@dataclass(frozen=True, kw_only=True)
class _Options:
    sections: Mapping[str, Section]
    confidence: float


def _read(one: str | os.PathLike[str] | EvalResult | SavedResults) -> list[SavedResults]:
    if isinstance(one, SavedResults):
        return [one]
    return read_runs(one) if isinstance(one, (str, os.PathLike)) else [from_evaluation(one)]


def _names(results: Sequence[SavedResults], names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None:
        if len(names) != len(results) or len(set(names)) < len(names):
            raise ValueError(f"{len(results)} runs need as many names, unlike each other, not {', '.join(names)}")
        return tuple(names)
    models = [one.model_name for one in results]
    return tuple(
        model if models.count(model) == 1 else f"{model} ({place})" for place, model in enumerate(models, start=1)
    )


def _contrast(
    before_name: str, before: SavedResults, after_name: str, after: SavedResults, options: _Options
) -> Contrast:
    common = [name for name in before.tasks if name in after.tasks]
    if not common:
        raise ValueError(
            f"{before_name} and {after_name} have no task in common: one has {', '.join(before.tasks)}, the other"
            f" {', '.join(after.tasks)}"
        )
    pairings = {name: pair(before.tasks[name], after.tasks[name]) for name in common}
    rows: list[Difference] = []
    for one, _ in before.hierarchy():
        other = after.groups.get(one.name) if isinstance(one, SavedGroup) else after.tasks.get(one.name)
        if other is not None and one.name not in {row.name for row in rows}:
            rows += _rows(one, other, before, after, pairings, options)
    order = list(SECTIONS)
    rows.sort(key=lambda row: order.index(row.section))
    return Contrast(
        before=before_name,
        after=after_name,
        rows=tuple(_corrected(rows)),
        only_before=tuple(name for name in before.tasks if name not in after.tasks),
        only_after=tuple(name for name in after.tasks if name not in before.tasks),
        settings=_differing_settings(before, after, common),
        notes=tuple(_notes(before, after, pairings)),
    )


def _rows(
    before: SavedTask | SavedGroup,
    after: SavedTask | SavedGroup,
    all_before: SavedResults,
    all_after: SavedResults,
    pairings: Mapping[str, Pairing | str],
    options: _Options,
) -> Iterator[Difference]:
    leaves = before.leaves if isinstance(before, SavedGroup) else (before.name,)
    reason = _why_unpaired(before, after, pairings)
    runs = {"before": all_before, "after": all_after}
    for metric in (name for name in before.metrics if name in after.metrics):
        row: dict[str, Any] = {
            "name": before.name,
            "alias": before.alias,
            "is_group": isinstance(before, SavedGroup),
            "leaves": leaves,
            "section": section_of(before.name, options.sections, alias=before.alias),
            "metric": metric,
            "n": before.n if before.n == after.n else None,
            "asked": (before.n, after.n),
            "before": before.metrics[metric],
            "after": after.metrics[metric],
            "stderr_before": before.stderr[metric],
            "stderr_after": after.stderr[metric],
            "why_unpaired": reason,
            "caveat": _other_shots(leaves, all_before, all_after),
        }
        if isinstance(before, SavedTask) and isinstance(after, SavedTask) and before.documents and after.documents:
            row |= _paired_documents(before.documents, after.documents, metric, options)
        elif reason is None:
            answers = list(_answers(leaves, all_before, all_after, pairings, metric))
            if len(answers) < len(leaves):
                row["why_unpaired"] = f"{metric} does not follow from the samples"
            else:
                row |= _paired(answers, options)
                if row["asked"] != (row["n"], row["n"]):
                    row |= _over_common(answers)
        if metric == "acc":
            for which, run in runs.items():
                tasks = [run.tasks[leaf] for leaf in leaves if leaf in run.tasks]
                row[f"letters_{which}"] = letters_of(tasks, confidence=options.confidence)
        yield Difference(**row)


_Answers = tuple["npt.NDArray[np.bool_]", "npt.NDArray[np.bool_]"]


def _answers(
    leaves: Sequence[str],
    before: SavedResults,
    after: SavedResults,
    pairings: Mapping[str, Pairing | str],
    metric: str,
) -> Iterator[_Answers]:
    """Whether each question that both runs asked is right in either, by task; of tasks whose samples tell."""
    for leaf in leaves:
        mine, other = (correct_answers(run.tasks[leaf], metric) for run in (before, after))
        pairing = pairings[leaf]
        if mine is not None and other is not None and isinstance(pairing, Pairing):
            yield mine[pairing.before], other[pairing.after]


def _over_common(answers: Sequence[_Answers]) -> dict[str, Any]:
    """Values and standard errors over the questions that both runs asked, as lm-eval computes them."""
    found: dict[str, Any] = {}
    for which, of_run in zip(("before", "after"), zip(*answers, strict=True), strict=True):
        each = [share(correct) for correct in of_run]
        found[which], found[f"stderr_{which}"] = _rust.pool(
            [one.value for one in each], [one.stderr for one in each], [len(correct) for correct in of_run]
        )
    return found


def _other_shots(leaves: Sequence[str], before: SavedResults, after: SavedResults) -> str | None:
    shots = [
        sorted({str(run.tasks[leaf].num_fewshot) for leaf in leaves if _has_shots(run, leaf)})
        for run in (before, after)
    ]
    if not all(shots) or shots[0] == shots[1]:
        return None
    return f"{'/'.join(shots[0])}-shot before, {'/'.join(shots[1])}-shot after"


def _has_shots(run: SavedResults, task: str) -> bool:
    return task in run.tasks and run.tasks[task].num_fewshot is not None


def _why_unpaired(
    before: SavedTask | SavedGroup, after: SavedTask | SavedGroup, pairings: Mapping[str, Pairing | str]
) -> str | None:
    if isinstance(before, SavedTask):
        found = pairings[before.name]
        return found if isinstance(found, str) else None
    if not isinstance(after, SavedGroup) or set(before.leaves) != set(after.leaves):
        return "the runs have different tasks in it"
    unpaired = [leaf for leaf in before.leaves if not isinstance(pairings.get(leaf), Pairing)]
    return f"{len(unpaired)} of its {len(before.leaves)} tasks cannot be compared in pairs" if unpaired else None


def _paired(answers: Sequence[_Answers], options: _Options) -> dict[str, Any]:
    """Statistics over pairs of answers, a pair of arrays for each task."""
    before = np.concatenate([mine for mine, _ in answers])
    after = np.concatenate([other for _, other in answers])
    change = after.astype(np.float64) - before
    right_to_wrong, wrong_to_right = int((before & ~after).sum()), int((~before & after).sum())
    low, high = _rust.paired_interval(right_to_wrong, wrong_to_right, len(before), confidence=options.confidence)
    clusters = np.repeat(np.arange(len(answers)), [len(mine) for mine, _ in answers])
    return {
        "n": len(before),
        "low": low,
        "high": high,
        "clustered_stderr": _rust.clustered_stderr(change, clusters) if len(answers) > 1 else None,
        "p": _rust.mcnemar(right_to_wrong, wrong_to_right),
        "right_to_wrong": right_to_wrong,
        "wrong_to_right": wrong_to_right,
    }


def _paired_documents(before: Documents, after: Documents, metric: str, options: _Options) -> dict[str, Any]:
    """Statistics over the documents of a text that both runs read, or why there are none."""
    if metric not in METRICS:
        return {"why_unpaired": f"{metric} does not follow from the samples"}
    if before.hashes != after.hashes:
        return {"why_unpaired": "the runs read other documents"}
    if metric == "token_perplexity" and not (before.tokens == after.tokens).all():
        return {"why_unpaired": "the models cut the text into other tokens: compare words or bytes"}
    if (found := change(before, after, metric, options.confidence)) is None:
        return {"why_unpaired": "a single document, from which no interval follows"}
    return {"why_unpaired": None, "low": found.low, "high": found.high, "p": found.p}


def _corrected(rows: Sequence[Difference]) -> Iterator[Difference]:
    """The rows with Holm's correction, over tasks and over groups, by metric."""
    corrected: dict[tuple[str, str, bool], float] = {}
    for metric, is_group in {(row.metric, row.is_group) for row in rows}:
        family = [row for row in rows if (row.metric, row.is_group) == (metric, is_group)]
        tested = [(row.name, row.p) for row in family if row.p is not None]
        for (name, _), p in zip(tested, _rust.holm([p for _, p in tested]), strict=True):
            corrected[name, metric, is_group] = p
    for row in rows:
        yield Difference(**{**vars(row), "p_holm": corrected.get((row.name, row.metric, row.is_group))})


def _differing_settings(before: SavedResults, after: SavedResults, tasks: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    # A setting that one of the packages does not record tells nothing.
    settings = {
        name: (before.settings[name], after.settings[name])
        for name in _SETTINGS
        if name in before.settings and name in after.settings and before.settings[name] != after.settings[name]
    }
    shots = [(before.tasks[name].num_fewshot, after.tasks[name].num_fewshot) for name in tasks]
    if differing := [pair for pair in shots if pair[0] != pair[1]]:
        settings["num_fewshot"] = differing[0]
    return settings


def order_doubt(before: SavedResults, after: SavedResults) -> str | None:
    """Why two runs look as if they had been given in the wrong order; None if they do not.

    What unlearning has left beside a model (`unlearn.json`) decides; then what models and files are called; then when
    the evaluations were made, if the models differ.
    """
    unlearned = [_unlearned_from(run.model_name) for run in (before, after)]
    if unlearned[1] is not None and unlearned[0] is None:
        return None
    if unlearned[0] is not None and unlearned[1] is None:
        return f"{before.model_name}, which is taken as before, was made by unlearning (from {unlearned[0]})"
    said = [_said_by_names(run) for run in (before, after)]
    if said == ["after", "before"]:
        return f"the run taken as before is called {_shown_name(before)}, the one taken as after {_shown_name(after)}"
    earlier, later = (run.raw.get("date") for run in (before, after))
    if said == ["before", "after"] or before.model_name == after.model_name:
        return None
    if earlier is None or later is None or earlier <= later:
        return None
    return f"{before.model_name}, which is taken as before, was evaluated later than {after.model_name}"


def _unlearned_from(model: str) -> str | None:
    """The model that a folder's model was made of by unlearning."""
    try:
        record = json.loads((Path(model) / "unlearn.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # A name on the hub, a folder that is not here, or no record of ours: nothing is known.
    return str(record.get("model") or "another model") if isinstance(record, dict) else None


# Words in names of models and files that tell which of two runs is the earlier one.
_EARLIER = frozenset({"before", "base", "baseline", "original"})
_LATER = frozenset({"after", "unlearned", "unlearnt", "rmu"})


def _said_by_names(run: SavedResults) -> str | None:
    folders = [] if run.path is None else [run.path.parent.name, run.path.parent.parent.name]
    words = {word for name in (run.model_name, *folders) for word in re.split(r"[^a-z]+", name.lower())}
    if bool(words & _EARLIER) == bool(words & _LATER):
        return None
    return "before" if words & _EARLIER else "after"


def _shown_name(run: SavedResults) -> str:
    return run.model_name if run.path is None else str(run.path.parent)


def _notes(before: SavedResults, after: SavedResults, pairings: Mapping[str, Pairing | str]) -> Iterator[str]:
    if doubt := order_doubt(before, after):
        yield f"{doubt}; the order is BEFORE AFTER: are they the wrong way round?"
    if before.made_by.split()[0] != after.made_by.split()[0]:
        yield f"the runs were made by {before.made_by} and {after.made_by}"
    for one in (before, after):
        if one.newest_of > 1:
            yield f"{one.path} is the newest of {one.newest_of} results of its folder"
    for which, run in (("before", before), ("after", after)):
        found = {name: letters_of([run.tasks[name]]).collapse for name in pairings}
        for told in letter_notes({name: collapse for name, collapse in found.items() if collapse is not None}):
            yield f"{which}: {told}"
    paired = {name: pairing for name, pairing in pairings.items() if isinstance(pairing, Pairing)}
    for name, pairing in paired.items():
        if note := document_note(before.tasks[name], after.tasks[name], pairing):
            yield note
    yield from _about_common(before, after, paired)


def _about_common(before: SavedResults, after: SavedResults, paired: Mapping[str, Pairing]) -> Iterator[str]:
    """Says of which tasks only a part of the questions is compared."""
    parts = []
    for name, pairing in paired.items():
        asked = [len(run.tasks[name].samples or ()) for run in (before, after)]
        if len(pairing.before) < max(asked):
            parts.append(f"{name} {len(pairing.before)} (of {asked[0]} before and {asked[1]} after)")
    if parts:
        more = f" and {len(parts) - _TOLD} tasks more" if len(parts) > _TOLD else ""
        yield f"only questions that both runs asked are compared: {', '.join(parts[:_TOLD])}{more}"


# Tasks that a sentence names before it counts the others.
_TOLD = 5


_COLUMNS = ("task", "n", "metric", "before", "after", "change", "interval", "p", "p (Holm)", "lost", "won")


def _cells(row: Difference, indent: str) -> tuple[str, ...]:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{number_text(row.low, signed=True)} to {number_text(row.high, signed=True)}"
    return (
        indent + row.alias + ("" if row.caveat is None else f" ({row.caveat})"),
        _count(row),
        row.metric,
        number_text(row.before),
        number_text(row.after),
        number_text(row.difference, signed=True),
        interval,
        probability_text(row.p),
        probability_text(row.p_holm),
        "" if row.right_to_wrong is None else str(row.right_to_wrong),
        "" if row.wrong_to_right is None else str(row.wrong_to_right),
    )


_LETTER_COLUMNS = ("without preferred letters", "calibrated before", "after", "rank z before", "after", "p after")


def _letter_rows(contrast: Contrast) -> list[tuple[str, ...]]:
    """What is left without a preference for letters: of groups, and of tasks that are in none of these."""
    grouped = {leaf for row in contrast.rows if row.is_group for leaf in row.leaves}
    rows = []
    for row in contrast.rows:
        ranks = (row.letters_before.rank, row.letters_after.rank)
        if row.metric != "acc" or row.name in grouped or not any(ranks):
            continue
        calibrated = (row.letters_before.calibrated, row.letters_after.calibrated)
        rows.append(
            (
                row.alias,
                *("" if one is None else f"{one.value:.4f}" for one in calibrated),
                *("" if one is None else f"{one.z:+.1f}" for one in ranks),
                probability_text(None if ranks[1] is None else ranks[1].p),
            )
        )
    return rows


def _count(row: Difference) -> str:
    if row.n is None:
        return ""
    most = max(asked or 0 for asked in row.asked)
    return str(row.n) if row.n >= most else f"{row.n} of {most}"


def _percent(value: float) -> str:
    """0.95 as 95%, 0.999 as 99.9%."""
    return f"{100 * value:.6g}%"


def probability_text(p: float | None) -> str:
    """A p-value with four digits after the point, or none."""
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _sections(contrast: Contrast) -> Iterator[tuple[str, list[Difference]]]:
    for section, title in SECTIONS.items():
        if rows := list(contrast.section(section)):
            yield title, rows


def _text(comparison: Comparison, contrast: Contrast) -> Iterator[str]:
    parts = [
        (title, [_cells(row, "  " if row.is_group else "    ") for row in rows]) for title, rows in _sections(contrast)
    ]
    header, *lines = _lines([_COLUMNS, *(cells for _, rows in parts for cells in rows)])
    yield f"before: {contrast.before}"
    yield f"after:  {contrast.after}"
    yield ""
    yield header
    yield "-" * len(header)
    for title, rows in parts:
        yield title
        own, lines = lines[: len(rows)], lines[len(rows) :]
        yield from own
    yield ""
    if letters := _letter_rows(contrast):
        yield from _lines([_LETTER_COLUMNS, *letters])
        yield ""
    yield from _remarks(comparison, contrast)


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return in_columns(rows, "l" + "r" * (len(rows[0]) - 1))


def _markdown(comparison: Comparison, contrast: Contrast) -> Iterator[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    yield f"**before:** {contrast.before}<br>**after:** {contrast.after}"
    yield ""
    yield line(_COLUMNS)
    yield line(["---"] + ["---:"] * (len(_COLUMNS) - 1))
    for title, rows in _sections(contrast):
        yield line([f"**{title}**"] + [""] * (len(_COLUMNS) - 1))
        for row in rows:
            yield line(_cells(row, ""))
    yield ""
    if letters := _letter_rows(contrast):
        yield line(_LETTER_COLUMNS)
        yield line(["---"] + ["---:"] * (len(_LETTER_COLUMNS) - 1))
        yield from map(line, letters)
        yield ""
    for remark in _remarks(comparison, contrast):
        yield f"- {remark}"


def _html(comparison: Comparison, contrast: Contrast) -> str:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for title, found in _sections(contrast):
        rows.append((title, *[""] * (len(_COLUMNS) - 1)))
        rows += [_cells(row, "  " if row.is_group else "    ") for row in found]
    lead = f"<p>before: {escape(contrast.before)}<br>after: {escape(contrast.after)}</p>"
    return lead + html_table(rows, "l" + "r" * (len(_COLUMNS) - 1), _remarks(comparison, contrast))


def _remarks(comparison: Comparison, contrast: Contrast) -> Iterator[str]:
    """How to read the table, and what to be careful about."""
    if any(row.p is not None and row.right_to_wrong is not None for row in contrast.rows):
        yield (
            f"interval: {_percent(comparison.confidence)} by Tango's paired score test, not corrected for the number of"
            " tasks; p: exact McNemar test, then corrected over tasks (Holm); lost: right before, wrong after; won: the"
            " other way round"
        )
    if any(row.p is not None and row.right_to_wrong is None for row in contrast.rows):
        yield (
            f"perplexities (lower is better): {_percent(comparison.confidence)} interval of the change and p by"
            " Student's t over documents, that of p on the logarithm"
        )
    if _letter_rows(contrast):
        yield (
            "calibrated: acc after each letter's mean log-likelihood is subtracted; rank z: how far, in standard"
            " deviations of guessing, the right choices rank above what guessing gives, without preferred letters"
        )
    for reason, tasks in contrast.unpaired.items():
        shown = ", ".join(tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
        yield f"no paired statistics for {shown}: {reason}"
    for name, (before, after) in contrast.settings.items():
        yield f"the runs differ in {name}: {before} and {after}"
    for which, names in (("before", contrast.only_before), ("after", contrast.only_after)):
        if names:
            yield f"only in {which}: {', '.join(names)}"
    yield from contrast.notes
