"""What a table holds: rows for models, columns for measures, and what tells whether two cells may be compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from wmdp_fast.robustness.result import AttackResult

Kind = Literal["unlearned", "base", "never learned", "evaluated", "published"]
"""What a row is: a model that was attacked, one of its controls, one that was only evaluated, or a paper's."""

Section = Literal["forget", "kept", "attacks", "summary"]
"""Which part of the table a column is in; in this order."""

Unit = Literal["%", "steps", "nats", ""]
"""Shares are shown in percent, steps as whole numbers, nats with three digits; perplexities and scores as they are."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A column.

    Attributes:
        key: What tells it from the others.
        title: Its heading.
        section: Which part of the table it is in.
        unit: How its values are shown.
        tested: Whether models are compared in it, question by question.
    """

    key: str
    title: str
    section: Section
    unit: Unit = "%"
    tested: bool = False


@dataclass(frozen=True, eq=False)
class Answered:
    """Which questions a model answered right.

    Attributes:
        asked: A hash of the questions and of how they were asked; None if that is not known.
        correct: Whether each was right, `[n]`; of several results `[results, n]`.
    """

    asked: str | None
    correct: NDArray[np.bool_]

    @property
    def results(self) -> NDArray[np.bool_]:
        """A line for each result, `[results, n]`."""
        return np.atleast_2d(self.correct)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value.

    Attributes:
        value: The value; a share of one where the measure's unit is percent. Of several results their mean.
        low: Lower end of its 95 % interval; of several results the lowest.
        high: Upper end; of several results the highest.
        n: Over how many questions; None if that is not known.
        label: What belongs to the value: the attack that is the worst.
        second_hand: Whether it was read elsewhere than in what it was published in.
        several: The values of several results, if the cell is of more than one.
        answered: The answers behind it, if they are known and of the same questions in all results.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    label: str = ""
    second_hand: bool = False
    several: tuple[float, ...] = ()
    answered: Answered | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without the answers."""
        found: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        found |= {"label": self.label} if self.label else {}
        found |= {"second_hand": True} if self.second_hand else {}
        return found | ({"several": list(self.several)} if self.several else {})


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Why there is no value.

    Attributes:
        text: What stands in its place.
        why: The reason.
    """

    text: str = "not run"
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model.

    Attributes:
        name: What it is called.
        kind: What it is.
        cells: Its values, by the measures' keys.
        absent: Why others are missing.
        sources: The files or publications that they are from.
    """

    name: str
    kind: Kind
    cells: Mapping[str, Cell]
    absent: Mapping[str, Absent] = field(default_factory=dict)
    sources: Sequence[str] = ()

    @property
    def results(self) -> int:
        """How many results are put together in it, at most."""
        return max((max(1, len(cell.several)) for cell in self.cells.values()), default=1)

    def missing(self, measure: Measure) -> Absent:
        """What stands in the place of a value that is not there."""
        if measure.key in self.absent:
            return self.absent[measure.key]
        if measure.section == "summary" and self.kind != "unlearned":
            return Absent(text="n/a", why="it is of attacks on a model that unlearned something")
        return Absent(text="not reported" if self.kind == "published" else "not run")


@dataclass(frozen=True, kw_only=True)
class PairTest:
    """Two models, or two methods with several seeds, compared on the same questions.

    Attributes:
        measure: The measure's key.
        first: Name of one.
        second: Name of the other.
        test: The exact McNemar test of two results, or a bootstrap over seeds and questions where a row is of several.
        n: Number of questions.
        results: How many results each row is of.
        only_first: How many only the first answered right; None of several results.
        only_second: How many only the second did; None of several results.
        difference: Share of right answers of the second less that of the first, of several results their mean.
        low: Lower end of the 95 % interval of that: Tango's, or the bootstrap's percentiles.
        high: Its upper end.
        p: Of the test, two-sided.
        p_holm: The same corrected by Holm for all pairs in this measure.
    """

    measure: str
    first: str
    second: str
    test: Literal["McNemar", "bootstrap"]
    n: int
    results: tuple[int, int] = (1, 1)
    only_first: int | None = None
    only_second: int | None = None
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All of a table.

    Attributes:
        measures: The columns.
        rows: The models.
        tests: Every two models compared on the same questions.
        notes: How it was measured and what in it may not be compared, one sentence each.
        attacked: The attacks that rows are of, by what the model is called; several of a row are numbered.
    """

    measures: Sequence[Measure]
    rows: Sequence[Row]
    tests: Sequence[PairTest] = ()
    notes: Sequence[str] = ()
    attacked: Mapping[str, AttackResult] = field(default_factory=dict, repr=False)
