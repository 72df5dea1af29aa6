"""The fast way of scoring: all inputs as one token trie, in which what they have in common is run once.

See `packed_attention` for how a model runs over a trie. Not every model can; `why_not` says why, and before a run the
real model is tried on excerpts of the real requests both ways.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial as partial_function
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from wmdp_fast._rust import Requests, Trie
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.attention.layout import Layout
from wmdp_fast.models.attention.packed import NotPackableError, PrefixKVCache, packed_attention, packed_batch
from wmdp_fast.models.attention.requirements import left_out
from wmdp_fast.models.decoder import unwatched_last_layer
from wmdp_fast.models.fused import fused_parts
from wmdp_fast.models.fused.compiled import compiled_parts
from wmdp_fast.models.fused.last_layer import MOST_READ, reading
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.row_length import keys_kept, length_rules
from wmdp_fast.models.threads import computing, only_user
from wmdp_fast.models.vocabulary import refuse_unknown_in_requests
from wmdp_fast.scoring.chunk_memory import Needs, about_streaming, budget_that_fits
from wmdp_fast.scoring.excerpts import excerpts_of
from wmdp_fast.scoring.journal import Plan
from wmdp_fast.scoring.lm_head import ChunkedLMHead
from wmdp_fast.scoring.padded import (
    CPU_TOKEN_BUDGET,
    auto_token_budget,
    is_out_of_memory,
    longest_row,
    refuse_smaller,
    score_padded,
)
from wmdp_fast.scoring.rounding import difference_beyond_rounding, is_coarse, rounded_otherwise, with_probes
from wmdp_fast.scoring.scores import NAN_ADVICE, NumbersError, PartialScores, Scores, TargetScores, look_up
from wmdp_fast.scoring.streamed import Batch, for_trials, refuse_unproven, scored_in_chunks
from wmdp_fast.scoring.trunk import Passes, RunPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from wmdp_fast._rust import TrieBatch
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.trunk import SharedTrunk

Engine = Literal["auto", "trie", "padded"]
"""Which way to score: `"trie"` or fail, `"padded"`, or `"auto"`: by trie if the model can and proves it."""

_READOUT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Memory for the distributions read from a batch, which are as wide as the vocabulary."""


def score(
    loaded: LoadedModel,
    requests: Requests,
    *,
    engine: Engine = "auto",
    token_budget: int | Literal["auto"] = "auto",
    score_mode: ScoreMode = "float32",
    progress: Callable[[int, int], None] | None = None,
    partial: PartialScores | None = None,
    compiled: bool = False,
    trunk: SharedTrunk | None = None,
) -> Scores:
    """Scores all requests the fastest way that is right for the model; see `score_trie` and `score_padded`.

    `compiled` and `trunk` are for scoring by trie; padded rows are never compiled, and each run through all layers.

    Warns:
        WmdpFastWarning: `engine` is `"auto"` and the model cannot be scored by trie; the message says why.

    Raises:
        ModelError: `engine` is `"trie"` and the model cannot be scored by trie, a token has no embedding, or what
            `score_padded` raises.
    """
    refuse_unknown_in_requests(loaded.model, loaded.tokenizer, requests)
    with only_user(loaded.model):
        options: dict[str, Any] = {"token_budget": token_budget, "score_mode": score_mode, "progress": progress}
        scores = _score_by(engine, loaded, requests, partial, compiled=compiled, trunk=trunk, **options)
    if trunk is not None:
        scores = replace(scores, shared_trunk=trunk.about)
    return scores if loaded.streamed is None else replace(scores, streamed=loaded.streamed.cost.record())


