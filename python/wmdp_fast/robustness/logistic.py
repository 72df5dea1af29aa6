"""Logistic regression with an L2 penalty, for several strengths of it at once: Newton's method.

What is minimized is scikit-learn's objective, `|w|^2 / 2 + C * sum of losses`, with intercepts that are not penalized.
In the width of a large model a Hessian has 16 million entries, so there a Newton step is solved by conjugate gradients,
which write none down; of small ones it is solved at once. Strengths share the products with the examples. In float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wmdp_fast.exceptions import InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# The gradient's length at the end over that at the beginning.
_TOLERANCE = 1e-6
_NEWTON_STEPS, _CG_STEPS, _HALVINGS = 100, 400, 40

# Armijo's condition: the share of the decrease that the gradient promises.
_PROMISED = 1e-4


@dataclass(frozen=True)
class Standardized:
    """Examples with mean 0 and variance 1 in each feature, by the means and variances of those that are learned from.

    Attributes:
        mean: `[d]`.
        scale: `[d]`; 1 for a feature that is always the same, as in scikit-learn.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def by(cls, examples: Tensor) -> Standardized:
        """By examples `[n, d]` in float64."""
        scale = examples.std(dim=0, correction=0)
        constant = scale <= 10 * torch.finfo(examples.dtype).eps * examples.abs().amax(dim=0)
        return cls(examples.mean(dim=0), torch.where(constant, 1.0, scale))

    def __call__(self, examples: Tensor) -> Tensor:
        """Standardizes `[n, d]` and adds a feature that is always 1, for the intercept: `[n, d + 1]`."""
        found = (examples - self.mean) / self.scale
        return torch.cat([found, found.new_ones(len(found), 1)], dim=1)


def fit(examples: Tensor, labels: Tensor, strengths: Sequence[float]) -> Tensor:
    """Fits a regression for each strength.

    Args:
        examples: As `Standardized` gives them, float64 `[n, d + 1]`.
        labels: For two classes 0 and 1, `[n, 1]`; for more a column for each class, `[n, K]`, with one 1 in each row.
        strengths: Inverse strengths of the penalty, scikit-learn's `C`.

    Returns:
        Weights, the intercept last, `[P, d + 1, K]` for P strengths.

    Raises:
        InternalError: It does not converge.
    """
    problem = _Problem(examples, labels, examples.new_tensor(list(strengths)))
    weights = examples.new_zeros(examples.shape[1], len(strengths), labels.shape[1])
    logits = problem.logits(weights)
    first = None
    for _ in range(_NEWTON_STEPS):
        gradient = problem.gradient(weights, logits)
        length = _length(gradient)
        first = length if first is None else first
        going = length > _TOLERANCE * first
        if not bool(going.any()):
            return weights.permute(1, 0, 2)
        step = problem.newton_step(gradient, logits) * going[:, None]
        along = problem.logits(step)
        size = problem.step_size(weights, logits, step, along, gradient)
        # Where rounding leaves nothing to gain it is at its end.
        if not bool((size > 0)[going].any()):
            return weights.permute(1, 0, 2)
        weights, logits = weights + size[:, None] * step, logits + size[:, None] * along
    raise InternalError(f"logistic regression did not converge in {_NEWTON_STEPS} steps")


def probabilities(logits: Tensor) -> Tensor:
    """Of two classes that of the second, `[..., 1]`; of more those of all, `[..., K]`."""
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(dim=-1)


@dataclass(frozen=True)
class _Problem:
    """The objective for all strengths. Weights are `[d + 1, P, K]`, logits `[n, P, K]`."""

    examples: Tensor
    labels: Tensor
    strengths: Tensor

    def logits(self, weights: Tensor) -> Tensor:
        return (self.examples @ weights.flatten(1)).reshape(-1, *weights.shape[1:])

    def _back(self, residuals: Tensor) -> Tensor:
        return (self.examples.T @ residuals.flatten(1)).reshape(-1, *residuals.shape[1:]) * self.strengths[:, None]

    def value(self, weights: Tensor, logits: Tensor) -> Tensor:
        """`[P]`."""
        labels = self.labels[:, None]
        if logits.shape[-1] == 1:
            losses = torch.nn.functional.softplus(logits) - labels * logits
        else:
            losses = logits.logsumexp(dim=-1, keepdim=True) - (labels * logits).sum(dim=-1, keepdim=True)
        return weights[:-1].square().sum(dim=(0, 2)) / 2 + self.strengths * losses.sum(dim=(0, 2))

    def gradient(self, weights: Tensor, logits: Tensor) -> Tensor:
        return _penalized(weights) + self._back(probabilities(logits) - self.labels[:, None])

    def _curved(self, step: Tensor, chances: Tensor) -> Tensor:
        """The Hessian times a step."""
        moved = self.logits(step)
        if moved.shape[-1] == 1:
            changed = chances * (1 - chances) * moved
        else:
            changed = chances * (moved - (chances * moved).sum(dim=-1, keepdim=True))
        return _penalized(step) + self._back(changed)

    def newton_step(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Solves `Hessian step = -gradient` by conjugate gradients, as well as helps so far from the end."""
        chances = probabilities(logits)
        diagonal = self._diagonal(chances)
        step, rest = torch.zeros_like(gradient), -gradient
        scaled = rest / diagonal
        direction, product = scaled, _inner(rest, scaled)
        length = _length(gradient)
        wanted = torch.minimum(length.new_tensor(0.1), length.sqrt() * 1e-2) * length
        for _ in range(_CG_STEPS):
            going = _length(rest) > wanted
            if not bool(going.any()):
                break
            curved = self._curved(direction, chances)
            curvature = _inner(direction, curved)
            size = torch.where(going & (curvature > 0), product / curvature, 0.0)[:, None]
            step, rest = step + size * direction, rest - size * curved
            scaled = rest / diagonal
            before, product = product, _inner(rest, scaled)
            direction = scaled + torch.where(going, product / before, 0.0)[:, None] * direction
        return step

    def _diagonal(self, chances: Tensor) -> Tensor:
        """The Hessian's diagonal, by which conjugate gradients are scaled."""
        spread = (chances * (1 - chances)).flatten(1)
        found = (self.examples.square().T @ spread).reshape(-1, *chances.shape[1:]) * self.strengths[:, None]
        found[:-1] += 1
        return found.clamp_min(1e-12)

    def step_size(self, weights: Tensor, logits: Tensor, step: Tensor, along: Tensor, gradient: Tensor) -> Tensor:
        """Of each problem the largest of 1, 1/2, 1/4... that lowers the objective enough, `[P]`; 0 if none does."""
        now, slope = self.value(weights, logits), _inner(gradient, step)
        size, found = torch.ones_like(now), torch.zeros_like(now)
        for _ in range(_HALVINGS):
            there = self.value(weights + size[:, None] * step, logits + size[:, None] * along)
            good = (found == 0) & (there < now) & (there <= now + _PROMISED * size * slope)
            found = torch.where(good, size, found)
            if bool(((found > 0) | (slope >= 0)).all()):
                break
            size = size / 2
        return found


def _penalized(weights: Tensor) -> Tensor:
    """The penalty's gradient: the weights without the intercepts."""
    found = weights.clone()
    found[-1] = 0
    return found


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(0, 2))


def _length(one: Tensor) -> Tensor:
    return _inner(one, one).sqrt()
