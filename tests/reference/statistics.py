"""Statistics as their formulas read, in plain numpy: what the Rust core must equal where no library has them."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import optimize, stats


def binomial_test(successes: int, n: int, chance: float) -> float:
    """In whole numbers, so exact: the outcomes no more likely than the one seen, with scipy's tolerance of 1e-7."""
    right, whole = chance.as_integer_ratio()
    wrong = whole - right
    weights = [wrong**n]
    for k in range(n):
        weights.append(weights[-1] * (n - k) * right // ((k + 1) * wrong))
    seen = weights[successes] * (10**7 + 1)
    return sum(weight for weight in weights if weight * 10**7 <= seen) / whole**n


def calibration_error(confidence: list[float], correct: list[bool], num_bins: int) -> float:
    """Expected calibration error over bins of equal width, each closed above."""
    error = 0.0
    for lowest in range(num_bins):
        inside = [
            i
            for i, value in enumerate(confidence)
            if lowest / num_bins < value <= (lowest + 1) / num_bins or (lowest == 0 and value == 0)
        ]
        if inside:
            mean = sum(confidence[i] for i in inside) / len(inside)
            right = sum(correct[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(mean - right)
    return error


def softmax(scores: list[float]) -> list[float]:
    """Probabilities of choices from their log-likelihoods."""
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def miller_clustered_stderr(values: list[float], clusters: list[int]) -> float:
    """The clustered standard error in the pairwise form of Miller 2024, with the factor G/(G-1)."""
    n, mean = len(values), sum(values) / len(values)
    within = sum(
        (values[i] - mean) * (values[j] - mean) for i in range(n) for j in range(n) if clusters[i] == clusters[j]
    )
    groups = len(set(clusters))
    return math.sqrt(max(within, 0.0) * groups / (groups - 1)) / n


def paired_score(lost: int, won: int, n: int, difference: float, correction: float) -> float:
    """Tango's statistic for a difference of paired shares, its nuisance found by maximizing the likelihood."""

    def negative_log_likelihood(share: float) -> float:
        shares = (share, share + difference, 1 - 2 * share - difference)
        counts = (lost, won, n - lost - won)
        return -sum(count * math.log(max(p, 1e-300)) for count, p in zip(counts, shares, strict=True) if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    found = optimize.minimize_scalar(
        negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-14, "maxiter": 1000}
    )
    share = min((low, high, float(found.x)), key=negative_log_likelihood)
    variance = n * (2 * share + difference * (1 - difference))
    distance = won - lost - n * difference
    distance = math.copysign(max(abs(distance) - correction, 0.0), distance)
    return 0.0 if distance == 0 else distance / math.sqrt(max(variance, 1e-300))


def paired_interval(lost: int, won: int, n: int, confidence: float) -> tuple[float, float]:
    """The differences that the score test does not reject; with a correction where it contradicts the exact test."""
    z = stats.norm.ppf((1 + confidence) / 2)

    def end(limit: float, correction: float) -> float:
        estimate = (won - lost) / n
        if abs(paired_score(lost, won, n, limit, correction)) <= z:
            return limit

        def excess(difference: float) -> float:
            return abs(paired_score(lost, won, n, difference, correction)) - z

        return float(optimize.brentq(excess, estimate, limit, xtol=1e-12))

    low, high = end(-1.0, 0.0), end(1.0, 0.0)
    exact = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    if (low > 0 or high < 0) and exact >= 1 - confidence:
        return end(-1.0, 1.0), end(1.0, 1.0)
    return low, high


def beaten(scores: list[float], choice: int) -> float:
    """Share of the other choices that one is ahead of; an equal one counts half."""
    others = [score for place, score in enumerate(scores) if place != choice]
    return sum((scores[choice] > other) + (scores[choice] == other) / 2 for other in others) / len(others)


def permuted_ranks(scores: list[list[float]], gold: list[int]) -> tuple[float, float, float]:
    """What right choices beat on average; mean and standard deviation of that over all permutations of the answers."""

    def mean(answers: tuple[int, ...] | list[int]) -> float:
        return sum(beaten(one, choice) for one, choice in zip(scores, answers, strict=True)) / len(scores)

    permuted = [mean(answers) for answers in itertools.permutations(gold)]
    return mean(gold), float(np.mean(permuted)), float(np.std(permuted))


def two_level_differences(first: list[list[bool]], second: list[list[bool]], seed: int, resamples: int) -> list[float]:
    """Differences of mean accuracy in samples of questions and, of each method, of one result fewer than it has."""
    rng = np.random.default_rng(seed)
    n = len(first[0])
    # One question stands for all that have the same answers.
    alike: dict[tuple[bool, ...], list[int]] = {}
    for question in range(n):
        alike.setdefault(tuple(result[question] for result in [*first, *second]), []).append(question)
    kinds = [alike[answers] for answers in sorted(alike)]
    counts = [rng.multinomial(n, [len(kind) / n for kind in kinds]) for _ in range(resamples)]
    means = []
    for results in (second, first):
        size = max(1, len(results) - 1)
        drawn = [rng.multinomial(size, np.full(len(results), 1 / len(results))) for _ in range(resamples)]
        of_method = []
        for sample in range(resamples):
            questions = [kind[0] for kind, count in zip(kinds, counts[sample], strict=True) for _ in range(count)]
            chosen = [result for place, result in enumerate(results) for _ in range(drawn[sample][place])]
            of_method.append(sum(result[question] for result in chosen for question in questions) / (size * n))
        means.append(of_method)
    return [theirs - ours for theirs, ours in zip(*means, strict=True)]
