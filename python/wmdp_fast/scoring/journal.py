"""What a scoring run has finished, written down as it goes on, so that a run that was stopped loses nothing.

A journal is one file in the folder of the results. It is only appended to, a record for each batch, and handed to the
operating system at once: what is in it survives the death of the process. Each record is its length, the CRC-32 of its
body and the CRC-32 of these two (32 bits each, little-endian), then the body. A body's first byte says what follows:
the run that the journal is of (JSON, the first record), a plan (JSON), scores (17 bytes for each choice), or which of
the scores that follow are only bounds (8 bytes for each choice). A last record that is cut short is what a killed
process leaves, and is dropped. Anything else that does not fit is damage.

A run that is cut into shards has a journal for each besides its own. It tells of the same choices by the same numbers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast.exceptions import JournalError, ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# What a record's body begins with.
_RUN, _PLAN, _SCORES, _BOUNDED = b"R", b"P", b"S", b"B"
_HEAD = struct.Struct("<III")
_SCORE = np.dtype([("choice", "<i8"), ("loglikelihood", "<f8"), ("is_greedy", "?")])

# What the description of a run has besides if it is that of a shard: which one, and a hash of its choices' numbers.
_SHARD = "shard"

# Bytes that hold the description of any run.
_LONGEST_RUN = 1 << 16

# By how many nats rounding may carry a log-likelihood above 0. That of an impossible choice is minus infinity.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Plan:
    """How a run was cut into batches, from some place on; the same plan gives the same batches.

    Attributes:
        engine: Which way of scoring.
        asked: The token budget that was asked for, a number or `auto`.
        token_budget: The one that it came to: less where memory ran out.
        start: The path of the trie or the row that the first batch begins at.
    """

    engine: str
    asked: int | Literal["auto"]
    token_budget: int
    start: int


class Journal:
    """A journal that is being written. Make one with `open`.

    Attributes:
        path: The file.
        choices: The choices (over the whole run) that were in the file when it was opened: int64 `[N]`.
        loglikelihood: Their scores: float64 `[N]`.
        is_greedy: As in `Scores`: bool `[N]`.
        bounded: The choices in it whose log-likelihoods are only known not to be larger.
        plan: The last plan in the file when it was opened, or None.
    """

    def __init__(self, path: Path, file: int, scores: NDArray[np.void], bounded: set[int], plan: Plan | None) -> None:
        self.path = path
        self.choices: NDArray[np.int64] = scores["choice"].astype(np.int64)
        self.loglikelihood: NDArray[np.float64] = scores["loglikelihood"].astype(np.float64)
        self.is_greedy: NDArray[np.bool_] = scores["is_greedy"].astype(np.bool_)
        self.bounded = bounded
        self.plan = plan
        self._file: int | None = file

    @classmethod
    def open(cls, folder: Path, run: Mapping[str, Any], *, resume: bool) -> Journal:
        """Begins the journal of a run, or goes on with it.

        Args:
            folder: Where the results are going to be; made if it is not there.
            run: Everything that decides the scores, as JSON has it; names are used in messages.
            resume: Whether to go on with what is there. If nothing is there, the run begins like any other.

        Raises:
            JournalError: Another process writes this journal; it is damaged; or, with `resume`, there are only those of
                other runs; or, without, there is one of this run, which would be lost. The message says what to do.
            OSError: The file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = journal_path(folder, run)
        parts = shard_journals(folder, run)
        if resume and not path.exists() and not parts and _SHARD not in run:
            _refuse_others(folder, run)
        for part in [] if resume else parts:
            if len(finished_in(part)):
                raise JournalError(_UNFINISHED.format(part))
            part.unlink()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            return cls._begin(path, file, run, resume=resume)
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def _begin(cls, path: Path, file: int, run: Mapping[str, Any], *, resume: bool) -> Journal:
        if not _lock(file):
            raise JournalError(_BUSY.format(path))
        end, plan = 0, None
        scores: list[NDArray[np.void]] = []
        bounded: set[int] = set()
        for body, stop in _records(path.read_bytes(), path):
            end = stop
            if body[:1] == _SCORES:
                scores.append(np.frombuffer(body[1:], dtype=_SCORE))
                if resume:
                    _refuse_wrong(scores[-1], path)
            elif body[:1] == _BOUNDED:
                bounded.update(np.frombuffer(body[1:], dtype="<i8").tolist())
            elif body[:1] == _PLAN:
                plan = Plan(**json.loads(body[1:]))
        if scores and not resume:
            raise JournalError(_UNFINISHED.format(path))
        os.ftruncate(file, end if resume else 0)
        found = np.concatenate(scores) if scores else np.empty(0, dtype=_SCORE)
        journal = cls(path, file, found, bounded, plan if resume else None)
        if not (resume and end):
            journal._append(_RUN + json.dumps(dict(run)).encode())
        return journal

    def plan_from(self, plan: Plan) -> None:
        """Writes down how the batches that follow are cut."""
        self._append(_PLAN + json.dumps(asdict(plan)).encode())

    def add(self, choices: NDArray[np.int64], loglikelihood: NDArray[np.float64], is_greedy: NDArray[np.bool_]) -> None:
        """Writes down the scores of choices.

        Raises:
            ModelError: One of them is no log-likelihood: not a number, or above 0.
            OSError: The disk is full, for instance; names the file.
        """
        scores = np.empty(len(choices), dtype=_SCORE)
        scores["choice"], scores["loglikelihood"], scores["is_greedy"] = choices, loglikelihood, is_greedy
        if (wrong := _first_wrong(scores)) is not None:
            raise ModelError(
                f"the log-likelihood of choice {wrong['choice'] + 1} of the run came out as {wrong['loglikelihood']},"
                " which is none: the model, or the server that was asked, is damaged"
            )
        self._append(_SCORES + scores.tobytes())

    def add_bounded(self, choices: NDArray[np.int64]) -> None:
        """Writes down that the scores of choices, which are to be added next, are only known not to be larger.

        Raises:
            OSError: As `add` does.
        """
        self._append(_BOUNDED + choices.astype("<i8").tobytes())

    def close(self) -> None:
        """Leaves the file as it is, for a later run."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def is_empty(self) -> bool:
        """Whether there is no score in it."""
        return len(finished_in(self.path, locked=True)) == 0

    def remove(self) -> None:
        """Deletes the file: the results are safe, or there is nothing in it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def _append(self, body: bytes) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        sizes = struct.pack("<II", len(body), zlib.crc32(body))
        record = sizes + struct.pack("<I", zlib.crc32(sizes)) + body
        try:
            while record:
                record = record[os.write(self._file, record) :]
        except OSError as error:
            # A failed write does not know its file's name.
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def journal_path(folder: Path, run: Mapping[str, Any]) -> Path:
    """The file of a run's journal."""
    return folder / f"unfinished_{run_key(run)}.scores"


