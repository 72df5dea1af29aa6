"""A sweep as one HTML page: what each run lost of what it should forget and of what it should keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.report import svg
from wmdp_fast.report.figures import percent
from wmdp_fast.report.page import rendered
from wmdp_fast.report.verdict import sweep_verdicts
from wmdp_fast.unlearning.sweep.result import cell

if TYPE_CHECKING:
    from wmdp_fast.unlearning.sweep.result import Accuracy, SweepResult, SweepRun

# Inches: as wide as the page, and as a phone. The page shows one of them.
_SIZES = {"pareto-broad": (9.6, 4.6), "pareto-narrow": (4.6, 4.0)}
_POINTS = 100  # in a share of 1


def check_installed() -> None:
    """Raises WmdpFastError if matplotlib or jinja2 is missing; says what to install."""
    try:
        import jinja2  # noqa: F401 (only whether it is there)
        import matplotlib as mpl  # noqa: F401 (likewise)
    except ImportError:
        raise WmdpFastError("reports need matplotlib and jinja2: pip install 'wmdp-fast[plots]'") from None


def sweep_html(result: SweepResult) -> str:
    """The page, which carries everything it shows.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
    """
    check_installed()
    order = sorted(range(len(result.runs)), key=lambda index: (result.runs[index].objectives or (2.0, 0.0), index))
    rows = [
        {
            "mark": "best" if index == result.best else "front" if index in result.front else "",
            "settings": [cell(result.runs[index].settings[name]) for name in result.swept],
            "run": result.runs[index],
            "failed": result.runs[index].failed,
        }
        for index in order
    ]
    return rendered(
        "sweep.html",
        verdicts=sweep_verdicts(result),
        result=result,
        rows=rows,
        limited=any(run.kl is not None for run in result.runs),
        commands=[result.command(index) for index in result.front],
        drawings={look: pareto_svg(result, look, size) for look, size in _SIZES.items()},
    )


def pareto_svg(result: SweepResult, name: str, size: tuple[float, float]) -> str:
    """The runs by forget accuracy (better to the left) and retain accuracy (better above), with 95 % intervals."""
    with svg.plot(*size) as (figure, axes):
        for index, run in enumerate(result.runs):
            if run.forget is None or run.retain is None:
                continue
            look = svg.SERIES["after" if index in result.front else "third"]
            x, y = run.forget.value * _POINTS, run.retain.value * _POINTS
            for ends in (
                ([run.forget.low * _POINTS, run.forget.high * _POINTS], [y, y]),
                ([x, x], [run.retain.low * _POINTS, run.retain.high * _POINTS]),
            ):
                axes.plot(*ends, color=look.line, linewidth=0.7)
            axes.plot([x], [y], color=look.line, marker=look.marker, markersize=9 if index == result.best else 6)
        on_front = [result.runs[index] for index in result.front]
        corners = [(run.forget.value, run.retain.value) for run in on_front if run.forget and run.retain]
        axes.step(
            [x * _POINTS for x, _ in corners],
            [y * _POINTS for _, y in corners],
            where="post",
            color=svg.SERIES["after"].line,
            linewidth=1.2,
        )
        forget, retain = result.base.forget, result.base.retain
        if forget is not None and retain is not None:
            look = svg.SERIES["before"]
            axes.plot(
                [forget.value * _POINTS], [retain.value * _POINTS], color=look.line, marker=look.marker, markersize=8
            )
            axes.axvline(forget.chance * _POINTS, color=svg.INK, linewidth=1, linestyle=(0, (2, 1.6)))
            axes.axhline(retain.chance * _POINTS, color=svg.INK, linewidth=1, linestyle=(0, (2, 1.6)))
        axes.set_xlabel("accuracy on forget tasks, % (should fall to guessing)")
        axes.set_ylabel("accuracy on retain tasks, % (should stay)")
        axes.grid(color=svg.GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        told = (
            "Each run by its accuracy on the forget and on the retain tasks, with 95 % intervals; dashed lines are"
            f" guessing. Before unlearning: {_told(result.base)}. On the front, by forget accuracy: "
            + "; ".join(map(_told, on_front))
            + "."
        )
        return svg.write(figure, name, "Forgetting and keeping", told)


def _told(run: SweepRun) -> str:
    return f"forget {_percent(run.forget)} %, retain {_percent(run.retain)} %"


def _percent(accuracy: Accuracy | None) -> str:
    return "" if accuracy is None else percent(accuracy.value)
