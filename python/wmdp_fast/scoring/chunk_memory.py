"""What a chunk of batches takes of the memory that a streamed model may take, and how many batches it therefore has."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from wmdp_fast.checkpoints.stored_rows import bytes_of_row
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.streamed import SLACK, memory_in_use
from wmdp_fast.runtime.memory import give_back, in_gigabytes
from wmdp_fast.scoring.lm_head import LM_HEAD_PART

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wmdp_fast.models.skeleton import Part, Skeleton
    from wmdp_fast.models.streamed import StreamedModel

# A run has at least so many chunks, so that one that is stopped has lost a part only; but none of so few batches that
# reading would take longer than computing.
_LEAST_CHUNKS = 4
_LEAST_BATCHES = 16

EMBEDDED = 32 << 20
"""Bytes of an embedding's rows that stay from batch to batch, where those alone are read that are wanted."""

LEAST_BUDGET = 64
"""Smaller batches than of so many tokens are not tried where there is little memory: they would hardly take less."""

# Of the memory, what a plan leaves: by that much it may be wrong about what is in use when a run begins.
_SPARE = 0.01


@dataclass(frozen=True)
class Needs:
    """What a run needs memory for besides weights and hidden states.

    Attributes:
        tokens: Tokens of the whole run.
        token_budget: Tokens of a batch at most.
        logits: Bytes for a batch's logits.
        batches: For each batch its tokens, and the bytes of keys and values of all layers that it passes on to the
            next; empty if batches pass nothing on.
        head_in_parts: Whether of the head a part of the vocabulary after the other is taken, see `ChunkedLMHead`.
    """

    tokens: int
    token_budget: int
    logits: int
    batches: Sequence[tuple[int, int]] = ()
    head_in_parts: bool = False


@dataclass
class Filling:
    """A chunk that is being filled with batches.

    It can end where hidden states and what its last batch passes on to the next chunk fit.

    Attributes:
        room: Bytes that they may take.
        most: Tokens after which it should end.
        held: Bytes of hidden states.
        tokens: How many it has.
        batches: How many it has.
        end: How many it has up to the last one that it can end with; None as long as there is none.
    """

    room: int
    most: int
    held: int = 0
    tokens: int = 0
    batches: int = 0
    end: int | None = None

    def add(self, tokens: int, held: int, passed_on: int) -> bool:
        """Adds a batch; says whether there is room for one more that is as large.

        Args:
            tokens: How many it has.
            held: Bytes of its hidden states.
            passed_on: Bytes of keys and values that it leaves to the next one.
        """
        self.batches += 1
        self.tokens += tokens
        self.held += held
        if self.held + passed_on <= self.room:
            self.end = self.batches
        if self.held + held > self.room:
            return False
        return self.end is None or self.tokens + tokens <= self.most


