"""Forget and retain corpora as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class CorpusTokens:
    """The documents of a corpus as token ids, in the corpus's order, each cut to the length that was asked for.

    Attributes:
        name: What the user called the corpus: a path or a name on the hub.
        tokens: int64 [N], all documents' ids one after another, special tokens included.
        offsets: int64 [documents + 1]; document i is `tokens[offsets[i]:offsets[i + 1]]`.
        content_hash: SHA-256 over the texts read, for the record of a run.
    """

    name: str
    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]
    content_hash: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> NDArray[np.int64]:
        """The ids of one document: int64 [length]."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]
