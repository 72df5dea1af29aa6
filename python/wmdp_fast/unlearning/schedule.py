"""The learning rate by step: a warm-up, and what comes after it. The arithmetic is that of transformers' schedules."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear")


def warmup_steps(total: int, share: float) -> int:
    """How many steps of a run have a rising learning rate: a share of them, rounded up, but never all.

    Args:
        total: Steps of the run.
        share: Of them, from 0 to below 1.
    """
    return min(math.ceil(total * share), total - 1)


def learning_rate_factor(step: int, total: int, *, schedule: str, warmup: float) -> float:
    """What a step's learning rate is, as a share of the largest one.

    During the warm-up it rises evenly from 0, which the first step has. After it the rate is constant, or with
    `"linear"` falls evenly so that a step after the last one would have 0. These are the values of transformers'
    `get_constant_schedule_with_warmup` and `get_linear_schedule_with_warmup`, except that a run whose steps would all
    be warm-up keeps its last step at the full rate.

    Args:
        step: Steps done before.
        total: Steps of the run.
        schedule: One of `SCHEDULES`.
        warmup: The share of steps whose rate rises.
    """
    rising = warmup_steps(total, warmup)
    if step < rising:
        return step / rising
    if schedule == "linear":
        return (total - step) / (total - rising)
    return 1.0
