"""Text that a model writes while it is steered away from what it would write after another prefix."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def steered_text(
    model: Any,
    prompts: Sequence[Sequence[int]],
    expert: Sequence[Sequence[int]],
    novice: Sequence[Sequence[int]],
    gamma: float,
    draws: Tensor,
) -> Tensor:
    """Samples from `log p(. | prompt) - gamma * (log p(. | expert) - log p(. | novice))`, all three going on alike.

    Args:
        model: A causal model that keeps keys and values.
        prompts: Token ids of R prompts.
        expert: Token ids of the prefixes that are steered away from, one for each.
        novice: Token ids of those that are steered towards.
        gamma: How far.
        draws: Numbers from 0 to 1 that a token each comes of, float64 [R, tokens] on the CPU.

    Returns:
        Token ids, int64 [R, tokens] on the CPU.

    Raises:
        ModelError: The model does not keep keys and values.
    """
    streams = [_Stream(model, rows) for rows in (prompts, expert, novice)]
    written = []
    for draw in draws.unbind(dim=1):
        own, skilled, unskilled = (stream.log_probabilities for stream in streams)
        shares = (own - gamma * (skilled - unskilled)).double().softmax(dim=-1).cumsum(dim=-1)
        at = draw.unsqueeze(1).to(shares.device) * shares[:, -1:]
        tokens = torch.searchsorted(shares, at).clamp_max(shares.shape[1] - 1)
        written.append(tokens.cpu())
        for stream in streams:
            stream.append(tokens)
    return torch.cat(written, dim=1)


class _Stream:
    """Rows that grow by a token at a time.

    Args:
        model: The model.
        rows: Token ids to begin with.

    Attributes:
        log_probabilities: Of what comes next, float32 [R, V].
    """

    log_probabilities: Tensor

    def __init__(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        self._model, self._device = model, next(model.parameters()).device
        parameters = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._takes_positions = "position_ids" in parameters
        # Later versions of transformers call it so.
        self._cache = "cache" if "cache" in parameters else "past_key_values"
        width = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, width - len(row) :] = torch.tensor(row)
            mask[at, width - len(row) :] = 1
        self._mask, self._kept = mask.to(self._device), None
        self._run(ids.to(self._device))

    def append(self, tokens: Tensor) -> None:
        """Adds a token to each row: [R, 1]."""
        self._mask = torch.cat([self._mask, torch.ones_like(tokens)], dim=1)
        self._run(tokens)

    def _run(self, ids: Tensor) -> None:
        positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        given: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        given |= {self._cache: self._kept, **self._last_only}
        outputs = self._model(input_ids=ids, attention_mask=self._mask, use_cache=True, **given)
        self._kept = getattr(outputs, self._cache, None)
        if self._kept is None:
            raise ModelError(
                f"{type(self._model).__name__} keeps no keys and values, so text cannot be generated with it: set"
                " fluency_weight 0"
            )
        self.log_probabilities = outputs.logits[:, -1].float().log_softmax(dim=-1)
