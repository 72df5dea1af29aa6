"""The plain way of scoring: one padded row for each distinct input, a batch of rows for each forward pass.

It is the reference for faster ways, and what they fall back on: it works for every causal model.

Rows are padded on the right and no attention mask is passed, as in lm-eval: in a causal model no token sees what comes
after it, so nothing but padding sees the padding. Where a model goes by the longest row of a batch, rows that this
would change are kept apart; see `row_length`.
"""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from functools import partial as partial_function
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.head import head_of, logits_at
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import all_logits, are_close, selected_logits
from wmdp_fast.models.row_length import cuts_for, length_rules
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.chunk_memory import Needs, budget_that_fits
from wmdp_fast.scoring.excerpts import excerpts_of
from wmdp_fast.scoring.journal import Plan
from wmdp_fast.scoring.ranks import smallest
from wmdp_fast.scoring.scores import NAN_ADVICE, NumbersError, PartialScores, score_targets
from wmdp_fast.scoring.streamed import Batch, for_trials, refuse_unproven, scored_in_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from wmdp_fast._rust import PaddedBatch, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.row_length import LengthRule
    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.scoring.scores import ScoreMode, Scores, TargetScores

    LogitsReader = Callable[[torch.nn.Module, torch.Tensor, NDArray[np.int64]], torch.Tensor]

CPU_TOKEN_BUDGET = 1024
"""Maximum tokens per batch on a CPU: measured on a model of 135M parameters, 500 to 2,000 are about equally fast and
more are slower, as what a layer makes of them no longer fits into the caches."""

MAX_CUDA_TOKEN_BUDGET = 32768
"""Maximum tokens per batch on a GPU, where larger batches are no faster."""

_CUDA_MEMORY_SHARE = 0.8

# For logits that are read some rows at a time.
_PARTS_BYTES = 64 << 20


def score_padded(
    loaded: LoadedModel,
    requests: Requests,
    *,
    token_budget: int | Literal["auto"] = "auto",
    score_mode: ScoreMode = "float32",
    progress: Callable[[int, int], None] | None = None,
    partial: PartialScores | None = None,
    every_logit: bool | None = None,
    read: Callable[[torch.Tensor, PaddedBatch], TargetScores] | None = None,
) -> Scores:
    """Scores all requests.

    Only the logits at readouts are computed, if there is a way to do so (`logits_reader`); else all of them, with a
    warning. Which it is, and that padding changes nothing, is tried first on a few tokens.

    Out of memory, the budget is halved and scoring goes on at the same row; finished rows are kept.

    Args:
        loaded: The model; it is left as it was found, see `evaluation_mode`.
        requests: What to score.
        token_budget: Maximum tokens per batch, padding included; `"auto"` goes by the device and its free memory.
        score_mode: How log-probabilities are computed, see `ScoreMode`.
        progress: Called after each batch with the number of rows finished and of all rows.
        partial: Where scores are entered as they are finished, for a caller that wants them even if the run is
            interrupted. Rows that are finished in it already are not scored again.
        every_logit: Whether to compute all logits. Given that, nothing is tried first.
        read: What takes a batch and its token ids on the device through the model, and scores its targets; None for
            the logits at readouts.

    Raises:
        ModelError: Not even one row fits into memory, the model's output is not a number, or, where it is tried, its
            output at a token depends on later tokens. The message says what to do.
        ValueError: `token_budget` is less than 1.
    """
    if token_budget != "auto" and token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    model, device = loaded.model, loaded.device
    partial = PartialScores.empty(requests.num_choices) if partial is None else partial
    longest = longest_row(requests)
    rules = length_rules(model, longest)
    cuts, remembered = cuts_for(rules, longest), _remembered(loaded, rules, longest)
    if remembered < longest and partial.numbers is not None:
        raise ModelError(
            f"{loaded.name}: rotary angles (dynamic) depend on the longest rows of the whole run, so it cannot be cut"
            " into shards: score it in one process, without shards"
        )
    with evaluation_mode(model):
        tried, in_parts = every_logit is not None, read is not None
        with computing(), nullcontext() if tried else for_trials(loaded):
            read, every_logit = _reading(model, device, every_logit, score_mode, read)
        if loaded.streamed is not None and not tried:
            refuse_unproven(loaded, partial_function(_of_excerpts, requests, score_mode, every_logit, read))
        if (resumed := partial.resumed_plan("padded", token_budget)) is not None:
            budget, partial.next_row = resumed.token_budget, 0 if remembered < longest else resumed.start
        else:
            needs_of = partial_function(_needs, loaded, requests, every_logit, in_parts)
            budget = _first_budget(loaded, requests, token_budget, every_logit, needs_of)
        partial.begin(Plan("padded", token_budget, budget, partial.next_row))
        following = partial_function(_next_batch, requests, partial, cuts, remembered)
        while (batch := following(partial.next_row, budget)) is not None:
            if loaded.streamed is not None:
                needs = _needs(loaded, requests, every_logit, in_parts, budget)
                failed = _score_streamed(loaded.streamed, needs, following, device, read, partial, progress)
            else:
                failed = None if _score_batch(batch, device, read, partial) else batch
            if failed is not None:
                refuse_smaller(loaded, budget)
                budget = _smaller_budget(failed, device, warn=token_budget != "auto")
                partial.begin(Plan("padded", token_budget, budget, partial.next_row))
            elif progress is not None and loaded.streamed is None:
                progress(partial.next_row, requests.num_rows)
    return partial.scores(tokens_useful=requests.num_tokens, token_budget=budget, engine="padded")


