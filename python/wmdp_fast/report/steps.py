"""Accuracy by step, where the models of a report are checkpoints of one training run."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from wmdp_fast.report.content import Curve, Plot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.report.content import Row
    from wmdp_fast.results.saved import SavedResults

# As trainers name folders, and projects revisions: checkpoint-500, step1000, global_step_20.
_STEP = re.compile(r"(?P<run>.*?)(?:checkpoint|step|iter)[-_]?(?P<step>\d+)")

_NOTE = "Bars are 95 % intervals."


def by_step(runs: Sequence[SavedResults], rows: Sequence[Row]) -> list[Plot]:
    """A figure of what stands at the top of a report over the steps of a training run.

    Args:
        runs: The evaluations.
        rows: Their accuracies.

    Returns:
        One figure; none if the models are not at least two checkpoints of one run, by their names or revisions. A
        model without a step, such as the one before training, is left out of it.
    """
    found = [_run_and_step(one) for one in runs]
    named = [one for one in found if one is not None]
    steps = [step for _, step in named]
    # The same step twice is the same model asked in two ways.
    if len(named) < 2 or len({run for run, _ in named}) > 1 or len(set(steps)) < len(steps):
        return []
    places = sorted((step, place) for place, one in enumerate(found) if one is not None for step in one[1:])
    top = [row for row in rows if row.depth == 0 and not row.is_subject]
    curves = [curve for row in top if len((curve := _curve(row, places)).steps) > 1]
    return [Plot(title="Accuracy by step", unit="accuracy", curves=curves, note=_NOTE)] if curves else []


def _curve(row: Row, places: Sequence[tuple[int, int]]) -> Curve:
    known = [(step, accuracy) for step, place in places if (accuracy := row.accuracies[place]) is not None]
    return Curve(
        name=row.label,
        steps=[step for step, _ in known],
        values=[one.value for _, one in known],
        intervals=[(one.low, one.high) for _, one in known],
    )


def _run_and_step(saved: SavedResults) -> tuple[tuple[str, ...], int] | None:
    """Which run a model is of, as far as names tell, and its step."""
    arguments: Any = saved.settings.get("model_args") or {}
    if isinstance(arguments, str):  # as lm-eval writes what its command line was given
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    names = [arguments.get("peft"), arguments.get("revision"), saved.model_name]
    for place, name in enumerate(names):
        path = PurePath(str(name or ""))
        if match := _STEP.fullmatch(path.name):
            others = [str(one) for index, one in enumerate(names) if index != place]
            return (*others, str(path.parent), match["run"]), int(match["step"])
    return None
