"""The report's plots, drawn by matplotlib as SVG that takes its colours from the page.

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

    from wmdp_fast.report.content import Curve, Row, Scores

# Inches; at 72 units an inch the width of a phone's screen.
_WIDTH = 4.6

_POINTS = 100  # in a share of 1

_BEFORE_AND_AFTER = [("before", "before"), ("after", "after")]


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


def accuracies(rows: Sequence[Row]) -> Figure:
    """Bars of accuracy with intervals, before above after, and a mark where guessing would be."""
    compared = any(row.before is not None for row in rows)
    height = 0.44 + len(rows) * (0.54 if compared else 0.4)
    with svg.plot(_WIDTH, height) as (figure, axes):
        step = 3.6 if compared else 2.6
        for place, row in enumerate(rows):
            top = place * step
            axes.text(0, top, _short(row.label, 58), va="center", ha="left", color=svg.INK, fontsize=8.5)
            bars = [("before", row.before), ("after", row.after)] if compared else [("after", row.after)]
            for below, (run, accuracy) in enumerate(bars):
                if accuracy is None:
                    continue
                y = top + 1.05 + below * 1.05
                axes.barh(y, accuracy.value * _POINTS, height=0.86, color=svg.SERIES[run].fill, linewidth=0)
                axes.plot(
                    [accuracy.low * _POINTS, accuracy.high * _POINTS], [y, y], color=svg.INK, linewidth=1.1, marker="|"
                )
            bottom = top + (2.7 if compared else 1.6)
            chance = math.nan if row.chance is None else row.chance * _POINTS
            axes.plot([chance] * 2, [top + 0.5, bottom], color=svg.INK, linewidth=1, linestyle=(0, (2, 1.6)))
        axes.set_xlim(0, 100)
        axes.set_ylim(len(rows) * step - 0.7, -0.8)
        axes.set_yticks([])
        axes.set_xlabel("accuracy, %")
        _frame(axes, "x")
        caption = "Accuracy with 95 % intervals; the dashed mark is guessing."
        told = " ".join([caption, *map(_told_accuracy, rows)])
        drawing = svg.write(figure, "accuracies", title := "Accuracy by task", told)
    return Figure(
        name="accuracies",
        title=title,
        caption=caption,
        description=told,
        keys=_BEFORE_AND_AFTER if compared else [],
        drawing=drawing,
        columns=(
            ("Task", "Questions", "Before, %", "Interval", "After, %", "Interval", "Chance, %")
            if compared
            else ("Task", "Questions", "Accuracy, %", "Interval", "Chance, %")
        ),
        rows=[
            (
                row.label,
                f"{row.count:,}",
                *(_estimate_cells(row.before) if compared else ()),
                *_estimate_cells(row.after),
                percent(row.chance),
            )
            for row in rows
        ],
    )


def changes(rows: Sequence[Row]) -> Figure:
    """Tasks by their change, the greatest loss first: a dot for the change, a line for its interval."""
    pairs = sorted(
        ((row, row.change) for row in rows if row.change is not None), key=lambda pair: (pair[1].value, pair[0].name)
    )
    labels = [_short(row.label, 34) for row, _ in pairs]
    with svg.plot(_WIDTH, 0.5 + 0.165 * len(pairs)) as (figure, axes):
        for y, (_, change) in enumerate(pairs):
            axes.plot(
                [change.low * _POINTS, change.high * _POINTS], [y, y], color=svg.SERIES["after"].line, linewidth=1.2
            )
            axes.plot([change.value * _POINTS], [y], color=svg.SERIES["after"].line, marker="o", markersize=4)
        axes.axvline(0, color=svg.INK, linewidth=1)
        axes.set_yticks(range(len(pairs)), labels, fontsize=7.2)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlabel("change, percentage points")
        _frame(axes, "x")
        worst, best = pairs[0], pairs[-1]
        caption = "Change in accuracy, the greatest loss first; the line is the 95 % interval."
        told = (
            f"{caption} {len(pairs)} tasks, from"
            f" {worst[0].label} ({points(worst[1].value)} points) to {best[0].label} ({points(best[1].value)} points)."
        )
        drawing = svg.write(figure, "changes", title := "Subjects by change", told)
    return Figure(
        name="changes",
        title=title,
        caption=caption,
        description=told,
        keys=[],
        drawing=drawing,
        columns=("Subject", "Questions", "Before, %", "After, %", "Change, points", "Interval"),
        rows=[
            (
                row.label,
                f"{row.count:,}",
                "" if row.before is None else percent(row.before.value),
                percent(row.after.value),
                points(change.value),
                f"{points(change.low)} to {points(change.high)}",
            )
            for row, change in pairs
        ],
    )


def subjects(rows: Sequence[Row]) -> Figure:
    """Tasks by their accuracy, the lowest first: a dot for the accuracy, a line for its interval."""
    ordered = sorted(rows, key=lambda row: (row.after.value, row.name))
    with svg.plot(_WIDTH, 0.5 + 0.165 * len(ordered)) as (figure, axes):
        for y, row in enumerate(ordered):
            color = svg.SERIES["after"].line
            axes.plot([row.after.low * _POINTS, row.after.high * _POINTS], [y, y], color=color, linewidth=1.2)
            axes.plot([row.after.value * _POINTS], [y], color=color, marker="o", markersize=4)
            chance = math.nan if row.chance is None else row.chance * _POINTS
            axes.plot([chance], [y], color=svg.INK, marker="|", markersize=7)
        axes.set_yticks(range(len(ordered)), [_short(row.label, 34) for row in ordered], fontsize=7.2)
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")
        _frame(axes, "x")
        caption = "Accuracy, the lowest first; the line is the 95 % interval, the upright mark is guessing."
        told = (
            f"{caption} {len(ordered)} tasks, from {ordered[0].label} ({percent(ordered[0].after.value)} %) to"
            f" {ordered[-1].label} ({percent(ordered[-1].after.value)} %)."
        )
        drawing = svg.write(figure, "subjects", title := "Subjects by accuracy", told)
    return Figure(
        name="subjects",
        title=title,
        caption=caption,
        description=told,
        keys=[],
        drawing=drawing,
        columns=("Subject", "Questions", "Accuracy, %", "Interval", "Chance, %"),
        rows=[(row.label, f"{row.count:,}", *_estimate_cells(row.after), percent(row.chance)) for row in ordered],
    )


def calibration(name: str, label: str, scores: Sequence[Scores]) -> Figure:
    """How often the model is right, by how much probability it gives the choice it prefers; the diagonal is perfect."""
    with svg.plot(_WIDTH, 3.4) as (figure, axes):
        axes.plot([0, 100], [0, 100], color=svg.INK, linewidth=1, linestyle=(0, (2, 1.6)))
        for run in scores:
            series = svg.SERIES[run.series]
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
            "Share of right answers by the probability of the preferred choice, with 95 % intervals. On the diagonal"
            " the two agree; below it the model is too sure."
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
        keys=[(run.series, run.name) for run in scores],
        drawing=drawing,
        columns=("Run", "Probability, %", "Questions", "Mean probability, %", "Right, %", "Interval"),
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
            series = svg.SERIES[run.series]
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
        keys=[(run.series, run.name) for run in scores],
        drawing=drawing,
        columns=("Lead, nats", *(f"{run.name}, questions" for run in scores)),
        rows=[
            (f"{signed(low)} to {signed(high)}", *(f"{run.margins.counts[cell]:,}" for run in scores))
            for cell, (low, high) in enumerate(pairwise(edges))
        ],
    )


def curves(name: str, title: str, unit: str, lines: Sequence[Curve]) -> Figure:
    """Something over the steps of an unlearning run; on a logarithmic scale where it spans more than a factor of 50."""
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    logarithmic = bool(values) and min(values) > 0 and max(values) / min(values) > 50
    with svg.plot(_WIDTH, 2.7) as (figure, axes):
        for line, look in zip(lines, svg.cycle(), strict=False):
            series = svg.SERIES[look]
            axes.plot(line.steps, line.values, color=series.line, linestyle=series.dashes, linewidth=1.4)
            if line.values and math.isfinite(line.values[-1]):
                axes.plot(line.steps[-1:], line.values[-1:], color=series.line, marker=series.marker, markersize=4.5)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlabel("step")
        axes.set_ylabel(_short(unit, 40))
        _frame(axes, "both")
        caption = "By step, on a logarithmic scale." if logarithmic else "By step."
        told = f"{title}. {caption} " + " ".join(
            f"{line.name}: from {line.values[0]:.4g} to {line.values[-1]:.4g}." for line in lines if line.values
        )
        drawing = svg.write(figure, name, title, told)
    return Figure(
        name=name,
        title=title,
        caption=caption,
        description=told,
        keys=[(look, line.name) for line, look in zip(lines, svg.cycle(), strict=False)],
        drawing=drawing,
        columns=("Step", *(line.name for line in lines)),
        rows=_sampled(lines),
    )


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


def _told_accuracy(row: Row) -> str:
    if row.before is None:
        return f"{row.label}: {percent(row.after.value)} %."
    return f"{row.label}: {percent(row.before.value)} % before, {percent(row.after.value)} % after."


def _sampled(lines: Sequence[Curve]) -> list[tuple[str, ...]]:
    """The curves as table rows: some twenty steps, the first and the last among them."""
    steps = sorted({step for line in lines for step in line.steps})
    every = max(1, math.ceil(len(steps) / 20))
    kept = sorted({*steps[::every], *steps[-1:]})
    by_step = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    return [(str(step), *(f"{line[step]:.5g}" if step in line else "" for line in by_step)) for step in kept]


def _short(text: str, most: int) -> str:
    text = " ".join(svg.printable(text).split())
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _frame(axes: Axes, grid: str) -> None:
    axes.grid(visible=True, axis=grid, color=svg.GRID, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", "left") if grid == "x" else ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