def _score_by(
    engine: Engine,
    loaded: LoadedModel,
    requests: Requests,
    partial: PartialScores | None,
    *,
    compiled: bool,
    trunk: SharedTrunk | None,
    **options: Any,
) -> Scores:
    why_not_trie = None
    if trunk is not None:
        trunk.refuse("the run is not by trie")
    if engine != "padded":
        try:
            return score_trie(loaded, requests, partial=partial, compiled=compiled, trunk=trunk, **options)
        except NotPackableError as error:
            if engine == "trie":
                raise NotPackableError(
                    f"{loaded.name} cannot be scored by trie: {error}; engine auto or padded scores it on padded rows"
                ) from error
            why_not_trie = str(error)
            reason = f"scoring {loaded.name} on padded rows, which is slower: {why_not_trie}"
            warnings.warn(reason, WmdpFastWarning, stacklevel=3)
    return replace(score_padded(loaded, requests, partial=partial, **options), why_not_trie=why_not_trie)


def estimate(
    loaded: LoadedModel, requests: Requests, engine: Engine, token_budget: int | Literal["auto"], shards: int = 1
) -> str | None:
    """What a run with a streamed model says of itself beforehand: what it reads and the memory it takes; else None."""
    if loaded.streamed is None:
        return None
    budget = _auto_budget(loaded, requests) if token_budget == "auto" else token_budget
    if engine == "padded":
        return about_streaming(loaded.streamed, Needs(requests.num_tokens, min(budget, requests.num_tokens), 0), shards)
    needs_of = partial_function(_needs, loaded, Trie(requests), logits=False)
    if token_budget == "auto":
        budget = budget_that_fits(loaded.streamed, budget, needs_of, warn=False)
    return about_streaming(loaded.streamed, needs_of(budget), shards)


def score_trie(
    loaded: LoadedModel,
    requests: Requests,
    *,
    token_budget: int | Literal["auto"] = "auto",
    score_mode: ScoreMode = "float32",
    progress: Callable[[int, int], None] | None = None,
    partial: PartialScores | None = None,
    compiled: bool = False,
    trunk: SharedTrunk | None = None,
) -> Scores:
    """Scores all requests by trie.

    Out of memory, the budget is halved and scoring goes on at the first unfinished path; finished choices are kept.

    Args:
        loaded: The model; it is left as it was found.
        requests: What to score.
        token_budget: Maximum tokens per batch; `"auto"` goes by the device and its free memory.
        score_mode: How log-probabilities are computed, see `ScoreMode`.
        progress: Called after each batch with the number of paths finished and of all paths.
        partial: Where scores are entered as they are finished, for a caller that wants them even if the run is
            interrupted. What is finished in it before the first path that is not is not scored again.
        compiled: Whether to compile parts of the model first, see `compiled_parts`. That takes up to a minute, and
            pays in long runs.
        trunk: What passes the lower layers' output on from a model before and to the next one, where these are the same
            and it is worth it.

    Raises:
        NotPackableError: The model cannot be scored by trie, or its scores by trie are not those on padded rows.
        ModelError: Not even one token fits into memory, or the model's output is not a number.
        ValueError: `token_budget` is less than 1.
    """
    if token_budget != "auto" and token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    begin = time.perf_counter()
    partial = PartialScores.empty(requests.num_choices) if partial is None else partial
    if loaded.streamed is not None:
        if compiled:
            raise ModelError(f"{loaded.name} is streamed, so its layers cannot be compiled: leave compiled out")
        loaded = replace(loaded, streamed=replace(loaded.streamed, fuse=True))
    planning = time.perf_counter()
    trie = Trie(requests)
    partial.seconds_waiting += time.perf_counter() - planning
    if trunk is not None:
        why = "its layers are compiled" if compiled else trunk.why_not(loaded, trie.num_tokens)
        if why is not None:
            trunk.refuse(why)
            trunk = None
    with for_trials(loaded) as plain:
        reason, most_read = why_not(plain.model, longest_row(requests)), MOST_READ
        if reason is None:
            reason, most_read = _proven(plain, requests, trunk)
    if reason:
        raise NotPackableError(reason)

    def scores_of_excerpts(model: LoadedModel) -> NDArray[np.float64]:
        return _of_excerpts(model, excerpts_of(model.model, requests), score_mode, most_read=most_read)

    refuse_unproven(loaded, scores_of_excerpts)
    partial.seconds += time.perf_counter() - begin
    options: dict[str, Any] = {"compiled": compiled, "trunk": trunk, "most_read": most_read}
    return _score(loaded, requests, trie, token_budget, score_mode, partial, progress, **options)


