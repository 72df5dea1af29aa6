"""Models under attack side by side: `table`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.robustness.result import AttackResult
from wmdp_fast.robustness.table import formats
from wmdp_fast.robustness.table.content import Contents
from wmdp_fast.robustness.table.notes import notes_of
from wmdp_fast.robustness.table.pairs import pair_tests
from wmdp_fast.robustness.table.published import published as published_on
from wmdp_fast.robustness.table.records import of_attacks, of_evaluation
from wmdp_fast.robustness.table.rows import SEED, grouped, measures_of, row_of
from wmdp_fast.robustness.table.sources import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.robustness.table.records import Record
    from wmdp_fast.robustness.table.sources import Source


@dataclass(frozen=True, kw_only=True, repr=False)
class Table(Contents):
    """Models and what was measured of them. `print` shows it; `markdown()`, `latex()` and `csv()` give text.

    Attributes:
        measures: The columns.
        rows: The models.
        tests: Every two methods compared on the same questions.
        notes: How it was measured and what in it may not be compared, one sentence each.

    Example:
        >>> from wmdp_fast import table
        >>> paper = table(published="zephyr-7b")
        >>> [row.name for row in paper.rows][:2]
        ['base (Li et al.)', 'LLMU (Li et al.)']
    """

    def text(self, *, transpose: bool | None = None) -> str:
        """Aligned text; with a column for each model if `transpose`, or if it would be too wide otherwise."""
        return formats.text(self, transpose=transpose)

    def markdown(self, *, transpose: bool = False) -> str:
        """GitHub-flavored Markdown."""
        return formats.markdown(self, transpose=transpose)

    def latex(self, *, transpose: bool = False) -> str:
        """A LaTeX tabular with the rules of the package booktabs, and the notes as comments."""
        return formats.latex(self, transpose=transpose)

    def csv(self) -> str:
        """Comma-separated values, a line for each model and measure; what is missing has no value."""
        return formats.csv(self)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; shares are of one."""
        return formats.to_json(self)

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return formats.html(self)


def table(
    *results: str | PathLike[str] | AttackResult | EvalResult | SavedResults,
    published: str | Sequence[str] = (),
    forget: Sequence[str] = (),
    group: str = SEED,
) -> Table:
    """Puts results of attacks and evaluations side by side, and published ones beside them.

    Rows are models, columns measures: accuracy on what was to be forgotten, raw and calibrated, and on what was to be
    kept; accuracy under each attack on the questions that nothing was chosen on; the worst attack and what it regains.
    What was not run is said to be not run. What is not comparable is said in the notes.

    Args:
        results: What `attack` and `evaluate` gave, or where it or lm-eval's results were saved: files and folders.
            Before a path may stand what the model is called: `rmu=attacked`.
        published: Models whose published results to add: `zephyr-7b`, `yi-34b`, `mixtral-8x7b`.
        forget: Tasks and groups of evaluations that were to be forgotten, beside WMDP.
        group: A regular expression; names that are the same without what it matches are one row, with mean and range.
            Empty puts only equal names together.

    Raises:
        FileNotFoundError: There is no such file, or nothing in a folder.
        DatasetError: A file is not what it should be; says where.
        ValueError: There are no results, or two models of the same name are not the same.

    Example:
        >>> from wmdp_fast import table
        >>> paper = table(published="zephyr-7b")
        >>> rmu = next(row for row in paper.rows if row.name == "RMU (Li et al.)")
        >>> round(100 * rmu.cells["task:wmdp_bio"].value, 1)
        31.2
    """
    records = _records([one for source in results for one in read(source)], forget)
    wanted = [published] if isinstance(published, str) else list(published)
    papers = {
        f"{one.name}, {model}" if len(wanted) > 1 else one.name: [one]
        for model in wanted
        for one in published_on(model)
    }
    grouped_records = grouped(records, group) | papers
    if not grouped_records:
        raise ValueError("there are no results to show")
    measures = measures_of(one for those in grouped_records.values() for one in those)
    rows = [row_of(name, those) for name, those in grouped_records.items()]
    rows.sort(key=lambda row: _ORDER.index(row.kind))
    return Table(
        measures=measures,
        rows=rows,
        tests=pair_tests(rows, measures),
        notes=list(notes_of(rows, measures, grouped_records)),
        attacked=_attacked(grouped_records),
    )


def _attacked(records: Mapping[str, Sequence[Record]]) -> dict[str, AttackResult]:
    """The attacks by the name of their row, with a number behind it where there are several."""
    found: dict[str, AttackResult] = {}
    for name, those in records.items():
        results = [record.attacked for record in those if record.attacked is not None]
        numbered = [name] if len(results) == 1 else [f"{name} ({place})" for place in range(1, len(results) + 1)]
        found |= dict(zip(numbered, results, strict=True))
    return found


def _records(sources: Sequence[Source], forget: Sequence[str]) -> list[Record]:
    """What each result says of each of its models; what any of them was attacked about was to be forgotten."""
    attacked = [task for one in sources if isinstance(one.result, AttackResult) for task in one.result.tasks]
    found: list[Record] = []
    for name, result, where in sources:
        if isinstance(result, AttackResult):
            found += of_attacks(result, name, where)
        else:
            found.append(of_evaluation(result, name, where, {*forget, *attacked}))
    return found


# Controls stand above the methods, papers below.
_ORDER = ("base", "never learned", "unlearned", "evaluated", "published")
