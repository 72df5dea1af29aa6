"""Commands that one process does, where `torchrun` has started several: these would all write the same files."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from wmdp_fast.runtime.ranks import place_of_process

if TYPE_CHECKING:
    import argparse

_ALONE = "start it without torchrun"
_DEVICES = f"{_ALONE}; with --devices all it starts a process for each GPU itself"

# What to do instead. Commands that only print do so in each process; `eval` and `lm-eval` share their work.
_INSTEAD = {
    "demo": _ALONE,
    "unlearn": f"{_ALONE}, or with --parallel fsdp, which has them hold one model together (methods with --lora)",
    "sweep": _DEVICES,
    "attack": _DEVICES,
    "reproduce": _ALONE,
    "apply-delta": _ALONE,
    "report": _ALONE,
    "export": _ALONE,
    "bench": _ALONE,
}

# Seconds within which the first process has spoken: once one ends, the launcher stops all others.
_FIRST_SPEAKS = 5.0


def is_refused(command: str, arguments: argparse.Namespace) -> bool:
    """Whether this is one of several processes of a command that one process does; the first of them says so.

    Raises:
        ValueError: The environment names no rank of a run.
    """
    if command not in _INSTEAD or hasattr(arguments, "parallel"):
        return False
    place = place_of_process()
    if place.size == 1:
        return False
    if place.rank:
        time.sleep(_FIRST_SPEAKS)
    else:
        print(
            f"error: torchrun has started {place.size} processes of {command} (WORLD_SIZE), and each would do all of it"
            f" and write the same files: {_INSTEAD[command]}",
            file=sys.stderr,
        )
    return True
