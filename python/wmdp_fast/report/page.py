"""The report's page: one HTML file with style, script, figures and data inside, which fetches nothing.

Everything that comes from a result is inserted by jinja2 with escaping on, or into JSON whose angle brackets are
escaped, and the page's own policy forbids any script but the one that is here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import __version__
from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.report import figures, svg
from wmdp_fast.report.content import HASH_LENGTH
from wmdp_fast.report.verdict import verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Environment

    from wmdp_fast.report.content import Attacked, Facts, Report, Row, TaskQuestions
    from wmdp_fast.report.figures import Figure

# More headline numbers than this are a table, which comes right after them anyway.
_MOST_HEADLINES = 10


@dataclass(frozen=True, kw_only=True)
class Dots:
    """A figure of accuracies that the page draws itself, as wide as it is: a line a task, a mark a run.

    Attributes:
        name: Its id in the page.
        title: What it shows, in a few words.
        caption: How to read it.
        rows: The tasks, from above.
    """

    name: str
    title: str
    caption: str
    rows: list[Row]

    @property
    def description(self) -> str:
        """What is to be seen, for readers who do not see it."""
        shown = [
            f"{row.label}: {', '.join(f'{figures.percent(accuracy.value)} %' for accuracy in row.shown)}."
            for row in self.rows
        ]
        return " ".join([self.caption, *shown])


def render(report: Report) -> str:
    """The report as HTML.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
    """
    script = _file("questions.js")
    return rendered(
        "page.html",
        report=report,
        headlines=headlines(report.rows),
        verdicts=verdicts(report),
        dots=_dots(report),
        made=_side_by_side([run.records for run in report.runs]),
        run_made=[] if report.unlearning is None else _side_by_side([report.unlearning.records]),
        by_step=[figures.curves(f"steps-{number}", plot) for number, plot in enumerate(report.by_step)],
        scores=_score_figures(report),
        unlearning=_unlearning_figures(report),
        attacks=attack_figures(report.attacked),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_as_json(_table(report)),
        num_questions=sum(len(task.ids) for task in report.questions),
        with_text=any(task.texts is not None for task in report.questions),
        hash_length=HASH_LENGTH,
    )


def rendered(template: str, **shown: Any) -> str:
    """A page as text.

    Args:
        template: A file of this folder, which extends `base.html`.
        **shown: What it shows, by name.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
    """
    page = _environment().get_template(template)
    # Names and texts may hold anything, lone surrogates too, which no file could.
    return svg.printable(page.render(style=_file("style.css"), version=__version__, **shown))


def _environment() -> Environment:
    """What renders a page: every value is escaped, and a name that is not there is an error."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError:
        raise WmdpFastError("reports need matplotlib and jinja2: pip install 'wmdp-fast[plots]'") from None
    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": figures.percent, "points": figures.points, "p_value": p_value, "count": count}
    return environment


def headlines(rows: Sequence[Row]) -> list[Row]:
    """The numbers that come first: what stands at the top, single tasks right below it, and near domains."""
    top = [row for row in rows if row.depth == 0 and not row.is_subject]
    below = [row for row in rows if row.depth == 1 and not row.is_group and not row.is_subject]
    near = [row for row in rows if row.aim == "near" and any(row.changes)]
    chosen = [row for row in rows if row in top or row in below or row in near]
    return chosen if len(chosen) <= _MOST_HEADLINES else top[:_MOST_HEADLINES]


def p_value(p: float) -> str:
    """A probability as people write it; below a thousandth only that."""
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int | None) -> str:
    """A number with its thousands apart; nothing for None."""
    return "" if number is None else f"{number:,}"


def _dots(report: Report) -> list[Dots]:
    """Accuracy of each task in every run; many subjects apart, by how much they changed or by what they have."""
    few = [row for row in report.rows if not row.is_subject]
    many = [row for row in report.rows if row.is_subject]
    caption = "Accuracy with 95 % intervals; the dashed line is guessing."
    found = [Dots(name="accuracies", title="Accuracy by task", caption=caption, rows=few)] if few else []
    if many and report.compared:
        many.sort(key=lambda row: (row.changes[-1].value if row.changes[-1] is not None else 1.0, row.name))
        caption += f" The greatest loss{' of ' + report.runs[-1].name if len(report.runs) > 2 else ''} first."
        found.append(Dots(name="changes", title="Subjects by change", caption=caption, rows=many))
    elif many:
        many.sort(key=lambda row: (row.shown[-1].value, row.name))
        found.append(Dots(name="subjects", title="Subjects by accuracy", caption=caption, rows=many))
    return found


def _side_by_side(records: Sequence[Sequence[Facts]]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """What was recorded of each run: for each heading the names, with each run's text."""
    titles = dict.fromkeys(part.title for parts in records for part in parts)
    sections = []
    for title in titles:
        each = [dict(fact for part in parts if part.title == title for fact in part.facts) for parts in records]
        names = dict.fromkeys(name for facts in each for name in facts)
        sections.append((title, [(name, [facts.get(name, "") for facts in each]) for name in names]))
    return [section for section in sections if section[1]]


def _score_figures(report: Report) -> list[Figure]:
    found = []
    for number, part in enumerate(report.parts):
        found.append(figures.calibration(f"calibration-{number}", part.label, part.scores))
        found.append(figures.margins(f"margins-{number}", part.label, part.scores))
    return found


def _unlearning_figures(report: Report) -> list[Figure]:
    plots = report.unlearning.plots if report.unlearning is not None else []
    return [figures.curves(f"curves-{number}", plot) for number, plot in enumerate(plots)]


def attack_figures(attacked: Sequence[Attacked]) -> list[tuple[Attacked, list[Figure]]]:
    """Attacks on each model with their figures."""
    return [
        (
            one,
            [
                *(figures.levels(f"kept-{place}-{number}", levels) for number, levels in enumerate(one.levels)),
                *(figures.curves(f"attacked-{place}-{number}", plot) for number, plot in enumerate(one.plots)),
            ],
        )
        for place, one in enumerate(attacked)
    ]


def _table(report: Report) -> dict[str, Any]:
    """The questions as the script reads them: a list a column, small numbers only."""
    return {
        "hashLength": HASH_LENGTH,
        "runs": [run.name for run in report.runs],
        "tasks": [_columns(task) for task in report.questions],
    }


def _columns(task: TaskQuestions) -> dict[str, Any]:
    first, last = (task.ids[0], task.ids[-1]) if task.ids else (0, -1)
    found: dict[str, Any] = {
        "name": task.task,
        "count": len(task.ids),
        # Usually they are 0, 1, 2, ...: then the first one says it all.
        "ids": first if task.ids == list(range(first, last + 1)) else task.ids,
        "hashes": task.hashes,
        "right": _letters(task.right),
        "answers": [
            one and {"chosen": _letters(one.chosen), "share": one.permille, "lead": one.margins} for one in task.answers
        ],
    }
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
    """A file of this folder, as text."""
    return resources.files("wmdp_fast.report").joinpath(name).read_text(encoding="utf-8")
