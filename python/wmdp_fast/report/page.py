"""The report's page: one HTML file with style, script, figures and data inside, which fetches nothing.

Everything that comes from a result is inserted by jinja2 with escaping on, or into JSON whose angle brackets are
escaped, and the page's own policy forbids any script but the one that is here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import __version__
from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.report import figures, svg
from wmdp_fast.report.content import HASH_LENGTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.report.content import Report, Row, TaskQuestions
    from wmdp_fast.report.figures import Figure

# More headline numbers than this are a table, which comes right after them anyway.
_MOST_HEADLINES = 10


def render(report: Report) -> str:
    """The report as HTML.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise WmdpFastError("reports need matplotlib and jinja2: pip install 'wmdp-fast[plots]'") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": figures.percent, "points": figures.points, "p_value": p_value, "count": count}
    script = _file("questions.js")
    page = environment.from_string(_file("page.html"))
    html = page.render(
        report=report,
        headlines=headlines(report.rows),
        accuracy=_accuracy_figures(report),
        scores=_score_figures(report),
        unlearning=_unlearning_figures(report),
        style=_file("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_as_json(_table(report)),
        num_questions=sum(len(task.ids) for task in report.questions),
        with_text=any(task.texts is not None for task in report.questions),
        hash_length=HASH_LENGTH,
        version=__version__,
    )
    # Names and texts may hold anything, lone surrogates too, which no file could.
    return svg.printable(html)


def headlines(rows: Sequence[Row]) -> list[Row]:
    """The numbers that come first: what stands at the top, single tasks right below it, and near domains."""
    top = [row for row in rows if row.depth == 0 and not row.is_subject]
    below = [row for row in rows if row.depth == 1 and not row.is_group and not row.is_subject]
    near = [row for row in rows if row.is_near and row.change is not None]
    chosen = [row for row in rows if row in top or row in below or row in near]
    return chosen if len(chosen) <= _MOST_HEADLINES else top[:_MOST_HEADLINES]


def p_value(p: float) -> str:
    """A probability as people write it; below a thousandth only that."""
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int | None) -> str:
    """A number with its thousands apart; nothing for None."""
    return "" if number is None else f"{number:,}"


def _accuracy_figures(report: Report) -> list[Figure]:
    shown = [row for row in report.rows if not row.is_subject]
    rest = [row for row in report.rows if row.is_subject]
    found = [figures.accuracies(shown)] if shown else []
    if any(row.change is not None for row in rest):
        found.append(figures.changes(rest))
    elif rest:
        found.append(figures.subjects(rest))
    return found


def _score_figures(report: Report) -> list[Figure]:
    found = []
    for number, part in enumerate(report.parts):
        found.append(figures.calibration(f"calibration-{number}", part.label, part.scores))
        found.append(figures.margins(f"margins-{number}", part.label, part.scores))
    return found


def _unlearning_figures(report: Report) -> list[Figure]:
    plots = report.unlearning.plots if report.unlearning is not None else []
    return [figures.curves(f"curves-{number}", plot.title, plot.unit, plot.curves) for number, plot in enumerate(plots)]


def _table(report: Report) -> dict[str, Any]:
    """The questions as the script reads them: a list a column, small numbers only."""
    return {"hashLength": HASH_LENGTH, "tasks": [_columns(task) for task in report.questions]}


def _columns(task: TaskQuestions) -> dict[str, Any]:
    first, last = (task.ids[0], task.ids[-1]) if task.ids else (0, -1)
    found: dict[str, Any] = {
        "name": task.task,
        "count": len(task.ids),
        # Usually they are 0, 1, 2, ...: then the first one says it all.
        "ids": first if task.ids == list(range(first, last + 1)) else task.ids,
        "hashes": task.hashes,
        "answers": _letters(task.answers),
        "after": _letters(task.after),
        "afterShare": task.after_permille,
        "margins": task.margins,
    }
    if task.before is not None and task.before_permille is not None:
        found |= {"before": _letters(task.before), "beforeShare": task.before_permille}
    if task.texts is not None:
        found["texts"] = [[question, *choices] for question, choices in task.texts]
    return found


def _letters(indices: Sequence[int]) -> str | list[int]:
    """One character a question, or the indices themselves where there are more choices than letters."""
    return "".join(chr(ord("A") + index) for index in indices) if all(index < 26 for index in indices) else [*indices]


def _as_json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return resources.files("wmdp_fast.report").joinpath(name).read_text(encoding="utf-8")
