"""Several threads on the same models, and on torch's settings, which all threads of a process share.

A run replaces parts of a model (its attention, norms, training flags) and puts them back, so only one run at a time may
have a model. And while transformers builds a model, torch's default dtype is that model's, for every thread; what a
forward pass of another one makes meanwhile without naming a dtype would be of the wrong one. So models are loaded one
after another, and not during a forward pass of this package.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

# By the id of what a model is known by, which is not hashable; a reference tells when the id is free again.
_locks: dict[int, tuple[ref[Any], threading.RLock]] = {}
_locks_lock = threading.Lock()


@contextmanager
def only_user(model: nn.Module) -> Iterator[None]:
    """Waits until no other thread is inside with this model, or with one that shares its configuration.

    A wrapper (PEFT's, for instance), the model in it, and that one's parts count as one model. A thread that is inside
    already may enter again.
    """
    with _lock_of(_known_by(model)):
        yield


def _known_by(model: Any) -> Any:
    """What is the same object for a model, its wrappers and its parts: the configuration of its text model, if any.

    Two models that share it are not told apart, rightly: which attention a model uses is written there.
    """
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    # Of some configurations it is made anew at each call.
    return next((one for one in (text_config, config) if _is_kept(one, config)), model)


def _is_kept(one: Any, config: Any) -> bool:
    return (
        one is not None
        and not isinstance(one, dict)
        and (one is config or any(one is v for v in vars(config).values()))
    )


def _lock_of(owner: Any) -> threading.RLock:
    key = id(owner)
    with _locks_lock:
        found = _locks.get(key)
        if found is None or found[0]() is not owner:
            found = _locks[key] = ref(owner), threading.RLock()
            for other in [other for other, (alive, _) in _locks.items() if alive() is None]:
                del _locks[other]
        return found[1]


class _Gate:
    """Any number of threads may compute at once, or one may load; whoever waits to load comes before new passes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._computing = 0
        self._waiting = 0
        self._loading: int | None = None  # the thread
        self._own = threading.local()

    @contextmanager
    def compute(self) -> Iterator[None]:
        depth = getattr(self._own, "depth", 0)
        mine = threading.get_ident()
        with self._changed:
            if depth == 0 and self._loading != mine:
                self._changed.wait_for(lambda: self._loading is None and not self._waiting)
            self._computing += 1
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    @contextmanager
    def load(self) -> Iterator[None]:
        depth, mine = getattr(self._own, "depth", 0), threading.get_ident()
        if self._loading == mine:
            yield
            return
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._loading is None and self._computing == depth)
                self._loading = mine
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._loading = None
                self._changed.notify_all()


_gate = _Gate()


# A context in which this thread runs forward or backward passes; it waits while another one loads a model.
computing = _gate.compute

# A context in which this thread, and no other, builds or loads a model; it waits for the passes of others to end.
loading = _gate.load