def shard_run(run: Mapping[str, Any], number: int, of: int, choices: NDArray[np.int64]) -> dict[str, Any]:
    """The description of a shard of a run, counted from 0, that has these of its choices."""
    found = hashlib.sha256(choices.astype("<i8").tobytes()).hexdigest()[:16]
    return {**run, _SHARD: f"{number + 1} of {of}, choices {found}"}


def shard_journals(folder: Path, run: Mapping[str, Any]) -> list[Path]:
    """The journals of all shards that a run was ever cut into."""
    every = ((path, _described(path)) for path in sorted(folder.glob("unfinished_*.scores")))
    return [path for path, of in every if of.pop(_SHARD, None) is not None and of == dict(run)]


def delete_saved(folder: Path, keys: Collection[str]) -> None:
    """Deletes what is left of the journals of runs whose results are saved, but for those that a process writes.

    Args:
        folder: Where they lie.
        keys: What `run_key` says of these runs.
    """
    for path in sorted(folder.glob("unfinished_*.scores")):
        of = _described(path)
        of.pop(_SHARD, None)
        if of and run_key(of) in keys and not _is_written(path):
            path.unlink(missing_ok=True)


def _described(path: Path) -> dict[str, Any]:
    """What a journal says that it is of; nothing if it is gone, as another run has ended just now, or does not say."""
    with contextlib.suppress(FileNotFoundError, JournalError), path.open("rb") as file:
        first = next(_records(file.read(_LONGEST_RUN), path), None)
        return {} if first is None else dict(json.loads(first[0][1:]))
    return {}


