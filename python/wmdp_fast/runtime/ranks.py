"""Which of the processes of one run this is, as `torchrun` says it in the environment. Loads no torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

# What `torchrun` sets for each process; only together do they say where the others are.
_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """The place of a process among those of a run.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local: Its number among those on this machine.
        on_machine: How many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    on_machine: int = 1


def place_of_process() -> Place:
    """The place of this process; alone if nothing started several, or a script has made a process group of its own.

    A training script calls for an evaluation on one of its ranks, and that one cannot wait for the others.

    Raises:
        ValueError: The variables of the environment are no numbers, or do not fit together.
    """
    if any(name not in os.environ for name in _NAMES) or _has_group():
        return Place()
    found = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    # Where nobody says, all may be here.
    found["LOCAL_WORLD_SIZE"] = os.environ.get("LOCAL_WORLD_SIZE", found["WORLD_SIZE"])
    try:
        place = Place(*map(int, found.values()))
    except ValueError:
        place = Place(rank=-1)
    if not (0 <= place.rank < place.size and place.local >= 0 and place.on_machine >= 1):
        said = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(f"the environment names no rank of a run ({said}): unset these, or start with torchrun")
    return place


def _has_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())
