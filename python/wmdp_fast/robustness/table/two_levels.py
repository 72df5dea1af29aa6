"""The difference of two methods over seeds and questions: a bootstrap of both levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 9_999
"""With the difference itself 10,000; the smallest p-value is then two in these."""


def resampled_differences(
    first: NDArray[np.bool_], second: NDArray[np.bool_], rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Differences of mean accuracy, the second's less the first's, in samples drawn with replacement.

    The questions are drawn for all alike, for every result was asked the same, and a method's results among its own,
    one fewer than there are: that many vary as the mean of all does (Rao and Wu 1988), where as many as there are, of
    three, would vary a third less. A method with one result is taken to have no other.

    Args:
        first: Whether each question was answered right in each result of one method, `[results, n]`.
        second: The same of the other, `[results, n]` with the same n; the number of results may be another.
        rng: Draws the samples.
        resamples: How many.

    Returns:
        `[resamples]`.
    """
    # Questions that all results answer alike are interchangeable: what is drawn is how often each kind of them comes.
    kinds, counts = np.unique(np.vstack([first, second]), axis=1, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    return _means(kinds[len(first) :], drawn, rng) - _means(kinds[: len(first)], drawn, rng)


def _means(correct: NDArray[np.bool_], questions: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Accuracy in each sample of questions, mean over a sample of the results."""
    results, n = len(correct), questions[0].sum()
    size = max(1, results - 1)
    drawn = rng.multinomial(size, np.full(results, 1 / results), size=len(questions))
    # Counts below 2^53: exact in any order.
    right = questions.astype(np.float64) @ correct.T.astype(np.float64)
    means: NDArray[np.float64] = (right * drawn).sum(axis=1) / (size * n)
    return means


def interval_and_p(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """The middle 95 % of resampled differences, and the two-sided p-value of no difference.

    The p-value is twice the share on the rarer side of 0, ties counted on both, with the difference that was seen
    counted as one more sample (Davison and Hinkley 1997, 4.4): it is never 0.

    Args:
        differences: From `resampled_differences`.

    Returns:
        Lower end, upper end, p.
    """
    low, high = np.quantile(differences, (0.025, 0.975))
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (1 + int(rarer)) / (1 + len(differences)))
