"""The report's plots, drawn by matplotlib as SVG that takes its colors from the page.

Each function returns a `Figure`: the drawing, what it shows in words, and its numbers as a table. All are drawn narrow,
so that text keeps its size on a phone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wmdp_fast.report import svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from wmdp_fast.report.content import Curve, Level, Levels, Plot, Scores

# Inches; at 72 units an inch the width of a phone's screen.
_WIDTH = 4.6

_POINTS = 100  # in a share of 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot and the same in words and in numbers.

    Attributes:
        name: Its id in the page.
        title: What it shows, in a few words.
        caption: How to read it.
        description: The same and what is to be seen, for readers who do not see it.
        keys: The series in it, by the name of their look, and what each is.
        drawing: An SVG element.
        columns: Headers of the table of its numbers.
        rows: That table's cells as text.
    """

    name: str
    title: str
    caption: str
    description: str
    keys: list[tuple[str, str]]
    drawing: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def calibration(name: str, label: str, scores: Sequence[Scores]) -> Figure:
    """How often the model is right, by how much probability it gives the choice it prefers; the diagonal is perfect."""
    with svg.plot(_WIDTH, 3.4) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=svg.INK, linewidth=1, linestyle=(0, (2, 1.6)))
        for run in scores:
            series = svg.SERIES[run.look]
            filled = [cell for cell in run.calibration if cell.count]
            x = [cell.confidence * _POINTS for cell in filled]
            for cell in filled:
                axes.plot(
                    [cell.confidence * _POINTS] * 2,
                    [cell.accuracy.low * _POINTS, cell.accuracy.high * _POINTS],
                    color=series.line,
                    linewidth=1,
                )
            y = [cell.accuracy.value * _POINTS for cell in filled]
            axes.plot(
                x, y, color=series.line, linestyle=series.dashes, marker=series.marker, markersize=4.5, linewidth=1.4
            )
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("probability of the preferred choice, %")
        axes.set_ylabel("right, %")
        _frame(axes, "both")
        caption = (
            "Share of right answers by the probability of the preferred choice, with 95 % intervals; each mark stands"
            " for at least ten questions. On the diagonal the two agree; below it the model is too sure."
        )
        told = f"{caption} " + (
            " ".join(f"{run.name}: expected calibration error {percent(run.ece)} points." for run in scores)
        )
        drawing = svg.write(figure, name, title := f"Calibration: {label}", told)
    return Figure(
        name=name,
        title=title,
        caption=caption,
        description=told,
        keys=[(run.look, run.name) for run in scores],
        drawing=drawing,
        columns=("Run", "Probability, %", "Questions", "Mean probability, %", "Right, %", "95 % interval"),
        rows=[
            (
                run.name,
                f"{cell.low * _POINTS:.0f} to {cell.high * _POINTS:.0f}",
                f"{cell.count:,}",
                percent(cell.confidence),
                *_estimate_cells(cell.accuracy),
            )
            for run in scores
            for cell in run.calibration
            if cell.count
        ],
    )


def margins(name: str, label: str, scores: Sequence[Scores]) -> Figure:
    """How far the right choice is ahead of the best wrong one, in nats; left of zero the answer is wrong."""
    with svg.plot(_WIDTH, 2.7) as (figure, axes):
        for run in scores:
            series = svg.SERIES[run.look]
            total = sum(run.margins.counts)
            shares = [count / total * _POINTS for count in run.margins.counts]
            axes.stairs(
                shares, run.margins.edges, color=series.line, linestyle=series.dashes, linewidth=1.5, fill=False
            )
        axes.axvline(0, color=svg.INK, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("lead of the right choice, nats")
        axes.set_ylabel("questions, %")
        _frame(axes, "both")
        caption = (
            "By how many nats the right choice leads the best wrong one; left of zero the answer is wrong, near zero it"
            " hangs on little."
        )
        told = f"{caption} " + (" ".join(f"{run.name}: median {signed(run.margins.median)}." for run in scores))
        drawing = svg.write(figure, name, title := f"Margins: {label}", told)
    edges = scores[0].margins.edges
    return Figure(
        name=name,
        title=title,
        caption=caption,
        description=told,
        keys=[(run.look, run.name) for run in scores],
        drawing=drawing,
        columns=("Lead, nats", *(f"{run.name}, questions" for run in scores)),
        rows=[
            (f"{signed(low)} to {signed(high)}", *(f"{run.margins.counts[cell]:,}" for run in scores))
            for cell, (low, high) in enumerate(pairwise(edges))
        ],
    )


def curves(name: str, plot: Plot) -> Figure:
    """Something over steps or layers; on a logarithmic scale where it spans more than a factor of 50."""
    values = [value for line in plot.curves for value in line.values if math.isfinite(value)]
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) > 50
    looks = [line.look or free for line, free in zip(plot.curves, svg.cycle(), strict=False)]
    with svg.plot(_WIDTH, 2.7) as (figure, axes):
        for line, look in zip(plot.curves, looks, strict=True):
            _draw(axes, line, svg.SERIES[look])
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlabel(plot.axis)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(_short(plot.unit, 40))
        _frame(axes, "both")
        caption = f"By {plot.axis}, on a logarithmic scale." if logarithmic else f"By {plot.axis}."
        caption = f"{caption} {plot.note}".strip()
        told = f"{plot.title}. {caption} " + " ".join(
            f"{line.name}: from {line.values[0]:.4g} to {line.values[-1]:.4g}." for line in plot.curves if line.values
        )
        drawing = svg.write(figure, name, plot.title, told)
    return Figure(
        name=name,
        title=plot.title,
        caption=caption,
        description=told,
        keys=[(look, line.name) for line, look in zip(plot.curves, looks, strict=True)],
        drawing=drawing,
        columns=(plot.axis.capitalize(), *(column for line in plot.curves for column in _columns(line))),
        rows=_sampled(plot.curves),
    )


