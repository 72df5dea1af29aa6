"""Models compared in pairs, question by question."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from wmdp_fast import _rust
from wmdp_fast.robustness.table.content import PairTest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.robustness.table.content import Measure, Row


def pair_tests(rows: Sequence[Row], measures: Sequence[Measure]) -> list[PairTest]:
    """Every two methods in every measure in which models are compared, where they were asked the same.

    The base is not among them: `wmdp-fast compare` compares a model with what it was made of.
    """
    found: list[PairTest] = []
    for measure in measures:
        if measure.tested:
            found += _of_measure(rows, measure)
    return found


def _of_measure(rows: Sequence[Row], measure: Measure) -> list[PairTest]:
    answers = {
        row.name: cell.answered
        for row in rows
        if row.kind in ("unlearned", "evaluated")
        and (cell := row.cells.get(measure.key)) is not None
        and cell.answered is not None
        and cell.answered.asked is not None
    }
    tests = []
    for (first, mine), (second, other) in combinations(answers.items(), 2):
        if mine.asked != other.asked:
            continue
        n = len(mine.correct)
        only_first, only_second = (
            int((mine.correct & ~other.correct).sum()),
            int((~mine.correct & other.correct).sum()),
        )
        low, high = _rust.paired_interval(only_first, only_second, n)
        tests.append((first, second, n, only_first, only_second, low, high, _rust.mcnemar(only_first, only_second)))
    corrected = _rust.holm([test[-1] for test in tests])
    return [
        PairTest(
            measure=measure.key,
            first=first,
            second=second,
            n=n,
            only_first=only_first,
            only_second=only_second,
            difference=(only_second - only_first) / n,
            low=low,
            high=high,
            p=p,
            p_holm=p_holm,
        )
        for (first, second, n, only_first, only_second, low, high, p), p_holm in zip(tests, corrected, strict=True)
    ]
