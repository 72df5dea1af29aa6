"""What is wrong with a run by what it did to each topic, in a sentence that names the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Effect(Protocol):
    """What a run has done to a topic."""

    @property
    def topic(self) -> int:
        """Its number."""

    @property
    def text(self) -> str:
        """What was measured, as a sentence's part."""


@dataclass(frozen=True)
class Remedies:
    """What to change in a run that failed, as sentences without a full stop.

    Attributes:
        weak: If it unlearned nothing.
        damaged: If it damaged what it should keep.
        both: If it did both.
    """

    weak: str
    damaged: str
    both: str


def verdict(
    effects: Sequence[Effect],
    *,
    weak: Sequence[Effect],
    damaged: Sequence[Effect],
    remedies: Remedies,
    verb: str = "unlearn",
    unlearned: str = "nothing",
) -> str | None:
    """What is wrong with a run and what to change, or None if nothing is.

    Args:
        effects: Of each topic.
        weak: Those of them that are too small.
        damaged: Those of topics whose retain text was not kept.
        remedies: What to change.
        verb: What the method does to what it should forget.
        unlearned: How much a weak run has unlearned.
    """
    if not weak and not damaged:
        return None
    parts = []
    for one in dict.fromkeys((*weak, *damaged)):
        topic = f"topic {one.topic}: " if len(effects) > 1 else ""
        parts.append(f"{topic}{one.text}")
    if weak and damaged:
        what = f"this run did not {verb} what it should forget, and damaged what it should keep"
        do = remedies.both
    elif weak:
        what, do = f"this run unlearned {unlearned}", remedies.weak
    else:
        what, do = "this run damaged what it should keep", remedies.damaged
    return f"{what}: {'; '.join(parts)}. {do}"
