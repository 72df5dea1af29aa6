"""What enters the first trained layer, where the layers below it are on the disk.

A batch that is asked for and not there goes through the layers below together with those that will be asked for next,
as many as there is room for; so the layers are read once for all of them. What training does not change does not depend
on when it is computed, nor on which other batches are computed beside it: bits are those of a model in memory.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.decoder import zero_embedding
from wmdp_fast.models.sweep import Captured, capture, layers_on_demand, run_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from wmdp_fast.models.decoder import LayerArguments
    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.layers_below import LayersBelow


class Windows:
    """Batches up to the first trained layer, computed some at a time.

    Args:
        below: The layers below the first trained one.
        stop: One more than the number of the last layer that is run.
        within: The context in which some layers, given by their numbers, run a batch.
        upcoming: The batches that will be asked for next, in about that order.
        are_same: Whether what layers are called with is equal, to the bit.
    """

    def __init__(
        self,
        below: LayersBelow,
        stop: int,
        within: Callable[[Batch, range], AbstractContextManager[None]],
        upcoming: Callable[[], Iterable[Batch]],
        are_same: Callable[[Any, Any], bool],
    ) -> None:
        self._below, self._streamed, self._stop = below, below.streamed, stop
        self._first = len(below.streamed.order)
        self._decoder = below.streamed.skeleton.decoder
        self._within, self._upcoming, self._are_same = within, upcoming, are_same
        # Of another run with the same model, which may train other layers.
        below.held.clear()
        # Whether batches are packed, of the kinds that were tried.
        self._proven: set[bool] = set()

    def hidden(self, batch: Batch) -> Tensor:
        """What enters the first trained layer, [B, S, d].

        Raises:
            ModelError: Layer by layer, this architecture gives other numbers, or its layers take more from those below
                than their output.
            NotPackableError: The batch has a layout, and the model asks something of its attention that this does not
                offer.
        """
        key = _key(batch)
        held = self._below.held
        if key not in held:
            held.clear()
            self._below.give_back()
            if (packed := batch.layout is not None) not in self._proven:
                self._refuse_unproven(batch)
                self._proven.add(packed)
            held.update(self._swept(self._streamed, chain([batch], self._upcoming())))
            self._below.give_back()
        return held[key]

    def arguments(self, batch: Batch) -> dict[int, LayerArguments]:
        """What the layers from the first trained one on are called with besides; nothing is read for it."""
        with torch.no_grad(), self._within(batch, range(0)), zero_embedding(self._decoder):
            return self._decoder.run_to(self._first, self._stop, batch.inputs, skip=True)[1]

    @torch.no_grad()
    def _swept(self, streamed: StreamedModel, batches: Iterable[Batch]) -> dict[Hashable, Tensor]:
        """The first batch, and of those after it as many as there is room for, layer by layer over all of them."""
        captured: dict[Hashable, Captured[Any]] = {}
        held, seen = 0, set[int]()
        with streamed.dropping():
            with streamed.embedding():
                streamed.read_ahead()
                for batch in batches:
                    if (key := _key(batch)) in captured:
                        continue
                    one = self._captured(streamed, batch)
                    held += one.nbytes(seen)
                    if captured and held > self._below.room:
                        break
                    captured[key] = one
            run_layers(streamed.order, streamed.layer, list(captured.values()))
        found = {}
        for key, one in captured.items():
            assert one.hidden is not None  # noqa: S101 (for the type checker: it was captured)
            found[key] = one.hidden
        return found

    def _captured(self, streamed: StreamedModel, batch: Batch) -> Captured[Any]:
        call: Any = self._decoder.model
        with self._within(batch, range(0)):
            found = capture(self._decoder, partial(call, **batch.inputs, use_cache=False), streamed.form)
        found.within = lambda index: self._within(batch, range(index, index + 1))
        return found

    @torch.no_grad()
    def _refuse_unproven(self, batch: Batch) -> None:
        """Raises ModelError unless a layer of each kind gives the same bits in both orders, and only its output on."""
        few = self._streamed.one_of_each()

        @contextmanager
        def use(index: int) -> Iterator[nn.Module]:
            with few.layer(index) as layer, self._within(batch, range(index, index + 1)):
                yield layer

        # Layers that are left out hand on what they are given.
        on_demand = layers_on_demand(self._decoder, few.order, use, few.form)
        with few.embedding(), few.dropping(), self._within(batch, range(0)), on_demand:
            expected, arguments = self._decoder.run_to(self._first, self._stop, batch.inputs)
        [found] = self._swept(few, [batch]).values()
        name = type(self._decoder.model).__name__
        if not torch.equal(found, expected):
            raise ModelError(
                f"{name} cannot be streamed: tried on a batch, its layers gave other numbers one by one than in the"
                " model's own order; leave memory and stream out"
            )
        if not self._are_same(arguments, self.arguments(batch)):
            raise ModelError(
                f"{name} passes more between its layers than the residual stream, so those below the trained ones"
                " cannot be streamed: leave memory and stream out"
            )


def _key(batch: Batch) -> Hashable:
    return batch.key, batch.layout is None
