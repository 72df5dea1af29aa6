"""From logits to the log-likelihoods of choices, and what a scoring run returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from wmdp_fast._rust import TokenLogprobs
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wmdp_fast.scoring.journal import Journal, Plan

ScoreMode = Literal["float32", "model"]
"""How log-probabilities are computed.

`"model"` is lm-eval's way: log-softmax in the model's dtype, and the sum over a continuation rounded to that dtype.
`"float32"` takes log-softmax in float32 and the sum in float64, whatever the model's dtype; it keeps apart choices that
rounding to 16 bits makes equal, of which `"model"` predicts the first.
"""

NAN_ADVICE = (
    "the model's output is not a number (NaN): its weights are damaged or, if it is loaded in float16, its numbers"
    " overflow, which they do not with dtype float32 or bfloat16"
)


class NumbersError(ModelError):
    """A model's output is no number, or not what it is in another batch: the model is to blame, not how it is run."""


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of all choices of a run, and what they cost.

    Attributes:
        loglikelihood: Sum of the log-probabilities of a choice's tokens: float64 `[num_choices]`.
        is_greedy: Whether each token of a choice is the most probable one: bool `[num_choices]`.
        seconds: Time spent on the model's input, its forward passes and reading its output.
        seconds_waiting: Of `seconds`, those in which the model waited for its next input to be prepared.
        tokens_run: Tokens that went through the model, padding included.
        tokens_useful: Tokens that had to: those of all inputs without padding; by trie, what they share once.
        batches: Number of forward passes.
        token_budget: Maximum tokens per batch at the end of the run; less than asked for if memory ran out.
        engine: Which way of scoring made them.
        why_not_trie: Why they were not scored by trie, if that was tried.
        streamed: Of a model whose weights are streamed, what reading them has cost.
        shared_trunk: Of a model whose lower layers seem to be those of one before or after it: how many these are, and
            whether their output was `kept`, `taken` over, or neither, with the reason.
    """

    loglikelihood: NDArray[np.float64]
    is_greedy: NDArray[np.bool_]
    seconds: float
    seconds_waiting: float
    tokens_run: int
    tokens_useful: int
    batches: int
    token_budget: int
    engine: str
    why_not_trie: str | None = None
    streamed: dict[str, Any] | None = None
    shared_trunk: dict[str, Any] | None = None

    def cost(self) -> dict[str, Any]:
        """What results say they cost."""
        own = {"streamed": self.streamed, "shared_trunk": self.shared_trunk}
        return {name: found for name, found in own.items() if found is not None} | {
            "token_budget": self.token_budget,
            "batches": self.batches,
            "tokens_run": self.tokens_run,
            "tokens_useful": self.tokens_useful,
            "seconds_waiting": self.seconds_waiting,
        }

    def source(self) -> dict[str, Any]:
        """What else results say of where they are from."""
        return {}


@dataclass
class PartialScores:
    """The scores of a run while it goes on.

    A caller that passes its own can save what is finished when the run is interrupted, and go on from there. With a
    journal they are written down as they are finished.

    Attributes:
        loglikelihood: As in `Scores`; NaN where unfinished.
        is_greedy: As in `Scores`; meaningless where unfinished.
        journal: Where finished scores and plans are written to, or None.
        next_row: All rows before this one, in the order of `Requests.padded_batch`, are finished.
        seconds: As in `Scores`.
        seconds_waiting: As in `Scores`.
        tokens_run: As in `Scores`.
        batches: As in `Scores`.
        bounded: Choices whose log-likelihood is only known not to be larger.
        num_resumed: How many choices an earlier run had finished.
        numbers: What the journal calls these choices, if they are a part of a run: int64 `[num_choices]`.
    """

    loglikelihood: NDArray[np.float64]
    is_greedy: NDArray[np.bool_]
    journal: Journal | None = None
    next_row: int = 0
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    tokens_run: int = 0
    batches: int = 0
    bounded: set[int] = field(default_factory=set)
    num_resumed: int = 0
    numbers: NDArray[np.int64] | None = None

    @classmethod
    def empty(cls, num_choices: int) -> PartialScores:
        """Scores of which none is finished."""
        return cls(np.full(num_choices, np.nan), np.zeros(num_choices, dtype=np.bool_))

    @classmethod
    def resumed(cls, num_choices: int, journal: Journal) -> PartialScores:
        """Scores of which those are finished that are in a journal; it is where the others will be written to."""
        partial = cls.empty(num_choices)
        partial.loglikelihood[journal.choices] = journal.loglikelihood
        partial.is_greedy[journal.choices] = journal.is_greedy
        partial.bounded.update(journal.bounded & set(journal.choices.tolist()))
        partial.journal = journal
        partial.num_resumed = int(partial.finished.sum())
        return partial

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which choices have their score: bool `[num_choices]`."""
        return ~np.isnan(self.loglikelihood)

    def resumed_plan(self, engine: str, asked: int | Literal["auto"]) -> Plan | None:
        """The plan that an earlier run of the same engine and budget was at; with it, scores come out bit for bit."""
        plan = None if self.journal is None else self.journal.plan
        return plan if plan is not None and (plan.engine, plan.asked) == (engine, asked) else None

    def begin(self, plan: Plan) -> None:
        """Batches are cut by this plan from now on."""
        if self.journal is not None:
            self.journal.plan_from(plan)

    def scores(self, *, tokens_useful: int, token_budget: int, engine: str) -> Scores:
        """The scores of a run that is done; the arguments are attributes of `Scores`."""
        return Scores(
            loglikelihood=self.loglikelihood,
            is_greedy=self.is_greedy,
            seconds=self.seconds,
            seconds_waiting=self.seconds_waiting,
            tokens_run=self.tokens_run,
            tokens_useful=tokens_useful,
            batches=self.batches,
            token_budget=token_budget,
            engine=engine,
        )

    def add(self, targets: TargetScores, choices: NDArray[np.int64]) -> None:
        """Enters the scores of choices; all tokens of a choice must come at once. What is finished stays as it is.

        Args:
            targets: Scores of single tokens.
            choices: The choice each token belongs to: int64 `[N]`.

        Raises:
            NumbersError: The model's output is not a number.
        """
        if np.isnan(targets.logprobs).any():
            raise NumbersError(NAN_ADVICE)
        new = np.isnan(self.loglikelihood[choices])
        choices, logprobs, greedy = choices[new], targets.logprobs[new], targets.greedy[new]
        distinct, index = np.unique(choices, return_inverse=True)
        sums = np.zeros(len(distinct))
        np.add.at(sums, index, logprobs)
        all_greedy = np.ones(len(distinct), dtype=np.bool_)
        all_greedy[index[~greedy]] = False
        self.enter(distinct, _round(sums, targets.sum_dtype), all_greedy)

    def enter(
        self,
        choices: NDArray[np.int64],
        loglikelihood: NDArray[np.float64],
        is_greedy: NDArray[np.bool_],
        bounded: NDArray[np.int64] | None = None,
    ) -> None:
        """Enters the whole scores of choices, which are not finished.

        Args:
            choices: Which choices: int64 `[N]`.
            loglikelihood: As in `Scores`: float64 `[N]`.
            is_greedy: As in `Scores`: bool `[N]`.
            bounded: Those choices whose log-likelihood is only known not to be larger.
        """
        if self.journal is not None and len(choices):
            if bounded is not None and len(bounded):
                self.journal.add_bounded(self._numbered(bounded))
            self.journal.add(self._numbered(choices), loglikelihood, is_greedy)
        if bounded is not None:
            self.bounded.update(bounded.tolist())
        self.is_greedy[choices] = is_greedy
        # Last, as it is what makes them count as finished.
        self.loglikelihood[choices] = loglikelihood

    def _numbered(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        return choices if self.numbers is None else self.numbers[choices]


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

    @classmethod
    def from_host(cls, found: torch.Tensor, dtype: torch.dtype, score_mode: ScoreMode) -> TargetScores:
        """What `look_up` found, once it is on the host; `dtype` is that of the logits."""
        logprobs, greedy = found.double().numpy()
        return cls(logprobs, greedy == 1, torch.float64 if score_mode == "float32" else dtype)


def score_targets(
    logits: torch.Tensor, readouts: NDArray[np.int64], tokens: NDArray[np.int64], score_mode: ScoreMode
) -> TargetScores:
    """Looks up tokens in next-token distributions, with one copy from the device to the host.

    The softmax is over the whole vocabulary. The most probable token is the first one with the highest log-probability,
    as in lm-eval (`HFLM._loglikelihood_tokens`); on a CPU in mode `"float32"` the first one with the largest logit,
    which log-probabilities that are rounded may make equal to others.

    Args:
        logits: One row for each readout: `[R, V]`.
        readouts: For each token, its readout: int64 `[N]`.
        tokens: Token ids: int64 `[N]`.
        score_mode: See `ScoreMode`.
    """
    at = torch.from_numpy(np.stack([readouts, tokens])).to(logits.device)
    return TargetScores.from_host(look_up(logits, at[0], at[1], score_mode).cpu(), logits.dtype, score_mode)


def look_up(logits: torch.Tensor, readouts: torch.Tensor, tokens: torch.Tensor, score_mode: ScoreMode) -> torch.Tensor:
    """What `score_targets` looks up, left on the device: log-probabilities, and 1 where the token is the most probable.

    Args:
        logits: `[R, V]`.
        readouts: On the device: int64 `[N]`.
        tokens: On the device: int64 `[N]`.
        score_mode: See `ScoreMode`.

    Returns:
        float32 `[2, N]`.

    Raises:
        ValueError: There is no such row or token.
    """
    if logits.device.type == "cpu" and score_mode == "float32":
        # One pass over the logits, which writes down nothing but what is asked for.
        found = TokenLogprobs(readouts.numpy(), tokens.numpy(), len(logits))
        found.add(logits.detach().float().numpy(), threads=torch.get_num_threads())
        return torch.stack([torch.from_numpy(array).float() for array in found.found()])
    logprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32 if score_mode == "float32" else None)
    chosen = logprobs[readouts, tokens].float()
    greedy = logprobs.argmax(dim=-1)[readouts] == tokens
    return torch.stack([chosen, greedy.float()])


def _round(sums: NDArray[np.float64], dtype: torch.dtype) -> NDArray[np.float64]:
    """Rounds once, as torch does: it adds up 16-bit numbers in float32."""
    rounded: NDArray[np.float64] = torch.from_numpy(sums).to(dtype).double().numpy()
    return rounded
