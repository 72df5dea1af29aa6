"""Linear probes with nested cross-validation: whether what a layer holds tells right answers from wrong ones.

Questions are parted into five folds, near-duplicates together. Of each fold's other questions some validate: layer and
penalty are those whose probe, fitted on the rest, ranks the choices of the validation questions best. It is fitted
again on all of the others, and then, once, answers the fold's questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from wmdp_fast.robustness.logistic import Standardized, fit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)

# Groups of near-duplicates are dealt out to so many slots: a fold's test has 4 of them (20 %), its validation 3 (15 %).
SLOTS = 20
_TEST, _VALIDATION = 4, 3


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What probes learn from.

    Attributes:
        layers: For each layer what is known of each row, `[N, d]`: of a question, or of each of its choices.
        num_choices: Choices of each question, `[n]`.
        gold: The right choice of each question, `[n]`.
        per_choice: Whether there is a row for each choice (is it right?), not one for each question (which is right?).
    """

    layers: Sequence[Tensor]
    num_choices: NDArray[np.int64]
    gold: NDArray[np.int64]
    per_choice: bool

    def rows(self, questions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of some questions, in order."""
        if not self.per_choice:
            return questions
        firsts = np.cumsum(self.num_choices) - self.num_choices
        return np.concatenate([np.arange(firsts[one], firsts[one] + self.num_choices[one]) for one in questions])

    def labels(self, questions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of each row of some questions whether it is right, `[R, 1]`, or which choice is, `[R, K]`."""
        if self.per_choice:
            right = [np.arange(self.num_choices[one]) == self.gold[one] for one in questions]
            return np.concatenate(right).astype(np.float64)[:, None]
        found: NDArray[np.float64] = np.eye(int(self.num_choices.max()))[self.gold[questions]]
        return found

    def shuffled(self, seed: int) -> Examples:
        """The same with the right answers dealt out anew among the questions with as many choices: nothing to learn."""
        generator, gold = np.random.default_rng(seed), self.gold.copy()
        for count in np.unique(self.num_choices):
            places = np.flatnonzero(self.num_choices == count)
            gold[places] = generator.permutation(gold[places])
        return replace(self, gold=gold)

    def scores(self, questions: NDArray[np.int64], logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """A probe's outputs by question and choice, `[n, K]`; those of choices that there are not are -inf."""
        exists = np.arange(self.num_choices.max()) < self.num_choices[questions][:, None]
        if self.per_choice:
            found = np.full(exists.shape, -np.inf)
            found[exists] = logits[:, 0]
            return found
        return np.where(exists, logits, -np.inf)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What probes answered to questions that they were not fitted on.

    Attributes:
        predicted: The choice that is ranked first by the probe of the chosen layer, `[n]`.
        ranked: Share of the wrong choices that it ranks below the right one, `[n]`.
        chosen: Of each fold the layer and the strength that were chosen.
        accuracy_by_layer: The same for the probes of each layer with the strength chosen for it: share of questions.
        ranked_by_layer: Mean share of wrong choices below the right one.
    """

    predicted: NDArray[np.int64]
    ranked: NDArray[np.float64]
    chosen: tuple[tuple[int, float], ...]
    accuracy_by_layer: tuple[float, ...]
    ranked_by_layer: tuple[float, ...]


def probe(
    examples: Examples,
    groups: Sequence[int],
    *,
    seed: int,
    device: torch.device | None = None,
) -> Probed:
    """Nested cross-validation over questions.

    Args:
        examples: What is learned from.
        groups: Of each question its group; those of one group are in one fold, `[n]`.
        seed: Of the folds.
        device: Where to compute; None is the CPU.

    Returns:
        Answers to all questions.
    """
    num_questions, num_layers = len(examples.gold), len(examples.layers)
    scores = np.empty((num_layers, num_questions, int(examples.num_choices.max())))
    best: list[tuple[int, float]] = []
    layer_of = np.empty(num_questions, dtype=np.int64)
    parts = list(folds(groups, seed))
    validated = np.empty((len(parts), num_layers))
    strengths = np.empty((len(parts), num_layers))
    for layer, found in enumerate(examples.layers):
        wide = found.to(device or "cpu", torch.float64)
        for place, (train, validation, test) in enumerate(parts):
            measured = [
                ranked(one, examples.gold[validation]).mean()
                for one in _scores(examples, wide, train, validation, STRENGTHS)
            ]
            # The first of the best: the strongest penalty.
            strengths[place, layer] = STRENGTHS[int(np.argmax(measured))]
            validated[place, layer] = max(measured)
            known = np.sort(np.concatenate([train, validation]))
            scores[layer, test] = _scores(examples, wide, known, test, [strengths[place, layer]])[0]
    for place, (_, _, test) in enumerate(parts):
        layer = int(validated[place].argmax())
        best.append((layer, float(strengths[place, layer])))
        layer_of[test] = layer
    ours = scores[layer_of, np.arange(num_questions)]
    return Probed(
        predicted=ours.argmax(axis=1),
        ranked=ranked(ours, examples.gold),
        chosen=tuple(best),
        accuracy_by_layer=tuple(float((one.argmax(axis=1) == examples.gold).mean()) for one in scores),
        ranked_by_layer=tuple(float(ranked(one, examples.gold).mean()) for one in scores),
    )


def folds(groups: Sequence[int], seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Parts questions into those to fit on, to validate on and to test on, groups whole; each is tested once."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    slot = (np.random.default_rng(seed).permutation(len(names)) % SLOTS)[group_of]
    for fold in range(FOLDS):
        place = (slot - fold * _TEST) % SLOTS
        test, validation = place < _TEST, (place >= _TEST) & (place < _TEST + _VALIDATION)
        yield tuple(np.flatnonzero(one) for one in (~test & ~validation, validation, test))  # type: ignore[misc]


def ranked(scores: NDArray[np.float64], gold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each question the share of wrong choices with a lower score than the right one, ties half: `[n]`.

    Args:
        scores: `[n, K]`, -inf where there is no choice.
        gold: `[n]`.
    """
    right = np.take_along_axis(scores, gold[:, None], axis=1)
    exists = np.isfinite(scores)
    exists[np.arange(len(gold)), gold] = False
    below = ((scores < right) + 0.5 * (scores == right)) * exists
    found: NDArray[np.float64] = below.sum(axis=1) / exists.sum(axis=1)
    return found


def _scores(
    examples: Examples,
    layer: Tensor,
    known: NDArray[np.int64],
    asked: NDArray[np.int64],
    strengths: Sequence[float],
) -> list[NDArray[np.float64]]:
    """What probes that are fitted on some questions say of others, for each strength `[n, K]`."""
    of_known = layer[torch.from_numpy(examples.rows(known)).to(layer.device)]
    standardized = Standardized.by(of_known)
    labels = torch.from_numpy(examples.labels(known)).to(layer.device)
    weights = fit(standardized(of_known), labels, strengths)
    of_asked = standardized(layer[torch.from_numpy(examples.rows(asked)).to(layer.device)])
    return [examples.scores(asked, (of_asked @ one).cpu().numpy()) for one in weights]
