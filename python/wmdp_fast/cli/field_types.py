"""Fields of a configuration as options: how the text of one is read, by the field's type, and what is said of it.

What a field means stands in its class's docstring, under `Attributes:`; the help of an option is its first sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast.cli.options import finite_number, integer

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class FieldType:
    """How the text of a field is read.

    Attributes:
        one: Reads a single value, or raises `argparse.ArgumentTypeError`.
        metavar: What stands for one in the help.
        many: Whether there may be several, comma-separated.
        alone: Whether a single value stands for itself; where there are always several, it is a tuple of one.
        optional: Whether `none` is a value.
        choices: The values that there are, if they are few.
        is_flag: Whether it is yes or no and no more.
    """

    one: Callable[[str], Any]
    metavar: str
    many: bool = False
    alone: bool = True
    optional: bool = False
    choices: tuple[str, ...] | None = None
    is_flag: bool = False

    def parse(self, text: str) -> Any:
        """Reads the value, or values, of an option.

        Raises:
            argparse.ArgumentTypeError: The text is none; says what is expected.
        """
        if self.optional and text == "none":
            return None
        values = [self.one(part.strip()) for part in text.split(",")] if self.many else [self.one(text)]
        return values[0] if self.alone and len(values) == 1 else tuple(values)


def field_types(config: type[Any]) -> dict[str, FieldType]:
    """How the fields of a configuration are read, by name and in their order.

    One of a type that no text stands for is complained of when it is to be read.

    Raises:
        NameError: A type is not known where the configuration is defined, once the program runs.
    """
    hints = typing.get_type_hints(config)
    found = {}
    for one in dataclasses.fields(config):
        try:
            found[one.name] = _type_of(hints[one.name], one.metadata.get("choices"))
        except TypeError as error:
            found[one.name] = FieldType(one=_unreadable(str(error)), metavar="TEXT")
    return found


def field_help(config: type[Any]) -> dict[str, str]:
    """What the docstrings of a configuration and its bases say of its fields: the first sentence of each."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        _, _, listed = inspect.cleandoc(vars(base).get("__doc__") or "").partition("\nAttributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", listed, re.MULTILINE):
            sentence = re.split(r"\.\s+(?=[A-Z`])", " ".join(text.split()))[0].rstrip(".")
            # What Markdown and strings are marked with means nothing in a terminal.
            plain = re.sub(r'`"?([^`]*?)"?`', r"\1", sentence).replace("None", "none")
            found[name] = plain[:1].lower() + plain[1:] if plain[1:2].islower() else plain
    return found


def _type_of(hint: Any, choices: tuple[str, ...] | None = None) -> FieldType:
    members = list(typing.get_args(hint)) if _is_union(hint) else [hint]
    optional = type(None) in members
    several = [one for one in members if typing.get_origin(one) is tuple]
    single = [one for one in members if one is not type(None) and one not in several]
    items = [member for one in several for member in _members(typing.get_args(one)[0])]
    kinds = single or items
    if several and single and not set(items) <= set(single):
        raise TypeError(f"{hint} has several values of another type than one")
    if all(typing.get_origin(kind) is Literal for kind in kinds):
        choices = tuple(str(value) for kind in kinds for value in typing.get_args(kind))
    if choices is not None:
        return FieldType(
            one=_one_of(choices), metavar="{" + ",".join(choices) + "}", choices=choices, optional=optional
        )
    one, metavar = _reader(kinds)
    return FieldType(
        one=one,
        metavar=f"{metavar},..." if several else metavar,
        many=bool(several),
        alone=bool(single),
        optional=optional,
        is_flag=kinds == [bool] and not several,
    )


def _reader(kinds: list[Any]) -> tuple[Callable[[str], Any], str]:
    """What reads a value of some types, and what stands for it in a help."""
    if len(kinds) == 1 and hasattr(kinds[0], "parse"):
        return _own_reader(kinds[0].parse), "SETTING"
    if kinds == [bool]:
        return _yes_or_no, "yes|no"
    if kinds == [int]:
        return integer, "N"
    if set(kinds) <= {int, float}:
        return finite_number, "X"
    if set(kinds) == {float, str}:
        return _number_or_word, "X"
    if kinds == [str]:
        return str, "TEXT"
    raise TypeError(f"no option stands for {' or '.join(map(str, kinds))}")


def _own_reader(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _unreadable(why: str) -> Callable[[str], Any]:
    def read(_text: str) -> Any:
        raise argparse.ArgumentTypeError(f"{why}; set it in Python, or in a subclass of your own")

    return read


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is not yes or no")
    return text == "yes"


def _number_or_word(text: str) -> float | str:
    """A finite number, or a word such as `auto` with a finite number behind a colon or without."""
    word, colon, number = text.rpartition(":")
    try:
        float(number)
    except ValueError:
        return text
    value = finite_number(number)
    return text if colon or word else value


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def _members(hint: Any) -> list[Any]:
    return list(typing.get_args(hint)) if _is_union(hint) else [hint]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
