"""The devices that work is shared among, as `--devices` names them: `all`, `4`, `cuda:0,cuda:2` or `cpu:2`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast.runtime.ranks import place_of_process

if TYPE_CHECKING:
    from collections.abc import Iterable

# The most processes that are started: there is no machine with so many devices.
_MOST = 1024


@dataclass(frozen=True)
class Devices:
    """Devices of this machine, a process for each.

    Attributes:
        kind: `cuda` or `cpu`.
        numbers: Of the GPUs; on the CPU those of the processes.
    """

    kind: str
    numbers: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """The device of each process, as torch calls it."""
        return [f"cuda:{number}" if self.kind == "cuda" else "cpu" for number in self.numbers]

    @property
    def device(self) -> str:
        """What a single process would be told to run on this kind of device: `auto` where it takes that by itself."""
        import torch

        return "auto" if self.kind == ("cuda" if torch.cuda.is_available() else "cpu") else self.kind


def devices_of(text: str) -> Devices:
    """Reads what `--devices` was given.

    Raises:
        ValueError: It is none of what it can be, or there are fewer devices.
    """
    if found := re.fullmatch(r"cpu:([1-9]\d{0,3})", text):
        return Devices("cpu", tuple(range(_checked(int(found[1]), _MOST, text))))
    import torch

    there = torch.cuda.device_count()
    if text == "all":
        return Devices("cuda", tuple(range(_checked(there, there, text))))
    if re.fullmatch(r"[1-9]\d{0,3}", text):
        return Devices("cuda", tuple(range(_checked(int(text), there, text))))
    if not re.fullmatch(r"cuda:\d{1,4}(,cuda:\d{1,4})*", text):
        raise ValueError(f"--devices must be all, a number of GPUs, cuda:0,cuda:1 or cpu:2, not {text}")
    named = tuple(int(one.removeprefix("cuda:")) for one in text.split(","))
    if len(set(named)) < len(named):
        raise ValueError(f"--devices {text} names a device twice")
    _checked(max(named) + 1, there, text)
    return Devices("cuda", named)


def shared_devices(models: Iterable[object], device: str, devices: str | None) -> Devices | None:
    """The devices whose processes share the settings of a command, or None for this process alone.

    Args:
        models: The models; None is none.
        device: The one device that was asked for, or `auto`.
        devices: What `--devices` was given, or None.

    Raises:
        ValueError: As `devices_of`; or it cannot be shared.
    """
    if devices is None:
        return None
    if device != "auto":
        raise ValueError("device and devices exclude each other")
    if not all(isinstance(model, (str, os.PathLike)) for model in models if model is not None):
        raise ValueError("a model in memory cannot be shared by several processes: name its folder")
    if place_of_process().size > 1:
        raise ValueError("devices starts the processes itself: leave it out where torchrun has started them")
    return devices_of(devices)


def _checked(number: int, there: int, text: str) -> int:
    if not 1 <= number <= there:
        raise ValueError(f"--devices {text}: there are {there} devices; cpu:2 is two processes on the CPU")
    return number
