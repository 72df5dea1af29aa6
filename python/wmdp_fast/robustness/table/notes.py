"""What a reader of a table must know: how it was measured, and what in it may not be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast import _rust
from wmdp_fast.analysis.statistics import SIGNIFICANT
from wmdp_fast.robustness.attacks.ask import Ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wmdp_fast.robustness.table.content import Measure, Row
    from wmdp_fast.robustness.table.records import Record

CLAIM = (
    "a row holds for these attacks at this budget and slack, and for no others; no row says that knowledge is removed"
)


def notes_of(
    rows: Sequence[Row], measures: Sequence[Measure], records: Mapping[str, Sequence[Record]]
) -> Iterator[str]:
    """The notes, one sentence each.

    Args:
        rows: The rows.
        measures: The columns.
        records: By the name of their row.
    """
    yield from _how_to_read(rows, measures)
    yield from _of_several(rows, records)
    yield from _other_conditions(records)
    for measure in measures:
        yield from _other_questions(rows, measure)
    yield from _of_each(rows, records)
    yield from _damage(rows, measures)
    if any(row.kind == "unlearned" for row in rows):
        yield CLAIM


def _how_to_read(rows: Sequence[Row], measures: Sequence[Measure]) -> Iterator[str]:
    yield "shares in %, with 95 % Wilson intervals"
    if any(measure.unit == "nats" for measure in measures):
        yield "KL (nats a token) and perplexity: 95 % intervals over documents"
    shown = [measure for measure in measures if any(measure.key in row.cells for row in rows)]
    attacks = [measure for measure in shown if measure.section == "attacks"]
    if any(measure.title not in (Ask.name, f"{Ask.name}, calibrated") for measure in attacks):
        yield (
            "attacks (`ask` is none): accuracy on the half of the questions on which nothing was chosen; settings, and"
            " which attack is the worst, were chosen on the other half"
        )
    elif attacks:
        yield "`ask` is no attack: accuracy on the half of the questions on which attacks are reported"
    if any(measure.section == "summary" for measure in shown):
        yield (
            "R: what the worst attack regains of the gap to the base under the same attack; null: the same recipe on"
            " what cannot bring anything back"
        )
    if any(row.kind == "published" for row in rows):
        yield (
            "published values have no intervals, and may be of other versions of questions and prompts; * is read at"
            " second hand"
        )
    for source in dict.fromkeys(source for row in rows if row.kind == "published" for source in row.sources):
        whose = [row.name for row in rows if row.kind == "published" and source in row.sources]
        yield f"{'; '.join(whose)}: {source}"


def _of_several(rows: Sequence[Row], records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """Which rows are of several results, and what some of these lack."""
    for row in rows:
        if row.results > 1:
            models = ", ".join(dict.fromkeys(record.model for record in records[row.name]))
            yield (
                f"{row.name}: mean of up to {row.results} results ({models}), with the lowest and the highest in round"
                " brackets; in pairs, results and questions are both drawn anew (bootstrap)"
            )
        elif row.kind == "unlearned" and any(one.kind == "unlearned" and one.results > 1 for one in rows):
            yield f"{row.name} is one result beside several: it is compared as if another seed could not change it"
        for record in records[row.name]:
            for key, absent in record.absent.items():
                if key in row.cells:
                    yield (
                        f"{row.name}: {record.measures[key].title} is without {record.source}, where it is"
                        f" {absent.text}: {absent.why}"
                    )


def _other_conditions(records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """What the attacks on the models do not have in common."""
    attacked = [(name, record) for name, those in records.items() for record in those if record.kind == "unlearned"]
    for condition in dict.fromkeys(key for _, record in attacked for key in record.conditions):
        by_value: dict[str, list[str]] = {}
        for name, record in attacked:
            by_value.setdefault(record.conditions[condition], []).append(name)
        if len(by_value) > 1:
            told = "; ".join(f"{', '.join(dict.fromkeys(names))}: {value}" for value, names in by_value.items())
            yield f"NOT COMPARABLE: the attacks differ in {condition} ({told})"


def _other_questions(rows: Sequence[Row], measure: Measure) -> Iterator[str]:
    """Which models were not asked the same in a measure."""
    if not measure.tested:
        return
    asked: dict[str | None, list[str]] = {}
    for row in rows:
        cell = row.cells.get(measure.key)
        if cell is not None and row.kind != "published":
            asked.setdefault(cell.answered.asked if cell.answered is not None else None, []).append(row.name)
    if len(asked) > 1 or (None in asked and len(asked[None]) > 1):
        told = "; ".join(", ".join(names) for names in asked.values())
        yield (
            f"{measure.title}: not compared in pairs, for it was not the same that was asked, or cannot be told (no"
            f" samples, or `attack` here and `eval` there): {told}"
        )


def _of_each(rows: Sequence[Row], records: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """What holds for single rows, each sentence once, behind the names of all rows that it holds for."""
    names: dict[str, list[str]] = {}
    for row in rows:
        for told in _of_row(row, records[row.name]):
            names.setdefault(told, []).append(row.name)
    for told, those in names.items():
        yield f"{', '.join(those)}: {told}"


def _of_row(row: Row, records: Sequence[Record]) -> Iterator[str]:
    titles = {key: measure.title for record in records for key, measure in record.measures.items()}
    reasons: dict[str, list[str]] = {}
    for key, absent in row.absent.items():
        if absent.why:
            reasons.setdefault(f"{absent.text}: {absent.why}", []).append(titles[key])
    for reason, missing in reasons.items():
        yield f"{', '.join(missing)} {reason}"
    if any(record.kind == "unlearned" and not _has_utility(record) for record in records):
        yield "utility was not measured, so that an attack that ruins the model counts too"
    not_asked = dict.fromkeys(what for one in records if one.attacked is not None for what in one.attacked.not_asked)
    if not_asked:
        yield f"not run: {', '.join(not_asked)}"
    evaluated = {key: cell for one in records for key, cell in one.cells.items() if key not in one.derived}
    for record in records:
        for key in record.derived & evaluated.keys():
            mine, other = evaluated[key].value, record.cells[key].value
            if abs(mine - other) > 1e-9:
                yield (
                    f"{titles[key]} is {100 * mine:.1f} by its evaluation, which is shown, and"
                    f" {100 * other:.1f} where it was attacked"
                )


def _has_utility(record: Record) -> bool:
    return any(key.startswith("utility:") for key in record.cells)


def _damage(rows: Sequence[Row], measures: Sequence[Measure]) -> Iterator[str]:
    """Models that score below one that never learned: by the exact McNemar test on the questions that are reported."""
    for measure in measures:
        if measure.section != "attacks" or measure.title != Ask.name:
            continue
        answers = [(row, row.cells[measure.key].answered) for row in rows if measure.key in row.cells]
        never = next((one for row, one in answers if row.kind == "never learned"), None)
        for row, mine in answers:
            if never is None or mine is None or row.kind != "unlearned" or mine.asked != never.asked:
                continue
            lost, won = int((never.correct & ~mine.correct).sum()), int((~never.correct & mine.correct).sum())
            if lost > won and _rust.mcnemar(lost, won) < SIGNIFICANT:
                yield f"{row.name} scores below the model that never learned: that is damage, not unlearning"
