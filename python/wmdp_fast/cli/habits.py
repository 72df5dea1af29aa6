"""What hands that are used to lm-eval type: underscores in options, and options that have another name here."""

from __future__ import annotations

import argparse
import difflib
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

# What lm-eval's options are here. `--model` and `--model-args` are put together below.
_HERE = {
    "--batch-size": "batches are cut by their tokens: --token-budget N (default auto)",
    "--max-batch-size": "batches are cut by their tokens: --token-budget N (default auto)",
    "--output-path": "results are saved with --output DIR",
    "--max-tokens": "nothing is generated; the maximum sequence length is --max-length N",
    "--include-path": "question files are given by path: --tasks questions.jsonl; tasks of lm-eval run with"
    " `wmdp-fast lm-eval run`",
}
# What only lm-eval has.
_THERE = frozenset(
    {
        "--cache-requests",
        "--check-integrity",
        "--confirm-run-unsafe-code",
        "--fewshot-seed",
        "--gen-kwargs",
        "--hf-hub-log-args",
        "--metadata",
        "--predict-only",
        "--samples",
        "--show-config",
        "--trackio-args",
        "--use-cache",
        "--verbosity",
        "--wandb-args",
        "--wandb-config-args",
        "--write-out",
    }
)

# What lm-eval's `--model_args` are here.
_MODEL_ARGS = ("dtype", "peft", "revision", "tokenizer", "max_length")

# Stands for the command that is at hand.
_PROGRAM = "{program}"


def close_command(name: str, commands: Sequence[str]) -> str:
    """Which commands may be meant by one that does not exist: one that it begins like, or is nearly spelled like."""
    close = [one for one in commands if name.startswith(one)] or difflib.get_close_matches(name, commands, n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def with_dashes(argv: Sequence[str]) -> list[str]:
    """The arguments with `-` for `_` in the names of options. lm-eval's own command line gets its own as they are."""
    if not argv or argv[0] == "lm-eval":
        return list(argv)
    end = list(argv).index("--") if "--" in argv else len(argv)
    return [*map(_with_dashes, argv[:end]), *argv[end:]]


def _with_dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


class Parser(argparse.ArgumentParser):
    """A parser whose commands say themselves that they do not know an option, and what it is called here.

    What is wrong is not buried under all that could be right: above it stands only what must be given.
    """

    def error(self, message: str) -> NoReturn:
        """Leaves with a message, below a line of usage without the options that may stay away."""
        formatter = self._get_formatter()
        formatter.add_usage(None, [one for one in self._actions if one.required], [])
        usage = formatter.format_help().replace(self.prog, f"{self.prog} [OPTIONS]", 1)
        self.exit(2, f"{usage}{self.prog}: error: {message}\n")

    def parse_known_args(  # type: ignore[override]  # The base's overloads say the same of any namespace.
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parses; leaves with the usage of the very command if something is unknown."""
        given = list(args or ())
        # What belongs to a command is left to it; one without a prefix for options hands all of them on.
        options = given[: given.index("--")] if "--" in given else given
        for place, argument in enumerate(options if self._subparsers is None and "-" in self.prefix_chars else ()):
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions and (hint := _hint(options, place)):
                self.error(f"{name} is lm-eval's: {hint.replace(_PROGRAM, self.prog)}")
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {shlex.join(rest)}; `{self.prog} --help` lists those there are")
        return found, rest


def _hint(given: Sequence[str], place: int) -> str | None:
    """What to write in place of an option of lm-eval's, or None if it is not one."""
    name = given[place].partition("=")[0]
    if name in ("--model", "--model-args"):
        loaded = [_value(given, at) for at, one in enumerate(given) if one.partition("=")[0] == "--model-args"]
        pairs = dict(pair.partition("=")[::2] for pair in ",".join(loaded).split(","))
        options = [f"--{key.replace('_', '-')} {shlex.quote(pairs[key])}" for key in _MODEL_ARGS if pairs.get(key)]
        options += ["--trust-remote-code"] * (pairs.get("trust_remote_code", "").lower() == "true")
        command = " ".join(
            [_PROGRAM, shlex.quote(pairs["pretrained"]) if pairs.get("pretrained") else "MODEL", *options]
        )
        return f"the model comes first, and what it is loaded with are options of their own: {command} ..."
    if name in _THERE:
        return "`wmdp-fast lm-eval run` takes it"
    return _HERE.get(name)


def _value(given: Sequence[str], place: int) -> str:
    """What an option is given, after `=` or as the next argument."""
    _, equals, value = given[place].partition("=")
    return value if equals else next(iter(given[place + 1 : place + 2]), "")
