"""Losses of tokens that never have all logits at once, beside those that do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

from wmdp_fast.unlearning.token_losses import cross_entropies, kl_divergences, soft_cross_entropies


@dataclass
class Head:
    """Makes logits as models do: a projection, maybe with a bias, a scale and a cap."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    cap: float | None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@st.composite
def heads(draw: st.DrawFn) -> Head:
    width, vocabulary = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    weight = torch.randn(vocabulary, width, dtype=torch.float32)
    bias = torch.randn(vocabulary) if draw(st.booleans()) else None
    return Head(weight, bias, draw(st.sampled_from([1.0, 0.3])), draw(st.sampled_from([None, 2.0])))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["cross-entropy", "soft", "kl"])
@settings(deadline=None, max_examples=40)
@given(head=heads(), count=st.integers(1, 12), rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_values_and_gradients_are_those_of_whole_logits(
    kind: str, trained: bool, head: Head, count: int, rows: int, seed: int
) -> None:
    torch.manual_seed(seed)
    vocabulary, width = head.weight.shape
    hidden, weights = torch.randn(count, width), torch.randn(count)
    targets = torch.randint(vocabulary, (count,))
    few, shares = torch.randint(vocabulary, (count, 2)), torch.rand(count, 2)
    before, temperature = torch.randn(count, vocabulary), 2.0

    def in_parts(states: torch.Tensor) -> torch.Tensor:
        options = {"rows": rows, "head": parameters}
        if kind == "cross-entropy":
            return cross_entropies(head, states, targets, **options)
        if kind == "soft":
            return soft_cross_entropies(head, states, few, shares, **options)
        return kl_divergences(head, states, lambda at: before[at], temperature=temperature, **options)

    def whole(states: torch.Tensor) -> torch.Tensor:
        logits = head(states)
        if kind == "cross-entropy":
            return cross_entropy(logits, targets, reduction="none")
        if kind == "soft":
            return -(shares * logits.log_softmax(-1).gather(1, few)).sum(-1)
        found, target = ((one / temperature).log_softmax(-1) for one in (logits, before))
        return kl_div(found, target, reduction="none", log_target=True).sum(-1)

    parameters = [one.requires_grad_() for one in (head.weight, head.bias) if one is not None] if trained else []
    results = []
    for losses in (in_parts, whole):
        states = hidden.clone().requires_grad_()
        found = losses(states)
        gradients = torch.autograd.grad((found * weights).sum(), [states, *parameters])
        results.append((found.detach(), *gradients))
    for mine, plain in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


def test_no_more_rows_of_logits_are_made_than_allowed() -> None:
    made: list[int] = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        made.append(len(hidden))
        return hidden @ weight

    weight = torch.randn(3, 7)
    hidden = torch.randn(10, 3, requires_grad=True)
    cross_entropies(logits, hidden, torch.zeros(10, dtype=torch.long), rows=4).sum().backward()
    assert made == [4, 4, 2]
    with torch.no_grad():
        cross_entropies(logits, hidden, torch.zeros(10, dtype=torch.long), rows=4)
    assert made == [4, 4, 2] * 2
