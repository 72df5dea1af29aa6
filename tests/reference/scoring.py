"""Log-likelihoods one sequence at a time: no batch, no padding, every logit, sums in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.reference.batching import Question


@torch.no_grad()
def score(model: torch.nn.Module, questions: list[Question], max_length: int) -> list[tuple[float, bool]]:
    """For each choice of each question its log-likelihood, and whether each of its tokens is the most probable one."""
    answers = []
    for context, continuations in questions:
        for continuation in continuations:
            tokens = (context + continuation)[-(max_length + 1) :][:-1]
            # Tokens of a model's own, of a prompt that was learned, stand in front.
            logits = model(torch.tensor([tokens])).logits[0].float()[-len(continuation) :]
            logprobs = torch.log_softmax(logits, dim=-1)
            total = sum(float(logprobs[i, token]) for i, token in enumerate(continuation))
            greedy = all(int(logits[i].argmax()) == token for i, token in enumerate(continuation))
            answers.append((total, greedy))
    return answers
