"""A matrix of a checkpoint whose rows are read when they are wanted, and given back afterwards.

Embeddings of large vocabularies are most of a small model. A batch wants few of their rows, and a projection onto the
vocabulary can be taken some rows at a time, so neither need ever lie in memory as a whole.
"""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.checkpoints.layer_reader import read_into

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from wmdp_fast.checkpoints.layer_reader import StoredTensor


class StoredRows:
    """The rows of a matrix, in memory as far as they were read; the others are zeros there.

    Attributes:
        keep: Bytes of rows that may stay after they were used.
        bytes_read: Bytes of the checkpoint that were read so far.

    Args:
        stored: A tensor of two dimensions.
    """

    def __init__(self, stored: StoredTensor) -> None:
        self.keep = 0
        self.bytes_read = 0
        self._stored = stored
        self._row = stored.nbytes // stored.shape[0]
        self._there = np.zeros(stored.shape[0], dtype=np.bool_)
        # As `StoredTensor` has it, and for its reason.
        self._offset = stored.start % mmap.PAGESIZE
        # Private, so that pages can be given back; small ones, so that a row takes no more than it needs.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, self._offset + stored.nbytes, flags=flags)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)

    def parameter(self) -> torch.nn.Parameter:
        """The matrix, for a model; `rows_behind` finds its rows again."""
        flat = torch.frombuffer(self._memory, dtype=self._stored.dtype, offset=self._offset)
        made = torch.nn.Parameter(flat.view(self._stored.shape), requires_grad=False)
        untyped: Any = made
        untyped.stored_rows = self
        return made

    @property
    def nbytes(self) -> int:
        """At most how much memory the rows take that are there."""
        return int(np.count_nonzero(self._there)) * bytes_of_row(self._row)

    def read(self, rows: NDArray[np.int64]) -> None:
        """Reads those of these rows that are not there.

        Raises:
            IndexError: There is no such row.
            ModelError: The file ends too early.
        """
        wanted = np.unique(rows)
        wanted = wanted[~self._there[wanted]]
        if not len(wanted):
            return
        file = os.open(self._stored.path, os.O_RDONLY)
        try:
            with memoryview(self._memory) as view:
                for run in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
                    start, stop = int(run[0]) * self._row, (int(run[-1]) + 1) * self._row
                    with view[self._offset + start : self._offset + stop] as place:
                        read_into(place, file, self._stored, start)
        finally:
            os.close(file)
        self._there[wanted] = True
        self.bytes_read += len(wanted) * self._row

    def read_all(self) -> None:
        """Reads all rows that are not there."""
        self.read(np.arange(len(self._there)))

    @contextmanager
    def there(self, start: int, stop: int) -> Iterator[None]:
        """Inside, some neighboring rows are there; afterwards only if no more than `keep` bytes are."""
        self.read(np.arange(start, min(stop, len(self._there))))
        yield
        if self.nbytes > self.keep:
            self._give_back(start, min(stop, len(self._there)))

    def trim(self) -> None:
        """Gives all rows back, if more than `keep` bytes are there."""
        if self.nbytes > self.keep:
            self._give_back(0, len(self._there))

    def _give_back(self, start: int, stop: int) -> None:
        # Pages that they share with other rows stay.
        first = -(-(self._offset + start * self._row) // mmap.PAGESIZE) if start else 0
        end = self._offset + stop * self._row
        last = end // mmap.PAGESIZE if stop < len(self._there) else -(-end // mmap.PAGESIZE)
        if last > first:
            self._memory.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)
        self._there[start:stop] = False


def rows_behind(weight: object) -> StoredRows | None:
    """The rows behind a parameter that `StoredRows` has made; None for any other."""
    return getattr(weight, "stored_rows", None)


def bytes_of_row(nbytes: int) -> int:
    """At most how much memory a row of so many bytes takes, of which the pages have no other rows."""
    return (nbytes // mmap.PAGESIZE + 2) * mmap.PAGESIZE
