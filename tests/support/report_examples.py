"""Reports of made-up numbers, of any size."""

from __future__ import annotations

import hashlib
import random

from wmdp_fast.report.content import (
    Aim,
    Answers,
    Cell,
    Change,
    Curve,
    Estimate,
    Facts,
    Histogram,
    Part,
    Plot,
    Report,
    Row,
    Run,
    Scores,
    Standing,
    TaskQuestions,
    Unlearning,
)
from wmdp_fast.tasks.definitions import GROUPS, TASKS
from wmdp_fast.tasks.task import Task

EDGES = [-8.0 + cell * 0.5 for cell in range(33)]


def estimate(value: float, count: int) -> Estimate:
    half = 1.96 * (value * (1 - value) / count) ** 0.5 + 0.001
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def row(rng: random.Random, name: str, depth: int, *, compared: bool, count: int, **more) -> Row:
    before, after = rng.uniform(0.25, 0.9), rng.uniform(0.2, 0.9)
    change = Change(
        value=after - before, low=after - before - 0.04, high=after - before + 0.04, p=0.01, gained=3, lost=9
    )
    return Row(
        name=name,
        label=more.pop("label", name),
        depth=depth,
        is_group=more.pop("is_group", False),
        is_subject=more.pop("is_subject", False),
        count=count,
        chance=0.25,
        aim=aim(name),
        accuracies=[estimate(before, count), estimate(after, count)] if compared else [estimate(after, count)],
        standings=[Standing(place="above")] * (1 + compared),
        changes=[change] if compared else [],
    )


def aim(name: str) -> Aim:
    if name.startswith("wmdp"):
        return "forget"
    return "near" if name in ("mmlu_virology", "mmlu_college_biology") else "retain"


def scores(rng: random.Random, name: str, look: str) -> Scores:
    cells = [
        Cell(
            low=cell / 10,
            high=(cell + 1) / 10,
            count=rng.randrange(3) * 40,
            confidence=cell / 10 + 0.05,
            accuracy=estimate(min(0.99, cell / 10 + 0.01), 40),
        )
        for cell in range(10)
    ]
    counts = [rng.randrange(40) for _ in EDGES[1:]]
    counts[0] += 1
    histogram = Histogram(edges=EDGES, counts=counts, median=rng.gauss(0, 1))
    return Scores(name=name, look=look, calibration=cells, ece=0.07, brier=0.31, margins=histogram)


def questions(rng: random.Random, task: str, count: int, *, compared: bool, text: str | None = None) -> TaskQuestions:
    def draw(below: int) -> list[int]:
        return [rng.randrange(below) for _ in range(count)]

    return TaskQuestions(
        task=task,
        ids=list(range(count)),
        hashes="".join(hashlib.sha256(repr((task, i)).encode()).hexdigest()[:12] for i in range(count)),
        right=draw(4),
        answers=[
            Answers(
                chosen=draw(4),
                permille=draw(1001),
                margins=[rng.randrange(-900, 900) for _ in range(count)],
            )
            for _ in range(1 + compared)
        ],
        texts=None if text is None else [(f"{text} {i}", [text, "b", "c", "d"]) for i in range(count)],
    )


def report(
    *,
    compared: bool = True,
    unlearned: bool = True,
    label: str | None = None,
    text: str | None = None,
    groups: tuple[str, ...] = ("wmdp", "mmlu"),
) -> Report:
    """WMDP and MMLU with as many questions as they have, or with `label` everywhere a name can stand."""
    rng = random.Random(0)
    rows, tables = [], []

    def add(name: str, depth: int) -> None:
        thing = GROUPS.get(name) or TASKS[name]
        is_task = isinstance(thing, Task)
        count = {"wmdp_bio": 1273, "wmdp_chem": 408, "wmdp_cyber": 1987}.get(name, 246 + (name == "mmlu_virology") * 20)
        rows.append(
            row(
                rng,
                name,
                depth,
                compared=compared,
                count=count if is_task else 14042,
                is_group=not is_task,
                is_subject=name.startswith("mmlu_") and is_task,
                label=label or thing.alias,
            )
        )
        if is_task:
            tables.append(questions(rng, label or name, count, compared=compared, text=text))
        else:
            for child in thing.children:
                add(child, depth + 1)

    for group in groups:
        add(group, 0)
    records = [Facts(title=label or "Settings", facts=[(label or "dtype", label or "bfloat16")] * 12)]
    runs = [
        Run(
            name=name,
            model=label or f"lab/{name}",
            date="2026-11-24 12:00",
            asked=label or "0-shot, bfloat16",
            made_by=label or "wmdp-fast 0.1.0",
            look=name,
            records=records,
        )
        for name in ("before", "after")
    ]
    named = [("before", "before"), ("after", "after")] if compared else [("after", "after")]
    steps = list(range(150))
    loss = [
        Curve(name=label or n, steps=steps, values=[a * 0.98**i + 0.1 for i in steps])
        for n, a in (("forget", 90), ("retain", 2))
    ]
    norms = [
        Curve(name=label or n, steps=steps, values=[a + i / 9 for i in steps])
        for n, a in (("forget", 6), ("frozen", 5))
    ]
    return Report(
        title=label or ("lab/after against lab/before" if compared else "lab/after"),
        runs=runs if compared else runs[1:],
        rows=rows,
        parts=[
            Part(label=label or part, scores=[scores(rng, label or name, look) for name, look in named])
            for part in groups
        ],
        questions=tables,
        warnings=[label] if label else [],
        unlearning=Unlearning(
            plots=[
                Plot(title=label or "Loss", unit=label or "loss", curves=loss),
                Plot(title=f"{label or ''} norm", unit=label or "norm", curves=norms),
            ],
            records=records,
        )
        if unlearned
        else None,
        statistics={label or "Intervals": label or "Wilson."},
    )


HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    "\"'`&amp;{{7*7}}{%x%}$\\frac{1}$ ]]><!-- \x00\x1b\ud800\n"
)