def why_not(
    model: torch.nn.Module, longest: int = 0, *, arguments: Sequence[str] = ("position_ids", "logits_to_keep")
) -> str | None:
    """Why a model cannot run packed rows as far as its classes and configuration tell, or None.

    Args:
        model: A causal model of transformers, or one that PEFT has wrapped.
        longest: Tokens of the longest row, for what depends on that.
        arguments: What it must take.
    """
    if any(parameter.is_cuda for parameter in model.parameters()) and find_spec("triton") is None:
        return "packed attention on a GPU needs Triton, which is not installed"
    adapter = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        return "its adapter puts tokens of its own before every row"
    base = without_adapter(model)
    name = type(base).__name__
    if not getattr(base, "_can_set_attn_implementation", lambda: False)():
        return f"{name} does not attend through transformers' AttentionInterface"
    parameters = inspect.signature(base.forward).parameters
    if missing := [name for name in arguments if name not in parameters]:
        return f"{name} takes no {missing[0]}"
    config = base.config.get_text_config()
    if base.config.is_encoder_decoder or not getattr(config, "is_causal", True):
        return f"{name} is not a causal decoder"
    if getattr(config, "alibi", False):
        return f"{name} adds to its scores by distance (ALiBi)"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"{name} has layers of the kind {', '.join(sorted(kinds)) or 'chunked_attention'}"
    for layer in base.modules():
        if isinstance(layer, torch.nn.Conv1d | torch.nn.RNNBase):
            return f"{name} mixes tokens by {type(layer).__name__}, not by attention alone"
    return _why_not_as_long(base, longest) or _why_not_as_it_is_set(base)


def _why_not_as_it_is_set(model: torch.nn.Module) -> str | None:
    """By trie everything that a model asks of its attention is done, which what it is set to may leave out."""
    if needs := left_out(model):
        return f"its attention (sdpa) leaves out the {' and '.join(needs)} that its configuration asks for"
    return None


def _why_not_as_long(model: torch.nn.Module, longest: int) -> str | None:
    """What depends on the longest row of a batch differs from what a row has by itself."""
    if keys_kept(model) is not None:
        return "its attention picks the best keys of a row (top-k), and a trie has those of many rows in one"
    for rule in length_rules(model, longest):
        return f"its {rule.what} depend on a row's length beyond {rule.limit} tokens; one has {longest}"
    return None


# What is not read is left out of the last layer wherever there is any, or nowhere.
_ALL_BUT_ALL, _NEVER = 1.0, -1.0


def _proven(loaded: LoadedModel, requests: Requests, trunk: SharedTrunk | None = None) -> tuple[str | None, float]:
    """Scores excerpts both ways; the difference in log-probabilities, if it is more than rounding explains.

    Or what was raised by trie: the model's own code may look at what stands in for its mask, or do anything else.

    By trie what nobody reads is left out of the last layer, however little that is: in a run it may be more. A model
    that runs this layer several times, each on what the last time gave out, needs all of it; so does one whose tokens
    see each other behind it. It is tried again with all of it.

    A trunk is proven with the same excerpts.

    Returns:
        Why the model cannot be scored by trie, or None; and the share of a batch's tokens up to which the run may leave
        the others out of the last layer, see `last_layer.reading`.

    Raises:
        ModelError: The model cannot be scored on padded rows either, or memory ran out.
    """
    excerpts = excerpts_of(loaded.model, requests)
    if is_coarse(loaded.dtype):
        excerpts = with_probes(excerpts)
    reasons: list[str] = []
    expected: NDArray[np.float64] | None = None
    for most_read, in_run in ((_ALL_BUT_ALL, MOST_READ), (_NEVER, _NEVER)):
        trial, raised, found = None if trunk is None else trunk.trial(), None, np.empty(0)
        try:
            found = _of_excerpts(loaded, excerpts, "float32", trial, most_read=most_read)
        except NotPackableError as error:
            raised = str(error)
        except Exception as error:
            if is_out_of_memory(error) or (isinstance(error, ModelError) and str(error) != NAN_ADVICE):
                raise
            raised = f"tried by trie, {what_was_raised(error)}"
        if expected is None:
            # All logits are few here, and whether the model can do without is tried by whoever needs to know.
            expected = score_padded(loaded, excerpts, every_logit=True).loglikelihood
        if raised is not None:
            return raised, in_run
        if trunk is not None and trial is not None:
            # Other rows have gone through all layers meanwhile, if the model remembers something of the last ones.
            again = partial_function(_of_excerpts, loaded, excerpts, "float32", trial, most_read=most_read)
            trunk.prove(trial, found, again)
        if (difference := _difference(loaded, excerpts, expected, found)) is None:
            return None, in_run
        reasons.append(difference)
    return reasons[0], MOST_READ


