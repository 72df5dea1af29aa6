"""From records to rows: those of one model, and those of one method that differ in their seed, are put together."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast.robustness.table.content import Answered, Cell, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wmdp_fast.robustness.table.content import Absent, Measure
    from wmdp_fast.robustness.table.records import Record

SEED = r"[-_. ]?seed[-_= ]?\d+"
"""What is left out of names, so that the results of one method with several seeds are one row."""


def grouped(records: Sequence[Record], pattern: str) -> dict[str, list[Record]]:
    """Records by the row that they belong to, and the rows' names in order.

    Args:
        records: All records.
        pattern: A regular expression, whose matches are left out of names; empty leaves names as they are.

    Raises:
        ValueError: Two models that are not the same have the same name, or the pattern is none.
    """
    try:
        seed = re.compile(pattern) if pattern else None
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    bases = {one.model for one in records if one.kind == "base"}
    found: dict[str, list[Record]] = {}
    for record in records:
        is_base = record.kind == "base" or (record.kind == "evaluated" and record.model in bases)
        name = _name_of_base(record, bases) if is_base else record.name
        found.setdefault(seed.sub("", name) or name if seed is not None else name, []).append(record)
    for name, those in found.items():
        _check_same_model(name, those)
    short = _short([name for name, those in found.items() if any(record.name == record.model for record in those)])
    return {short.get(name, name): those for name, those in found.items()}


def row_of(name: str, records: Sequence[Record]) -> Row:
    """The row that records make together."""
    measured = {key for record in records for key in record.cells if key not in record.derived}
    of: dict[str, list[Cell]] = {}
    absent: dict[str, Absent] = {}
    for record in records:
        absent |= record.absent
        for key, cell in record.cells.items():
            # What an evaluation measured as well is the evaluation's to say.
            if key not in record.derived or key not in measured:
                of.setdefault(key, []).append(cell)
    kinds = [record.kind for record in records]
    return Row(
        name=name,
        kind=next((kind for kind in kinds if kind != "evaluated"), kinds[0]),
        cells={key: together(cells) for key, cells in of.items()},
        absent={key: one for key, one in absent.items() if key not in of},
        sources=tuple(dict.fromkeys(record.source for record in records)),
    )


def together(cells: Sequence[Cell]) -> Cell:
    """One cell for several: the same measurement told twice counts once, others give their mean and range."""
    unlike: list[Cell] = []
    for cell in cells:
        if not any(_same(cell, other) for other in unlike):
            unlike.append(cell)
    if len(unlike) == 1:
        return unlike[0]
    values = [cell.value for cell in unlike]
    counts, labels = {cell.n for cell in unlike}, dict.fromkeys(cell.label for cell in unlike if cell.label)
    return Cell(
        value=float(np.mean(values)),
        low=min(values),
        high=max(values),
        n=counts.pop() if len(counts) == 1 else None,
        label="/".join(labels),
        second_hand=any(cell.second_hand for cell in unlike),
        several=tuple(values),
        answered=_answered_together(unlike),
    )


def _answered_together(cells: Sequence[Cell]) -> Answered | None:
    """The answers of several results, where all were asked the same."""
    answers = [cell.answered for cell in cells if cell.answered is not None]
    if len(answers) < len(cells) or len({one.asked for one in answers}) > 1 or answers[0].asked is None:
        return None
    return Answered(answers[0].asked, np.vstack([one.results for one in answers]))


def measures_of(records: Iterable[Record]) -> list[Measure]:
    """The columns: by section, otherwise as they come, each once."""
    order = ("forget", "kept", "attacks", "summary")
    found: dict[str, Measure] = {}
    for record in records:
        for key, measure in record.measures.items():
            found.setdefault(key, measure)
    return sorted(found.values(), key=lambda measure: order.index(measure.section))


def _same(one: Cell, other: Cell) -> bool:
    if one.answered is None or other.answered is None:
        return one == other
    same = one.answered.asked == other.answered.asked and one.label == other.label
    return same and np.array_equal(one.answered.correct, other.answered.correct)


def _name_of_base(record: Record, bases: set[str]) -> str:
    """A base is called so, unless there are several."""
    return "base" if len(bases) == 1 else f"base {record.model}"


def _check_same_model(name: str, records: Sequence[Record]) -> None:
    models: Mapping[str, set[str]] = {}
    for record in records:
        if record.identity is not None and record.name == record.model == name:
            models = {**models, record.model: {*models.get(record.model, set()), record.identity}}
    if any(len(identities) > 1 for identities in models.values()):
        raise ValueError(
            f"{name} was another model each time it was attacked: say which is which, as in NAME={records[0].source}"
        )


def _short(models: Sequence[str]) -> dict[str, str]:
    """Folders by as few of their last parts as tell them apart; names on the hub as they are."""
    parts = {name: PurePath(name).parts for name in models if _is_folder(name)}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        short = {name: "/".join(those[-length:]) for name, those in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {}


def _is_folder(name: str) -> bool:
    return PurePath(name).is_absolute() or name.startswith(".") or len(PurePath(name).parts) != 2
