"""The residual stream after each layer as transformers gives it, a row at a time."""

from __future__ import annotations

import torch


def residual_stream(model, rows, from_end):
    """For each layer but the last, after which transformers has the final norm: `[N, d]`."""
    kept = []
    for row, wanted in zip(rows, from_end, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([row]), output_hidden_states=True).hidden_states[1:-1]
        kept.append(torch.stack([state[0, [len(row) - back for back in wanted]] for state in states]))
    return list(torch.cat(kept, dim=1))
