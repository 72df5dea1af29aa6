"""`wmdp-fast reproduce`: a publication's result again, from the base to a table with the published rows."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import cli
from wmdp_fast.cli.options import limit
from wmdp_fast.cli.reproduction import PUBLICATIONS, REHEARSAL, Reproduction, Wanted, reproduction, script
from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole

if TYPE_CHECKING:
    import argparse

SUMMARY = "Print or run every command of a publication's result, from the base to a table beside it."

_RECORD = "reproduce.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast reproduce`."""
    parser.add_argument(
        "name",
        choices=(*PUBLICATIONS, REHEARSAL),
        metavar="NAME",
        help=f"{', '.join(PUBLICATIONS)} (Li et al. 2024), or {REHEARSAL}: the same steps on the embedded world",
    )
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--dry-run", action="store_true", help="only print the commands, as is the default")
    doing.add_argument("--run", action="store_true", dest="really", help="run them; what is done is not done again")
    parser.add_argument("--output", metavar="DIR", help="folder for everything (default reproduced/NAME)")
    parser.add_argument("--attacks", default="", metavar="NAMES", help="attack the result too: `all`, or names")
    parser.add_argument(
        "--budget", choices=("quick", "standard", "full"), default="standard", help="of attacks (default standard)"
    )
    parser.add_argument("--data", metavar="DIR", help="folder with datasets and corpora, in place of the hub")
    parser.add_argument("--limit", metavar="N", help="only N questions of each task, for a trial")


def run(arguments: argparse.Namespace) -> int:
    """Prints or runs the commands."""
    if arguments.limit is not None:
        limit(arguments.limit)
    output = arguments.output or str(Path("reproduced", arguments.name))
    wanted = Wanted(
        output=output,
        attacks=arguments.attacks,
        budget=arguments.budget,
        data=arguments.data,
        limit=arguments.limit,
    )
    steps = reproduction(arguments.name, wanted)
    if not arguments.really:
        print(script(steps, shlex.quote))
        return 0
    return _run(steps, Path(output))


def _run(steps: Reproduction, folder: Path) -> int:
    """Runs what is not done; ends with the first command that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(steps, folder / _RECORD)
    for step in steps.steps:
        command = shlex.join(["wmdp-fast", *step.arguments])
        if step.leaves is not None and any(folder.glob(step.leaves)):
            print(f"done before: {step.what}", file=sys.stderr)
            continue
        print(f"{step.what}: {command}", file=sys.stderr)
        if (code := cli.main(step.arguments)) != 0:
            print(f"stopped at: {command}; the same `wmdp-fast reproduce` goes on from there", file=sys.stderr)
            return code
    return 0


def _check_same(steps: Reproduction, file: Path) -> None:
    """Compares with what was run in the folder before, or writes down what is run.

    Raises:
        ModelError: Other commands were run there.
    """
    # Attacks may be added to a result that is there.
    now = [list(step.arguments) for step in steps.steps if step.leaves is not None]
    text = strict_json.dumps(now, indent=2) + "\n"
    if not file.exists():
        write_whole(file, text)
    elif file.read_text(encoding="utf-8") != text:
        raise ModelError(f"{file.parent} has what other commands made ({file.name}); name another --output")
