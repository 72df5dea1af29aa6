"""Whether a run still has numbers. One that is infinite or NaN is in all weights a step later, so it ends the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from wmdp_fast.exceptions import DivergedError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from wmdp_fast.unlearning.training_config import TrainingConfig


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
    config: TrainingConfig,
    dtype: torch.dtype,
    *,
    what: str = "unlearning",
) -> None:
    """Looks at what a step has measured and made.

    Args:
        name: The model's.
        step: The number of the step, from 1.
        measured: the metrics of the method and `grad_norm`, all from before the weights were changed.
        largest: `largest_weight` of the trained tensors afterwards.
        config: The settings.
        dtype: Of the trained tensors.
        what: What the run is, for the message.

    Raises:
        DivergedError: One of these numbers is infinite or NaN; says what to lower.
        ModelError: It is the first step's, so that the fault is the model's.
    """
    broken = [key for key, value in measured.items() if not math.isfinite(value)]
    if not broken and math.isfinite(largest):
        return
    if step == 1 and any(key in config.activation_metrics for key in broken):
        raise ModelError(_no_numbers(name, dtype))
    if not broken:
        found = "weights have become infinite or NaN"
    else:
        shown = [f"{key} {measured[key]:g}" for key in broken[:2]]
        found = ", ".join(shown) + (f" and {len(broken) - 2} more" if len(broken) > 2 else "")
    raise DivergedError(f"{what} diverged at step {step}: {found}; {_advice(step, broken, config, dtype)}", step)


def check_findings(
    name: str, step: int, figures: Mapping[str, float], config: TrainingConfig, dtype: torch.dtype
) -> None:
    """Looks at what a method found after some steps.

    Raises:
        DivergedError: One of the figures is infinite or NaN; says what to lower.
        ModelError: No step has been done, so that the fault is the model's.
    """
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


def _advice(step: int, broken: Sequence[str], config: TrainingConfig, dtype: torch.dtype) -> str:
    """What to change, the likeliest first."""
    # The first step's losses are of weights that no step has changed yet.
    losses_alone = step == 1 and any(key not in config.activation_metrics for key in broken)
    advice = config.what_to_lower(losses_alone=losses_alone) or config.what_to_lower(losses_alone=False)
    if dtype == torch.float16:
        advice.append("or leave float16, whose largest number is 65504, for dtype bfloat16 or float32")
    return ", ".join(advice)
