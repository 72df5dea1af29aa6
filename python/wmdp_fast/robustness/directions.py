"""Directions in the residual stream that tell unlearned knowledge from the rest, and their removal while a model runs.

After "directional ablation" (Arditi et al. 2024, arXiv:2406.11717), used on unlearned models by Lucki et al. 2024
(arXiv:2409.18025): RMU writes one direction wherever it recognizes its topic, and what is beside shows without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.residual_stream import residual_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from wmdp_fast.robustness.questions import Questions
    from wmdp_fast.robustness.subject import CorpusName, Subject
    from wmdp_fast.scoring.local import LocalModel

# Tokens whose activations are kept: of a 7B model in bfloat16 a gigabyte, in the host's memory.
MOST_TOKENS = 4096

# Tokens whose activation is longer than the mean by more standard deviations are left out: models have a few that are a
# hundred times as long as the others whatever they read.
OUTLIER = 3.0

# Documents of a text that are read, and tokens of each.
DOCUMENTS, LENGTH = 256, 256


@dataclass(frozen=True)
class Direction:
    """A direction in the residual stream after a layer.

    Attributes:
        vector: float32 `[d]`, of the length that was found.
        strength: How much it stands out in that layer, from 0; comparable between layers.
    """

    vector: Tensor
    strength: float


def question_rows(questions: Questions, model: LocalModel) -> list[list[int]]:
    """Prompts of the questions for choosing, of all if they were not split, as tokens; at most `MOST_TOKENS`."""
    requests = questions.own(model)[1]
    # Prompts with other orders of choices follow; the first ones are the questions' own.
    places = questions.is_for_choosing.nonzero()[0] if questions.is_for_choosing.any() else range(len(questions))
    return [requests.context(int(place)).tolist() for place in places][:MOST_TOKENS]


def telling_tokens(rows: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
    """Which tokens of rows tell something: those after what a row begins with as its neighbor does.

    Instructions, examples and tokens that begin every text say nothing of what a row is about.

    Args:
        rows: Token ids of each row.
        longest: Most tokens that the model reads; of a longer row, the last.

    Returns:
        Of each row some tokens, counted from its end, spread evenly; the last always. Together about `MOST_TOKENS`.
    """
    each = max(1, MOST_TOKENS // len(rows))
    found = []
    for place, row in enumerate(rows):
        shared = 0 if len(rows) == 1 else _common_prefix(row, rows[place - 1 if place else 1])
        count = max(1, min(len(row) - shared, longest))
        step = max(1, -(-count // each))
        found.append(list(range(1, count + 1, step)))
    return found


def _common_prefix(row: Sequence[int], other: Sequence[int]) -> int:
    for place, (one, two) in enumerate(zip(row, other, strict=False)):
        if one != two:
            return place
    return min(len(row), len(other))


def activations(model: LocalModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """What each layer leaves in the stream at the telling tokens of rows: for each layer `[N, d]`."""
    return residual_stream(model, rows, telling_tokens(rows, model.max_length))


def found_directions(subject: Subject, source: str) -> list[Direction]:
    """A direction for each layer, found without a look at the questions that are reported.

    Args:
        subject: The model.
        source: What its activations at the questions for choosing are compared with: those of the model before
            unlearning at the same questions (`base`), its own at others (`utility questions`) or at other text
            (`related text`, `unrelated text`), or one another (`first component`).

    Raises:
        ModelError: The base has other layers, or is the same model.
        ValueError: There is no such source.
    """
    ours = activations(subject.model, question_rows(subject.questions, subject.model))
    if source == "first component":
        return [first_component(one) for one in ours]
    others = _others(subject, source)
    if [one.shape[1] for one in ours] != [one.shape[1] for one in others]:
        raise ModelError("the model before unlearning has other layers, so activations cannot be compared")
    found = [difference_of_means(one, other) for one, other in zip(ours, others, strict=True)]
    if not any(one.strength for one in found):
        raise ModelError("no layer's activations differ from the model before unlearning: it is the same model")
    return found


def _others(subject: Subject, source: str) -> list[Tensor]:
    if source == "base" and subject.original is not None:
        base = subject.original()
        return activations(base, question_rows(subject.questions, base))
    if source == "utility questions" and subject.test.questions is not None:
        return activations(subject.model, question_rows(subject.test.questions, subject.model))
    names: dict[str, CorpusName] = {"related text": "related", "unrelated text": "unrelated"}
    if source in names:
        texts = subject.corpus(names[source], documents=DOCUMENTS, length=LENGTH)
        return activations(subject.model, [texts.document(index).tolist() for index in range(len(texts))])
    raise ValueError(f"there is nothing to compare with for {source!r}")


def difference_of_means(ours: Tensor, others: Tensor) -> Direction:
    """The difference between mean activations, without outliers.

    Args:
        ours: Activations, `[N, d]`.
        others: Others, `[M, d]`.

    Returns:
        The difference; its strength is its length over that of an activation among the others.
    """
    first, second = _usual(ours), _usual(others)
    difference = first.mean(dim=0) - second.mean(dim=0)
    return Direction(difference, float(difference.norm() / second.norm(dim=1).mean()))


def first_component(ours: Tensor) -> Direction:
    """The direction along which activations vary the most, without outliers.

    Args:
        ours: Activations, `[N, d]`.

    Returns:
        The direction; its strength is its share of the variance.
    """
    centered = _usual(ours)
    centered = centered - centered.mean(dim=0)
    # The smaller one of the two matrices of inner products.
    wide = len(centered) < centered.shape[1]
    values, vectors = torch.linalg.eigh(centered @ centered.T if wide else centered.T @ centered)
    direction = centered.T @ vectors[:, -1] if wide else vectors[:, -1]
    return Direction(direction, float(values[-1] / values.sum()))


def strongest_components(ours: Tensor, others: Tensor, count: int) -> tuple[Tensor, float] | None:
    """The directions in which activations of the same tokens differ most between two models, for what they carry.

    They maximize `v^T D v / v^T (C + c I) v`, with D the second moments of the differences, C those of the other
    model's activations, and c the mean of C's diagonal: a direction that the other model writes much along is spared,
    since without it either model would lose more than was changed.

    Args:
        ours: Activations, `[N, d]`.
        others: Those of the other model, `[N, d]`.
        count: How many directions.

    Returns:
        The directions, the strongest first, orthonormal, `[count, d]`, and the share of the squared differences along
        them; None if the two are the same up to rounding.
    """
    other = others.double()
    difference = ours.double() - other
    if float(difference.norm()) <= torch.finfo(ours.dtype).eps * float(other.norm()):
        return None
    used = other.T @ other / len(other)
    used.diagonal().add_(used.diagonal().mean())
    # With C + c I = L L^T: the eigenvectors of L^-1 D L^-T, taken back by L^-T.
    lower = torch.linalg.cholesky(used)
    scaled = torch.linalg.solve_triangular(lower, difference.T, upper=False)
    _, vectors = torch.linalg.eigh(scaled @ scaled.T)
    found = torch.linalg.solve_triangular(lower.T, vectors[:, -count:].flip(1), upper=True)
    basis = torch.linalg.qr(found).Q
    return basis.T.float(), float((difference @ basis).square().sum() / difference.square().sum())


def _usual(found: Tensor) -> Tensor:
    found = found.float()
    lengths = found.norm(dim=1)
    spread = lengths.std(correction=0)
    kept: Tensor = found[(lengths - lengths.mean()).abs() <= OUTLIER * spread]
    return kept


def projecting_out(direction: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes a direction `[d]` out of a stream `[..., d]`: `x - (x . d) d`, in float32.

    Raises:
        ValueError: It is no direction: zero, or not finite.
    """
    unit = unit_of(direction)

    def project(stream: Tensor) -> Tensor:
        here = unit.to(stream.device)
        wide = stream.float()
        return (wide - (wide @ here)[..., None] * here).to(stream.dtype)

    return project


def projecting_out_all(found: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes several directions `[k, d]`, of any length and angle, out of a stream `[..., d]`, in float32."""
    basis = torch.linalg.qr(found.float().T).Q

    def project(stream: Tensor) -> Tensor:
        here = basis.to(stream.device)
        wide = stream.float()
        left: Tensor = wide - (wide @ here) @ here.T
        return left.to(stream.dtype)

    return project


def subtracting(difference: Tensor) -> Callable[[Tensor], Tensor]:
    """What takes a difference of means `[d]` off every token of a stream `[..., d]`."""

    def subtract(stream: Tensor) -> Tensor:
        return (stream.float() - difference.to(stream.device)).to(stream.dtype)

    return subtract


def unit_of(direction: Tensor) -> Tensor:
    """A direction of length 1 in float32.

    Raises:
        ValueError: It is zero, or not finite.
    """
    length = float(direction.float().norm())
    if not 0 < length < float("inf"):
        raise ValueError("a direction must have a length")
    return direction.float() / length
