"""Attention over a packed token trie on a GPU, with gradients where they are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.models.attention.gpu_forward import attend_with_lse
from wmdp_fast.models.attention.gpu_gradient import AttentionWithGradient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.models.attention.layout import Layout


def attend_on_gpu(
    query: torch.Tensor,
    runs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a batch; sums are in float32 whatever the dtype.

    With gradients for query, key, value and sinks, if nothing was carried over to the batch.

    Args:
        query: [heads, T, head size].
        runs: Keys [key heads, N, head size] and values [key heads, N, value size]: of the tokens that were carried over
            to the batch, if there are any, and then of its own T tokens.
        layout: The batch.
        scale: Factor of the scores.
        window: A token sees only keys less than so many positions before it.
        softcap: Scores s become `softcap * tanh(s / softcap)`.
        sinks: [heads], the score of a key that every token sees and that has no value.

    Returns:
        Outputs [T, heads, value size].

    Raises:
        ValueError: A gradient is wanted and something was carried over.
    """
    options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    tensors = (query, sinks, *(tensor for run in runs for tensor in run))
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        if len(runs) > 1:
            raise ValueError("attention to keys that were carried over has no gradient")
        with_gradient: torch.Tensor = AttentionWithGradient.apply(query, *runs[0], sinks, layout, options)
        return with_gradient
    return attend_with_lse(query, runs, layout, sinks=sinks, **options)[0]
