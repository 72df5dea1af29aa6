"""What a run of unlearning measured, as a figure, by matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wmdp_fast.results.plot import axes_or_new

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

_SIZE = (6.4, 3.6)

# What is drawn unless something else is asked for: the two terms that every method with steps has.
DRAWN = ("forget_loss", "retain_loss")


def plot_metrics(metrics: Sequence[Mapping[str, Any]], names: Sequence[str], axes: Axes | None, title: str) -> Axes:
    """A curve for each name over the steps.

    Args:
        metrics: What was measured, a dictionary for each step and each evaluation.
        names: Which of it.
        axes: Where to draw; None makes a figure.
        title: Of the figure.

    Raises:
        ValueError: No step has measured one of the names; says what there is.
        WmdpFastError: matplotlib is missing; says what to install.
    """
    known = dict.fromkeys(key for row in metrics for key, value in row.items() if _is_curve(key, value))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no step measured {', '.join(unknown)}; there are {', '.join(known) or 'no steps'}")
    axes = axes_or_new(axes, _SIZE)
    for name in names:
        points = [(row["step"], row[name]) for row in metrics if isinstance(row.get(name), (int, float))]
        axes.plot([step for step, _ in points], [float(value) for _, value in points], label=name)
    values = [value for name in names for row in metrics if math.isfinite(value := row.get(name, math.nan))]
    # As in a report: what spans orders of magnitude is a flat line otherwise.
    if values and min(values) > 0 and max(values) / min(values) > 50:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, parse_math=False)
    axes.legend()
    return axes


def _is_curve(key: str, value: Any) -> bool:
    return key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
