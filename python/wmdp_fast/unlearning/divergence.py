"""Whether a run still has numbers. One that is infinite or NaN is in all weights a step later, so it ends the run."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from wmdp_fast.exceptions import DivergedError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from wmdp_fast.unlearning.rmu.config import RMUConfig
    from wmdp_fast.unlearning.rmu.effect import Effect

_LOSSES = ("forget_loss", "retain_loss", "forget_loss_masked", "retain_loss_masked")
_ACTIVATIONS = ("forget_norm", "retain_norm", "forget_cosine", "retain_cosine")


def largest_weight(parameters: Iterable[Tensor]) -> Tensor:
    """The largest absolute value among some tensors, float32, on their device; NaN if one is among them."""
    norms = [torch.linalg.vector_norm(parameter.detach(), ord=math.inf).float() for parameter in parameters]
    return torch.stack(norms).amax()


def check_base(name: str, coefficients: Sequence[float], dtype: torch.dtype) -> None:
    """Raises ModelError if a steering coefficient that was measured on a model is not finite or not above 0."""
    if all(math.isfinite(value) and value > 0 for value in coefficients):
        return
    found = ", ".join(f"{value:g}" for value in coefficients)
    raise ModelError(f"{_no_numbers(name, dtype)} (steering coefficients: {found})")


def check_step(
    name: str,
    step: int,
    measured: Mapping[str, float],
    largest: float,
    config: RMUConfig,
    dtype: torch.dtype,
) -> None:
    """Looks at what a step has measured and made.

    Args:
        name: The model's.
        step: The number of the step, from 1.
        measured: `step.MEASURES` and `grad_norm`, all from before the weights were changed.
        largest: `largest_weight` of the trained tensors afterwards.
        config: The settings.
        dtype: Of the trained tensors.

    Raises:
        DivergedError: One of these numbers is infinite or NaN; says what to lower.
        ModelError: It is the first step's, so that the fault is the model's.
    """
    broken = [key for key, value in measured.items() if not math.isfinite(value)]
    if not broken and math.isfinite(largest):
        return
    if step == 1 and any(key in _ACTIVATIONS for key in broken):
        raise ModelError(_no_numbers(name, dtype))
    if not broken:
        what = "weights have become infinite or NaN"
    else:
        shown = [f"{key} {measured[key]:g}" for key in broken[:2]]
        what = ", ".join(shown) + (f" and {len(broken) - 2} more" if len(broken) > 2 else "")
    raise DivergedError(f"unlearning diverged at step {step}: {what}; {_advice(step, broken, config, dtype)}", step)


def check_effects(name: str, step: int, effects: Iterable[Effect], config: RMUConfig, dtype: torch.dtype) -> None:
    """Looks at the activations after some steps.

    Raises:
        DivergedError: One is infinite or NaN; says what to lower.
        ModelError: No step has been done, so that the fault is the model's.
    """
    figures = {key: value for one in effects for key, value in asdict(one).items() if isinstance(value, float)}
    if all(map(math.isfinite, figures.values())):
        return
    if step == 0:
        raise ModelError(_no_numbers(name, dtype))
    raise DivergedError(
        f"unlearning diverged at step {step}: activations are infinite or NaN; {_advice(step, [], config, dtype)}", step
    )


def _no_numbers(name: str, dtype: torch.dtype) -> str:
    called = str(dtype).removeprefix("torch.")
    wider = "; they may be too large for float16: try dtype bfloat16" if dtype == torch.float16 else ""
    return (
        f"the activations of {name} in {called} are infinite or NaN, or all zero, before anything is trained{wider};"
        " are its weights finite?"
    )


def _advice(step: int, broken: Sequence[str], config: RMUConfig, dtype: torch.dtype) -> str:
    """What to change, the likeliest first."""
    rate = f"lower the learning rate (now {config.learning_rate:g})"
    losses = f"alpha (now {_plain(config.alpha)}) or the steering coefficient (now {_plain(config.steering_coeff)})"
    # The first step's losses are of weights that no step has changed yet.
    first = [f"lower {losses}"] if step == 1 and any(key in (*_LOSSES, "grad_norm") for key in broken) else []
    advice = first or [rate, f"then {losses}"]
    if dtype == torch.float16:
        advice.append("or leave float16, whose largest number is 65504, for dtype bfloat16 or float32")
    return ", ".join(advice)


def _plain(value: object) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, tuple) else str(value)
