"""Published results of unlearned models, each with its source: `published.json` beside this file."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from wmdp_fast.robustness.table.content import Cell, Measure
from wmdp_fast.robustness.table.records import Record, record

MEASURES = {
    "wmdp_bio": Measure(key="task:wmdp_bio", title="wmdp_bio", section="forget", tested=True),
    "wmdp_cyber": Measure(key="task:wmdp_cyber", title="wmdp_cyber", section="forget", tested=True),
    "wmdp_chem": Measure(key="task:wmdp_chem", title="wmdp_chem", section="forget", tested=True),
    "mmlu": Measure(key="task:mmlu", title="mmlu", section="kept", tested=True),
    "mt_bench": Measure(key="task:mt_bench", title="MT-Bench", section="kept", unit=""),
}


def published_models() -> tuple[str, ...]:
    """The names of models of which there are published results."""
    return tuple(_read())


def published(model: str) -> list[Record]:
    """The published results on a model.

    Args:
        model: `zephyr-7b`, `yi-34b` or `mixtral-8x7b`.

    Raises:
        ValueError: There are none of that name; lists those there are.
    """
    known = _read()
    if model not in known:
        raise ValueError(f"there are no published results on {model!r}; there are on {', '.join(known)}")
    return [_record(row) for row in known[model]["rows"]]


def _read() -> dict[str, Any]:
    text = resources.files("wmdp_fast.robustness.table").joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _record(row: dict[str, Any]) -> Record:
    values = {}
    for name, value in row["scores"].items():
        measure = MEASURES[name]
        share = round(value / 100, 6) if measure.unit == "%" else value
        values[measure] = Cell(value=share, second_hand=name in row["second_hand"])
    return record(
        values, name=f"{row['name']} ({row['by']})", kind="published", model=row["name"], source=row["source"]
    )
