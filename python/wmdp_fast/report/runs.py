"""An unlearning run's folder, read for a report: `unlearn.json` and `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast import _rust
from wmdp_fast.analysis.contrast import section_of
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.report.content import Curve, Facts, Plot, Unlearning
from wmdp_fast.report.gather import records
from wmdp_fast.tasks.definitions import GROUPS

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

RECORD = "unlearn.json"
METRICS = "metrics.jsonl"

# The loss over all tokens, and over real tokens only: what was trained on in those modes.
_LOSS = {"forget_loss": "forget", "retain_loss": "retain"}
_MASKED_LOSS = {f"{key}_masked": name for key, name in _LOSS.items()}

# RMU's figures: title, unit, and each curve's key in the metrics with its name.
_PLOTS = (
    ("Loss", "loss", _LOSS),
    ("Activation norm", "mean norm", {"forget_norm": "forget", "retain_norm": "retain"}),
    (
        "Cosine",
        "cosine",
        {"forget_cosine": "forget, to the control vector", "retain_cosine": "retain, to the original"},
    ),
)

# What metrics of other methods measure, by how their names end: title and unit.
_MEASURES = {
    "loss": ("Loss", "loss"),
    "nll": ("Cross-entropy", "nats per token"),
    "kl": ("KL divergence", "nats per token"),
}

# What of the record is not shown: numbers by the thousand, and what the report says elsewhere.
_LEFT_OUT = frozenset({"control_vectors", "evaluations"})
_SECTIONS = {
    "settings": "Settings",
    "corpora": "Corpora",
    "trained": "Trained tensors",
    "changed": "Changed tensors",
    "seconds": "Seconds",
    "hardware": "Hardware",
    "versions": "Versions",
}


def read_run(folder: str | os.PathLike[str], *, forget: Sequence[str] = ()) -> Unlearning:
    """The run that left a folder: its curves and what it recorded.

    Args:
        folder: What `wmdp-fast unlearn` wrote.
        forget: Tasks and groups that should be forgotten, beside WMDP's.

    Raises:
        FileNotFoundError: There is no such folder, or no `unlearn.json` in it.
        DatasetError: A file is not what a run writes; names file, row and field.
    """
    home = Path(folder)
    record_file, metrics_file = home / RECORD, home / METRICS
    if not record_file.is_file():
        raise FileNotFoundError(f"{home}: no {RECORD} here; --unlearn takes the folder that `wmdp-fast unlearn` wrote")
    record = _parsed(record_file, record_file.read_text(encoding="utf-8"), None)
    rows = [
        _parsed(metrics_file, line, number)
        for number, line in enumerate(metrics_file.read_text(encoding="utf-8").splitlines(), start=1)
    ]
    plots = _accuracies(record_file, record, set(forget)) or _evaluations(rows)
    return Unlearning(
        plots=plots + _plots(metrics_file, rows, record),
        records=_records(record),
        verdict=str(record.get("verdict") or ""),
    )


def _parsed(file: Path, text: str, row: int | None) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DatasetError(str(file), f"is no JSON: {error}", row) from error
    if not isinstance(value, dict):
        raise DatasetError(str(file), "must be a JSON object", row)
    return value


def _topic_names(record: Mapping[str, Any]) -> list[str]:
    """The forget corpora's names, which are the topics', by their last part."""
    forget = (record.get("corpora") or {}).get("forget") or []
    return [Path(str(corpus.get("name", number))).name for number, corpus in enumerate(forget)]


def _plots(file: Path, rows: Sequence[dict[str, Any]], record: Mapping[str, Any]) -> list[Plot]:
    found = []
    topics = _topic_names(record)
    numbers = sorted({row["topic"] for row in rows if "topic" in row})
    for title, unit, keys in _figures(record):
        curves = []
        for topic in numbers:
            for key, name in keys.items():
                steps, values = [], []
                for place, row in enumerate(rows, start=1):
                    if row.get("topic") == topic and key in row:
                        steps.append(_number(file, place, row, "step"))
                        values.append(_number(file, place, row, key))
                of = topics[topic] if topic < len(topics) else f"topic {topic}"
                label = f"{name} ({of})" if len(numbers) > 1 else name
                if steps:
                    # Several topics are told apart by the figure's own looks.
                    look = name.partition(",")[0] if len(numbers) == 1 else None
                    look = look if look in _LOSS.values() else None
                    curves.append(Curve(name=label, steps=[int(step) for step in steps], values=values, look=look))
        if curves:
            found.append(Plot(title=title, unit=unit, curves=curves))
    return found + _distance(file, rows)


def _distance(file: Path, rows: Sequence[dict[str, Any]]) -> list[Plot]:
    """How far the model went from the original, if that was limited and thus measured."""
    measured = [
        (int(_number(file, place, row, "step")), _number(file, place, row, "kl"))
        for place, row in enumerate(rows, start=1)
        if "kl" in row
    ]
    if not measured:
        return []
    steps, values = zip(*measured, strict=True)
    curve = Curve(name="KL from the original on general text", steps=list(steps), values=list(values))
    return [Plot(title="Distance from the original model", unit="KL, nats per token", curves=[curve])]


def _figures(record: Mapping[str, Any]) -> list[tuple[str, str, dict[str, str]]]:
    """The figures of a run's method: title, unit, and each curve's key in the metrics with its name.

    What a method measures goes by names such as `forget_loss` and `retain_loss`, and what ends alike is one figure.
    """
    if record.get("method", "rmu") == "rmu":
        masked = (record.get("settings") or {}).get("mode") == "masked"
        return [
            (title, unit, _MASKED_LOSS if masked and known is _LOSS else dict(known)) for title, unit, known in _PLOTS
        ]
    figures: dict[str, dict[str, str]] = {}
    for key in map(str, record.get("metrics") or ()):
        of, _, kind = key.rpartition("_")
        figures.setdefault(kind, {})[key] = of.replace("_", " ") or kind
    return [(*_MEASURES.get(kind, (f"{kind[:1].upper()}{kind[1:]}", kind)), curves) for kind, curves in figures.items()]


def _accuracies(file: Path, record: Mapping[str, Any], forget: set[str]) -> list[Plot]:
    """Accuracy by step, with intervals: of what should be forgotten together, and of what should be kept."""
    looks = record.get("evaluations") or []
    if not isinstance(looks, list) or not all(isinstance(look, dict) for look in looks):
        raise DatasetError(str(file), "must be a list of objects", field="evaluations")
    if len(looks) < 2 or not all("questions" in look for look in looks):
        return []
    names = _apart([name for name, scores in looks[0].get("scores", {}).items() if "acc" in scores])
    aims = {name: name in forget or section_of(name) == "forget" for name in names}
    if any(aims.values()):
        parts = {
            "forget": [name for name in names if aims[name]],
            "retain": [name for name in names if not aims[name]],
        }
        curves = [
            _shares(file, looks, f"{aim}: {', '.join(those)}", those, aim) for aim, those in parts.items() if those
        ]
    else:
        curves = [_shares(file, looks, name, [name], None) for name in names]
    note = "Lines through a mark are 95 % intervals over all questions."
    return [Plot(title="Accuracy by step", unit="accuracy, %", curves=curves, note=note)] if curves else []


def _apart(names: Sequence[str]) -> list[str]:
    """Without what is part of a group that is there itself, so that no question counts twice."""
    below = {child for name in names if name in GROUPS for child in _below(name)}
    return [name for name in names if name not in below]


def _below(name: str) -> list[str]:
    children = GROUPS[name].children if name in GROUPS else ()
    return [each for child in children for each in (child, *_below(child))]


def _shares(file: Path, looks: Sequence[dict[str, Any]], label: str, names: Sequence[str], look: str | None) -> Curve:
    """The share of right answers to all questions of some tasks, by step, in percent."""
    steps, values, intervals = [], [], []
    for one in looks:
        try:
            counts = [int(one["questions"][name]) for name in names]
            right = sum(round(float(one["scores"][name]["acc"]) * n) for name, n in zip(names, counts, strict=True))
            low, high = _rust.wilson(right, sum(counts))
            steps.append(int(one["step"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(
                str(file), f"is no evaluation of {', '.join(names)}: {error}", field="evaluations"
            ) from error
        values.append(100 * right / sum(counts))
        intervals.append((100 * low, 100 * high))
    return Curve(name=label, steps=steps, values=values, look=look, intervals=intervals)


def _evaluations(rows: Sequence[dict[str, Any]]) -> list[Plot]:
    """The accuracies that were measured on the way, if there was more than one look."""
    looks = [row for row in rows if "evaluation" in row]
    if len(looks) < 2:
        return []
    by_task: dict[str, tuple[list[int], list[float]]] = {}
    for row in looks:
        for task, metrics in row["evaluation"].items():
            if "acc" in metrics:
                steps, values = by_task.setdefault(task, ([], []))
                steps.append(int(row["step"]))
                values.append(100 * float(metrics["acc"]))
    curves = [Curve(name=task, steps=steps, values=values) for task, (steps, values) in by_task.items()]
    return [Plot(title="Accuracy by step", unit="accuracy, %", curves=curves)] if curves else []


def _number(file: Path, place: int, row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DatasetError(str(file), f"must be a number, not {value!r}", place, key)
    return float(value)


def _records(record: Mapping[str, Any]) -> list[Facts]:
    rest = {key: value for key, value in record.items() if key not in _SECTIONS and key not in _LEFT_OUT}
    parts = [records("Run", rest)]
    for key, title in _SECTIONS.items():
        value = record.get(key)
        if key == "corpora" and isinstance(value, dict):
            value = {kind: {str(at): corpus for at, corpus in enumerate(those)} for kind, those in value.items()}
        if value:
            parts.append(records(title, value if isinstance(value, dict) else {title.split()[0].lower(): value}))
    return parts
