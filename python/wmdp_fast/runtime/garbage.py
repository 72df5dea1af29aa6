"""When Python looks for objects that hold each other."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """Inside, circles of objects stay.

    For imports: they make hundreds of thousands of objects that stay, among which Python would look for circles again
    and again, a twentieth of the time that torch and transformers take.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
