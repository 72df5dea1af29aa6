"""A run over a trie: batch after batch, with a smaller budget where memory runs out."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace
from functools import partial as partial_function
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast.models.attention.packed import packed_attention
from wmdp_fast.models.decoder import unwatched_last_layer
from wmdp_fast.models.fused import fused_parts
from wmdp_fast.models.fused.compiled import compiled_parts
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.threads import computing, only_user
from wmdp_fast.scoring.chunk_memory import budget_that_fits
from wmdp_fast.scoring.journal import Plan
from wmdp_fast.scoring.lm_head import ChunkedLMHead
from wmdp_fast.scoring.padded import refuse_smaller
from wmdp_fast.scoring.streamed import for_trials
from wmdp_fast.scoring.token_scores import TokenScores
from wmdp_fast.scoring.trie_batches import Pipeline
from wmdp_fast.scoring.trie_budget import auto_budget, needs_of_run, readout_budget, smaller_budget
from wmdp_fast.scoring.trunk import Passes, RunPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from wmdp_fast._rust import Requests, Trie
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores
    from wmdp_fast.scoring.trunk import SharedTrunk


def run(
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
    tokens = TokenScores(requests)
    with only_user(loaded.model), computing(), for_trials(loaded):
        lm_head = ChunkedLMHead.of(loaded.model, score_mode)
    resumed = partial.resumed_plan("trie", token_budget)
    if resumed is not None:
        budget = resumed.token_budget
    elif token_budget != "auto":
        budget = token_budget
    elif loaded.streamed is None:
        budget = auto_budget(loaded, requests)
    else:
        needs_of = partial_function(needs_of_run, loaded, trie, logits=lm_head is None)
        budget = budget_that_fits(loaded.streamed, auto_budget(loaded, requests), needs_of)
    model: Any = loaded.model
    with evaluation_mode(model), packed_attention(model), _faster(loaded, compiled=compiled):
        done = False
        while not done:
            begin = time.perf_counter()
            start = trie.first_unfinished(partial.finished) if resumed is None else resumed.start
            resumed = None
            partial.begin(Plan("trie", token_budget, budget, start))
            readouts = readout_budget(loaded) if lm_head is None else budget
            # Only where some may be left out are the batches made twice.
            needed: Mapping[int, bool] = defaultdict(lambda: True)
            if partial.finished.any():
                needed = tokens.needed(trie.batches(budget, readouts, start), partial.finished)
            passes = Passes()
            if trunk is not None:
                plan = RunPlan(requests.content_hash, budget, readouts, start)
                passes = trunk.passes(loaded, plan, trie.num_tokens, whole=not partial.finished.any())
            pipeline = Pipeline(loaded, lm_head, trie, tokens, partial, score_mode, progress, begin, passes, most_read)
            if loaded.streamed is None:
                failed = pipeline.run(trie.batches(budget, readouts, start), needed)
            else:
                needs = needs_of_run(loaded, trie, budget, logits=lm_head is None)
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
                budget = smaller_budget(failed, loaded.device)
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
