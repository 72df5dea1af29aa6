"""`wmdp-fast table`: models under attack side by side, and published ones beside them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.cli.options import names
from wmdp_fast.robustness.table.rows import SEED
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import check_file, write_whole

if TYPE_CHECKING:
    import argparse

    from wmdp_fast.robustness.table.table import Table

SUMMARY = "Put results of attacks and evaluations in one table, with published ones beside them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast table`."""
    parser.add_argument(
        "results",
        nargs="*",
        metavar="RESULTS",
        help="folders and files that `attack`, `eval` or lm-eval wrote; NAME=RESULTS says what the model is called",
    )
    parser.add_argument(
        "--published",
        type=names,
        default=(),
        metavar="MODELS",
        help="add published results on zephyr-7b, yi-34b or mixtral-8x7b",
    )
    parser.add_argument(
        "--forget", type=names, default=(), metavar="TASKS", help="tasks that were to be forgotten, beside WMDP"
    )
    parser.add_argument(
        "--group",
        default=SEED,
        metavar="REGEX",
        help="names that are the same without what this matches are one row, with mean and range (default: a seed's"
        " number, as in rmu-seed1; '' puts only equal names together)",
    )
    parser.add_argument("--transpose", action="store_true", help="a column for each model")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of aligned text")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--csv", action="store_true", help="print CSV, a line for each model and measure")
    form.add_argument("--latex", action="store_true", help="print a LaTeX tabular")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with curves too")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Reads and prints."""
    if not arguments.results and not arguments.published:
        arguments.fail("name results, or published ones with --published")
    if arguments.html is not None:
        check_file(arguments.html)
    from wmdp_fast.robustness.table.table import table

    found = table(*arguments.results, published=arguments.published, forget=arguments.forget, group=arguments.group)
    print(_text(found, arguments))
    if arguments.html is not None:
        # Only here: it loads what draws plots.
        page = importlib.import_module("wmdp_fast.report.table_page")
        write_whole(arguments.html, page.table_html(found))
        print(f"table: {arguments.html}", file=sys.stderr)
    return 0


def _text(found: Table, arguments: argparse.Namespace) -> str:
    if arguments.json:
        return strict_json.dumps(found.to_json(), indent=2, ensure_ascii=False)
    if arguments.csv:
        return found.csv().rstrip("\n")
    if arguments.latex:
        return found.latex(transpose=arguments.transpose)
    if arguments.markdown:
        return found.markdown(transpose=arguments.transpose)
    return found.text(transpose=True if arguments.transpose else None)
