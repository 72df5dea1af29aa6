"""From what was measured beside attacks to figures: numbers of the same kind together, a mark for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.report.content import Level, Levels
from wmdp_fast.robustness.retained.figures import figures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.robustness.result import AttackResult
    from wmdp_fast.robustness.retained.measure import Figure
    from wmdp_fast.robustness.subject import Role

_POINTS = 100  # in a share of 1

# By the kind of a measure and the unit of its numbers what is drawn of them, and what the axis says. Numbers of other
# kinds (tokens of an answer, metrics of lm-eval that are no shares) stand in the table alone.
_DRAWN = {
    ("distance", "nats"): ("Divergence from the base", "KL(base || model), nats a token"),
    ("distance", ""): ("Perplexity", "perplexity by token"),
    ("keyword", "%"): ("Utility questions with a keyword", "accuracy, %"),
    ("writing", "%"): ("What the models write", "%"),
    ("writing", ""): ("Perplexity by the base of what the models write", "perplexity by token"),
    ("mt_bench", ""): ("MT-Bench", "score, 1 to 10"),
    ("lm_eval", "%"): ("Tasks of lm-eval", "%"),
}


def levels_of(result: AttackResult, looks: Mapping[Role, str]) -> list[Levels]:
    """What can be drawn of what was to be kept, in the order of the table; nothing of what has no number at all.

    Args:
        result: The attacks.
        looks: How each model is drawn.
    """
    by_role: dict[str, dict[Role, Figure]] = {}
    kinds: dict[str, str] = {}
    for one in result.measured:
        for figure in figures_of(one):
            by_role.setdefault(figure.title, {})[one.role] = figure
            kinds[figure.title] = one.kind
    rows: dict[tuple[str, str], dict[str, list[Level]]] = {}
    for title, of in by_role.items():
        # A number that is missing has no unit.
        unit = next((figure.unit for figure in of.values() if figure.value is not None), None)
        if unit is not None and (kinds[title], unit) in _DRAWN and not title.startswith("change by"):
            levels = [_level(of.get(role)) for role in result.models]
            rows.setdefault((kinds[title], unit), {})[title] = levels
    missing = [title for title, of in by_role.items() if all(one.value is None for one in of.values())]
    return [
        Levels(
            title=_DRAWN[key][0],
            unit=_DRAWN[key][1],
            models=[(looks[role], str(role)) for role in result.models],
            rows=drawn,
            note=_missing({title: by_role[title] for title in missing if kinds[title] == key[0]}),
        )
        for key, drawn in rows.items()
    ]


def _level(figure: Figure | None) -> Level:
    if figure is None:
        return Level(value=None, text="not run")
    scale = _POINTS if figure.unit == "%" else 1
    if figure.value is None:
        return Level(value=None, text=f"{figure.text}: {figure.why}")
    ends = None if figure.low is None or figure.high is None else (scale * figure.low, scale * figure.high)
    return Level(value=scale * figure.value, ends=ends, text=str(figure))


def _missing(figures: Mapping[str, Mapping[Role, Figure]]) -> str:
    """What has no number of any model, and why."""
    by_reason: dict[str, list[str]] = {}
    for title, of in figures.items():
        first = next(iter(of.values()))
        by_reason.setdefault(f"{first.text} ({first.why})", []).append(title)
    return " ".join(f"{'; '.join(titles)}: {reason}." for reason, titles in by_reason.items())
