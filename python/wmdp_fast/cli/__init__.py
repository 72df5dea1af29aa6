"""The command line: one file per subcommand, each with its SUMMARY, its `add_arguments` and its `run`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C, 143 with SIGTERM. A failure is one line on
stderr, whatever was raised; with WMDP_FAST_DEBUG=1 in the environment it is a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, NoReturn, TextIO

from wmdp_fast._rust import __version__
from wmdp_fast.cli import failures, one_process, terminal
from wmdp_fast.cli.habits import Parser, close_command, with_dashes
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.runtime import cpus, leaving
from wmdp_fast.runtime.garbage import process_of_our_own
from wmdp_fast.runtime.ranks import place_of_process
from wmdp_fast.runtime.tables import fitted_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The subcommands, in the order of `--help`; each is a module of that name here.
COMMANDS = (
    "demo",
    "eval",
    "tasks",
    "show",
    "compare",
    "rescore",
    "report",
    "layers",
    "methods",
    "presets",
    "unlearn",
    "sweep",
    "attack",
    "table",
    "reproduce",
    "apply-delta",
    "lm-eval",
    "export",
    "bench",
    "doctor",
)

_EPILOG = "`wmdp-fast COMMAND --help` explains a command. Documentation: README.md and docs/ of the source."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C, 143 with SIGTERM. What argparse finds
        wrong leaves through `SystemExit(2)`, as it has it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    terminal.open_closed()
    cpus.set_openmp()
    with (
        warnings.catch_warnings(),
        _termination_as_exception(),
        fitted_to(terminal.width()),
        process_of_our_own(),
    ):
        warnings.showwarning = _show_warning
        return _run(argv)


def console() -> NoReturn:
    """Runs the command line as a process of its own, and ends it."""
    code = main()
    leaving.leave(code)
    sys.exit(code)


def _run(argv: list[str]) -> int:
    try:
        # Only the module of the command at hand is imported, unless help may have to list all.
        parser = _parser(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS)
        if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
            parser.error(
                f"there is no command {argv[0]!r}{close_command(argv[0], COMMANDS)}; `wmdp-fast --help` lists all"
            )
        arguments = parser.parse_args(with_dashes(argv))
        terminal.print_anything(json=bool(getattr(arguments, "json", False)))
        if hasattr(arguments, "devices"):
            # What is started for each device is this very command.
            arguments.given = argv
        code: int = 2 if one_process.is_refused(argv[0], arguments) else arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if _debugging():
            raise
        terminated = isinstance(error, _Terminated)
        # Of several ranks the first one speaks for all that are stopped.
        if not _rank():
            print("terminated" if terminated else "interrupted", *_notes(error), sep="\n", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:
        # The reader of stdout (`| head`) has left. Nothing more can be written, not even as the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # A panic of Rust is no Exception.
        if _debugging():
            raise
        who = f"rank {rank}: " if (rank := _rank()) else ""
        print(f"error: {who}{failures.line(error)}", *_notes(error), sep="\n", file=sys.stderr)
        return 1
    return code


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what batch systems send before they kill."""


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Inside, SIGTERM is an exception like Ctrl-C, so that the command can say what it leaves behind."""

    def terminate(_number: int, _frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _rank() -> int:
    """The number of this process if `torchrun` has started several."""
    try:
        return place_of_process().rank
    except ValueError:
        return 0


def _notes(error: BaseException) -> list[str]:
    """What was added to an exception on its way: that a run can be resumed, for instance."""
    return getattr(error, "__notes__", [])


def _parser(commands: Sequence[str] = COMMANDS) -> Parser:
    parser = Parser(
        prog="wmdp-fast",
        description="Measure what a language model knows on WMDP and MMLU, with lm-eval's numbers.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"wmdp-fast {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in commands:
        command = importlib.import_module(f"wmdp_fast.cli.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours are meant for the user and one line; others come with the place they are from."""
    if issubclass(category, WmdpFastWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def _debugging() -> bool:
    return os.environ.get("WMDP_FAST_DEBUG", "") not in ("", "0")
