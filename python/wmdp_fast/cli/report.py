"""`wmdp-fast report`: one HTML file about an evaluation, or about several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.cli.options import names
from wmdp_fast.runtime.files import check_file, write_whole

if TYPE_CHECKING:
    import argparse

    from wmdp_fast.report.sources import Sources

SUMMARY = "Write a report of saved results as one HTML file that opens offline."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast report`."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="results files or folders of this package or of lm-eval: one, or BEFORE AFTER, or a baseline and several"
        " (a folder with results of several models stands for all of them, the first evaluated first);"
        " or the folder of an unlearning run or a sweep that kept its evaluations; and folders of `attack`",
    )
    parser.add_argument("--names", type=names, metavar="A,B", help="what to call them (default: before, after)")
    parser.add_argument(
        "--forget", type=names, default=(), metavar="TASKS", help="tasks that should be forgotten, beside WMDP"
    )
    parser.add_argument(
        "--unlearn", metavar="DIR", help="folder of the unlearning run in between, for its curves and settings"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the HTML file to write")
    parser.add_argument(
        "--include-text", action="store_true", help="show the text of questions too; then do not share the file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Reads, renders and writes."""
    from wmdp_fast.analysis.run_order import order_doubt
    from wmdp_fast.report.sources import find

    check_file(arguments.output)
    found = find(arguments.results)
    for after in found.results[1:]:
        if doubt := order_doubt(found.results[0], after):
            print(f"warning: {doubt}; the order is BEFORE AFTER", file=sys.stderr)
    html = _page(found, arguments)
    write_whole(arguments.output, html)
    print(f"report: {arguments.output}", file=sys.stderr)
    return 0


def _page(found: Sources, arguments: argparse.Namespace) -> str:
    from wmdp_fast.report import report_html

    if not found.results:
        _refuse_options_of_evaluations(arguments)
        from wmdp_fast.report.table_page import table_html
        from wmdp_fast.robustness.table.table import table

        return table_html(table(*found.attacked))
    return report_html(
        *found.results,
        names=arguments.names,
        forget=(*arguments.forget, *found.forget),
        unlearn=arguments.unlearn or found.unlearn,
        attacked=found.attacked,
        include_text=arguments.include_text,
    )


def _refuse_options_of_evaluations(arguments: argparse.Namespace) -> None:
    """Raises for options that a page of attacks alone has no use for."""
    of_evaluations = {
        "--names": arguments.names,
        "--forget": arguments.forget,
        "--unlearn": arguments.unlearn,
        "--include-text": arguments.include_text,
    }
    if given := [option for option, value in of_evaluations.items() if value]:
        raise ValueError(
            f"{', '.join(given)} {'needs' if len(given) == 1 else 'need'} results of `wmdp-fast eval`, and these are"
            " attacks alone; `wmdp-fast table NAME=FOLDER... --html FILE` makes the same page with names"
        )
