"""The tokenizer of one of several models, for the next one whose files would make the same."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

# Whatever a tokenizer may be made of, config.json included, by which transformers chooses its class.
_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".vocab", ".bpe")
# What each checkpoint of a training run has of its own, and no tokenizer is made of.
_OTHERS = ("adapter_config.json", "generation_config.json", "trainer_state.json", "unlearn.json")
_INDEX = ".index.json"


class KeptTokenizer:
    """Reads a tokenizer, or gives that of the last model if all files that it may be made of have the same bytes."""

    def __init__(self) -> None:
        self._made_of: dict[str, str] | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def of(self, folder: Path, read: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
        """The tokenizer of a folder, without code of its own.

        Args:
            folder: Holds the files.
            read: Reads it; called if the last one was another.
        """
        found = _contents(folder)
        if self._tokenizer is None or not found or found != self._made_of:
            self._tokenizer = read()
            # Some of them may have come from the hub only now.
            self._made_of = _contents(folder)
        return self._tokenizer


def _contents(folder: Path) -> dict[str, str]:
    files = [file for pattern in ("*", "*/*.jinja") for file in folder.glob(pattern) if file.suffix in _SUFFIXES]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and file.name not in _OTHERS and not file.name.endswith(_INDEX)
    }
