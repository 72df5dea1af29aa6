"""Models compared in pairs: question by question, and over seeds where there are several."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.robustness.table.content import PairTest
from wmdp_fast.robustness.table.two_levels import interval_and_p, resampled_differences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

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
    tests = [
        (_question_by_question if len(mine.results) == len(other.results) == 1 else _over_seeds)(
            measure.key, (first, second), mine.results, other.results
        )
        for (first, mine), (second, other) in combinations(answers.items(), 2)
        if mine.asked == other.asked
    ]
    corrected = _rust.holm([test.p for test in tests])
    return [replace(test, p_holm=p_holm) for test, p_holm in zip(tests, corrected, strict=True)]


def _question_by_question(
    measure: str, names: tuple[str, str], mine: NDArray[np.bool_], other: NDArray[np.bool_]
) -> PairTest:
    """Two results, `[1, n]` each."""
    n = mine.shape[1]
    only_first, only_second = int((mine & ~other).sum()), int((~mine & other).sum())
    low, high = _rust.paired_interval(only_first, only_second, n)
    p = _rust.mcnemar(only_first, only_second)
    return PairTest(
        measure=measure,
        first=names[0],
        second=names[1],
        test="McNemar",
        n=n,
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / n,
        low=low,
        high=high,
        p=p,
        p_holm=p,
    )


def _over_seeds(measure: str, names: tuple[str, str], mine: NDArray[np.bool_], other: NDArray[np.bool_]) -> PairTest:
    """Two methods of which at least one was run with several seeds, `[seeds, n]` each."""
    # The same samples each time a table is made.
    low, high, p = interval_and_p(resampled_differences(mine, other, np.random.default_rng(0)))
    return PairTest(
        measure=measure,
        first=names[0],
        second=names[1],
        test="bootstrap",
        n=mine.shape[1],
        results=(len(mine), len(other)),
        difference=float(other.mean() - mine.mean()),
        low=low,
        high=high,
        p=p,
        p_holm=p,
    )
