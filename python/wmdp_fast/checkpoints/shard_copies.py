"""Copies of the shards that a run will change, made while it trains.

A checkpoint of 14 GB has shards of 5 GB. Copying one and waiting until it is on the disk takes seconds, for which there
is time while steps are computed; what is left for the end is to write the changed tensors into the copy.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_PIECE = 64 << 20
# After so many bytes it waits until they are on the disk: a run that is to end then has little to wait for.
_SYNCED = 256 << 20

# Seconds for which the end of a run waits for a piece to be done, whose file is deleted then in any case.
_PATIENCE = 0.5


def copy_file(source: Path, target: Path, *, sync: bool = False, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Copies a file; without copying a byte where the file system can share them (XFS, Btrfs) until one is changed.

    Args:
        source: The file.
        target: The copy, which must not be there yet.
        sync: Whether to make sure that it is on the disk.
        may_go_on: Asked before each 64 MiB; if it says no, the copy is left unfinished.

    Raises:
        OSError: It cannot be read or written; the disk may be full.
    """
    with source.open("rb") as file, target.open("xb") as copy:
        size, at, synced = os.fstat(file.fileno()).st_size, 0, 0
        while at < size and may_go_on():
            done = _copy_piece(file.fileno(), copy.fileno(), at, min(_PIECE, size - at))
            if not done:
                raise OSError(f"{source} has become shorter while it was copied")
            at += done
            if sync and (at == size or at - synced >= _SYNCED):
                os.fsync(copy.fileno())
                synced = at


class ShardCopies:
    """Copies shards on a thread.

    Args:
        base: The folder of the checkpoint.
        shards: The files in it that will be changed.
        folder: Where to, on the disk that the new checkpoint is written to. It is made, and deleted by `close`.
    """

    def __init__(self, base: Path, shards: Iterable[str], folder: Path) -> None:
        self._base, self._folder = base, folder
        self._wanted = sorted(set(shards))
        self._done: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        # What the run does must not wait for it, nor the end of the process.
        self._thread = threading.Thread(target=self._copy, name="wmdp-fast-shards", daemon=True)
        self._thread.start()

    def take(self, shard: str, target: Path) -> bool:
        """Moves the copy of a shard to where it is wanted, once it is there.

        Returns:
            False if there is none, as something went wrong or the shard has changed since: the caller copies it, and
            meets what is wrong again.
        """
        self._thread.join()
        if self._done.get(shard) != _stamp(self._base / shard):
            return False
        (self._folder / shard).rename(target)
        return True

    def close(self) -> None:
        """Ends copying, and deletes what was not taken."""
        self._stop.set()
        self._thread.join(_PATIENCE)
        with contextlib.suppress(OSError):
            for shard in self._wanted:
                (self._folder / shard).unlink(missing_ok=True)
            self._folder.rmdir()

    def _copy(self) -> None:
        # What fails here is done again at the end, where it is an error of the run.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            for shard in self._wanted:
                if self._stop.is_set():
                    return
                source, copy = (self._base / shard).resolve(), self._folder / shard
                # A run that was killed may have left one.
                copy.unlink(missing_ok=True)
                stamp = _stamp(source)
                copy_file(source, copy, sync=True, may_go_on=lambda: not self._stop.is_set())
                if not self._stop.is_set():
                    self._done[shard] = stamp


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _copy_piece(source: int, target: int, at: int, count: int) -> int:
    """Copies some bytes of a file to the same place of another one; returns how many."""
    if hasattr(os, "copy_file_range"):
        # Not between all file systems, and not on all of them.
        with contextlib.suppress(OSError):
            if done := os.copy_file_range(source, target, count, at, at):
                return done
    return os.pwrite(target, os.pread(source, min(count, 8 << 20), at), at)
