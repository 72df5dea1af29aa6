"""Scores windows of texts: padded rows, of which the log-probability of nearly every token is wanted.

The logits of all these tokens over a whole vocabulary would be gigabytes. So a batch goes through the model up to its
last hidden states, and these through the rest some rows at a time. The rest is the model itself with its base left
out, so that caps, scales and adapters on the head are in it; that it gives the model's own logits is tried first, and a
model that does not is run as a whole.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.lm_head import ChunkedLMHead
from wmdp_fast.scoring.padded import all_logits, are_close, forward_without_cache, score_padded
from wmdp_fast.scoring.scores import PartialScores, TargetScores, look_up

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
        with computing():
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
        return _InParts(lm_head.base, lm_head.look_up, _ROWS, lm_head.head.weight.dtype, score_mode)
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    inner: Any = unwrap()
    base = getattr(inner, "base_model", inner)
    if base is inner or not isinstance(base, torch.nn.Module):
        return None
    head = _Head(model, base)
    if (logits := _tried(head, device)) is None:
        return None
    rows = max(1, _LOGITS["cuda" if device.type == "cuda" else "cpu"] // logits.shape[1])

    def look_up_rows(hidden: torch.Tensor, readouts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return look_up(head.logits(hidden), readouts, tokens, score_mode)

    return _InParts(base, look_up_rows, rows, logits.dtype, score_mode, head)


class _Head:
    """A model without its base.

    Args:
        model: The whole model.
        base: The part of it that returns hidden states.
    """

    def __init__(self, model: torch.nn.Module, base: torch.nn.Module) -> None:
        self._model, self._base = model, base
        self.outputs: Any = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of hidden states `[R, d]`: `[R, V]`."""
        outputs = copy.copy(self.outputs)
        outputs.last_hidden_state = hidden[None]
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with replaced_forwards({self._base: lambda *_, **__: outputs}):
            logits: torch.Tensor = forward_without_cache(self._model, tokens).logits
        return logits[0]

    def hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The base's last hidden states `[B, T, d]`."""
        self.outputs = None
        self.outputs = forward_without_cache(self._base, input_ids)
        hidden: torch.Tensor = self.outputs.last_hidden_state
        return hidden


def _tried(head: _Head, device: torch.device) -> torch.Tensor | None:
    """The logits of a few tokens in two parts; None if they are not the whole model's, or it cannot be run so."""
    input_ids = torch.tensor([[1, 2, 1]], device=device)
    everywhere = np.array([[0, 0], [0, 1], [0, 2]])
    expected = all_logits(head._model, input_ids, everywhere)
    try:
        # One row by itself, as a part of a batch may be.
        hidden = head.hidden(input_ids)[0]
        found = torch.cat([head.logits(hidden[:2]), head.logits(hidden[2:])])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    same = found.shape == expected.shape and found.dtype == expected.dtype and are_close(found, expected)
    return found if same else None


class _InParts:
    """Runs a batch up to its hidden states, and looks up its targets some rows at a time.

    Args:
        base: Gives hidden states.
        look_up: As `scores.look_up`, for hidden states `[R, d]` in place of logits.
        rows: Most rows at once.
        dtype: Of the logits.
        score_mode: How log-probabilities are computed.
        head: Runs the base, if it must know of it.
    """

    def __init__(
        self,
        base: torch.nn.Module,
        look_up: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        rows: int,
        dtype: torch.dtype,
        score_mode: ScoreMode,
        head: _Head | None = None,
    ) -> None:
        self._base, self._look_up, self._rows = base, look_up, rows
        self._dtype, self._score_mode, self._head = dtype, score_mode, head

    def __call__(self, input_ids: torch.Tensor, batch: PaddedBatch) -> TargetScores:
        if self._head is None:
            states = forward_without_cache(self._base, input_ids).last_hidden_state
        else:
            states = self._head.hidden(input_ids)
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
        if self._head is not None:
            self._head.outputs.last_hidden_state = None  # it would outlive the batch
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
