"""From records to numbers, and what was not measured because nobody asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.robustness.kept import distance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wmdp_fast.robustness.kept.measure import Figure, Measured

# What there is to measure by kind and name, and the option that asks for it.
_ASKED_BY = {
    ("distance", "general text"): ("distance on general text", "--general-text"),
    ("distance", "near text"): ("distance on neighboring text", "--near-text"),
}


def figures_of(measured: Measured) -> list[Figure]:
    """The numbers of a record; without a number, and with the reason, those of one that failed.

    Raises:
        KeyError: It is of a kind that this version does not know.
    """
    makers = {"distance": distance.figures}
    return makers[measured.kind](measured.name, measured.role, measured.found, measured.failed or "")


def not_asked(measured: Iterable[Measured]) -> list[str]:
    """What was not measured of the unlearned model, since its option was not given, each with that option."""
    there = {(one.kind, one.name) for one in measured if one.role == "unlearned"}
    return [f"{what} ({option})" for key, (what, option) in _ASKED_BY.items() if key not in there]
