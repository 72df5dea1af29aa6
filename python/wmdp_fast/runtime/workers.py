"""Processes that do jobs side by side, one on each device: whoever is free takes the next.

They are Python processes of their own, started afresh, since neither CUDA nor threads outlive a fork, and without the
script that asks for them, which so needs no guard. What they say goes through a socket: messages of a job, warnings,
what was raised. When the socket closes they end, however the process at its other end did.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.runtime import cpus, own_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from wmdp_fast.runtime.devices import Devices

Plan = TypeVar("Plan")
Job = TypeVar("Job")
Message = TypeVar("Message")

# What is run in the new process: it finds modules where this one does, and leaves Ctrl-C to it.
_SERVE = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[2]);"
    " from wmdp_fast.runtime.workers import serve; serve(int(sys.argv[1]))"
)

# Seconds that a process has for ending by itself.
_PATIENCE = 10.0


@dataclass
class _Worker(Generic[Job]):
    """A process as its parent sees it; `job` is what it does, None while it begins or has nothing to do."""

    device: str
    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    ready: bool = False
    job: Job | None = None

    def ended(self) -> str:
        """How it has ended."""
        code = self.process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


class Workers(Generic[Job, Message]):
    """The processes; make them with `started`."""

    def __init__(self, workers: list[_Worker[Job]]) -> None:
        self._workers = workers
        self._warned: set[str] = set()

    def each(self, jobs: Iterable[Job], left: Callable[[Job], Job | None]) -> Iterator[Message]:
        """Has jobs done, in the order in which processes are free, and gives their messages as they come.

        Args:
            jobs: The jobs.
            left: What is still to do of a job whose process was killed, after the messages that have come; None if
                that is nothing.

        Raises:
            Exception: What was raised in one of them, with the device as a note.
            ModelError: All of them were killed.
        """
        waiting = deque(jobs)
        while waiting or any(worker.job is not None for worker in self._workers):
            for worker in self._workers:
                if waiting and worker.ready and worker.job is None:
                    worker.job = waiting.popleft()
                    with contextlib.suppress(OSError):  # it is found below to have ended
                        worker.connection.send(worker.job)
            by_connection = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(by_connection)):
                worker = by_connection[connection]  # type: ignore[index]  # only these were waited for
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError):
                    self._lost(worker, waiting, left)
                    continue
                if kind == "message":
                    yield content
                else:
                    self._heard(worker, kind, content)

    def _heard(self, worker: _Worker[Job], kind: str, content: Any) -> None:
        if kind == "free":
            worker.ready, worker.job = True, None
        elif kind == "failed":
            error, trace = content
            error.add_note(f"on {worker.device}")
            raise error from RuntimeError(f"in the process of {worker.device}:\n{trace}")
        elif content[0] not in self._warned:
            # Each of them says what one alone would have said once.
            self._warned.add(content[0])
            warnings.warn(content[0], content[1], stacklevel=2)

    def _lost(self, worker: _Worker[Job], waiting: deque[Job], left: Callable[[Job], Job | None]) -> None:
        """A process has ended without a word: others do what is left of its job."""
        self._workers.remove(worker)
        worker.connection.close()
        how = worker.ended()
        if worker.job is not None and (rest := left(worker.job)) is not None:
            waiting.appendleft(rest)
        if not self._workers:
            raise ModelError(
                f"every process has ended, the last one {how}: is there memory for one on each device? What is"
                " finished is kept"
            )
        warnings.warn(
            f"the process on {worker.device} was {how}; what it was at is done again by another",
            WmdpFastWarning,
            stacklevel=3,
        )


@contextlib.contextmanager
def started(
    begin: Callable[[Plan, str], Callable[[Job, Callable[[Message], None]], None]], plan: Plan, devices: Devices
) -> Iterator[Workers[Job, Message]]:
    """Inside, there is a process for each device; afterwards there is none.

    Args:
        begin: Called once in each with `plan` and its device; returns what does a job and is given what to tell
            messages to. It is found by its name, and plan, jobs and messages are pickled.
        plan: What they need to begin.
        devices: The devices.

    Raises:
        ValueError: `plan` cannot be pickled.
    """
    try:
        work = pickle.dumps((begin, plan))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"this cannot be given to the processes of several devices ({error}): classes must be in a file that can be"
            " imported, not in a notebook or the script itself"
        ) from error
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": cpus.openmp_threads(len(devices.names)),
        # One bar is shown, by this process.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    workers: list[_Worker[Job]] = []
    every = workers
    try:
        for device in devices.names:
            workers.append(_start(device, environment))
            with contextlib.suppress(OSError):  # it is found later to have ended
                workers[-1].connection.send((own_code.loaded_files(), work, device))
        every = list(workers)
        yield Workers(workers)
        _end(every, _PATIENCE)
    finally:
        _end(every, 0.0)


def _start(device: str, environment: dict[str, str]) -> _Worker[Any]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603 (this interpreter)
            [sys.executable, "-c", _SERVE, str(theirs.fileno()), json.dumps(sys.path)],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what belongs on stdout, this process prints
        )
    return _Worker(device, process, Connection(ours.detach()))


def _end(workers: Iterable[_Worker[Any]], patience: float) -> None:
    """Ends processes, at first by closing what they listen to."""
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        if patience:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(patience)
        worker.process.kill()
        worker.process.wait()


def serve(descriptor: int) -> None:
    """What a process does that `started` has started: listens at a socket, and does jobs."""
    connection: Connection[Any, Any] = Connection(descriptor)
    one_at_a_time = threading.Lock()

    def send(kind: str, content: Any = None) -> None:
        with one_at_a_time:
            connection.send((kind, content))

    def receive() -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)  # as the thread does

    threading.Thread(target=_end_with, args=(descriptor,), daemon=True).start()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_args, **_options: send("warning", (str(message), category))
        try:
            files, pickled, device = receive()
            own_code.load_files(files)
            begin, plan = pickle.loads(pickled)  # noqa: S301 (the parent's own)
            work = begin(plan, device)
            while True:
                send("free")
                work(receive(), lambda message: send("message", message))
        except BaseException as error:  # the parent raises it
            with contextlib.suppress(OSError):  # or it is gone
                send("failed", (_sendable(error), traceback.format_exc()))


def _end_with(descriptor: int) -> None:
    """Ends this process at once when the other end of a socket is closed."""
    closed = select.poll()
    closed.register(descriptor, 0)  # that it was hung up is told unasked
    closed.poll()
    os._exit(0)


def _sendable(error: BaseException) -> Exception:
    """An exception that the parent can raise: the same, if it survives being pickled."""
    try:
        found = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    except Exception:  # any class may fail in its own way
        found = None
    if isinstance(found, Exception) and str(found) == str(error):
        return found
    return ModelError(f"{type(error).__name__}: {error}")
