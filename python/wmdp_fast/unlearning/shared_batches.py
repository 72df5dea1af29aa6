"""Batches that several processes share, which hold one model together: each runs some of a batch's documents.

What a loss is made of are the losses (or last hidden states) of tokens. Each process computes those of its documents,
and all get those of all, in the order of the batch. From there on everything is computed by all, as one process would:
means over tokens or documents, and whatever a method makes of them. The gradient of such a loss by the weights is a sum
over tokens, so each process differentiates through its own, and the sums of all are added up: by the chain rule that is
the gradient of the whole batch, whatever the loss. It differs from one process's by rounding alone.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch

# Type checkers do not see all of its names.
distributed: Any = torch.distributed

_T = TypeVar("_T")


class SharedBatches:
    """The processes of torch's process group, which share batches and must all be asked for the same ones.

    Attributes:
        rank: The number of this one.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def part_of(self, batch: Batch) -> tuple[Batch, bool]:
        """This process's documents of a batch, neighbors, and whether they are its own.

        Where there are fewer documents than processes, one without any runs the first, as all must run the layers alike
        often; that is not its own, and counts nowhere.
        """
        first, last = self._bounds(len(batch.documents))[self.rank : self.rank + 2]
        return (batch.part(first, last), True) if first < last else (batch.part(0, 1), False)

    def gathered(self, own: Tensor, document: Tensor, num_documents: int) -> Tensor:
        """The rows of all processes, with gradients for this one's.

        Args:
            own: A row for each token of this process's documents, `[n, ...]`.
            document: The places of the documents of all tokens in the batch, int64 `[N]`, ascending.
            num_documents: Of the batch.

        Returns:
            `[N, ...]`.
        """
        found: Tensor = _Gathered.apply(own, self._ends(document, num_documents), self.rank)
        return found

    def rows_of_own(self, document: Tensor, num_documents: int) -> slice:
        """Which rows are those of this process's documents, where there is one for each token of a batch.

        Arguments are those of `gathered`.
        """
        return slice(*self._ends(document, num_documents)[self.rank : self.rank + 2])

    def summed(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The sums of all processes' tensors of the same shapes, all of one type."""
        flat = torch.cat([tensor.reshape(-1) for tensor in own])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in own])
        return [part.view_as(tensor) for part, tensor in zip(parts, own, strict=True)]

    def from_first(self, own: _T) -> _T:
        """What the first process has; it is pickled."""
        box = [own if self.rank == 0 else None]
        distributed.broadcast_object_list(box, src=0)
        return cast("_T", box[0])

    def _ends(self, document: Tensor, num_documents: int) -> list[int]:
        """The first row of each process's documents, and the number of rows at the end."""
        bounds = torch.tensor(self._bounds(num_documents), device=document.device)
        return torch.searchsorted(document, bounds).tolist()

    def _bounds(self, count: int) -> list[int]:
        """The first of so many documents that is each process's, and their number at the end."""
        return [rank * count // self.size for rank in range(self.size + 1)]


class _Gathered(torch.autograd.Function):
    """Rows of all processes, those of each from where the one before ends."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ends: Sequence[int], rank: int) -> Tensor:
        places = [slice(*pair) for pair in itertools.pairwise(ends)]
        ctx.place = places[rank]
        counts = [place.stop - place.start for place in places]
        # Of one size, as what sends them wants it.
        sent = own.new_zeros(max(counts), *own.shape[1:])
        sent[: len(own)] = own
        every = [torch.empty_like(sent) for _ in counts]
        distributed.all_gather(every, sent)
        return torch.cat([rows[:count] for rows, count in zip(every, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None]:
        return slopes[ctx.place], None, None
