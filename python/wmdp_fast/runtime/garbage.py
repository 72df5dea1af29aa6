"""When Python looks for objects that hold each other."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whether this process is ours, so that objects may be set aside, and whether some are.
_state = {"ours": False, "set aside": False}


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """Inside, circles of objects stay; afterwards all objects count as old, which are rarely looked at.

    For imports: they make hundreds of thousands of objects that stay, among which Python would look for circles again
    and again, and at all of them at once as soon as it may: a fifth of the time that torch and transformers take.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if not gc.get_freeze_count():
            # The cheapest way to make them old. Somebody who has frozen objects of their own would find them thawed.
            gc.freeze()
            gc.unfreeze()


@contextlib.contextmanager
def process_of_our_own() -> Iterator[None]:
    """Inside, `set_imports_aside` may do what it says."""
    before = dict(_state)
    _state["ours"] = True
    try:
        yield
    finally:
        if _state["set aside"] and not before["set aside"]:
            gc.unfreeze()
        _state.update(before)


def set_imports_aside() -> None:
    """In a process of our own, once: no collection looks any more at what there is now.

    For the moment when everything is imported and no model is loaded, since circles among it stay for good.
    """
    if _state["ours"] and not _state["set aside"]:
        gc.freeze()
        _state["set aside"] = True
