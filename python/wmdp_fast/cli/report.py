"""`wmdp-fast report`: one HTML file about an evaluation, or about two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.files import write_whole
from wmdp_fast.saved import read_results

if TYPE_CHECKING:
    import argparse

SUMMARY = "Write a report of saved results as one HTML file that opens offline."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast report`."""
    parser.add_argument("results", metavar="RESULTS", help="a results file, or the folder that `eval --output` wrote")
    parser.add_argument("baseline", metavar="BASELINE", nargs="?", help="the same of the model before, to compare with")
    parser.add_argument(
        "--unlearn", metavar="DIR", help="folder of the unlearning run in between, for its curves and settings"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the HTML file to write")
    parser.add_argument(
        "--include-text", action="store_true", help="show the text of questions too; then do not share the file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Reads, renders and writes."""
    from wmdp_fast.report import report_html

    results = read_results(arguments.results)
    baseline = None if arguments.baseline is None else read_results(arguments.baseline)
    html = report_html(results, baseline, unlearn=arguments.unlearn, include_text=arguments.include_text)
    write_whole(arguments.output, html)
    print(f"report: {arguments.output}", file=sys.stderr)
    return 0
