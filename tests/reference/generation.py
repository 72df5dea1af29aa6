"""Greedy text the slow and obvious way: one prompt after the other, everything computed again for each token."""

from __future__ import annotations

import torch


def greedy(model: torch.nn.Module, prompt: list[int], most: int, ends: set[int]) -> list[int]:
    """The likeliest token after the prompt and those before it, until the text ends."""
    row = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            token = int(model(torch.tensor([row])).logits[0, -1].argmax())
        if token in ends:
            break
        row.append(token)
    return row[len(prompt) :]


def repetition(texts: list[list[int]], n: int) -> float:
    """The share of runs of n tokens that stood earlier in the same text."""
    seen_before = total = 0
    for text in texts:
        earlier: list[list[int]] = []
        for place in range(len(text) - n + 1):
            run = text[place : place + n]
            seen_before += run in earlier
            total += 1
            earlier.append(run)
    return seen_before / total
