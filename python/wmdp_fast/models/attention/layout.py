"""Where the segments of a packed batch lie: what the kernels go by in place of a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """Where the segments of a batch lie.

    Attributes:
        positions: int64 [T], the depth in tokens of each token of the batch.
        num_carried: Tokens carried over from the batch before: one path of the trie, root first.
        segments: int64 [S, 4], depth-first: first key, last key + 1, subtree's last key + 1, position of the first key.
        keep: int64 [K, 2], runs of keys (first, last + 1) that the next batch wants carried over: one path, root first.
    """

    positions: NDArray[np.int64]
    num_carried: int
    segments: NDArray[np.int64]
    keep: NDArray[np.int64]
    _on_device: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of_documents(cls, lengths: Sequence[int]) -> Layout:
        """Documents of at least one token, packed back to back, none of which sees anything of another."""
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - np.asarray(lengths, dtype=np.int64)
        return cls(
            positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            num_carried=0,
            segments=np.stack([starts, ends, ends, np.zeros_like(starts)], axis=1),
            keep=np.zeros((0, 2), dtype=np.int64),
        )

    def on_device(
        self, name: Any, arrays: Callable[[], Sequence[NDArray[Any]]], device: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """Arrays made from this layout, as tensors on a device; made and brought there once for all that ask by name.

        To a GPU they go by copies that nobody waits for, which takes pinned memory.
        """
        found = self._on_device.get((name, device))
        if found is None:
            tensors = [torch.from_numpy(array) for array in arrays()]
            if device.type == "cuda":
                tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
            found = self._on_device[name, device] = tuple(tensors)
        return cast("tuple[torch.Tensor, ...]", found)
