"""The proof before a run by trie: excerpts of what is asked are scored both ways, and must agree."""

from __future__ import annotations

from functools import partial as partial_function
from typing import TYPE_CHECKING

import numpy as np
import torch

from wmdp_fast._rust import Requests, Trie
from wmdp_fast.exceptions import ModelError, what_was_raised
from wmdp_fast.models.attention.packed import NotPackableError
from wmdp_fast.models.fused.last_layer import MOST_READ
from wmdp_fast.scoring.excerpts import cutting_budget, excerpts_of
from wmdp_fast.scoring.padded import is_out_of_memory, score_padded
from wmdp_fast.scoring.rounding import difference_beyond_rounding, is_coarse, rounded_otherwise, with_probes
from wmdp_fast.scoring.scores import NAN_ADVICE, PartialScores
from wmdp_fast.scoring.trie_run import run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.trunk import SharedTrunk

# What is not read is left out of the last layer wherever there is any, or nowhere.
_ALL_BUT_ALL, _NEVER = 1.0, -1.0


def proven(loaded: LoadedModel, requests: Requests, trunk: SharedTrunk | None = None) -> tuple[str | None, float]:
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
            found = scores_of_excerpts(loaded, excerpts, "float32", trial, most_read=most_read)
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
            again = partial_function(scores_of_excerpts, loaded, excerpts, "float32", trial, most_read=most_read)
            trunk.prove(trial, found, again)
        if (difference := _difference(loaded, excerpts, expected, found)) is None:
            return None, in_run
        reasons.append(difference)
    return reasons[0], MOST_READ


def scores_of_excerpts(
    loaded: LoadedModel,
    excerpts: Requests,
    score_mode: ScoreMode,
    trunk: SharedTrunk | None = None,
    *,
    most_read: float,
) -> NDArray[np.float64]:
    """Scores of excerpts by trie, in batches that have all that those of a run have."""
    trie = Trie(excerpts)
    empty = PartialScores.empty(excerpts.num_choices)
    budget = cutting_budget(trie, excerpts)
    scores = run(loaded, excerpts, trie, budget, score_mode, empty, trunk=trunk, most_read=most_read)
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
