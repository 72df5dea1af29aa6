"""Writes options.md, every option of every command, from the parsers of `wmdp-fast` itself: it cannot drift.

Usage: python docs/make_options.py [FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import cli

if TYPE_CHECKING:
    from collections.abc import Iterator


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Every option",
        "",
        "Made from the commands themselves; `wmdp-fast COMMAND --help` says the same. Exit codes are 0 for done,"
        " 1 for a failure, 2 for wrong usage, 130 for Ctrl-C and 143 for SIGTERM. Options may be written with"
        " underscores.",
    ]
    for command in _commands(cli._parser()):
        lines += ["", f"## {command.prog}", "", _cell(command.description or ""), ""]
        lines += ["```text", _usage(command), "```"]
        for group in command._action_groups:
            rows = [_row(action) for action in group._group_actions if not _is_left_out(action)]
            if rows:
                title = {"positional arguments": "Arguments", "options": "Options"}.get(group.title or "", group.title)
                head = "Argument" if title == "Arguments" else "Option"
                lines += ["", f"**{(title or '').capitalize()}**", "", f"| {head} | |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands that do something, at any depth, in the order of `--help`."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for child in action.choices.values():
            yield from _commands(child)
    if not below:
        yield parser


def _usage(command: argparse.ArgumentParser) -> str:
    """In one line and without what may be left out: argparse's own depends on the terminal and on Python's version."""
    shown = [action for action in command._actions if not _is_left_out(action)]
    words = [" ".join([*action.option_strings[:1], _values(action)]) for action in shown if action.required]
    words += [f"[{_values(action)}]" for action in shown if not action.required and not action.option_strings]
    return " ".join([command.prog, *words, *(["[OPTIONS]"] if any(one.option_strings for one in shown) else [])])


def _values(action: argparse.Action) -> str:
    return argparse.HelpFormatter("")._format_args(action, _placeholder(action)).strip("[]")


def _is_left_out(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS


def _row(action: argparse.Action) -> str:
    names = [f"`{name}`" for name in action.option_strings]
    value = "" if action.nargs == 0 else argparse.HelpFormatter("")._format_args(action, _placeholder(action))
    told = (action.help or "") % {**vars(action), "prog": "wmdp-fast"}
    needed = " (required)" if action.required and action.option_strings else ""
    left = " ".join(filter(None, [", ".join(names), f"`{_cell(value)}`" if value else ""]))
    return f"| {left} | {_cell(told)}{needed} |"


def _placeholder(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("options.md")
    file.write_text(page(), encoding="utf-8")
