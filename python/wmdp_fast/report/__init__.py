"""The HTML report: one file about an evaluation, or about two, that opens anywhere and fetches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from wmdp_fast.saved import SavedResults


def report_html(
    results: SavedResults,
    baseline: SavedResults | None = None,
    *,
    unlearn: str | os.PathLike[str] | None = None,
    include_text: bool = False,
) -> str:
    """A report as one HTML page that carries everything it shows.

    Args:
        results: The evaluation, from `wmdp_fast.saved.read_results`; with a baseline, the later one.
        baseline: The evaluation to compare it with.
        unlearn: The folder of the unlearning run between them, with its `unlearn.json` and `metrics.jsonl`.
        include_text: Whether to show the text of questions.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
        DatasetError: A file is not what it should be, or no task has the metric `acc`; names file, row and field.
        FileNotFoundError: There is no unlearning run in that folder.
    """
    from wmdp_fast.report.gather import gather
    from wmdp_fast.report.page import render
    from wmdp_fast.report.runs import read_run

    unlearning = None if unlearn is None else read_run(unlearn)
    return render(gather(results, baseline, unlearning=unlearning, include_text=include_text))


def comparison_html(before: SavedResults, after: SavedResults, *, include_text: bool = False) -> str:
    """The report of two evaluations, in the order of `wmdp-fast compare`; raises as `report_html` does."""
    return report_html(after, before, include_text=include_text)
