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


def share(text: str) -> float:
    """The argparse type of numbers between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def names(text: str) -> tuple[str, ...]:
    """The argparse type of names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def whole_number_or_auto(text: str) -> int | str:
    """The argparse type of whole numbers from 1 on, or `auto`."""
    return text if text == "auto" else whole_number(least=1)(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """The argparse type of whole numbers with commas between."""
    return tuple(whole_number(least=0)(part.strip()) for part in text.split(","))
