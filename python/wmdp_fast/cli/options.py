"""Kinds of option values that several commands take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """The argparse type of whole numbers from `least` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def token_budget(text: str) -> int | str:
    """The argparse type of a token budget: a number of tokens, or `auto`."""
    return text if text == "auto" else whole_number(least=1)(text)
