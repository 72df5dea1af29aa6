"""`wmdp-fast compare`: what changed between runs over the same questions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.analysis.comparison import compare
from wmdp_fast.analysis.run_order import order_doubt
from wmdp_fast.cli.options import names, share
from wmdp_fast.results.saved import each_once, read_runs
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import check_file, write_whole

if TYPE_CHECKING:
    import argparse

SUMMARY = "Compare saved results of two models or more, question by question."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast compare`."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="BEFORE AFTER, or a baseline and several: results files or folders of this package or of lm-eval; a folder"
        " with results of several models stands for all of them, the first evaluated first",
    )
    parser.add_argument("--names", type=names, metavar="A,B", help="what to call them (default: the models' names)")
    parser.add_argument(
        "--forget", type=names, default=(), metavar="TASKS", help="tasks to count among the forget targets beside WMDP"
    )
    parser.add_argument("--near", type=names, default=(), metavar="TASKS", help='tasks to list under "near domains"')
    parser.add_argument(
        "--confidence", type=share, default=0.95, metavar="C", help="confidence level of the intervals (default 0.95)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a report with plots too; of more than two results one each, FILE-2.html, FILE-3.html, ...",
    )
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Compares and prints."""
    if len(arguments.results) < 2 and not Path(arguments.results[0]).is_dir():
        arguments.fail("a comparison needs two results or more, or a folder of them")
    if arguments.html is not None:
        check_file(arguments.html)
    runs = each_once([read_runs(path) for path in arguments.results])
    if len(runs) < 2:
        arguments.fail(f"a comparison needs two results or more; {arguments.results[0]} holds those of one model")
    comparison = compare(
        *runs,
        names=arguments.names,
        forget=arguments.forget,
        near=arguments.near,
        confidence=arguments.confidence,
    )
    if arguments.json:
        # A table has it below.
        for contrast, after in zip(comparison.contrasts, runs[1:], strict=True):
            if doubt := order_doubt(runs[0], after):
                which = f"{contrast.before} and {contrast.after}"
                print(f"warning: {which}: {doubt}; the order is BEFORE AFTER", file=sys.stderr)
        print(strict_json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
    else:
        print(comparison.markdown() if arguments.markdown else comparison.table())
    if arguments.html is not None:
        # Only here: it loads what draws plots.
        report = importlib.import_module("wmdp_fast.report")
        baseline, *others = comparison.results
        for number, other in enumerate(others, start=2):
            file = arguments.html if len(others) == 1 else arguments.html.with_stem(f"{arguments.html.stem}-{number}")
            write_whole(file, report.report_html(baseline, other, forget=arguments.forget))
            print(f"report: {file}", file=sys.stderr)
    return 0