def _draw(axes: Axes, line: Curve, series: svg.Series) -> None:
    """A line, marked at its end; where it has intervals, marked at each value with its interval."""
    marks: dict[str, Any] = {"marker": series.marker, "markersize": 4.5}
    axes.plot(
        line.steps,
        line.values,
        color=series.line,
        linestyle=series.dashes,
        linewidth=1.4,
        **marks if line.intervals else {},
    )
    for step, (low, high) in zip(line.steps, line.intervals, strict=False):
        axes.plot([step, step], [low, high], color=series.line, linewidth=1)
    if line.values and math.isfinite(line.values[-1]):
        axes.plot(line.steps[-1:], line.values[-1:], color=series.line, **marks)


def levels(name: str, shown: Levels) -> Figure:
    """Numbers of several models, a line for each number; on a logarithmic scale as `curves`."""
    numbers = [one.value for row in shown.rows.values() for one in row if one.value is not None]
    logarithmic = min(numbers) > 0 and max(numbers) / min(numbers) > 50
    with svg.plot(_WIDTH, 0.8 + len(shown.rows) * (0.16 + 0.14 * len(shown.models))) as (figure, axes):
        for place, row in enumerate(shown.rows.values()):
            for number, ((look, _), one) in enumerate(zip(shown.models, row, strict=True)):
                _mark(axes, one, place + (number - (len(row) - 1) / 2) * 0.7 / len(row), svg.SERIES[look])
        axes.set_ylim(len(shown.rows) - 0.5, -0.5)
        axes.set_yticks(range(len(shown.rows)), [_short(title, 38) for title in shown.rows])
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlabel(shown.unit)
        _frame(axes, "x")
        caption = "Without an attack; lines through a mark are 95 % intervals over documents, questions or texts."
        caption += " The scale is logarithmic." if logarithmic else ""
        caption = f"{caption} {shown.note}".strip()
        rows = [(title, *(one.text for one in row)) for title, row in shown.rows.items()]
        told = f"{shown.title}. {caption} " + " ".join(
            f"{title}: {', '.join(f'{model} {text}' for (_, model), text in zip(shown.models, texts, strict=True))}."
            for title, *texts in rows
        )
        drawing = svg.write(figure, name, shown.title, told)
    return Figure(
        name=name,
        title=shown.title,
        caption=caption,
        description=told,
        keys=list(shown.models),
        drawing=drawing,
        columns=("Measure", *(model for _, model in shown.models)),
        rows=rows,
    )


def _mark(axes: Axes, one: Level, at: float, series: svg.Series) -> None:
    if one.value is None:
        return
    if one.ends is not None:
        axes.plot(one.ends, [at, at], color=series.line, linewidth=1)
    axes.plot([one.value], [at], color=series.line, marker=series.marker, markersize=4.5)


def _columns(line: Curve) -> list[str]:
    return [line.name, f"{line.name}: 95 % interval"] if line.intervals else [line.name]


def percent(share: float | None) -> str:
    """A share of one in percent, to a tenth; nothing for None."""
    return "" if share is None else f"{share * _POINTS:.1f}"


def points(share: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return signed(share * _POINTS)


def signed(value: float) -> str:
    """A number to a tenth, with a sign (the real minus), none for what rounds to zero."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _estimate_cells(estimate: Any) -> tuple[str, str]:
    if estimate is None:
        return "", ""
    return percent(estimate.value), f"{percent(estimate.low)} to {percent(estimate.high)}"


def _sampled(lines: Sequence[Curve]) -> list[tuple[str, ...]]:
    """The curves as table rows: some twenty steps, the first and the last among them."""
    steps = sorted({step for line in lines for step in line.steps})
    every = max(1, math.ceil(len(steps) / 20))
    kept = sorted({*steps[::every], *steps[-1:]})
    cells = [_cells(line) for line in lines]
    blank = [("",) * len(_columns(line)) for line in lines]
    return [
        (str(step), *(text for of, none in zip(cells, blank, strict=True) for text in of.get(step, none)))
        for step in kept
    ]


def _cells(line: Curve) -> dict[int, tuple[str, ...]]:
    """By step the value, and its interval if it has one."""
    texts = [(f"{value:.5g}",) for value in line.values]
    if not line.intervals:
        return dict(zip(line.steps, texts, strict=True))
    intervals = [(f"{low:.4g} to {high:.4g}",) for low, high in line.intervals]
    return {step: (*text, *span) for step, text, span in zip(line.steps, texts, intervals, strict=True)}


def _short(text: str, most: int) -> str:
    text = " ".join(svg.printable(text).split())
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _frame(axes: Axes, grid: str) -> None:
    axes.grid(visible=True, axis=grid, color=svg.GRID, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", "left") if grid == "x" else ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
