"""Layers that several processes stream together: each reads a share of a layer's tensors and gives them to the others.

So a layer is read once, however many processes run it. They go through the layers in rounds: a round begins when all
have come, and in it each takes part in reading all layers, whether or not it has batches to run through them. The last
one is over when none of them has any left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wmdp_fast.checkpoints.layer_reader import StoredTensor

# Type checkers do not see all of its names.
distributed: Any = torch.distributed

# Seconds between two looks at whether the others are there. Waiting in Python, a process still notices signals.
_SHORTEST, _LONGEST = 0.0005, 0.02


@dataclass(frozen=True)
class Arrived:
    """A tensor of a checkpoint that is in memory."""

    tensor: torch.Tensor

    def __getitem__(self, _everything: object) -> torch.Tensor:
        return self.tensor


class ReadTogether:
    """The processes that read layers together, of which this is one.

    Attributes:
        rank: The number of this one.
        size: How many there are.
        left: Whether this one has stopped waiting for what others have not answered yet.

    Args:
        rank: As above.
        size: As above.
        device: Where layers are wanted.
        group: The process group that tensors go by; None for the default one. All flags go by the default one.
    """

    def __init__(self, rank: int, size: int, device: torch.device, group: Any = None) -> None:
        self.rank, self.size = rank, size
        self._device, self._group = device, group
        self.left = False
        self._stopped = False

    def begin(self, *, working: bool) -> bool:
        """Waits until all have come to the next round; says whether there is one.

        Args:
            working: Whether this one has batches for it.

        Raises:
            ModelError: Another rank has ended.
        """
        flag = torch.tensor([int(working)])
        self._wait([distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, async_op=True)])
        return bool(flag.item())

    def read(self, sources: Mapping[str, StoredTensor]) -> tuple[dict[str, Arrived], int]:
        """Reads tensors with the others, all of which must be asked for the same ones.

        Returns:
            The tensors, and how many bytes this process has read of them.

        Raises:
            ModelError: A file ends too early, or another rank has ended.
        """
        names = sorted(sources)
        owners = dict(zip(names, owners_of([sources[name].nbytes for name in names], self.size), strict=True))
        arriving, read = {}, 0
        for name in names:
            if owners[name] == self.rank:
                # The same place in a page as if each had read it, for the bits of products.
                arriving[name] = sources[name][...].to(self._device)
                read += sources[name].nbytes
            else:
                arriving[name] = sources[name].without_numbers(self._device)
        self._wait(
            [
                distributed.broadcast(_as_bytes(arriving[name]), src=owners[name], group=self._group, async_op=True)
                for name in names
                if sources[name].nbytes
            ]
        )
        return {name: Arrived(tensor) for name, tensor in arriving.items()}, read

    def stop(self) -> None:
        """This process does not wait for the others any more, as it ends."""
        self._stopped = True

    def _wait(self, works: Sequence[Any]) -> None:
        pause = _SHORTEST
        try:
            while not all(work.is_completed() for work in works):
                self._refuse_stopped()
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise ModelError("another rank has ended, so this one does too") from error
        except BaseException:
            self.left = True
            raise

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise ModelError("layers are not waited for any more, as the run ends")


def owners_of(sizes: Iterable[int], count: int) -> list[int]:
    """Who reads which of some tensors, so that all read alike many bytes: each next one goes to who has least.

    Args:
        sizes: Bytes of each.
        count: How many processes there are.
    """
    load = [0] * count
    owners = []
    for size in sizes:
        owners.append(owner := load.index(min(load)))
        load[owner] += size
    return owners


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, of a type that every engine sends."""
    return tensor.reshape(-1).view(torch.uint8)
