"""Accuracies as a figure, by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast import _rust
from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

# Inches: of a figure, and of each row in it.
_WIDTH, _ROW, _REST = 6.4, 0.32, 0.9


def axes_or_new(axes: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes, or those of a new figure of pyplot's, which `pyplot.show()` and notebooks show.

    Args:
        axes: Where to draw, or None.
        size: Width and height of a new figure in inches.

    Raises:
        WmdpFastError: matplotlib is missing; says what to install.
    """
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise WmdpFastError("plots need matplotlib: pip install 'wmdp-fast[plots]'") from None
    return plt.subplots(figsize=size, layout="constrained")[1]


def plot_accuracies(rows: Sequence[tuple[str, float, int, float | None]], axes: Axes | None, title: str) -> Axes:
    """A line a row, with Wilson's 95 % interval and a mark at what guessing gives.

    Args:
        rows: Name, accuracy, number of questions, and what guessing gives if that is known; from above.
        axes: Where to draw; None makes a figure.
        title: Of the figure.

    Raises:
        ValueError: There are no rows.
        WmdpFastError: matplotlib is missing; says what to install.
    """
    if not rows:
        raise ValueError("there is no accuracy to plot")
    axes = axes_or_new(axes, (_WIDTH, _REST + _ROW * len(rows)))
    places = range(len(rows))
    guesses = [(place, chance) for place, (_, _, _, chance) in zip(places, rows, strict=True) if chance is not None]
    if guesses:
        at, chances = zip(*guesses, strict=True)
        axes.plot(chances, at, "|", color="0.5", markersize=12, label="guessing")
    values = [value for _, value, _, _ in rows]
    ends = [_rust.wilson(round(value * count), count) for _, value, count, _ in rows]
    sides = [
        [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    axes.errorbar(values, list(places), xerr=sides, fmt="o", capsize=3, label="accuracy, 95 % interval")
    axes.set_yticks(list(places), [name for name, _, _, _ in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy")
    axes.set_title(title, parse_math=False)
    axes.legend()
    return axes
