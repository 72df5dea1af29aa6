"""What the user asked for about how far a run may go from the original model. Imports no torch; `budget` measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.prompts.texts import Text, read_texts
from wmdp_fast.unlearning.checks import check_number, check_whole

if TYPE_CHECKING:
    from os import PathLike

# Steps between measurements unless told otherwise: what a step may overshoot by is not known before it is done.
EVERY = 5

GENERAL_TEXT = Path(__file__).with_name("general_text.jsonl")
"""Prose on everyday subjects, written for this package."""


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """What the user asked for.

    Attributes:
        max_kl: Most nats per token.
        every: Steps between measurements.
        text: What it is measured on.
    """

    max_kl: float
    every: int
    text: Text

    @property
    def identity(self) -> list[Any]:
        """What two runs must agree in to be the same."""
        return [self.max_kl, self.every, self.text.content_hash]


def budget_request(
    max_kl: float | None, kl_text: str | PathLike[str] | None, kl_every: int | None, *, field: str
) -> BudgetRequest | None:
    """What the user asked for, or None if there is no budget.

    Args:
        max_kl: Most nats per token, or None for no budget.
        kl_text: A file or folder with the text; None is the one of this package.
        kl_every: Steps between measurements; None is `EVERY`.
        field: Key of the text in its records.

    Raises:
        ValueError: A setting is impossible, or has no budget that it is about.
        DataUnavailableError, DatasetError: The text cannot be read.
    """
    if max_kl is None:
        if kl_text is not None or kl_every is not None:
            raise ValueError("kl_text and kl_every are about max_kl, which is not set: how far may the model go?")
        return None
    check_number("max_kl", max_kl)
    every = EVERY if kl_every is None else kl_every
    check_whole("kl_every", every, least=1)
    if kl_text is None:
        # What the user knows it by is no file of theirs.
        [text] = (replace(one, name="general text", files=()) for one in read_texts(GENERAL_TEXT))
    else:
        [text] = read_texts(kl_text, field=field)
    return BudgetRequest(max_kl=max_kl, every=every, text=text)
