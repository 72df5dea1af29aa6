"""From attacks on a model to what a page shows of them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from wmdp_fast.report.content import Attacked, AttackRow, Curve, Estimate, Plot
from wmdp_fast.report.kept import levels_of
from wmdp_fast.report.svg import SERIES
from wmdp_fast.robustness.attacks.ask import Ask
from wmdp_fast.robustness.card import not_run
from wmdp_fast.robustness.claims import claims, outcome
from wmdp_fast.robustness.findings import by_attack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wmdp_fast.analysis import statistics
    from wmdp_fast.robustness.findings import Finding
    from wmdp_fast.robustness.protocol import Reading
    from wmdp_fast.robustness.result import AttackResult
    from wmdp_fast.robustness.subject import Role

_POINTS = 100  # in a share of 1
_LOOKS: dict[Role, str] = {"unlearned": "after", "base": "before", "never learned": "third"}
_INTERVALS = "Lines through a mark are 95 % intervals over the questions that are reported."


def gather_attacks(result: AttackResult, name: str) -> Attacked:
    """What is shown of attacks on a model: worst case first, by the questions for choosing.

    Args:
        result: The attacks.
        name: What the model is called.
    """
    found = result.findings["unlearned"]
    order = sorted(found, key=lambda attack: (-found[attack].choosing.value, attack))
    unmeasured = ["Utility was not measured: an attack that ruins the model counts too."]
    notes = [] if result.utility("unlearned") else unmeasured
    notes += not_run(result)
    return Attacked(
        name=name,
        models={str(role): one for role, one in result.models.items()},
        chance=result.chance,
        questions=int((~result.is_for_choosing).sum()),
        budget=result.budget,
        rows=[_row(result, attack, found[attack]) for attack in order],
        plots=[plot for attack in order for plot in (*_by_step(result, attack), *_by_layer(result, attack))],
        outcome=outcome(result),
        claims=claims(result),
        kept=result.kept_rows(),
        levels=levels_of(result, _LOOKS),
        notes=notes,
    )


def compared_by_step(results: Mapping[str, AttackResult]) -> list[Plot]:
    """For each attack that has steps or layers, several models' curves in one figure."""
    attacks = dict.fromkeys(attack for result in results.values() for attack in result.findings["unlearned"])
    plots = []
    for attack in attacks:
        for axis in ("step", "layer"):
            curves = [
                curve
                for name, result in results.items()
                if attack in result.findings["unlearned"]
                for curve in _curves(result, attack, "unlearned", axis, name)
            ]
            if curves:
                plots.append(_plot(attack, axis, [_without_look(curve) for curve in curves]))
    return plots


def _row(result: AttackResult, attack: str, finding: Finding) -> AttackRow:
    null = result.nulls["unlearned"].get(attack)
    return AttackRow(
        attack=attack,
        accuracies=[
            _estimate(of[attack].acc) if attack in (of := result.findings[role]) else None for role in result.models
        ],
        null=None if null is None else _estimate(null.acc),
        recovered=None if attack == Ask.name else result.recovery(attack),
        setting=_setting(finding),
        tried=finding.tried,
        excluded=finding.excluded,
    )


def _setting(finding: Finding) -> str:
    values = [f"{name} {value}" for name, value in finding.setting.values.items()]
    values += [f"step {finding.reading.step}"] if finding.reading.step is not None else []
    layer = finding.reading.figures.get("layer")
    return ", ".join([*values, *([f"layer {layer}"] if isinstance(layer, int) else [])])


def _by_step(result: AttackResult, attack: str) -> list[Plot]:
    """The chosen setting on all models; and on the unlearned one each kind of data, by its best setting."""
    curves = [curve for role in result.models for curve in _curves(result, attack, role, "step", role)]
    plots = [_plot(attack, "step", curves)] if curves else []
    kinds = [one for one in result.curves["unlearned"].get(attack, []) if len(one.steps) > 1]
    if len(kinds) > 1:
        lines = [
            _curve(
                dict(zip(one.steps, one.acc, strict=True)), f"{one.kind}, null" if one.setting.null else one.kind, look
            )
            for one, look in zip(kinds, itertools.cycle(SERIES), strict=False)
        ]
        plot = _plot(attack, "step", lines)
        plots.append(dataclasses.replace(plot, title=f"{attack} by step, for each kind of data"))
    return plots


def _by_layer(result: AttackResult, attack: str) -> list[Plot]:
    curves = [curve for role in result.models for curve in _curves(result, attack, role, "layer", role)]
    if curves:
        return [_plot(attack, "layer", curves)]
    listed = _listed(result, attack)
    return [_plot(attack, "layer", listed, note="")] if listed else []


def _plot(attack: str, axis: str, curves: Sequence[Curve], note: str = _INTERVALS) -> Plot:
    return Plot(title=f"{attack} by {axis}", unit="accuracy, %", curves=list(curves), note=note, axis=axis)


def _curves(result: AttackResult, attack: str, role: Role, axis: str, name: str) -> list[Curve]:
    """The readings of the setting that was chosen, and of its control, by step or by layer."""
    chosen, null = result.findings[role].get(attack), result.nulls[role].get(attack) if role == "unlearned" else None
    found = []
    for finding, label, look in (
        (chosen, name, _LOOKS[role]),
        (null, f"{name}, null", "fourth"),
    ):
        if finding is None:
            continue
        runs = by_attack([run for run in result.runs if run.role == role])[attack]
        readings = next(run.readings for run in runs if any(one is finding.reading for one in run.readings))
        points = _points(result, readings, axis)
        if len(points) > 1:
            found.append(_curve(points, label, look))
    return found


def _points(result: AttackResult, readings: Iterable[Reading], axis: str) -> dict[int, statistics.Estimate]:
    """Accuracy on what is reported, by step or layer; nothing if readings do not differ in it alone."""
    points: dict[int, statistics.Estimate] = {}
    for reading in readings:
        at = reading.step if axis == "step" else reading.figures.get("layer")
        acc = reading.answers.accuracy(~result.is_for_choosing)
        if not isinstance(at, int) or isinstance(at, bool) or at in points or acc is None:
            return {}
        points[at] = acc
    return dict(sorted(points.items()))


def _curve(points: Mapping[int, statistics.Estimate], name: str, look: str) -> Curve:
    return Curve(
        name=name,
        steps=list(points),
        values=[_POINTS * one.value for one in points.values()],
        look=look,
        intervals=[(_POINTS * one.low, _POINTS * one.high) for one in points.values()],
    )


def _listed(result: AttackResult, attack: str) -> list[Curve]:
    """Accuracies by layer that an attack measured itself, of questions that nothing was chosen on, and its controls."""
    measured: Any = result.findings["unlearned"][attack].reading.figures.get("by_layer")
    if not isinstance(measured, dict):
        return []
    return [
        Curve(name=str(name), steps=list(range(len(values))), values=[_POINTS * float(value) for value in values])
        for name, values in measured.items()
        if name != "choosing" and isinstance(values, list) and all(isinstance(one, (int, float)) for one in values)
    ]


def _without_look(curve: Curve) -> Curve:
    return Curve(name=curve.name, steps=curve.steps, values=curve.values, intervals=curve.intervals)


def _estimate(estimate: statistics.Estimate) -> Estimate:
    return Estimate(value=estimate.value, low=estimate.low, high=estimate.high)
