"""`wmdp-fast export`: saved results in the formats of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

SUMMARY = "Write saved results in another tool's format."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast export`."""
    parser.add_argument("folder", metavar="RESULTS_FOLDER", type=Path, help="where `--output` saved results")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--inspect", action="store_true", help="logs for `inspect view` and `inspect log`")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to (default: `inspect` beside the results)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the logs and prints their paths."""
    from wmdp_fast.integrations.inspect_log import export

    written = export(arguments.folder, arguments.output)
    for path in written:
        print(path)
    print(f"{len(written)} {'log' if len(written) == 1 else 'logs'} written", file=sys.stderr)
    return 0 if written else 1
