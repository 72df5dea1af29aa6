"""LLMU (Yao et al. 2023, arXiv:2310.10683) on plain documents, whose first tokens stand for prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.reference.methods.scrub import divergence
from tests.reference.methods.training import Rows, mean_by_document, token_losses

if TYPE_CHECKING:
    from torch import Tensor


def mean_of_answers(model: Any, prompts: list[list[int]], answers: list[list[int]], pad: int) -> Tensor:
    """The mean over answers of the mean cross-entropy of their tokens, prompts left out."""
    rows = Rows.of([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)], pad=pad)
    losses = token_losses(model, rows)
    means = [
        losses[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)].mean()
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    return torch.stack(means).mean()


@dataclass
class Llmu:
    """The loss of each step after the other; answers are drawn as the method draws them."""

    forget: list[list[int]]
    retain: list[list[int]]
    settings: Any
    pad: int
    step: int = -1

    def __call__(self, model: Any, reference: Any, forget: Rows, retain: Rows) -> tuple[Tensor, Tensor, Tensor]:
        self.step += 1
        settings, (prompts, answers) = self.settings, self.drawn()
        return (
            -settings.forget_weight * mean_by_document(model, forget).mean(),
            settings.retain_weight * self.by_token(model, reference, retain),
            settings.unrelated_weight * mean_of_answers(model, prompts, answers, self.pad),
        )

    def drawn(self) -> tuple[list[list[int]], list[list[int]]]:
        settings, limit = self.settings, self.settings.max_length
        draw = np.random.default_rng([settings.seed, self.step, 0])
        prompts, answers = [], []
        for document in self.forget[settings.batch_size * self.step :][: settings.batch_size]:
            length = min(settings.prompt_tokens, max(len(document[:limit]) // 2, 1))
            for chosen in draw.choice(len(self.retain), size=settings.num_unrelated, replace=False):
                prompts.append(document[:length])
                answers.append(self.retain[chosen][: min(settings.unrelated_tokens, limit - length)])
        return prompts, answers

    def by_token(self, model: Any, reference: Any, rows: Rows) -> Tensor:
        """The divergence's mean over all tokens: each document by itself, weighed by its length."""
        lengths = rows.mask.sum(1)
        alone = [
            Rows(rows.ids[row : row + 1, :length], rows.mask[row : row + 1, :length])
            for row, length in enumerate(lengths)
        ]
        parts = [divergence(model, reference, one, 1.0) * (one.mask.sum() - 1) for one in alone]
        return torch.stack(parts).sum() / (lengths - 1).sum()
