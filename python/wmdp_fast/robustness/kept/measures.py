"""From options to measures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.robustness.kept.distance import Distance
from wmdp_fast.unlearning.budget import GENERAL_TEXT

if TYPE_CHECKING:
    from os import PathLike


def distances(general: str | PathLike[str] | None, near: str | PathLike[str] | None) -> list[Distance]:
    """Distances on general text, that of this package unless the user has one, and on neighboring text if there is any.

    Raises:
        DataUnavailableError, DatasetError: As `read_texts`.
    """
    files = {"general text": general or GENERAL_TEXT, "near text": near}
    return [
        # What tables call them, whatever the file is called.
        Distance(replace(text, name=name))
        for name, file in files.items()
        if file is not None
        for text in read_texts(file)
    ]
