"""An unlearning run's folder, read for a report: `unlearn.json` and `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import DatasetError
from wmdp_fast.report.content import Curve, Facts, Plot, Unlearning
from wmdp_fast.report.gather import records

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

RECORD = "unlearn.json"
METRICS = "metrics.jsonl"

# The loss over all tokens, and over real tokens only: what was trained on in those modes.
_LOSS = {"forget_loss": "forget", "retain_loss": "retain"}
_MASKED_LOSS = {f"{key}_masked": name for key, name in _LOSS.items()}

# Figures of a run: title, unit, and each curve's key in the metrics with its name.
_PLOTS = (
    ("Loss", "loss", _LOSS),
    ("Activation norm", "mean norm", {"forget_norm": "forget", "retain_norm": "retain"}),
    (
        "Cosine",
        "cosine",
        {"forget_cosine": "forget, to the control vector", "retain_cosine": "retain, to the original"},
    ),
)

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


def read_run(folder: str | os.PathLike[str]) -> Unlearning:
    """The run that left a folder: its curves and what it recorded.

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
    return Unlearning(plots=_plots(metrics_file, rows, record), records=_records(record))


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
    masked = (record.get("settings") or {}).get("mode") == "masked"
    numbers = sorted({row["topic"] for row in rows if "topic" in row})
    for title, unit, known in _PLOTS:
        keys = _MASKED_LOSS if masked and known is _LOSS else known
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
                    curves.append(Curve(name=label, steps=[int(step) for step in steps], values=values))
        if curves:
            found.append(Plot(title=title, unit=unit, curves=curves))
    return found + _evaluations(rows)


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
    return [Plot(title="Accuracy on the way", unit="accuracy, %", curves=curves)] if curves else []


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
