"""Evaluations of several models over the same questions, side by side.

`compare` takes results of this package or of lm-eval, one of each if need be. Whether two runs asked the same is
checked question by question, by lm-eval's hashes; only then are they compared in pairs (score interval, exact McNemar
test, flips). Where they did not, or samples are missing, the values stand side by side and the reason is said.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wmdp_fast import _rust
from wmdp_fast.analysis.contrast import SECTIONS, Contrast, Difference, Section, section_of
from wmdp_fast.analysis.contrast_table import as_html, markdown_lines, text_lines
from wmdp_fast.analysis.pairing import Pairing, answer_pairs, document_note, pair
from wmdp_fast.analysis.rescoring import contradictions
from wmdp_fast.analysis.run_order import order_doubt
from wmdp_fast.analysis.statistics import correct_answers, letters_of, paired_statistics, share
from wmdp_fast.results.letters import letter_notes
from wmdp_fast.results.perplexity import METRICS, change
from wmdp_fast.results.result import EvalResult, from_evaluation
from wmdp_fast.results.saved import SavedGroup, SavedResults, SavedTask, each_once, read_runs
from wmdp_fast.runtime.tables import frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd

    from wmdp_fast.analysis.statistics import AnswerPair
    from wmdp_fast.results.perplexity import Documents

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Several runs: the first is the baseline, each other one is compared with it.

    Attributes:
        names: What the runs are called, unlike each other.
        results: The runs.
        contrasts: For each run but the first, how it differs from the first.
        confidence: Confidence level of the intervals.

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
        return "".join(as_html(contrast, self.confidence) for contrast in self.contrasts)

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
            for record in answer_pairs(baseline.tasks[name], run.tasks[name])
        ]
        answers = ("predicted_before", "predicted_after", "correct_before", "correct_after")
        return frame(records, ("after_run", "task", "doc_id", "gold", *answers))

    def table(self) -> str:
        """Aligned text, a table for each run but the first."""
        return "\n\n".join("\n".join(text_lines(contrast, self.confidence)) for contrast in self.contrasts)

    def markdown(self) -> str:
        """The same as GitHub-flavoured Markdown."""
        return "\n\n".join("\n".join(markdown_lines(contrast, self.confidence)) for contrast in self.contrasts)

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
        confidence: Confidence level of the intervals.

    Raises:
        FileNotFoundError: There is no such file, or no results in a folder.
        DatasetError: A file is not what it should be; names file, row and field.
        TypeError: Something else was given as results, or one text as a list of names.
        ValueError: There are fewer than two runs, they have no task in common, or an option has an impossible value.

    Example:
        >>> from wmdp_fast import compare, demo, evaluate
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> [contrast] = compare(result, result).contrasts
        >>> [(row.n, row.right_to_wrong, row.p) for row in contrast.rows if row.metric == "acc"]
        [(8, 0, 1.0)]
    """
    read = tuple(each_once([runs_of(one) for one in results]))
    if len(read) < 2:
        raise ValueError("a comparison needs two runs or more")
    for option, given in (("names", names), ("forget", forget), ("near", near)):
        if isinstance(given, str):
            raise TypeError(f"{option} is a list of names, such as [{given!r}]")  # and not one of letters
    called = _names(read, names)
    chosen: dict[str, Section] = {**dict.fromkeys(near, "near"), **dict.fromkeys(forget, "forget")}
    if unknown := [name for name in chosen if not any(name in one for one in read)]:
        raise ValueError(f"no run has a task or group {', '.join(unknown)}; they have {', '.join(read[0])}")
    options = _Options(sections=chosen, confidence=confidence)
    contrasts = tuple(
        _contrast(called[0], read[0], name, one, options) for name, one in zip(called[1:], read[1:], strict=True)
    )
    return Comparison(names=called, results=read, contrasts=contrasts, confidence=confidence)


@dataclass(frozen=True, kw_only=True)
class _Options:
    sections: Mapping[str, Section]
    confidence: float


def runs_of(one: str | os.PathLike[str] | EvalResult | SavedResults) -> list[SavedResults]:
    """The runs that an argument of `compare` or `report_html` stands for.

    Raises:
        FileNotFoundError, DatasetError: As `read_runs`.
        TypeError: It is something else.
    """
    if isinstance(one, SavedResults):
        return [one]
    if isinstance(one, EvalResult):
        return [from_evaluation(one)]
    if isinstance(one, (str, os.PathLike)):
        return read_runs(one)
    raise TypeError(
        f"results are a folder or file, what evaluate returned, or what read_results has read, not {type(one).__name__}"
    )


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
                row |= paired_statistics(answers, options.confidence)
                if row["asked"] != (row["n"], row["n"]):
                    row |= _over_common(answers)
        if metric == "acc":
            for which, run in runs.items():
                tasks = [run.tasks[leaf] for leaf in leaves if leaf in run.tasks]
                row[f"letters_{which}"] = letters_of(tasks, confidence=options.confidence)
        yield Difference(**row)


def _answers(
    leaves: Sequence[str],
    before: SavedResults,
    after: SavedResults,
    pairings: Mapping[str, Pairing | str],
    metric: str,
) -> Iterator[AnswerPair]:
    """Whether each question that both runs asked is right in either, by task; of tasks whose samples tell."""
    for leaf in leaves:
        mine, other = (correct_answers(run.tasks[leaf], metric) for run in (before, after))
        pairing = pairings[leaf]
        if mine is not None and other is not None and isinstance(pairing, Pairing):
            yield mine[pairing.before], other[pairing.after]


def _over_common(answers: Sequence[AnswerPair]) -> dict[str, Any]:
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


def _notes(before: SavedResults, after: SavedResults, pairings: Mapping[str, Pairing | str]) -> Iterator[str]:
    if doubt := order_doubt(before, after):
        yield f"{doubt}; the order is BEFORE AFTER: are they the wrong way round?"
    packages = {run.made_by.split()[0] for run in (before, after)}
    # Of lm-eval the version is among the settings.
    if before.made_by != after.made_by and packages != {"lm-eval"}:
        yield f"the runs were made by {before.made_by} and {after.made_by}"
    if before.path is not None and before.path == after.path:
        yield f"before and after are the same file, {before.path}: name one of the two files or folders that differ"
    for one in (before, after) if before.path != after.path else (before,):
        yield from _about_file(one)
    for which, run in (("before", before), ("after", after)):
        found = {name: letters_of([run.tasks[name]]).collapse for name in pairings}
        for told in letter_notes({name: collapse for name, collapse in found.items() if collapse is not None}):
            yield f"{which}: {told}"
    paired = {name: pairing for name, pairing in pairings.items() if isinstance(pairing, Pairing)}
    for name, pairing in paired.items():
        if note := document_note(before.tasks[name], after.tasks[name], pairing):
            yield note
    yield from _about_common(before, after, paired)


def _about_file(run: SavedResults) -> Iterator[str]:
    if run.newest_of > 1:
        yield f"{run.path} is the newest of {run.newest_of} results of its folder"
    if run.path is not None:
        yield from (f"{run.path}, {told}" for told in contradictions(run))


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
