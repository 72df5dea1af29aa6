"""A matrix of a checkpoint whose rows are read when they are wanted, and given back afterwards.

Embeddings of large vocabularies are most of a small model. A batch wants few of their rows, and a projection onto the
vocabulary can be taken some rows at a time, so neither need ever lie in memory as a whole.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.checkpoints.layer_reader import read_into

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wmdp_fast.checkpoints.layer_reader import StoredTensor


class StoredRows:
    """The rows of a matrix, in memory as far as they were read; the others are zeros there.

    Attributes:
        keep: Bytes of rows that may stay after they were used.
        bytes_read: Bytes of the checkpoint that were read so far.
        nbytes: At most how much memory the rows take that are there.

    Args:
        stored: A tensor of two dimensions.
    """

    def __init__(self, stored: StoredTensor) -> None:
        self.keep = 0
        self.bytes_read = 0
        self.nbytes = 0
        self._stored = stored
        self._row = stored.nbytes // stored.shape[0]
        self._there = np.zeros(stored.shape[0], dtype=np.bool_)
        # As `StoredTensor` has it, and for its reason.
        self._offset = stored.start % mmap.PAGESIZE
        # Private, so that pages can be given back; small ones, so that a row takes no more than it needs.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, self._offset + stored.nbytes, flags=flags)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._passing = mmap.mmap(-1, mmap.PAGESIZE)

    def parameter(self) -> torch.nn.Parameter:
        """The matrix, for a model; `rows_behind` finds its rows again."""
        flat = torch.frombuffer(self._memory, dtype=self._stored.dtype, offset=self._offset)
        made = torch.nn.Parameter(flat.view(self._stored.shape), requires_grad=False)
        untyped: Any = made
        untyped.stored_rows = self
        return made

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
        self.nbytes += len(wanted) * bytes_of_row(self._row)

    def read_all(self) -> None:
        """Reads all rows that are not there."""
        self.read(np.arange(len(self._there)))

    def part(self, start: int, stop: int) -> torch.Tensor:
        """Some neighboring rows, `[rows, columns]`: to be used before the next part is asked for.

        They stay if no more than `keep` bytes then do.

        Args:
            start: The first of them.
            stop: One more than the last one; those that are not there at the end are left out.
        """
        stop = min(stop, len(self._there))
        begin, size = start * self._row, (stop - start) * self._row
        if not self._there[start:stop].all():
            stays = self.nbytes + size <= self.keep
            memory, offset = (self._memory, self._offset + begin) if stays else self._place_for(begin, size)
            file = os.open(self._stored.path, os.O_RDONLY)
            try:
                with memoryview(memory) as view, view[offset : offset + size] as place:
                    read_into(place, file, self._stored, begin)
            finally:
                os.close(file)
            self.bytes_read += size
            if stays:
                self._there[start:stop] = True
                self.nbytes += size
        else:
            memory, offset = self._memory, self._offset + begin
        count = (stop - start) * self._stored.shape[1]
        flat = torch.frombuffer(memory, dtype=self._stored.dtype, offset=offset, count=count)
        return flat.view(stop - start, self._stored.shape[1])

    def _place_for(self, begin: int, size: int) -> tuple[mmap.mmap, int]:
        """Memory for some bytes that do not stay, at their place in a page."""
        offset = (self._stored.start + begin) % mmap.PAGESIZE
        if len(self._passing) < offset + size:
            self._passing = mmap.mmap(-1, mmap.PAGESIZE + size)
        return self._passing, offset

    def trim(self) -> None:
        """Gives all rows back, if more than `keep` bytes are there."""
        if self.nbytes > self.keep:
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._there[:] = False
            self.nbytes = 0


def rows_behind(weight: object) -> StoredRows | None:
    """The rows behind a parameter that `StoredRows` has made; None for any other."""
    return getattr(weight, "stored_rows", None)


def bytes_of_row(nbytes: int) -> int:
    """At most how much memory a row of so many bytes takes, of which the pages have no other rows."""
    return (nbytes // mmap.PAGESIZE + 2) * mmap.PAGESIZE
