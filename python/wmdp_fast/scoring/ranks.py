"""Several processes that score one run: how they find each other, meet, and tell each other what they have.

`torch.distributed` does it, over gloo on every device: what is exchanged are scores in the host's memory, once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.read_together import ReadTogether

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wmdp_fast.runtime.ranks import Place

# Type checkers do not see all of its names.
distributed: Any = torch.distributed

Parallel = Literal["fsdp", "tp"]
"""How one model is on several devices: its weights are gathered layer by layer (FSDP2), or multiplied in parts."""

# Ranks may be hours apart, and who is gone is noticed without a deadline: its connections are closed.
_TIMEOUT = timedelta(days=365)

# Seconds between two looks at whether the others have come. Waiting in Python, a process still notices signals.
_POLL = 0.02

EVERY = 1.0
"""Seconds between two reports of how far a rank is."""

# Each run of a process has names of its own in the store, which outlives it.
_runs = itertools.count()


def device_of_rank(device: str, place: Place) -> str:
    """The device of one of several ranks: the GPU of its number on this machine, or the CPU.

    Raises:
        ModelError: There are fewer GPUs than ranks on this machine.
        ValueError: A single GPU is named.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"device {device} is a single one, and each of {place.size} ranks takes its own: say cuda or cpu"
        )
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if place.local >= torch.cuda.device_count():
        raise ModelError(
            f"rank {place.rank} would have cuda:{place.local}, and there are {torch.cuda.device_count()} GPUs here:"
            " start one process for each"
        )
    torch.cuda.set_device(place.local)
    return f"cuda:{place.local}"


class Ranks:
    """The processes of a run. Make one with `joined`.

    Attributes:
        place: The place of this one.
    """

    def __init__(self, place: Place, store: Any) -> None:
        self.place = place
        self._reading: ReadTogether | None = None
        self._store = store

    def exchange(self, own: Any, meanwhile: Callable[[], object] | None = None) -> list[Any]:
        """Gives every rank what each has, by rank; waits for all of them.

        Args:
            own: What this one has; it is pickled.
            meanwhile: Called each second while others are waited for.

        Raises:
            ModelError: Another rank has ended.
        """
        found: list[Any] = [None] * self.place.size
        try:
            work = distributed.barrier(async_op=True)
            called = time.monotonic()
            while not work.is_completed():
                time.sleep(_POLL)
                if meanwhile is not None and time.monotonic() - called >= EVERY:
                    meanwhile()
                    called = time.monotonic()
            work.wait()
            distributed.all_gather_object(found, own)
        except RuntimeError as error:
            raise ModelError("another rank has ended, so this one does too") from error
        return found

    def reading(self, device: torch.device) -> ReadTogether:
        """These processes as those that read layers together; all of them must call it.

        Args:
            device: Where this one wants them.

        Raises:
            ModelError: It is a GPU, and this torch has no NCCL.
        """
        group = None
        if device.type == "cuda":
            _refuse_without_nccl()
            group = distributed.new_group(backend="nccl", timeout=_TIMEOUT)
        self._reading = ReadTogether(self.place.rank, self.place.size, device, group)
        return self._reading

    @property
    def left(self) -> bool:
        """Whether this one has stopped waiting for what others have not answered yet."""
        return self._reading is not None and self._reading.left

    def add(self, what: str, number: int) -> int:
        """Adds to what all ranks have done of something, and says how much that is.

        Raises:
            ModelError: The process that all ranks talk to has ended.
        """
        try:
            return int(self._store.add(f"done/{what}", number))
        except RuntimeError as error:
            raise ModelError("another rank has ended, so this one does too") from error


@contextlib.contextmanager
def joined(place: Place) -> Iterator[Ranks]:
    """The processes of a run, of which this is one; begins when all are there.

    Raises:
        ModelError: The first one cannot be reached.
    """
    ranks = Ranks(place, _group(place, "gloo"))
    try:
        yield ranks
    finally:
        # That would wait for the answers; when this process ends, the others notice.
        if not ranks.left:
            distributed.destroy_process_group()


@contextlib.contextmanager
def one_model(place: Place, device: str) -> Iterator[None]:
    """Inside, the processes of a run hold one model together: they run the same batches, each its part.

    Raises:
        ModelError: The first one cannot be reached, this torch has no NCCL for GPUs, or another one has ended.
    """
    on_gpu = device.startswith("cuda")
    if on_gpu:
        _refuse_without_nccl()
    _group(place, "nccl" if on_gpu else "gloo")
    try:
        yield
    except RuntimeError as error:
        # Of gloo it is a plain RuntimeError that the connection to another process is closed.
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise ModelError("another rank has ended, so this one does too") from error
        raise
    finally:
        distributed.destroy_process_group()


def smallest(number: int, device: torch.device) -> int:
    """The smallest of the numbers that the processes of `one_model` have."""
    found = torch.tensor(number, dtype=torch.int64, device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MIN)
    return int(found)


def _refuse_without_nccl() -> None:
    if not distributed.is_nccl_available():
        raise ModelError("a model is on several GPUs by NCCL, without which this PyTorch was built")


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """Has whatever this process writes to stdout go to stderr.

    Gloo of torch 2.10 says there, past Python, that its ranks are connected: in front of the results of `--json`.
    """
    try:
        kept = os.dup(1)
    except OSError:  # closed: then nothing can be said there
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _group(place: Place, backend: str) -> Any:
    """Makes the process group when all are there, and returns the store that they met at."""
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=_TIMEOUT))
        store = distributed.PrefixStore(f"wmdp_fast/{next(_runs)}", store)
        store.add("here", 1)
        while store.add("here", 0) < place.size:
            time.sleep(_POLL)
        with _stdout_kept():
            distributed.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.size, timeout=_TIMEOUT
            )
    except RuntimeError as error:
        raise ModelError(f"the other ranks cannot be reached: {error}") from error
    return store
