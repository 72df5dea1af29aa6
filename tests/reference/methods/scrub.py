"""SCRUB (Kurmanji et al. 2023) for a language model: min and max steps in turns, then min alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div

from tests.reference.methods.training import mean_by_document

if TYPE_CHECKING:
    from torch import Tensor

    from tests.reference.methods.training import Rows


def divergence(model: Any, teacher: Any, rows: Rows, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature: means over documents of means over positions that predict."""
    found, target = (
        (one(input_ids=rows.ids, attention_mask=rows.mask).logits[:, :-1] / temperature).log_softmax(-1)
        for one in (model, teacher)
    )
    real = rows.mask[:, 1:].float()
    by_token = kl_div(found, target.detach(), reduction="none", log_target=True).sum(-1) * real
    return (by_token.sum(1) / real.sum(1)).mean()


@dataclass
class Scrub:
    """The loss of each step after the other."""

    max_until: int
    alpha: float
    gamma: float
    temperature: float
    step: int = -1

    def __call__(self, model: Any, teacher: Any, forget: Rows, retain: Rows) -> tuple[Tensor, Tensor]:
        self.step += 1
        scale = self.temperature**2
        if self.step % 2 == 1 and self.step < self.max_until:
            return -scale * divergence(model, teacher, forget, self.temperature), torch.zeros(())
        loss = self.gamma * mean_by_document(model, retain).mean()
        return torch.zeros(()), loss + self.alpha * scale * divergence(model, teacher, retain, self.temperature)
