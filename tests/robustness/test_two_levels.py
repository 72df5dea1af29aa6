"""Methods of several seeds compared over seeds and questions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.statistics import two_level_differences
from wmdp_fast.robustness.table.two_levels import interval_and_p, resampled_differences

answers = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4),) * 2)
)


@given(answers, st.integers(0, 2**32 - 1))
def test_samples_are_those_of_the_plain_bootstrap(pair: tuple[list[list[bool]], list[list[bool]]], seed: int) -> None:
    first, second = pair
    found = resampled_differences(np.array(first), np.array(second), np.random.default_rng(seed), 5)
    assert found.tolist() == pytest.approx(two_level_differences(first, second, seed, 5), abs=1e-12)


def test_of_single_results_the_spread_is_that_of_the_paired_difference() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((1, 400)) < 0.4, rng.random((1, 400)) < 0.6
    differences = second.astype(float) - first.astype(float)
    found = resampled_differences(first, second, rng)
    assert found.mean() == pytest.approx(differences.mean(), abs=0.002)
    assert found.std() == pytest.approx(differences.std() / 20, rel=0.03)


def test_seeds_that_differ_widen_the_interval() -> None:
    """Of two results where all is right or nothing the mean is unsure by a half; the questions are not to blame."""
    alike, apart = np.ones((1, 50), dtype=bool), np.repeat([[True], [False]], 50, axis=1)
    low, high, p = interval_and_p(resampled_differences(alike, apart, np.random.default_rng(0)))
    assert (low, high) == (-1.0, 0.0)
    assert p == 1.0


def test_p_is_never_zero_and_one_where_nothing_differs() -> None:
    assert interval_and_p(np.full(99, 0.5))[2] == 0.02
    assert interval_and_p(np.zeros(99)) == (0.0, 0.0, 1.0)