def _score_batch(
    batch: PaddedBatch,
    device: torch.device,
    read: Callable[[torch.Tensor, PaddedBatch], TargetScores],
    partial: PartialScores,
) -> bool:
    """Scores a batch and enters its scores; False if memory ran out, of which nothing is left when this returns."""
    begin = time.perf_counter()
    try:
        with computing():
            targets = read(torch.from_numpy(batch.input_ids).to(device), batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    _enter(targets, batch, partial, begin)
    return True


def _enter(targets: TargetScores, batch: PaddedBatch, partial: PartialScores, begin: float) -> None:
    """Enters the scores of a batch, on which work was begun at a time."""
    partial.add(targets, batch.target_choices)
    partial.next_row = batch.stop
    partial.seconds += time.perf_counter() - begin
    partial.tokens_run += batch.input_ids.size
    partial.batches += 1


def _score_streamed(
    streamed: StreamedModel,
    needs: Needs,
    following: Callable[[int, int], PaddedBatch | None],
    device: torch.device,
    read: Callable[[torch.Tensor, PaddedBatch], TargetScores],
    partial: PartialScores,
    progress: Callable[[int, int], None] | None,
) -> PaddedBatch | None:
    """Scores all batches from the row at hand on, layer by layer; returns the largest one if memory ran out."""
    taken: list[PaddedBatch] = []

    def run(batch: PaddedBatch) -> TargetScores:
        with computing():
            return read(torch.from_numpy(batch.input_ids).to(device), batch)

    def prepared() -> Iterator[Batch[TargetScores]]:
        row = partial.next_row
        while (batch := following(row, needs.token_budget)) is not None:
            row = batch.stop
            taken.append(batch)
            yield Batch(batch.input_ids.size, partial_function(run, batch))

    begin = time.perf_counter()
    try:
        for targets in scored_in_chunks(streamed, prepared(), needs, progress=progress):
            _enter(targets, taken.pop(0), partial, begin)
            begin = time.perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return max(taken, key=lambda batch: batch.input_ids.size)
    return None


def _first_budget(
    loaded: LoadedModel,
    requests: Requests,
    asked: int | Literal["auto"],
    every_logit: bool,
    needs_of: Callable[[int], Needs],
) -> int:
    """The token budget to begin with."""
    if asked != "auto":
        return asked
    budget = auto_token_budget(loaded, requests, every_logit=every_logit)
    return budget if loaded.streamed is None else budget_that_fits(loaded.streamed, budget, needs_of)


def _needs(loaded: LoadedModel, requests: Requests, every_logit: bool, in_parts: bool, budget: int) -> Needs:
    """What a run with a streamed model needs memory for besides its weights and hidden states."""
    first = requests.padded_batch(0, budget)
    size = 0 if first is None else int(first.input_ids.size)
    if first is not None and first.stop < requests.num_rows:
        # Rows get shorter, so that only the first one can be longer than the budget.
        size = max(size, budget)
    if in_parts:
        return Needs(requests.num_tokens, size, _PARTS_BYTES)
    config: Any = loaded.model.config
    vocabulary = int(config.get_text_config().vocab_size)
    positions = 0 if first is None else first.input_ids.size if every_logit else len(first.readouts)
    return Needs(requests.num_tokens, size, positions * vocabulary * (loaded.dtype.itemsize + 8))


def _of_excerpts(
    requests: Requests,
    score_mode: ScoreMode,
    every_logit: bool,
    read: Callable[[torch.Tensor, PaddedBatch], TargetScores],
    loaded: LoadedModel,
) -> NDArray[np.float64]:
    excerpts = excerpts_of(loaded.model, requests)
    # Where memory is little, these few tokens go through the model as they are.
    budget = auto_token_budget(loaded, excerpts, every_logit=every_logit)
    found = score_padded(
        loaded, excerpts, token_budget=budget, score_mode=score_mode, every_logit=every_logit, read=read
    )
    return found.loglikelihood


def _remembered(loaded: LoadedModel, rules: Sequence[LengthRule], longest: int) -> int:
    """Longer rows leave something behind for those after them, so they are run even if they are finished."""
    length = min((rule.limit for rule in rules if rule.kind == "dynamic"), default=longest)
    if length < longest:
        warnings.warn(
            f"{loaded.name}: rotary angles (dynamic) of rows beyond {length} tokens depend on the longest rows of the"
            f" run (of {longest} tokens), as they do in lm-eval: compare only runs of the very same questions",
            WmdpFastWarning,
            stacklevel=4,
        )
    return length


def longest_row(requests: Requests) -> int:
    """Tokens of the longest row of a run."""
    batch = requests.padded_batch(0, 1)
    return 0 if batch is None else int(batch.lengths[0])


def _next_batch(
    requests: Requests, partial: PartialScores, cuts: Sequence[int], remembered: int, row: int, budget: int
) -> PaddedBatch | None:
    """The next batch from a row on that has anything to score or is longer than `remembered`; None after the last."""
    begin = time.perf_counter()
    while (batch := requests.padded_batch(row, budget, cuts)) is not None:
        if batch.lengths[0] > remembered or not partial.finished[batch.target_choices].all():
            break
        row = batch.stop
    partial.seconds_waiting += time.perf_counter() - begin
    return batch


def _reading(
    model: torch.nn.Module,
    device: torch.device,
    every_logit: bool | None,
    score_mode: ScoreMode,
    given: Callable[[torch.Tensor, PaddedBatch], TargetScores] | None,
) -> tuple[Callable[[torch.Tensor, PaddedBatch], TargetScores], bool]:
    """What scores the targets of a batch, and whether it has to do with logits at all positions."""
    if given is not None:
        if every_logit is None:
            logits_of_few_tokens(model, device)
        return given, True
    if every_logit is None:
        logits_of, every_logit = logits_reader(model, device)
    else:
        logits_of = all_logits if every_logit else selected_logits

    def read(input_ids: torch.Tensor, batch: PaddedBatch) -> TargetScores:
        logits = logits_of(model, input_ids, batch.readouts)
        return score_targets(logits, batch.target_readouts, batch.target_tokens, score_mode)

    return read, every_logit


def logits_of_few_tokens(
    model: torch.nn.Module, device: torch.device
) -> tuple[torch.Tensor, NDArray[np.int64], torch.Tensor]:
    """Tries a model on a few tokens: their ids, some readouts, and the logits there.

    Raises:
        ModelError: The model's output is not a number, or padding changes it.
    """
    # A row of three tokens, and one of two with padding behind.
    input_ids = torch.tensor([[1, 2, 1], [2, 1, 0]], device=device)
    readouts = np.array([[0, 2], [1, 0], [1, 1]])
    logits = all_logits(model, input_ids, readouts)
    if logits.isnan().any():
        raise NumbersError(NAN_ADVICE)
    unpadded = all_logits(model, input_ids[1:, :2], np.array([[0, 0], [0, 1]]))
    # A model may hide padding from itself and see the tokens that follow all the same, such as those of a choice.
    places = np.array([[0, 0], [0, 1]])
    beginning, followed = (all_logits(model, input_ids[:1, :end], places) for end in (2, 3))
    if not (are_close(unpadded, logits[1:]) and are_close(beginning, followed)):
        raise NumbersError(
            "the model's output at a token depends on what comes after it, so its rows cannot be padded. Its attention"
            " must be causal: look for `is_causal`, `is_decoder` or a bidirectional layer in its configuration"
        )
    return input_ids, readouts, logits


def logits_reader(model: torch.nn.Module, device: torch.device) -> tuple[LogitsReader, bool]:
    """How to get a model's logits at readouts, tried on a few tokens.

    The models of transformers take a mask of positions as `logits_to_keep` from 5.21 on. Of others the hidden states
    are selected, if the model can be cut there. What is left computes all logits, and a warning says so.

    Returns:
        What is called with the model, token ids `[B, T]` and readouts `[R, 2]` and returns logits `[R, V]`; and whether
        it computes all logits.

    Raises:
        ModelError: The model's output is not a number, or padding changes it.
    """
    input_ids, readouts, expected = logits_of_few_tokens(model, device)
    try:
        selected = selected_logits(model, input_ids, readouts)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    else:
        if selected.shape == expected.shape and are_close(selected, expected):
            return selected_logits, False
        why = "it gave other logits"
    if (head := head_of(model, device)) is not None:
        return lambda _, *batch: logits_at(head, *batch), False
    warnings.warn(
        f"{type(model).__name__} does not take a mask as logits_to_keep ({why}); all logits are computed, which is"
        " slower and takes more memory",
        WmdpFastWarning,
        stacklevel=3,
    )
    return all_logits, True


def auto_token_budget(loaded: LoadedModel, requests: Requests, *, every_logit: bool) -> int:
    """A token budget for a device: a constant on CPUs, on GPUs what fits into four fifths of the free memory.

    In bytes for each token, with e for the size of a number in the model's dtype: 8 hidden states (residual stream,
    queries, keys, values and what they are made from) and 3 of the feed-forward layer's width, e each; the scores of
    attention in this dtype and in float32, if it is computed eagerly; and for the share of tokens that are readouts,
    the vocabulary's width in the model's dtype and twice in float32 (logits, log-softmax, its input). One layer is
    alive at a time.
    """
    longest = requests.padded_batch(0, 1)
    if loaded.device.type != "cuda" or longest is None:
        return CPU_TOKEN_BUDGET
    config: Any = loaded.model.config
    config = getattr(config, "text_config", None) or config
    size = loaded.dtype.itemsize
    hidden: int = config.hidden_size
    per_token: int = size * (8 * hidden + 3 * (getattr(config, "intermediate_size", None) or 4 * hidden))
    if getattr(config, "_attn_implementation", None) == "eager":
        per_token += (2 * size + 4) * config.num_attention_heads * longest.input_ids.shape[1]
    readouts = 1.0 if every_logit else len(longest.readouts) * requests.num_rows / requests.num_tokens
    per_token += int(min(readouts, 1.0) * config.vocab_size * (size + 8))
    free, _ = torch.cuda.mem_get_info(loaded.device)
    free += torch.cuda.memory_reserved(loaded.device) - torch.cuda.memory_allocated(loaded.device)
    budget = min(MAX_CUDA_TOKEN_BUDGET, max(1, int(_CUDA_MEMORY_SHARE * free / per_token)))
    # Processes that hold a model together run the same batches.
    return budget if loaded.parallel is None else smallest(budget, loaded.device)


def refuse_smaller(loaded: LoadedModel, budget: int) -> None:
    """Raises ModelError for a model that several processes hold or read together, if batches are too large for one.

    It cannot go on with smaller ones alone.
    """
    together = loaded.streamed is not None and loaded.streamed.together is not None
    if loaded.parallel is not None or together:
        raise ModelError(
            f"out of memory on {loaded.device} with batches of {budget} tokens, and processes that hold or read a model"
            " together cannot make theirs smaller one by one: set a smaller token_budget"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on the CPU torch has no exception of its own for that."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _smaller_budget(batch: PaddedBatch, device: torch.device, *, warn: bool) -> int:
    """The budget to go on with after a batch did not fit into memory.

    Raises:
        ModelError: The batch was a single row.
    """
    rows, width = map(int, batch.input_ids.shape)
    if rows == 1:
        raise ModelError(
            f"out of memory on {device} with a single row of {width} tokens: free memory there, load the model with"
            " dtype bfloat16, shorten the prompts (num_fewshot, max_length), or use another device"
        )
    # Half of what was run, which may be much less than the budget.
    budget = rows * width // 2
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if warn:
        what = f"{rows} rows of {width} tokens"
        warnings.warn(
            f"out of memory on {device} with {what}: token_budget is now {budget}", WmdpFastWarning, stacklevel=3
        )
    return budget