def finished_in(path: Path, *, locked: bool = False) -> NDArray[np.void]:
    """The scores in a journal, a record for each: choice, log-likelihood and whether it is greedy.

    Args:
        path: The journal.
        locked: Whether this process has its lock.

    Raises:
        JournalError: Another process writes it, or it is damaged.
    """
    with path.open("rb") as file:
        if not locked and not _lock(file.fileno()):
            raise JournalError(_BUSY.format(path))
        bodies = [body for body, _ in _records(file.read(), path) if body[:1] == _SCORES]
    scores = [np.frombuffer(body[1:], dtype=_SCORE) for body in bodies]
    for one in scores:
        _refuse_wrong(one, path)
    return np.concatenate(scores) if scores else np.empty(0, dtype=_SCORE)


_BUSY = "{}: another process is scoring this very run; wait for it, or stop it"
_UNFINISHED = (
    "{} holds the scores of an unfinished run, and this is the same run: go on from there with --resume (resume=True),"
    " or delete the file to start over"
)


def _refuse_wrong(scores: NDArray[np.void], path: Path) -> None:
    if (wrong := _first_wrong(scores)) is not None:
        raise JournalError(
            f"{path} cannot be resumed: for choice {wrong['choice'] + 1} it has a log-likelihood of"
            f" {wrong['loglikelihood']}, which is none; delete the file to start over"
        )


def _first_wrong(scores: NDArray[np.void]) -> np.void | None:
    """The first score, if any, whose log-likelihood cannot be one."""
    wrong = ~(scores["loglikelihood"] <= _ROUNDING)
    first: np.void | None = scores[wrong][0] if wrong.any() else None
    return first


def run_key(run: Mapping[str, Any]) -> str:
    """What a run's journal is known by: a hash of what decides its scores."""
    return hashlib.sha256(json.dumps(dict(run), sort_keys=True).encode()).hexdigest()[:16]


def _records(content: bytes, path: Path) -> Iterator[tuple[bytes, int]]:
    """The bodies of all whole records, each with where it ends.

    Raises:
        JournalError: A record is damaged; names the file.
    """
    damaged = f"{path} is damaged: {{}} at byte {{}}; delete the file to start over"
    at = 0
    while len(content) - at >= _HEAD.size:
        length, body_sum, head_sum = _HEAD.unpack_from(content, at)
        if zlib.crc32(content[at : at + 8]) != head_sum:
            raise JournalError(damaged.format("no record begins", at))
        body = content[at + _HEAD.size : at + _HEAD.size + length]
        if len(body) < length:
            return
        if zlib.crc32(body) != body_sum:
            raise JournalError(damaged.format("a record is not what was written", at))
        if (at == 0) != (body[:1] == _RUN):
            raise JournalError(damaged.format("a record is out of place", at))
        at += _HEAD.size + length
        yield body, at


def _refuse_others(folder: Path, run: Mapping[str, Any]) -> None:
    """Raises if there are journals in a folder that nobody writes: one of them is what was meant to be resumed."""
    for path in sorted(folder.glob("unfinished_*.scores")):
        with path.open("rb") as file:
            if not _lock(file.fileno()):
                continue
            first = next(_records(file.read(), path), None)
        if first is None:
            continue
        other: dict[str, Any] = json.loads(first[0][1:])
        if other.pop(_SHARD, None) is not None and _is_written(journal_path(folder, other)):
            continue
        differs = [
            f"{name} (then {other.get(name)}, now {run.get(name)})"
            for name in dict.fromkeys([*run, *other])
            if other.get(name) != run.get(name)
        ]
        raise JournalError(
            f"there is nothing to resume: the unfinished run in {path} is another one. What differs: "
            f"{'; '.join(differs)}. Ask for the same again, leave --resume (resume=True) out, or delete that file"
        )


def _is_written(path: Path) -> bool:
    """Whether a process, which may be this one, has a journal's lock."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not _lock(file.fileno())


def _lock(file: int) -> bool:
    """Takes the lock on a file until it is closed, unless another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems have no locks; there, nobody can tell.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True