def _of_excerpts(
    loaded: LoadedModel,
    excerpts: Requests,
    score_mode: ScoreMode,
    trunk: SharedTrunk | None = None,
    *,
    most_read: float,
) -> NDArray[np.float64]:
    """Scores of excerpts by trie, with a budget that cuts it, so that carrying over is tried too."""
    trie = Trie(excerpts)
    empty = PartialScores.empty(excerpts.num_choices)
    budget = -(-trie.num_tokens // 2)
    scores = _score(loaded, excerpts, trie, budget, score_mode, empty, trunk=trunk, most_read=most_read)
    return scores.loglikelihood


def _difference(
    loaded: LoadedModel, excerpts: Requests, expected: NDArray[np.float64], found: NDArray[np.float64]
) -> str | None:
    """What to say of scores of excerpts by trie that are not those on padded rows; None if rounding explains it."""
    if is_coarse(loaded.dtype):

        def again(requests: Requests, seed: int) -> NDArray[np.float64]:
            with rounded_otherwise(loaded.model, seed):
                return score_padded(loaded, requests, every_logit=True).loglikelihood

        return difference_beyond_rounding(excerpts, expected, found, loaded.dtype, again)
    # Half the digits of the model's dtype: batches of another shape round differently.
    allowed = torch.finfo(loaded.dtype).eps ** 0.5 * np.maximum(1.0, np.abs(expected))
    difference = np.abs(found - expected)
    if (difference <= allowed).all():
        return None
    worst = int((difference / allowed).argmax())
    return (
        f"tried on excerpts of the requests, a log-likelihood of {expected[worst]:.6g} on padded rows was"
        f" {found[worst]:.6g} by trie, more than {allowed[worst]:.1g} apart"
    )


def what_was_raised(error: Exception) -> str:
    """An error of others' code in at most a line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"it raised {type(error).__name__}: {line if len(line) <= 200 else f'{line[:197]}...'}"


def _score(
    loaded: LoadedModel,
    requests: Requests,
    trie: Trie,
    token_budget: int | Literal["auto"],
    score_mode: ScoreMode,
    partial: PartialScores,
    progress: Callable[[int, int], None] | None = None,
    *,
    compiled: bool = False,
    trunk: SharedTrunk | None = None,
    most_read: float,
) -> Scores:
    """Scores by trie."""
    tokens = _TokenScores(requests)
    with only_user(loaded.model), computing(), for_trials(loaded):
        lm_head = ChunkedLMHead.of(loaded.model, score_mode)
    resumed = partial.resumed_plan("trie", token_budget)
    if resumed is not None:
        budget = resumed.token_budget
    elif token_budget != "auto":
        budget = token_budget
    elif loaded.streamed is None:
        budget = _auto_budget(loaded, requests)
    else:
        needs_of = partial_function(_needs, loaded, trie, logits=lm_head is None)
        budget = budget_that_fits(loaded.streamed, _auto_budget(loaded, requests), needs_of)
    model: Any = loaded.model
    with evaluation_mode(model), packed_attention(model), _faster(loaded, compiled=compiled):
        done = False
        while not done:
            begin = time.perf_counter()
            start = trie.first_unfinished(partial.finished) if resumed is None else resumed.start
            resumed = None
            partial.begin(Plan("trie", token_budget, budget, start))
            readouts = _readout_budget(loaded) if lm_head is None else budget
            # Only where some may be left out are the batches made twice.
            needed: Mapping[int, bool] = defaultdict(lambda: True)
            if partial.finished.any():
                needed = tokens.needed(trie.batches(budget, readouts, start), partial.finished)
            passes = Passes()
            if trunk is not None:
                plan = RunPlan(requests.content_hash, budget, readouts, start)
                passes = trunk.passes(loaded, plan, trie.num_tokens, whole=not partial.finished.any())
            pipeline = _Pipeline(loaded, lm_head, trie, tokens, partial, score_mode, progress, begin, passes, most_read)
            if loaded.streamed is None:
                failed = pipeline.run(trie.batches(budget, readouts, start), needed)
            else:
                needs = _needs(loaded, trie, budget, logits=lm_head is None)
                if partial.finished.any():
                    # What is finished does not go through the layers again.
                    left = enumerate(trie.batches(budget, readouts, start))
                    needs = replace(needs, tokens=sum(one.input_ids.size for index, one in left if needed[index]))
                failed = pipeline.run_streamed(trie.batches(budget, readouts, start), needed, loaded.streamed, needs)
            done = failed is None
            if failed is None:
                passes.finish()
            else:
                # The budget of the batches to come; the paths that this one was in are begun again.
                refuse_smaller(loaded, budget)
                budget = _smaller_budget(failed, loaded.device)
    return partial.scores(tokens_useful=trie.num_tokens, token_budget=budget, engine="trie")


def _faster(loaded: LoadedModel, *, compiled: bool) -> AbstractContextManager[None]:
    """What a model's parts are made faster by."""
    model: Any = loaded.model
    if compiled:
        return compiled_parts(model)
    # Layers that are streamed are seen to when they are there; those that stay in memory, here.
    streamed = loaded.streamed
    is_there = streamed is None or len(streamed.skeleton.decoder.layers) - 1 in streamed.resident
    last_layer = unwatched_last_layer(model) if is_there and loaded.parallel is None else None
    return fused_parts(model, last_layer=last_layer)


@dataclass
class _Pipeline:
    """Runs batches one after another without a pause between them.

    Batches are planned on a thread of Rust's. On a GPU, where a forward pass is only asked for and done later, the
    scores of a batch are fetched after the next one was asked for, so that the GPU always has something to do.
    """

    loaded: LoadedModel
    lm_head: ChunkedLMHead | None
    trie: Trie
    tokens: _TokenScores
    partial: PartialScores
    score_mode: ScoreMode
    progress: Callable[[int, int], None] | None
    begin: float
    passes: Passes
    most_read: float

    def run(self, batches: Iterator[TrieBatch], needed: Mapping[int, bool]) -> TrieBatch | None:
        """Runs the batches that are needed; returns the one for which memory ran out, if one did."""
        cache = PrefixKVCache()
        pending: _Pending | None = None
        try:
            index = -1
            while True:
                index += 1
                asked = time.perf_counter()
                batch = next(batches, None)
                waited = time.perf_counter() - asked
                if batch is None:
                    return None
                if not needed[index]:
                    cache.skip(batch.num_carried, batch.keep)
                    continue
                with self.passes.batch(index):
                    started = self._start(batch, cache, None if pending is None else pending.ended)
                # Nothing of the batch before may be lost, whatever becomes of this one.
                pending, before = None, pending
                if before is not None:
                    self._finish(before)
                if started is None:
                    return batch
                pending = started
                if self.loaded.device.type != "cuda":
                    self.partial.seconds_waiting += waited
                    pending = None
                    self._finish(started)
        finally:
            if pending is not None:
                self._finish(pending)

    def run_streamed(
        self, batches: Iterator[TrieBatch], needed: Mapping[int, bool], streamed: StreamedModel, needs: Needs
    ) -> TrieBatch | None:
        """As `run`, layer by layer over as many batches as there is memory for."""
        cache = PrefixKVCache()
        taken: list[TrieBatch] = []
        width = _bytes_of_keys_and_values(self.loaded)

        def prepared() -> Iterator[Batch[_Pending | _Hidden]]:
            for index, batch in enumerate(batches):
                skip = partial_function(cache.skip, batch.num_carried, batch.keep)
                layout = Layout(batch.position_ids, batch.num_carried, batch.segments, batch.keep)
                if needed[index]:
                    taken.append(batch)
                hidden_only = self.lm_head is not None
                run = partial_function(self._pass, layout, batch, cache, None, hidden_only) if needed[index] else None
                within = partial_function(_reading, batch, self.most_read)
                yield Batch(batch.input_ids.size, run, skip, _num_kept(batch) * width, within)

        # A part of the vocabulary is read for all batches of a chunk.
        look_up = None if self.lm_head is None else partial_function(_looked_up, self.lm_head)
        scored = scored_in_chunks(streamed, prepared(), needs, cache=cache, progress=self.progress, together=look_up)
        try:
            for pending in scored:
                assert isinstance(pending, _Pending)  # noqa: S101 (for the type checker)
                self._finish(pending)
                taken.pop(0)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return max(taken, key=lambda batch: batch.input_ids.size)
        return None

    def _start(self, batch: TrieBatch, cache: PrefixKVCache, previous: torch.cuda.Event | None) -> _Pending | None:
        """Asks for one forward pass after the previous one has ended; None if memory ran out."""
        layout = Layout(batch.position_ids, batch.num_carried, batch.segments, batch.keep)
        try:
            started = self._pass(layout, batch, cache, previous)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        assert isinstance(started, _Pending)  # noqa: S101 (for the type checker)
        return started

    def _pass(
        self,
        layout: Layout,
        batch: TrieBatch,
        cache: PrefixKVCache,
        previous: torch.cuda.Event | None,
        hidden_only: bool = False,
    ) -> _Pending | _Hidden:
        with computing():
            on_device = _OnDevice(batch, self.loaded.device, previous)
            inputs: dict[str, Any] = {
                "input_ids": on_device["input_ids"].unsqueeze(0),
                "position_ids": on_device["position_ids"].unsqueeze(0),
                # Without one, transformers looks at the positions for sequences put one behind another, and waits.
                "attention_mask": torch.ones(1, batch.input_ids.size, dtype=torch.bool, device=self.loaded.device),
                "use_cache": False,
            }
            targets = on_device["target_readouts"], on_device["target_tokens"]
            read = reading(on_device["readouts"], batch.input_ids.size, self.most_read)
            if self.lm_head is not None:
                with packed_batch(layout, cache), read:
                    hidden = self.lm_head.base(**inputs).last_hidden_state[0, on_device["readouts"]]
                if hidden_only:
                    return _Hidden(batch, on_device, hidden, *targets)
                return _Pending(batch, on_device, self.lm_head.look_up(hidden, *targets), hidden.dtype)
            with packed_batch(layout, cache), read:
                logits = self.loaded.model(**inputs, logits_to_keep=on_device["readouts"]).logits[0]
            return _Pending(batch, on_device, look_up(logits, *targets, self.score_mode), logits.dtype)

    def _finish(self, pending: _Pending) -> None:
        """Waits for a batch and enters its scores."""
        batch, partial = pending.batch, self.partial
        found = pending.fetch()
        self.tokens.enter(batch.targets, TargetScores.from_host(found, pending.dtype, self.score_mode), partial)
        partial.seconds_waiting += pending.on_device.waited()
        now = time.perf_counter()
        partial.seconds += now - self.begin
        self.begin = now
        partial.tokens_run += batch.input_ids.size
        partial.batches += 1
        if self.progress is not None and self.loaded.streamed is None:
            self.progress(batch.stop, self.trie.num_paths)


def _reading(batch: TrieBatch, most_read: float, _layer: int) -> AbstractContextManager[None]:
    return reading(torch.from_numpy(batch.readouts), batch.input_ids.size, most_read)


@dataclass
class _Hidden:
    """A batch of which the vocabulary has not been asked yet."""

    batch: TrieBatch
    on_device: _OnDevice
    states: torch.Tensor
    readouts: torch.Tensor
    tokens: torch.Tensor


def _looked_up(lm_head: ChunkedLMHead, batches: Sequence[_Pending | _Hidden]) -> list[_Pending | _Hidden]:
    hidden = [one for one in batches if isinstance(one, _Hidden)]
    with computing():
        found = lm_head.look_up_all([(one.states, one.readouts, one.tokens) for one in hidden])
    return [
        _Pending(one.batch, one.on_device, scores, one.states.dtype) for one, scores in zip(hidden, found, strict=True)
    ]


class _OnDevice:
    """The arrays of a batch that the device needs, brought there by one copy that nobody waits for."""

    _NAMES = ("input_ids", "position_ids", "readouts", "target_readouts", "target_tokens")

    def __init__(self, batch: TrieBatch, device: torch.device, previous: torch.cuda.Event | None) -> None:
        arrays = [getattr(batch, name) for name in self._NAMES]
        host = torch.from_numpy(np.concatenate(arrays))
        if device.type == "cuda":
            # Only from pinned memory does a copy leave this thread free. It is kept until the batch is done.
            self._host = host.pin_memory()
            host = self._host.to(device, non_blocking=True)
        parts: Sequence[torch.Tensor] = torch.split(host, [len(array) for array in arrays])
        self._arrays = dict(zip(self._NAMES, parts, strict=True))
        self._previous = previous
        self._started = _recorded_event(device)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arrays[name]

    def waited(self) -> float:
        """Seconds between the end of the batch before and the beginning of this one, which is done."""
        if self._previous is None or self._started is None:
            return 0.0
        return float(self._previous.elapsed_time(self._started)) / 1000


class _Pending:
    """A batch whose scores are on their way to the host."""

    def __init__(self, batch: TrieBatch, on_device: _OnDevice, found: torch.Tensor, dtype: torch.dtype) -> None:
        self.batch = batch
        self.on_device = on_device
        self.dtype = dtype
        self.ended = _recorded_event(found.device)
        self._found = found
        if self.ended is not None:
            pinned = torch.empty(found.shape, dtype=found.dtype, device="cpu", pin_memory=True)
            self._found = pinned.copy_(found, non_blocking=True)
        self._copied = _recorded_event(found.device)

    def fetch(self) -> torch.Tensor:
        """What `look_up` found, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._found


def _recorded_event(device: torch.device) -> torch.cuda.Event | None:
    """A mark in a GPU's queue that says when it was reached."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _auto_budget(loaded: LoadedModel, requests: Requests) -> int:
    if loaded.device.type == "cuda":
        return auto_token_budget(loaded, requests, every_logit=False)
    return CPU_TOKEN_BUDGET


def _readout_budget(loaded: LoadedModel) -> int:
    config: Any = loaded.model.config
    # Logits in the model's dtype. Beside them, in float32, what the softmax is made from; on a GPU also the softmax.
    beside = 8 if loaded.device.type == "cuda" else 0 if loaded.dtype == torch.float32 else 4
    row = int(config.get_text_config().vocab_size) * (loaded.dtype.itemsize + beside)
    return max(1, _READOUT_BYTES.get(loaded.device.type, _READOUT_BYTES["cpu"]) // row)


def _needs(loaded: LoadedModel, trie: Trie, budget: int, *, logits: bool) -> Needs:
    """What a run with a streamed model needs memory for besides its weights and hidden states."""
    # In the model's type, in float32, and what the softmax is made from.
    wide = 3 * _READOUT_BYTES.get(loaded.device.type, _READOUT_BYTES["cpu"]) if logits else 0
    width = _bytes_of_keys_and_values(loaded)
    planned = trie.batches(budget, _readout_budget(loaded) if logits else budget, 0)
    batches = [(batch.input_ids.size, _num_kept(batch) * width) for batch in planned]
    largest = max((tokens for tokens, _ in batches), default=0)
    return Needs(trie.num_tokens, largest, wide, batches, head_in_parts=not logits)


def _num_kept(batch: TrieBatch) -> int:
    """Tokens whose keys and values a batch leaves to the next one."""
    return int((batch.keep[:, 1] - batch.keep[:, 0]).sum())


def _bytes_of_keys_and_values(loaded: LoadedModel) -> int:
    """Bytes that a token's keys and values take in all layers."""
    whole: Any = loaded.model.config
    config = whole.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(int(heads) * int(size), 1) * 2 * loaded.dtype.itemsize * int(config.num_hidden_layers)


def _smaller_budget(batch: TrieBatch, device: torch.device) -> int:
    """The budget to go on with after a batch did not fit into memory: half of what was run.

    Raises:
        ModelError: The batch was a single token.
    """
    tokens = int(batch.input_ids.size)
    if tokens == 1:
        raise ModelError(
            f"out of memory on {device} with a single token after {batch.num_carried}: free memory there, load the"
            " model with dtype bfloat16, shorten the prompts (num_fewshot, max_length), or use another device"
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    what = f"out of memory on {device} with {tokens} tokens: token_budget is now {tokens // 2}"
    warnings.warn(what, WmdpFastWarning, stacklevel=4)
    return tokens // 2


class _TokenScores:
    """Scores of single tokens until their choice has all of them; it may be spread over several batches."""

    def __init__(self, requests: Requests) -> None:
        self._offsets = requests.continuation_offsets
        lengths = np.diff(self._offsets)
        self._choices = np.repeat(np.arange(len(lengths)), lengths)
        self._missing = lengths
        self._logprobs = np.full(len(self._choices), np.nan)
        self._greedy = np.zeros(len(self._choices), dtype=np.bool_)

    def needed(self, batches: Iterable[TrieBatch], finished: NDArray[np.bool_]) -> Mapping[int, bool]:
        """Which of a run's batches must be run if some choices are finished.

        Those that have others to score, and those whose tokens such batches hang below: run again in the batch that
        they were in, tokens get the same keys and values bit for bit.
        """
        outlines = [
            (batch.num_carried, batch.keep[:, 1], not finished[self._choices[batch.targets]].all()) for batch in batches
        ]
        needed = {}
        wanted = 0  # tokens that later batches want of what is carried over after the batch at hand
        for index, (num_carried, keep_ends, unfinished) in reversed([*enumerate(outlines)]):
            passed_on = int(keep_ends[keep_ends <= num_carried].max(initial=0))
            needed[index] = unfinished or wanted > passed_on
            wanted = num_carried if needed[index] else wanted
        return needed

    def enter(self, indices: NDArray[np.int64], targets: TargetScores, partial: PartialScores) -> None:
        """Enters tokens, given by their place in the run, and hands on the choices that are complete now.

        Raises:
            ModelError: The model's output is not a number.
        """
        if np.isnan(targets.logprobs).any():
            raise NumbersError(NAN_ADVICE)
        new = indices[np.isnan(self._logprobs[indices])]
        np.subtract.at(self._missing, self._choices[new], 1)
        self._logprobs[indices] = targets.logprobs
        self._greedy[indices] = targets.greedy
        choices = np.unique(self._choices[indices])
        runs = [np.arange(*self._offsets[choice : choice + 2]) for choice in choices[self._missing[choices] == 0]]
        if runs:
            found = np.concatenate(runs)
            scores = TargetScores(self._logprobs[found], self._greedy[found], targets.sum_dtype)
            partial.add(scores, self._choices[found])
