"""`wmdp-fast rescore`: every metric again from saved samples."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from wmdp_fast.analysis.rescoring import rescore
from wmdp_fast.cli.options import share
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import check_file, write_whole
from wmdp_fast.runtime.tables import aligned

if TYPE_CHECKING:
    from wmdp_fast.analysis.rescoring import Rescored
    from wmdp_fast.analysis.statistics import Description

SUMMARY = "Compute every metric again from saved samples, without a model, and check the results file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast rescore`."""
    parser.add_argument(
        "samples",
        metavar="SAMPLES",
        help="a samples file, a results file with samples beside it, or a folder; of this package or of lm-eval",
    )
    parser.add_argument(
        "--near-tie", type=_nats, metavar="NATS", help="margin of a near-tie (default: recorded, else by the dtype)"
    )
    parser.add_argument(
        "--confidence", type=share, default=0.95, metavar="C", help="confidence level of the intervals (default 0.95)"
    )
    parser.add_argument("--output", metavar="FILE", help="write the JSON to this file too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Computes, prints, and fails if the results file says something else."""
    if arguments.output is not None:
        check_file(arguments.output)
    rescored = rescore(arguments.samples, near_tie=arguments.near_tie, confidence=arguments.confidence)
    text = strict_json.dumps(rescored.to_json(), indent=2, ensure_ascii=False)
    print(text if arguments.json else table(rescored))
    if arguments.output is not None:
        write_whole(arguments.output, text + "\n")
    for mismatch in rescored.mismatches:
        print(f"mismatch: {mismatch}", file=sys.stderr)
    return 1 if rescored.mismatches else 0


def table(rescored: Rescored) -> str:
    """The recomputed numbers as aligned text."""
    rows: list[tuple[str, ...]] = [("task", "n", "metric", "value", "stderr", "interval", "brier", "ece", "near-ties")]
    for one in (*rescored.groups.values(), *rescored.tasks.values()):
        rows += _rows(one)
    lines = aligned(rows, "l" + "r" * (len(rows[0]) - 1))
    if rescored.unchecked:
        lines.append(f"without samples, and so not computed: {', '.join(rescored.unchecked)}")
    if rescored.results.path is None:
        lines.append("no results file beside the samples: nothing to check against")
    elif not rescored.mismatches:
        lines.append(f"all as in {rescored.results.path.name}")
    return "\n".join(lines)


def _rows(one: Description) -> list[tuple[str, ...]]:
    lead = (one.name, str(one.n))
    calibration = one.calibration
    tail: tuple[str, ...] = (
        "" if calibration is None else f"{calibration.brier:.4f}",
        "" if calibration is None else f"{calibration.ece:.4f}",
        str(one.near_ties),
    )
    rows = []
    for metric, estimate in one.metrics.items():
        stderr = "N/A" if estimate.stderr is None else f"{estimate.stderr:.4f}"
        interval = f"{estimate.low:.4f} to {estimate.high:.4f}"
        rows.append((*lead, metric, f"{estimate.value:.4f}", stderr, interval, *tail))
        lead, tail = ("", ""), ("", "", "")
    return rows


def _nats(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value
