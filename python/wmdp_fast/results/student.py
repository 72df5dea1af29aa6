"""Student's t distribution, as far as intervals and tests need it: neither numpy nor torch has it."""

from __future__ import annotations

import math


def p_value(t: float, freedom: int) -> float:
    """How often Student's t is at least as far from 0: the incomplete beta function I_x(freedom / 2, 1 / 2).

    Args:
        t: The statistic.
        freedom: Degrees of freedom, at least 1.
    """
    if math.isinf(t):
        return 0.0
    x = freedom / (freedom + t * t)
    a, b = freedom / 2, 0.5
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(x, a, b) / a
    return 1 - front * _beta_fraction(1 - x, b, a) / b


def quantile(confidence: float, freedom: int) -> float:
    """How many standard errors a two-sided interval reaches to each side, by bisection of the tail.

    Args:
        confidence: Confidence level of the interval.
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while p_value(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if p_value(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method (Numerical Recipes, 6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
