"""Scores windows of texts: padded rows, of which the log-probability of nearly every token is wanted.

The logits of all these tokens over a whole vocabulary would be gigabytes. So a batch goes through the model up to its
last hidden states, and these through its head some rows at a time; see `wmdp_fast.models.head`. A model that cannot be
cut there is run as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from wmdp_fast.models.head import head_of
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import forward_without_cache
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.lm_head import ChunkedLMHead
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.scores import PartialScores, TargetScores, look_up
from wmdp_fast.scoring.streamed import for_trials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wmdp_fast._rust import PaddedBatch, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.scoring.scores import ScoreMode, Scores

# Logits held at once, by the kind of device: what stays in a CPU's caches, and what keeps a GPU busy.
_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 26}

# Rows at once where the vocabulary comes in parts.
_ROWS = 1024


def score_windows(
    loaded: LoadedModel,
    requests: Requests,
    *,
    token_budget: int | Literal["auto"] = "auto",
    score_mode: ScoreMode = "float32",
    progress: Callable[[int, int], None] | None = None,
    partial: PartialScores | None = None,
) -> Scores:
    """Scores windows, each a question with one choice; arguments and errors are those of `score_padded`.

    The logits of all positions of a batch are never held at once, unless the model cannot be run in two parts.
    """
    with evaluation_mode(loaded.model):
        with computing(), for_trials(loaded):
            read = _reader(loaded.model, loaded.device, score_mode)
        return score_padded(
            loaded,
            requests,
            token_budget=token_budget,
            score_mode=score_mode,
            progress=progress,
            partial=partial,
            read=read,
        )


def _reader(
    model: torch.nn.Module, device: torch.device, score_mode: ScoreMode
) -> Callable[[torch.Tensor, PaddedBatch], TargetScores] | None:
    """What runs a batch and looks up its targets; None if the model must be run as a whole."""
    lm_head = ChunkedLMHead.of(model, score_mode)
    if lm_head is not None:
        base = lm_head.base

        def hidden_of(input_ids: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = forward_without_cache(base, input_ids).last_hidden_state
            return hidden

        return _InParts(hidden_of, lm_head.look_up, _ROWS, lm_head.head.weight.dtype, score_mode)
    head = head_of(model, device)
    if head is None:
        return None
    rows = max(1, _LOGITS["cuda" if device.type == "cuda" else "cpu"] // head.vocabulary_size)

    def look_up_rows(hidden: torch.Tensor, readouts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return look_up(head.logits(hidden), readouts, tokens, score_mode)

    return _InParts(head.hidden, look_up_rows, rows, head.dtype, score_mode)


class _InParts:
    """Runs a batch up to its hidden states, and looks up its targets some rows at a time.

    Args:
        hidden_of: Gives the hidden states `[B, T, d]` of token ids `[B, T]`.
        look_up: As `scores.look_up`, for hidden states `[R, d]` in place of logits.
        rows: Most rows at once.
        dtype: Of the logits.
        score_mode: How log-probabilities are computed.
    """

    def __init__(
        self,
        hidden_of: Callable[[torch.Tensor], torch.Tensor],
        look_up: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        rows: int,
        dtype: torch.dtype,
        score_mode: ScoreMode,
    ) -> None:
        self._hidden_of, self._look_up, self._rows = hidden_of, look_up, rows
        self._dtype, self._score_mode = dtype, score_mode

    def __call__(self, input_ids: torch.Tensor, batch: PaddedBatch) -> TargetScores:
        states = self._hidden_of(input_ids)
        rows, positions = torch.from_numpy(batch.readouts).to(states.device).unbind(dim=1)
        hidden = states[rows, positions]
        # Targets by readout, so that those of some rows are next to each other.
        order = np.argsort(batch.target_readouts, kind="stable")
        readouts, tokens = batch.target_readouts[order], batch.target_tokens[order]
        parts = [
            self._look_up(hidden[begin : begin + self._rows], own_readouts - begin, own_tokens)
            for begin, own_readouts, own_tokens in self._targets(readouts, tokens, hidden)
        ]
        found = torch.empty(2, len(order), dtype=torch.float32, device="cpu")
        found[:, torch.from_numpy(order)] = torch.cat(parts, dim=1).cpu()
        return TargetScores.from_host(found, self._dtype, self._score_mode)

    def _targets(
        self, readouts: np.ndarray, tokens: np.ndarray, hidden: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """The targets of each part: where it begins, their readouts and their tokens."""
        for begin in range(0, len(hidden), self._rows):
            first, last = np.searchsorted(readouts, [begin, begin + self._rows])
            yield (
                begin,
                torch.from_numpy(readouts[first:last]).to(hidden.device),
                torch.from_numpy(tokens[first:last]).to(hidden.device),
            )
