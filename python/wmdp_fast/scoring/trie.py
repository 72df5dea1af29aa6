"""The fast way of scoring: all inputs as one token trie, in which what they have in common is run once.

See `packed_attention` for how a model runs over a trie. Not every model can; `why_not` says why, and before a run the
real model is tried on excerpts of the real requests both ways.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from functools import partial as partial_function
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast._rust import Requests, Trie
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.attention.packable import why_not
from wmdp_fast.models.attention.packed import NotPackableError
from wmdp_fast.models.fused.last_layer import MOST_READ
from wmdp_fast.models.threads import only_user
from wmdp_fast.models.vocabulary import refuse_unknown_in_requests
from wmdp_fast.scoring.chunk_memory import Needs, about_streaming, budget_that_fits
from wmdp_fast.scoring.excerpts import excerpts_of
from wmdp_fast.scoring.padded import longest_row, score_padded
from wmdp_fast.scoring.scores import PartialScores, Scores
from wmdp_fast.scoring.streamed import for_trials, refuse_unproven
from wmdp_fast.scoring.trie_budget import auto_budget, needs_of_run
from wmdp_fast.scoring.trie_proof import proven, scores_of_excerpts
from wmdp_fast.scoring.trie_run import run

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.trunk import SharedTrunk

Engine = Literal["auto", "trie", "padded"]
"""Which way to score: `"trie"` or fail, `"padded"`, or `"auto"`: by trie if the model can and proves it."""


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
    budget = auto_budget(loaded, requests) if token_budget == "auto" else token_budget
    if engine == "padded":
        return about_streaming(loaded.streamed, Needs(requests.num_tokens, min(budget, requests.num_tokens), 0), shards)
    needs_of = partial_function(needs_of_run, loaded, Trie(requests), logits=False)
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
            reason, most_read = proven(plain, requests, trunk)
    if reason:
        raise NotPackableError(reason)

    def of_excerpts(model: LoadedModel) -> NDArray[np.float64]:
        return scores_of_excerpts(model, excerpts_of(model.model, requests), score_mode, most_read=most_read)

    refuse_unproven(loaded, of_excerpts)
    partial.seconds += time.perf_counter() - begin
    options: dict[str, Any] = {"compiled": compiled, "trunk": trunk, "most_read": most_read}
    return run(loaded, requests, trie, token_budget, score_mode, partial, progress, **options)
