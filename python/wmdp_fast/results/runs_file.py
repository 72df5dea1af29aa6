"""Results of runs on disk, of a sweep or of attacks: a JSON object a line; one that was cut short does not count."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import JournalError
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import explain_full_disk

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType


class RunsFile:
    """A file of results that is being written.

    Args:
        path: The file; made if it is not there. A last line that was cut short is dropped.

    Attributes:
        lines: What was in it when it was opened.

    Raises:
        JournalError: Another process writes it, or it is damaged; names the line.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)  # so that closing has nothing left to write, and to fail at
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise JournalError(f"{path}: another process is writing it; wait for that, or stop it") from None
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        self.lines: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self.lines.append(json.loads(line))
            except ValueError as error:
                self._file.close()
                raise JournalError(
                    f"{path}, line {number} is damaged ({error}); remove that line to run it again"
                ) from None

    def __enter__(self) -> RunsFile:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Writes a result and makes sure that it is on the disk.

        Raises:
            OSError: It cannot be written; names the file. What was in it before still is.
        """
        try:
            rest = memoryview(strict_json.dumps(line).encode() + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain_full_disk(error, self._path) from error
