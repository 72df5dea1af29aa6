"""The divergence between two models on a text, the slow and obvious way: whole logits of whole windows in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.reference.perplexity import windows

if TYPE_CHECKING:
    from collections.abc import Sequence


def divergences(
    model: torch.nn.Module, base: torch.nn.Module, documents: Sequence[Sequence[int]], prefix: int, max_length: int
) -> list[float]:
    """KL(base || model) summed over the tokens of each document, in nats."""
    found = []
    for tokens in documents:
        total = 0.0
        for context, block in windows(list(tokens), prefix, max_length):
            row = torch.tensor([[*context, *block][:-1]])
            with torch.no_grad():
                q, p = (one(row).logits[0, -len(block) :].double().log_softmax(dim=-1) for one in (model, base))
            total += float((p.exp() * (p - q)).sum())
        found.append(total)
    return found
