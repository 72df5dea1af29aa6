"""Made-up questions for sweeps, and a sweep's result with made-up accuracies, for tests of what is shown of it."""

from __future__ import annotations

import json
from pathlib import Path

from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.sweep.result import Accuracy, SweepResult, SweepRun
from wmdp_fast.unlearning.sweep.sweep import _worth_having

# Layer, alpha, forget accuracy, retain accuracy.
POINTS = (
    (5, 100.0, 0.30, 0.50),
    (5, 1200.0, 0.41, 0.57),
    (7, 100.0, 0.24, 0.45),
    (7, 1200.0, 0.33, 0.56),
    (9, 100.0, 0.50, 0.40),
)


def write_questions(folder: Path) -> None:
    """Two files, birds.jsonl and trees.jsonl, of eight questions each."""
    for name, what in (("birds", "bird"), ("trees", "tree")):
        rows = [
            {"question": f"What is {what} {i}?", "choices": [f"a {i}", "an owl", "oak", "wren"], "answer": i % 4}
            for i in range(8)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def accuracy(value: float) -> Accuracy:
    return Accuracy(value=value, low=value - 0.04, high=value + 0.04, n=600, chance=0.25)


def result(label: str = "zephyr") -> SweepResult:
    """Points on the front and beside it, and a run that failed.

    Args:
        label: What the model, the corpora and the tasks are called.
    """
    before = SweepRun(settings={}, steps=0, forget=accuracy(0.64), retain=accuracy(0.58))
    runs = [
        SweepRun(settings={"layer_id": layer, "alpha": alpha}, steps=150, forget=accuracy(low), retain=accuracy(high))
        for layer, alpha, low, high in POINTS
    ]
    runs.append(SweepRun(settings={"layer_id": 9, "alpha": 1.0}, steps=9, forget=None, retain=None, failed=label))
    front, best = _worth_having(before, runs)
    named = {name: [label] for name in ("forget", "retain", "forget_tasks", "retain_tasks")}
    inputs = {**named, "model": label, "data": None, "revision": None, "device": None, "trust_remote_code": False}
    return SweepResult(
        base=before,
        runs=runs,
        front=front,
        best=best,
        config=RMUConfig(),
        swept=("layer_id", "alpha"),
        output=Path("sweep"),
        kept=None,
        inputs=inputs,
    )