def most_tokens(streamed: StreamedModel, needs: Needs) -> int:
    """Tokens after which a chunk should end, whatever memory there is."""
    return streamed.most_tokens or max(-(-needs.tokens // _LEAST_CHUNKS), _LEAST_BATCHES * needs.token_budget)


def room_for_states(streamed: StreamedModel, needs: Needs, in_use: int) -> int:
    """Bytes that hidden states may take, and what a chunk's last batch passes on.

    Args:
        streamed: The model.
        needs: What else the run needs.
        in_use: Bytes that are taken before the chunk.
    """
    return int(streamed.memory * (1 - SLACK)) - in_use - _besides_states(streamed, needs)


def refuse_memory(streamed: StreamedModel, needs: Needs, in_use: int, size: int) -> NoReturn:
    """Raises ModelError that says how much memory there would have to be.

    Args:
        streamed: The model.
        needs: What the run needs.
        in_use: Bytes that are taken before the chunk.
        size: Bytes for a single batch's hidden states and what it passes on.
    """
    least = (in_use + _besides_states(streamed, needs) + size) / (1 - SLACK)
    raise ModelError(
        f"memory {in_gigabytes(streamed.memory)} is too little: {in_gigabytes(in_use)} are taken before the run, and"
        f" two layers, a batch of {needs.token_budget} tokens and what is made of it need"
        f" {in_gigabytes(least - in_use)} more. Give {in_gigabytes(least * 1.05)}, or a smaller token_budget"
    )


def keep_room(streamed: StreamedModel, needs: Needs) -> Callable[[], None]:
    """What gives freed memory back to the system if there is not room for a layer that arrives and a batch.

    States of batches are freed and made anew at each layer, between which the C library's heap gets holes. It is called
    after each batch.
    """
    skeleton = streamed.skeleton
    arriving = max(streamed.arriving_bytes(part) for part in skeleton.layers)
    least = streamed.memory * (1 - SLACK) - arriving - streamed.working_bytes(needs.token_budget)

    def keep() -> None:
        if skeleton.device.type == "cpu" and memory_in_use(skeleton.device) > least:
            give_back()

    return keep


def chunks_of(streamed: StreamedModel, needs: Needs) -> int | None:
    """About how many chunks a run has with the memory that is free now; None if there may not be enough for one."""
    give_back()
    # Beside hidden states, what layers are called with: positions, for the most part.
    config: Any = streamed.skeleton.model.config.get_text_config()
    per_token = 1.25 * int(config.hidden_size) * streamed.skeleton.dtype.itemsize
    room = room_for_states(streamed, needs, memory_in_use(streamed.skeleton.device)) - int(_SPARE * streamed.memory)
    most = most_tokens(streamed, needs)
    if not needs.batches:
        if room < per_token * needs.token_budget:
            return None
        return max(1, -(-needs.tokens // min(most, max(needs.token_budget, int(room / per_token)))))
    chunks, begin, before = 0, 0, 0
    while begin < len(needs.batches):
        filling = Filling(room - before, most)
        for tokens, passed_on in needs.batches[begin:]:
            if not filling.add(tokens, int(per_token * tokens), max(0, passed_on - before)):
                break
        if filling.end is None:
            return None
        chunks, begin = chunks + 1, begin + filling.end
        before = needs.batches[begin - 1][1]
    return max(1, chunks)


def budget_that_fits(
    streamed: StreamedModel, usual: int, needs_of: Callable[[int], Needs], *, warn: bool = True
) -> int:
    """The usual token budget, or where memory is too little for that the largest half, quarter, ... that fits.

    What it is in place of then stands in `streamed.cost`. If none of them fits, the smallest.

    Args:
        streamed: The model.
        usual: The token budget in memory.
        needs_of: What a run with a token budget needs.
        warn: Whether to say so.

    Warns:
        WmdpFastWarning: It is not the usual one, so that numbers are not those of the model in memory to the bit.
    """
    budget = usual
    while budget // 2 >= LEAST_BUDGET and chunks_of(streamed, needs_of(budget)) is None:
        budget //= 2
    if budget < usual and warn:
        streamed.cost.usual_token_budget = usual
        warnings.warn(
            f"memory {in_gigabytes(streamed.memory)} is too little for batches of {usual} tokens, so they have at most"
            f" {budget}: numbers differ by rounding from those of the model in memory, but not from those that it has"
            f" with token_budget {budget}",
            WmdpFastWarning,
            stacklevel=5,
        )
    return budget


def about_streaming(streamed: StreamedModel, needs: Needs, shards: int) -> str:
    """What a run in so many shards says of itself before it begins."""
    skeleton = streamed.skeleton
    tokens, sharing = needs.tokens, 1 if streamed.together is None else streamed.together.size
    if shards > 1:
        batches = needs.batches[: -(-len(needs.batches) // shards)]
        needs = replace(needs, tokens=-(-tokens // shards), batches=batches)
    # With too little memory, which is said when the run begins, each batch would be one.
    chunks = chunks_of(streamed, needs) or -(-needs.tokens // max(1, needs.token_budget))
    # All processes go through the layers at once.
    chunks *= -(-shards // sharing)
    once = streamed.stored_bytes
    layers = f"{len(skeleton.layers)} layers of up to {in_gigabytes(max(part.nbytes for part in skeleton.layers))}"
    each = "" if sharing == 1 else f" for each of {sharing} processes, which read them together"
    return (
        f"streaming {layers} in memory of {in_gigabytes(streamed.memory)}{each}: about {in_gigabytes(once * chunks)} to"
        f" read, for {tokens} tokens in about {chunks} chunk{'' if chunks == 1 else 's'}"
    )


def _besides_states(streamed: StreamedModel, needs: Needs) -> int:
    """Bytes that a run needs at some moment besides what it has before and hidden states."""
    skeleton = streamed.skeleton
    arriving = max(streamed.arriving_bytes(part) for part in skeleton.layers)
    layer = max(part.nbytes for part in skeleton.layers)
    embedding = _rows_or_all(skeleton, skeleton.embedding, EMBEDDED, needs.token_budget)
    head = _rows_or_all(skeleton, skeleton.head, 0, LM_HEAD_PART if needs.head_in_parts else None)
    return max(
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
