"""The HTML report: one file about an evaluation, or about several, that opens anywhere and fetches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.robustness.result import AttackResult


def report_html(
    *results: str | os.PathLike[str] | EvalResult | SavedResults,
    names: Sequence[str] | None = None,
    forget: Sequence[str] = (),
    unlearn: str | os.PathLike[str] | None = None,
    attacked: Sequence[AttackResult] = (),
    include_text: bool = False,
) -> str:
    """A report as one HTML page that carries everything it shows.

    Args:
        results: One evaluation, or several over the same tasks: the baseline first, the model the report is about last.
            Folders or files of this package or of lm-eval, what `evaluate` returned, or what `read_results` has read,
            as for `wmdp_fast.compare`.
        names: What to call them; None takes before and after for two, the models' names for more.
        forget: Tasks and groups that should be forgotten, beside WMDP's; the rest should be kept.
        unlearn: The folder of the unlearning run between them, with its `unlearn.json` and `metrics.jsonl`.
        attacked: Attacks on models, from `wmdp_fast.attack`: the report shows them, the worst case first.
        include_text: Whether to show the text of questions, which saved samples have.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
        DatasetError: A file is not what it should be, or no task has the metric `acc`; names file, row and field.
        FileNotFoundError: There is no unlearning run in that folder.
        TypeError: Something else was given as results.
        ValueError: There are no results, they have no task in common, or a name does not fit.

    Example:
        >>> from wmdp_fast import demo, evaluate, report_html
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> page = report_html(result)
        >>> page.startswith("<!doctype html>")
        True
    """
    from wmdp_fast.analysis.comparison import runs_of
    from wmdp_fast.report.attacks import gather_attacks
    from wmdp_fast.report.gather import gather
    from wmdp_fast.report.page import render
    from wmdp_fast.report.runs import read_run
    from wmdp_fast.results.saved import each_once

    if not results:
        raise ValueError("a report needs results")
    runs = each_once([runs_of(one) for one in results])
    if include_text and runs[-1].path is None:
        raise ValueError("include_text reads the samples that were saved: result.save(FOLDER, log_samples=True) first")
    unlearning = None if unlearn is None else read_run(unlearn, forget=forget)
    report = gather(
        runs,
        names=names,
        forget=forget,
        unlearning=unlearning,
        attacked=[gather_attacks(one, one.models["unlearned"]) for one in attacked],
        include_text=include_text,
    )
    return render(report)
