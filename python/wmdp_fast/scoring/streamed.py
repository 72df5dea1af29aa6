"""Scoring with a model whose layers are read when their turn comes: some batches at a time, layer by layer.

A chunk is as many batches as there is memory for their hidden states. Batches are those that a model in memory would
have, and what is computed of one does not depend on the others of its chunk; so scores are the same to the bit,
whatever the memory, unless it is too little for such batches and they are made smaller (`chunk_memory`). A chunk's
scores are there, and in the journal, when its last layer is done.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.streamed import memory_in_use
from wmdp_fast.models.sweep import Captured, capture, finish, run_layers
from wmdp_fast.runtime.memory import give_back
from wmdp_fast.scoring.chunk_memory import EMBEDDED, Filling, keep_room, most_tokens, refuse_memory, room_for_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from wmdp_fast.checkpoints.stored_rows import StoredRows
    from wmdp_fast.models.attention.packed import PrefixKVCache
    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.scoring.chunk_memory import Needs

_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch(Generic[_T]):
    """A batch of a run.

    Attributes:
        tokens: How many it has.
        run: Takes it through the model by one call, and returns what is wanted; None for one that is left out.
        skip: What is done at each layer in place of one that is left out.
        passed_on: Bytes of keys and values, of all layers, that it leaves to the next one.
        within: The context in which a layer, given by its number, runs it; None if it needs none.
    """

    tokens: int
    run: Callable[[], _T] | None
    skip: Callable[[], None] | None = None
    passed_on: int = 0
    within: Callable[[int], AbstractContextManager[None]] | None = None


@contextmanager
def for_trials(loaded: LoadedModel, *, to_the_bit: bool = False) -> Iterator[LoadedModel]:
    """Inside, a model that can be called as one in memory, for trials on few tokens.

    Of a streamed one, only a layer of each kind is run, and read at each call.

    Args:
        loaded: The model.
        to_the_bit: Whether the trial is one of bits; otherwise the head of a streamed model takes less memory.
    """
    if loaded.streamed is None:
        yield loaded
        return
    with loaded.streamed.one_of_each().on_demand(in_parts=not to_the_bit):
        yield replace(loaded, streamed=None)


def refuse_unproven(loaded: LoadedModel, score: Callable[[LoadedModel], NDArray[np.float64]]) -> None:
    """Raises ModelError unless excerpts are scored layer by layer as they are in the plain order, to the bit.

    Args:
        loaded: A streamed model.
        score: Scores the excerpts.
    """
    if loaded.streamed is None:
        return
    with for_trials(loaded, to_the_bit=True) as plain:
        expected = score(plain)
    found = score(replace(loaded, streamed=loaded.streamed.one_of_each()))
    if not np.array_equal(expected, found, equal_nan=True):
        worst = float(np.nanmax(np.abs(found - expected)))
        raise ModelError(
            f"{loaded.name} cannot be streamed: tried on excerpts, log-likelihoods layer by layer were up to"
            f" {worst:.3g} from those in the model's own order; score it in memory"
        )


def scored_in_chunks(
    streamed: StreamedModel,
    batches: Iterable[Batch[_T]],
    needs: Needs,
    *,
    cache: PrefixKVCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    together: Callable[[list[_T]], list[_T]] | None = None,
) -> Iterator[_T]:
    """What the `run` of each batch returns, in their order.

    Args:
        streamed: The model.
        batches: The batches; taken when there is room for them.
        needs: What the run needs memory for.
        cache: What batches pass on to the next, by trie.
        progress: Called after each layer with how many are done over all chunks, and about how many there are.
        together: Makes what is yielded of what all batches of a chunk have returned, while the head is there.

    Raises:
        ModelError: There is not memory enough for a single batch.
    """
    decoder, carried, waiting = streamed.skeleton.decoder, dict[int, Any](), _Waiting(iter(batches))
    layers, done, tokens_left, every = 0, 0, needs.tokens, len(streamed.order)
    between = keep_room(streamed, needs)

    def after_layer() -> None:
        nonlocal layers
        layers += 1
        if progress is not None:
            chunks = -(-layers // every) + -(-max(0, tokens_left) // max(1, done))
            progress(layers, chunks * every)

    with streamed.dropping():
        while chunk := _next_chunk(streamed, waiting, needs):
            done = sum(batch.tokens for batch, _ in chunk if batch.run is not None)
            tokens_left -= done
            captured = [one for _, one in chunk]
            run_layers(
                streamed.order,
                streamed.layer,
                captured,
                cache=cache,
                carried=carried,
                between=between,
                after=after_layer,
            )
            waiting.passed_on = chunk[-1][0].passed_on
            room = room_for_states(streamed, needs, memory_in_use(streamed.skeleton.device))
            with streamed.head(keep=max(0, room)) as rows:
                finished = _finished(decoder, captured)
                yield from finished if together is None else together(list(finished))
                _refuse_unread(streamed, "head", rows)


def read_along(streamed: StreamedModel, after_layer: Callable[[], object]) -> None:
    """Takes part in reading layers for other processes until none of them has batches left.

    Args:
        streamed: The model; nothing is done if this process reads it alone.
        after_layer: Called after each layer.

    Raises:
        ModelError: Another rank has ended.
    """
    if streamed.together is None:
        return
    with streamed.dropping():
        while streamed.together.begin(working=False):
            streamed.read_ahead()
            for index in streamed.order:
                with streamed.layer(index):
                    after_layer()


class _Waiting(Generic[_T]):
    """The batches that are still to be run.

    Attributes:
        passed_on: Bytes of keys and values that the last batch which was run has left to the next one.
    """

    def __init__(self, batches: Iterator[Batch[_T]]) -> None:
        self.passed_on = 0
        self._back: list[Batch[_T]] = []
        self._batches = batches

    def __iter__(self) -> Iterator[Batch[_T]]:
        return self

    def __next__(self) -> Batch[_T]:
        return self._back.pop() if self._back else next(self._batches)

    def put_back(self, batches: Sequence[Batch[_T]]) -> None:
        """These come next, in this order."""
        self._back.extend(reversed(batches))


def _finished(decoder: Decoder, captured: list[Captured[_T]]) -> Iterator[_T]:
    for one in captured:
        if one.run is not None:
            yield finish(decoder, one)
            one.hidden = None


def _next_chunk(streamed: StreamedModel, waiting: _Waiting[_T], needs: Needs) -> list[tuple[Batch[_T], Captured[_T]]]:
    """As many of the batches that wait as there is memory for, ready for the first layer; none after the last."""
    give_back()
    in_use = memory_in_use(streamed.skeleton.device)
    filling = Filling(room_for_states(streamed, needs, in_use), most_tokens(streamed, needs))
    chunk: list[tuple[Batch[_T], Captured[_T]]] = []
    seen, size = set[int](), 0
    with streamed.embedding() as rows:
        if rows is not None:
            rows.keep = EMBEDDED
        for batch in waiting:
            # What the chunk before has left is in use already, and makes place as layers are run.
            passed_on = max(0, batch.passed_on - waiting.passed_on)
            if batch.run is None:
                chunk.append((batch, Captured(None, batch.skip)))
                filling.add(0, 0, passed_on)
                continue
            if not filling.tokens:
                if streamed.together is not None:
                    streamed.together.begin(working=True)
                streamed.read_ahead()
            captured = capture(streamed.skeleton.decoder, batch.run, streamed.form)
            captured.within = batch.within
            chunk.append((batch, captured))
            _refuse_unread(streamed, "embedding", rows)
            if rows is not None:
                rows.trim()
            size = captured.nbytes(seen)
            if not filling.add(batch.tokens, size, passed_on):
                break
    if not filling.tokens:
        return []
    if filling.end is None:
        refuse_memory(streamed, needs, in_use, size + chunk[-1][0].passed_on)
    end = filling.end
    waiting.put_back([batch for batch, _ in chunk[end:]])
    return chunk[:end]


def _refuse_unread(streamed: StreamedModel, what: str, rows: StoredRows | None) -> None:
    """Raises ModelError if of rows that are read when the model wants them none was wanted."""
    if rows is not None and not rows.bytes_read:
        name = type(streamed.skeleton.model).__name__
        raise ModelError(f"{name} does not call its {what} as others do, and is not streamed: score it in memory")
