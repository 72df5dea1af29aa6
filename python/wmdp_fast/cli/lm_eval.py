"""`wmdp-fast lm-eval`: lm-eval's own command line, in which the model `wmdp-fast` is known."""

from __future__ import annotations

import argparse
import sys

from wmdp_fast.exceptions import WmdpFastError

SUMMARY = "Run lm-eval with its model `wmdp-fast`: all of `hf`'s arguments, faster. Takes lm-eval's arguments."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is lm-eval's, its options included; they are not looked at here."""
    parser.epilog = "`wmdp-fast lm-eval run --help` shows lm-eval's own help."
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what `lm-eval` would be given")
    parser.prefix_chars = "\0"
    parser.set_defaults(explain=parser.print_help)


def run(arguments: argparse.Namespace) -> int:
    """Hands over to lm-eval, which reads `sys.argv`."""
    if arguments.arguments in (["-h"], ["--help"]):
        arguments.explain()
        raise SystemExit(0)
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise WmdpFastError("lm-eval is not installed; pip install 'wmdp-fast[lm-eval]'") from error
    from wmdp_fast.integrations import lm_eval  # noqa: F401 (registers the model)

    sys.argv = ["lm-eval", *arguments.arguments]
    cli_evaluate()
    return 0
