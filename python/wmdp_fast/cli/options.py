"""Kinds of option values that several commands take."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


# The largest whole number that anything here takes.
_LARGEST = 2**31 - 1


def whole_number(least: int) -> Callable[[str], int]:
    """The argparse type of whole numbers from `least` on, as far as 32 bits go."""

    def parse(text: str) -> int:
        # Python reads no more than some thousand digits.
        number = int(text) if text.isdecimal() and len(text) < 100 else -1
        if text.isdecimal() and (len(text) >= 100 or number > _LARGEST):
            raise argparse.ArgumentTypeError(f"{_short(text)} is larger than {_LARGEST}")
        if number < least:
            raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number of at least {least}")
        return number

    return parse


def finite_number(text: str) -> float:
    """The argparse type of finite numbers."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a finite number")
    return value


def positive_number(text: str) -> float:
    """The argparse type of finite numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a finite number above 0")
    return value


def limit(text: str) -> float:
    """The argparse type of a number of questions, or below 1 a share of them."""
    value = positive_number(text)
    return whole_number(least=1)(text) if text.isdecimal() else value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


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
    """The argparse type of comma-separated whole numbers."""
    return tuple(whole_number(least=0)(part.strip()) for part in text.split(","))


def integer(text: str) -> int:
    """The argparse type of whole numbers of any sign, as far as 32 bits go."""
    digits = text.removeprefix("-")
    if not digits.isdecimal() or len(digits) >= 100:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number")
    if abs(int(text)) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{_short(text)} is larger than {_LARGEST}")
    return int(text)
