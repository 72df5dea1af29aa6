"""Statistics as their formulas read, in plain numpy: what the Rust core must equal where no library has them."""

from __future__ import annotations

import math

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """SplitMix64's output function."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def bootstrap(values: list[float], resamples: int, seed: int, confidence: float) -> tuple[float, float]:
    """The percentile interval over resamples, with the very draws of the Rust core."""
    n = len(values)
    means = []
    for resample in range(resamples):
        state = mix((mix((seed + _GOLDEN) & _MASK) + resample) & _MASK)
        drawn = 0.0
        for draw in range(n):
            # 64 bits give two draws, the upper half first.
            if draw % 2 == 0:
                state = (state + _GOLDEN) & _MASK
            half = mix(state) >> 32 if draw % 2 == 0 else mix(state) & 0xFFFFFFFF
            drawn += values[(half * n) >> 32]
        means.append(drawn / n)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


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
