"""From logits to the log-likelihoods of choices, and what a scoring run returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ScoreMode = Literal["float32", "model"]
"""How log-probabilities are computed.

`"model"` is lm-eval's way: log-softmax in the model's dtype, and the sum over a continuation rounded to that dtype.
`"float32"` takes log-softmax in float32 and the sum in float64, whatever the model's dtype; it keeps apart choices that
rounding to 16 bits makes equal, of which `"model"` predicts the first.
"""

NAN_ADVICE = (
    "the model's output is not a number (NaN): load it with dtype float32 or bfloat16, in which numbers do not overflow"
    " as they do in float16; if that does not help, its weights are damaged"
)


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of all choices of a run, and what they cost.

    Attributes:
        loglikelihood: Sum of the log-probabilities of a choice's tokens: float64 `[num_choices]`.
        is_greedy: Whether each token of a choice is the most probable one: bool `[num_choices]`.
        seconds: Time spent on the model's input, its forward passes and reading its output.
        tokens_run: Tokens that went through the model, padding included.
        batches: Number of forward passes.
        token_budget: Most tokens in a batch at the end of the run; less than asked for if memory ran out.
        engine: Which way of scoring made them.
        waited: Of `seconds`, those in which the model waited for its next input to be prepared.
    """

    loglikelihood: NDArray[np.float64]
    is_greedy: NDArray[np.bool_]
    seconds: float
    tokens_run: int
    batches: int
    token_budget: int
    engine: str
    waited: float = 0.0


@dataclass
class PartialScores:
    """The scores of a run while it goes on.

    A caller that passes its own can save what is finished when the run is interrupted, and go on from there.

    Attributes:
        loglikelihood: As in `Scores`; NaN where unfinished.
        is_greedy: As in `Scores`; meaningless where unfinished.
        next_row: All rows before this one, in the order of `Requests.padded_batch`, are finished.
        seconds: As in `Scores`.
        tokens_run: As in `Scores`.
        batches: As in `Scores`.
        waited: As in `Scores`.
    """

    loglikelihood: NDArray[np.float64]
    is_greedy: NDArray[np.bool_]
    next_row: int = 0
    seconds: float = 0.0
    tokens_run: int = 0
    batches: int = 0
    waited: float = 0.0

    @classmethod
    def empty(cls, num_choices: int) -> PartialScores:
        """Scores of which none is finished."""
        return cls(np.full(num_choices, np.nan), np.zeros(num_choices, dtype=np.bool_))

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which choices have their score: bool `[num_choices]`."""
        return ~np.isnan(self.loglikelihood)

    def add(self, targets: TargetScores, choices: NDArray[np.int64]) -> None:
        """Enters the scores of choices; all tokens of a choice must come at once.

        Args:
            targets: Scores of single tokens.
            choices: The choice each token belongs to: int64 `[N]`.

        Raises:
            ModelError: The model's output is not a number.
        """
        if np.isnan(targets.logprobs).any():
            raise ModelError(NAN_ADVICE)
        distinct, index = np.unique(choices, return_inverse=True)
        sums = np.zeros(len(distinct))
        np.add.at(sums, index, targets.logprobs)
        self.is_greedy[distinct] = True
        self.is_greedy[choices[~targets.greedy]] = False
        # Last, as it is what makes them count as finished.
        self.loglikelihood[distinct] = _round(sums, targets.sum_dtype)


@dataclass(frozen=True)
class TargetScores:
    """Scores of single tokens, on the host.

    Attributes:
        logprobs: Log-probability of each token: float64 `[N]`.
        greedy: Whether it is the most probable one: bool `[N]`.
        sum_dtype: What sums over a choice are rounded to.
    """

    logprobs: NDArray[np.float64]
    greedy: NDArray[np.bool_]
    sum_dtype: torch.dtype


def score_targets(
    logits: torch.Tensor, readouts: NDArray[np.int64], tokens: NDArray[np.int64], score_mode: ScoreMode
) -> TargetScores:
    """Looks up tokens in next-token distributions, with one copy from the device to the host.

    The softmax is over the whole vocabulary and the most probable token is that with the highest log-probability, the
    first one if several are equal, as in lm-eval (`HFLM._loglikelihood_tokens`).

    Args:
        logits: One row for each readout: `[R, V]`.
        readouts: For each token, its readout: int64 `[N]`.
        tokens: Token ids: int64 `[N]`.
        score_mode: See `ScoreMode`.
    """
    logprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32 if score_mode == "float32" else None)
    at = torch.from_numpy(np.stack([readouts, tokens])).to(logits.device)
    chosen = logprobs[at[0], at[1]].float()
    greedy = logprobs.argmax(dim=-1)[at[0]] == at[1]
    on_host = torch.stack([chosen, greedy.float()]).cpu().double().numpy()
    return TargetScores(on_host[0], on_host[1] == 1, torch.float64 if score_mode == "float32" else logprobs.dtype)


def _round(sums: NDArray[np.float64], dtype: torch.dtype) -> NDArray[np.float64]:
    """Rounds once, as torch does: it adds up 16-bit numbers in float32."""
    rounded: NDArray[np.float64] = torch.from_numpy(sums).to(dtype).double().numpy()
    return rounded
