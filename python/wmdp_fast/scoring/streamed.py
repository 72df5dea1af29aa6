"""Scoring with a model whose layers are read when their turn comes: some batches at a time, layer by layer.

A chunk is as many batches as there is memory for their hidden states. Batches are those that a model in memory would
have, and what is computed of one does not depend on the others of its chunk; so scores are the same to the bit,
whatever the memory. A chunk's scores are there, and in the journal, when its last layer is done.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from wmdp_fast.checkpoints.stored_rows import bytes_of_row
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.streamed import SLACK, memory_in_use
from wmdp_fast.models.sweep import Captured, capture, finish, run_layers
from wmdp_fast.runtime.memory import in_gigabytes
from wmdp_fast.scoring.lm_head import LM_HEAD_PART

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from wmdp_fast.checkpoints.stored_rows import StoredRows
    from wmdp_fast.models.attention.packed import PrefixKVCache
    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.skeleton import Part, Skeleton
    from wmdp_fast.models.streamed import StreamedModel

_T = TypeVar("_T")

# A run has at least so many chunks, so that one that is stopped has lost a part only; but none of so few batches that
# reading would take longer than computing.
_LEAST_CHUNKS = 4
_LEAST_BATCHES = 16

# Bytes of an embedding's rows that stay from batch to batch, where those alone are read that are wanted.
_EMBEDDED = 32 << 20


@dataclass(frozen=True)
class Batch(Generic[_T]):
    """A batch of a run.

    Attributes:
        tokens: How many it has.
        run: Takes it through the model by one call, and returns what is wanted; None for one that is left out.
        skip: What is done at each layer in place of one that is left out.
        within: The context in which a layer, given by its number, runs it; None if it needs none.
    """

    tokens: int
    run: Callable[[], _T] | None
    skip: Callable[[], None] | None = None
    within: Callable[[int], AbstractContextManager[None]] | None = None


@dataclass(frozen=True)
class Needs:
    """What a run needs memory for besides weights and hidden states.

    Attributes:
        tokens: Tokens of the whole run.
        token_budget: Tokens of a batch at most.
        logits: Bytes for a batch's logits.
        carried: Bytes for the keys and values that all layers pass on from chunk to chunk.
        head_in_parts: Whether of the head a part of the vocabulary after the other is taken, see `ChunkedLMHead`.
    """

    tokens: int
    token_budget: int
    logits: int
    carried: int = 0
    head_in_parts: bool = False


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
    decoder, carried, waiting = streamed.skeleton.decoder, dict[int, Any](), iter(batches)
    layers, done, tokens_left, every = 0, 0, needs.tokens, len(streamed.order)

    def after_layer() -> None:
        nonlocal layers
        layers += 1
        if progress is not None:
            chunks = -(-layers // every) + -(-max(0, tokens_left) // max(1, done))
            progress(layers, chunks * every)

    with streamed.dropping():
        while chunk := _next_chunk(streamed, waiting, needs):
            done = sum(tokens for tokens, _ in chunk)
            tokens_left -= done
            captured = [one for _, one in chunk]
            run_layers(streamed.order, streamed.layer, captured, cache=cache, carried=carried, after=after_layer)
            with streamed.head(keep=max(0, _room(streamed, needs))) as rows:
                finished = _finished(decoder, captured)
                yield from finished if together is None else together(list(finished))
                _refuse_unread(streamed, "head", rows)


def _finished(decoder: Decoder, captured: list[Captured[_T]]) -> Iterator[_T]:
    for one in captured:
        if one.run is not None:
            yield finish(decoder, one)
            one.hidden = None


def about_streaming(streamed: StreamedModel, needs: Needs) -> str:
    """What a run says of itself before it begins."""
    skeleton = streamed.skeleton
    config: Any = skeleton.model.config.get_text_config()
    # Beside hidden states, what layers are called with: positions, for the most part.
    per_token = 1.25 * int(config.hidden_size) * skeleton.dtype.itemsize
    tokens = min(_most_tokens(streamed, needs), max(needs.token_budget, int(_room(streamed, needs) / per_token)))
    chunks = -(-needs.tokens // tokens)
    once = sum(part.stored_bytes for part in (*skeleton.layers, skeleton.embedding, skeleton.head))
    layers = f"{len(skeleton.layers)} layers of up to {in_gigabytes(max(part.nbytes for part in skeleton.layers))}"
    return (
        f"streaming {layers} in memory of {in_gigabytes(streamed.memory)}: about {in_gigabytes(once * chunks)} to read,"
        f" for {needs.tokens} tokens in about {chunks} chunk{'' if chunks == 1 else 's'}"
    )


def _most_tokens(streamed: StreamedModel, needs: Needs) -> int:
    return streamed.most_tokens or max(-(-needs.tokens // _LEAST_CHUNKS), _LEAST_BATCHES * needs.token_budget)


def _next_chunk(streamed: StreamedModel, waiting: Iterator[Batch[_T]], needs: Needs) -> list[tuple[int, Captured[_T]]]:
    """As many of the batches that wait as there is memory for, ready for the first layer; none after the last."""
    in_use = memory_in_use(streamed.skeleton.device)
    room = _room(streamed, needs, in_use)
    most = _most_tokens(streamed, needs)
    chunk: list[tuple[int, Captured[_T]]] = []
    held, tokens, seen = 0, 0, set[int]()
    with streamed.embedding() as rows:
        if rows is not None:
            rows.keep = _EMBEDDED
        for batch in waiting:
            if batch.run is None:
                chunk.append((0, Captured(None, batch.skip)))
                continue
            if not tokens:
                streamed.read_ahead()
            captured = capture(streamed.skeleton.decoder, batch.run, streamed.form)
            captured.within = batch.within
            chunk.append((batch.tokens, captured))
            held += (size := captured.nbytes(seen))
            tokens += batch.tokens
            _refuse_unread(streamed, "embedding", rows)
            if rows is not None:
                rows.trim()
            if size > room:
                _refuse_memory(streamed, needs, in_use, size)
            # The next one may be as large.
            if held + size > room or tokens + batch.tokens > most:
                break
    return chunk if tokens else []


def _refuse_unread(streamed: StreamedModel, what: str, rows: StoredRows | None) -> None:
    """Raises ModelError if of rows that are read when the model wants them none was wanted."""
    if rows is not None and not rows.bytes_read:
        name = type(streamed.skeleton.model).__name__
        raise ModelError(f"{name} does not call its {what} as others do, and is not streamed: score it in memory")


def _room(streamed: StreamedModel, needs: Needs, in_use: int | None = None) -> int:
    """Bytes that hidden states may take."""
    in_use = memory_in_use(streamed.skeleton.device) if in_use is None else in_use
    return int(streamed.memory * (1 - SLACK)) - in_use - _besides_states(streamed, needs)


def _besides_states(streamed: StreamedModel, needs: Needs) -> int:
    """Bytes that a run needs at some moment besides what it has before and hidden states."""
    skeleton = streamed.skeleton
    arriving = max(part.arriving_bytes for part in skeleton.layers)
    layer = max(part.nbytes for part in skeleton.layers)
    embedding = _rows_or_all(skeleton, skeleton.embedding, _EMBEDDED, needs.token_budget)
    head = _rows_or_all(skeleton, skeleton.head, 0, LM_HEAD_PART if needs.head_in_parts else None)
    return needs.carried + max(
        embedding + arriving,
        layer + arriving + streamed.working_bytes(needs.token_budget),
        head + needs.logits,
    )


def _rows_or_all(skeleton: Skeleton, part: Part, kept: int, rows: int | None) -> int:
    """Bytes that a part takes of which so many stay and so many rows are wanted at once; None if all of them are."""
    matrix = part.matrix
    if rows is None or matrix is None or not skeleton.has_rows(part):
        return part.arriving_bytes
    return min(part.arriving_bytes, kept + rows * bytes_of_row(matrix.nbytes // matrix.shape[0]))


def _refuse_memory(streamed: StreamedModel, needs: Needs, in_use: int, size: int) -> None:
    least = (in_use + _besides_states(streamed, needs) + size) / (1 - SLACK)
    raise ModelError(
        f"memory {in_gigabytes(streamed.memory)} is too little: {in_gigabytes(in_use)} are taken before the run, and"
        f" two layers, a batch of {needs.token_budget} tokens and what is made of it need"
        f" {in_gigabytes(least - in_use)} more. Give {in_gigabytes(least * 1.05)}, or a smaller token_budget"
    )
