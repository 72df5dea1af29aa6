"""Statistics equal scipy's, statsmodels' and lm-eval's on random data, and intervals cover at the rate they state."""

from __future__ import annotations

import gc
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.reference import statistics as reference
from wmdp_fast import _rust
from wmdp_fast.analysis import statistics

scipy_stats = pytest.importorskip("scipy.stats")

PROBABILITY = st.floats(0, 1)
CONFIDENCE = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
# Where a sum is 0 in one order it may be 1e-17 in another.
CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-12}


@st.composite
def counts(draw: st.DrawFn, most: int = 3000) -> tuple[int, int]:
    """Successes, and of how many."""
    n = draw(st.integers(1, most))
    return draw(st.integers(0, n)), n


@st.composite
def scored(draw: st.DrawFn, same: bool = False) -> tuple[list[list[float]], list[int]]:
    """Log-likelihoods of choices, and the right ones."""
    number = draw(st.integers(2, 6))
    questions, gold = [], []
    for _ in range(draw(st.integers(1, 30))):
        size = number if same else draw(st.integers(2, 6))
        questions.append(draw(st.lists(st.floats(-60, 0), min_size=size, max_size=size)))
        gold.append(draw(st.integers(0, size - 1)))
    return questions, gold


def flat(questions: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, questions)])
    return np.array([score for scores in questions for score in scores]), offsets.astype(np.int64)


@given(counts(), CONFIDENCE)
@settings(deadline=None)
def test_wilson_equals_scipy(count: tuple[int, int], confidence: float) -> None:
    expected = scipy_stats.binomtest(*count).proportion_ci(confidence, method="wilson")
    assert _rust.wilson(*count, confidence=confidence) == pytest.approx((expected.low, expected.high), **CLOSE)


@st.composite
def guesses(draw: st.DrawFn, most: int = 3000) -> tuple[int, list[int]]:
    """How many answers are right, and each question's number of choices."""
    right, n = draw(counts(most))
    kinds = draw(st.lists(st.integers(2, 26), min_size=1, max_size=4))
    return right, [kinds[question % len(kinds)] for question in range(n)]


def p_against_chance(right: int, num_choices: list[int]) -> float:
    return _rust.against_chance(right, num_choices)[2]


def chance_of(num_choices: list[int]) -> float:
    return sum(1 / choices for choices in num_choices) / len(num_choices)


@given(guesses())
@settings(deadline=None)
def test_the_binomial_test_equals_scipy(guessed: tuple[int, list[int]]) -> None:
    right, num_choices = guessed
    expected = scipy_stats.binomtest(right, len(num_choices), chance_of(num_choices)).pvalue
    if expected > 1e-200:
        assert p_against_chance(right, num_choices) == pytest.approx(expected, rel=1e-6)


# Scipy's is not exact far out: of 1.6e-260 (730 of 763 against 0.375) its seventh digit is wrong.
@given(guesses(most=400))
@settings(deadline=None, max_examples=30)
@example(guessed=(730, [2, 4] * 381 + [2]))
def test_the_binomial_test_is_exact(guessed: tuple[int, list[int]]) -> None:
    right, num_choices = guessed
    expected = reference.binomial_test(right, len(num_choices), chance_of(num_choices))
    assert p_against_chance(right, num_choices) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("right", [4500, 5000, 9000])
def test_the_binomial_test_holds_at_the_size_of_mmlu(right: int) -> None:
    expected = scipy_stats.binomtest(right, 18_000, 0.25).pvalue
    assert p_against_chance(right, [4] * 18_000) == pytest.approx(expected, rel=1e-7, abs=1e-300)


@given(st.integers(0, 2000), st.integers(0, 2000))
@settings(deadline=None)
def test_mcnemar_equals_statsmodels(lost: int, won: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    assume(lost + won > 0)
    expected = tables.mcnemar([[5, lost], [won, 7]], exact=True).pvalue
    # Of what is far smaller than that, statsmodels makes 0.
    assert _rust.mcnemar(lost, won) == pytest.approx(expected, rel=1e-8, abs=1e-290)


def test_mcnemar_of_nothing_changed_is_1() -> None:
    assert _rust.mcnemar(0, 0) == 1.0


@given(st.lists(PROBABILITY, min_size=1, max_size=60))
@settings(deadline=None)
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    # It collects garbage on every call, which takes long where torch is loaded: all that is there is exempt.
    gc.freeze()
    expected = multitest.multipletests(p_values, method="holm")[1]
    gc.unfreeze()
    assert _rust.holm(p_values) == pytest.approx(expected.tolist(), rel=1e-12)


def test_holm_of_no_tests_is_none() -> None:
    assert _rust.holm([]) == []


CLUSTERED = st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=2, max_size=60)


@given(CLUSTERED)
@settings(deadline=None)
def test_clustered_errors_equal_statsmodels_and_miller(pairs: list[tuple[float, int]]) -> None:
    linear_model = pytest.importorskip("statsmodels.regression.linear_model")
    values, clusters = (list(column) for column in zip(*pairs, strict=True))
    assume(len(set(clusters)) > 1)
    found = _rust.clustered_stderr(np.array(values), np.array(clusters, dtype=np.int64))
    assert found == pytest.approx(reference.miller_clustered_stderr(values, clusters), rel=1e-6, abs=1e-9)
    # With a constant alone, statsmodels' factor (n - 1) / (n - k) is 1 and G / (G - 1) remains.
    fit = linear_model.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert found == pytest.approx(float(fit.bse[0]), rel=1e-6, abs=1e-9)


@given(counts(most=400), st.integers(2, 6))
@settings(deadline=None)
def test_distance_from_chance(count: tuple[int, int], choices: int) -> None:
    correct, n = count
    share, z, p = _rust.against_chance(correct, [choices] * n)
    assert share == pytest.approx(1 / choices)
    assert z == pytest.approx((correct / n - share) / math.sqrt(share * (1 - share) / n), rel=1e-9, abs=1e-9)
    assert p == pytest.approx(scipy_stats.binomtest(correct, n, 1 / choices).pvalue, rel=1e-7, abs=1e-300)


def test_chance_takes_each_questions_choices() -> None:
    share, z, _ = _rust.against_chance(2, [2, 4])
    assert share == pytest.approx(0.375)
    assert z == pytest.approx((2 - 0.75) / math.sqrt(0.25 + 0.1875))


@given(scored(same=True))
@settings(deadline=None)
def test_the_brier_score_is_lm_evals(questions: tuple[list[list[float]], list[int]]) -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="lm-eval is not installed (extra `lm-eval`)")
    from lm_eval.utils import softmax

    scores, gold = questions
    expected = metrics.brier_score([(right, softmax(np.array(one))) for one, right in zip(scores, gold, strict=True)])
    found = _rust.calibration(*flat(scores), np.array(gold, dtype=np.int64))
    assert found.brier == pytest.approx(float(expected), **CLOSE)


@given(scored(), st.integers(1, 20))
@settings(deadline=None)
def test_calibration_equals_reference(questions: tuple[list[list[float]], list[int]], num_bins: int) -> None:
    scores, gold = questions
    probabilities = [reference.softmax(one) for one in scores]
    loglikelihood, offsets = flat(scores)
    assert _rust.probabilities(loglikelihood, offsets) == pytest.approx(np.concatenate(probabilities), **CLOSE)

    found = _rust.calibration(loglikelihood, offsets, np.array(gold, dtype=np.int64), num_bins=num_bins)
    predicted = [int(np.argmax(one)) for one in scores]
    confidence = [one[choice] for one, choice in zip(probabilities, predicted, strict=True)]
    # Another order of summation may move a confidence over the edge of a bin.
    assume(all(abs(value * num_bins - round(value * num_bins)) > 1e-9 or value == 1 for value in confidence))
    correct = [choice == right for choice, right in zip(predicted, gold, strict=True)]
    assert found.ece == pytest.approx(reference.calibration_error(confidence, correct, num_bins), **CLOSE)
    assert found.counts.sum() == len(gold)
    used = found.counts > 0
    assert np.isnan(found.accuracy[~used]).all()
    assert float((found.counts * np.where(used, found.accuracy, 0)).sum()) == pytest.approx(sum(correct))
    assert float((found.counts * np.where(used, found.confidence, 0)).sum()) == pytest.approx(sum(confidence))


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=10))
@settings(deadline=None)
def test_chi_square_equals_scipy(seen: list[int]) -> None:
    assume(sum(seen) > 0)
    expected = scipy_stats.chisquare(seen)
    assert _rust.chi_square_uniform(seen) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9, abs=1e-300)


CHANGES = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 400)).filter(any)
LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@given(CHANGES, LEVELS)
@settings(deadline=None, max_examples=60)
def test_paired_intervals_equal_reference(changes: tuple[int, int, int], confidence: float) -> None:
    lost, won, same = changes
    found = _rust.paired_interval(lost, won, lost + won + same, confidence=confidence)
    assert found == pytest.approx(
        reference.paired_interval(lost, won, lost + won + same, confidence), rel=1e-6, abs=1e-7
    )


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 10_000), LEVELS)
@settings(deadline=None, max_examples=500)
def test_paired_intervals_never_contradict_the_exact_test(lost: int, won: int, same: int, confidence: float) -> None:
    low, high = _rust.paired_interval(lost, won, lost + won + same, confidence=confidence)
    assert low < high
    assert low <= (won - lost) / (lost + won + same) <= high
    assert (low > 0 or high < 0) == (_rust.mcnemar(lost, won) < 1 - confidence)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99, 0.999])
def test_few_changes_never_contradict_the_exact_test(confidence: float) -> None:
    for lost, won in itertools.product(range(31), repeat=2):
        low, high = _rust.paired_interval(lost, won, 200, confidence=confidence)
        assert low < high
        assert (low > 0 or high < 0) == (_rust.mcnemar(lost, won) < 1 - confidence), (lost, won)


def test_what_once_contradicted_itself() -> None:
    # A bootstrap gave -0.0204 to -0.0026 beside p = 0.125, and no width where nothing changed.
    low, high = _rust.paired_interval(4, 0, 392)
    assert low < -4 / 392 < 0 < high
    assert _rust.mcnemar(4, 0) == 0.125
    # Without a change, the ends are those of Wilson's interval of none: z² / (n + z²).
    assert _rust.paired_interval(0, 0, 40) == pytest.approx((-0.0876, 0.0876), abs=5e-5)
    assert _rust.paired_interval(0, 0, 40)[1] == pytest.approx(_rust.wilson(0, 40)[1])


@given(st.integers(0, 300), st.integers(0, 300))
@settings(deadline=None, max_examples=50)
def test_the_score_test_of_no_difference_is_mcnemars(lost: int, won: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    assume(lost + won > 0)
    for correction in (0, 1):
        ours = reference.paired_score(lost, won, lost + won + 100, 0.0, correction) ** 2
        # Edwards' correction in statsmodels is not cut off at 0.
        if abs(lost - won) >= correction:
            expected = tables.mcnemar([[50, lost], [won, 50]], exact=False, correction=bool(correction)).statistic
            assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [40, 392])
def test_paired_intervals_cover_where_few_questions_change(n: int) -> None:
    """By exact enumeration: 0 to 5 changes expected, from all one way to half and half."""
    counts = [(lost, won) for lost in range(22) for won in range(22 - lost)]
    ends = np.array([_rust.paired_interval(lost, won, n) for lost, won in counts])
    lost, won = np.array(counts).T
    coverages = []
    for changes, one_way in itertools.product((0.02, 0.5, 1, 2, 3, 4, 5), np.linspace(0, 1, 11)):
        shares = changes / n * one_way, changes / n * (1 - one_way)
        chances = scipy_stats.multinomial.pmf(
            np.stack([lost, won, n - lost - won], axis=1), n, [*shares, 1 - changes / n]
        )
        assert chances.sum() > 1 - 1e-6
        difference = shares[1] - shares[0]
        covered = (ends[:, 0] <= difference) & (difference <= ends[:, 1])
        coverages.append(float(chances[covered].sum()))
        if one_way == 0.5:
            # No difference is left out as rarely as the exact test rejects it.
            assert coverages[-1] >= 0.95
    assert min(coverages) > 0.93
    assert np.mean(coverages) >= 0.95


def strata_of(scores: list[list[float]], gold: list[int]) -> list[tuple[Any, Any]]:
    matrix = np.array(scores)
    return [(matrix - matrix.mean(axis=0), np.array(gold, dtype=np.int64))]


@given(
    st.integers(2, 4).flatmap(
        lambda k: st.lists(
            st.tuples(
                st.lists(st.sampled_from([-3.0, -1.5, -0.5, -0.25]), min_size=k, max_size=k), st.integers(0, k - 1)
            ),
            min_size=2,
            max_size=6,
        )
    )
)
@settings(deadline=None, max_examples=60)
def test_ranks_have_the_mean_and_variance_of_all_permutations(questions: list[tuple[list[float], int]]) -> None:
    scores, gold = [one for one, _ in questions], [right for _, right in questions]
    [(centered, answers)] = strata_of(scores, gold)
    seen, mean, deviation = reference.permuted_ranks(centered.tolist(), gold)
    found = statistics.rank_test([(centered, answers)])
    if deviation < 1e-6:
        assert found is None
        return
    assert found is not None
    assert found.beats == pytest.approx(seen)
    assert found.expected == pytest.approx(mean)
    assert found.z == pytest.approx((seen - mean) / deviation)
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(abs(found.z)))


def test_ranks_of_tasks_are_exchanged_within_them() -> None:
    first = strata_of([[-1, -2, -3], [-1, -3, -2], [-3, -2, -1]], [0, 1, 1])
    second = strata_of([[-1, -2], [-2, -1]], [1, 1])
    one, other, both = (statistics.rank_test(strata) for strata in (first, second, first + second))
    assert one is not None
    assert both is not None
    # Two answers that are the same give the same in any order: no variance.
    assert other is None
    assert both.z == pytest.approx(one.z)


def test_the_rank_test_keeps_its_level_and_ignores_preferred_letters() -> None:
    rng = np.random.default_rng(5)
    p_values, p_knowing = [], []
    for _ in range(400):
        n = 60
        # A model in love with A, and answers that are A more often than others.
        scores = rng.normal(size=(n, 4)) + np.array([6, 1, 0, 0])
        gold = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
        [stratum] = strata_of(scores.tolist(), gold.tolist())
        ignorant = statistics.rank_test([stratum])
        scores[np.arange(n), gold] += 0.8
        knowing = statistics.rank_test(strata_of(scores.tolist(), gold.tolist()))
        assert ignorant is not None
        assert knowing is not None
        p_values.append(ignorant.p)
        p_knowing.append(knowing.p)
        assert (scores.argmax(axis=1) == 0).mean() > 0.9
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(np.array(p_knowing) < 0.05) > 0.9


@pytest.mark.slow
def test_intervals_cover_at_the_rate_they_state() -> None:
    rng = np.random.default_rng(7)
    # Wilson's at a share where the usual interval fails, then the one of paired differences.
    share, n, trials = 0.03, 150, 4000
    inside = 0
    for successes in rng.binomial(n, share, size=trials).tolist():
        low, high = _rust.wilson(successes, n)
        inside += low <= share <= high
    assert inside / trials == pytest.approx(0.95, abs=0.02)

    trials, inside = 1500, 0
    for lost, _, won in rng.multinomial(200, [0.15, 0.65, 0.2], size=trials).tolist():
        low, high = _rust.paired_interval(lost, won, 200, confidence=0.9)
        inside += low <= 0.05 <= high
    # Three standard errors of 1,500 trials are 0.023.
    assert inside / trials == pytest.approx(0.9, abs=0.025)


@pytest.mark.slow
def test_mcnemar_and_holm_keep_their_level() -> None:
    """Between equal models, exact p-values are below 0.05 at most one time in twenty; so are any of ten, corrected."""
    rng = np.random.default_rng(11)
    changes = rng.binomial(40, 0.5, size=(2000, 10))
    p_values = {lost: _rust.mcnemar(lost, 40 - lost) for lost in range(41)}
    single = np.array([[p_values[lost] for lost in row] for row in changes.tolist()])
    assert (single < 0.05).mean() <= 0.055
    families = np.array([min(_rust.holm(row)) for row in single.tolist()])
    assert (families < 0.05).mean() <= 0.06


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _rust.wilson(3, 2), "3 of 2 is no share"),
        (lambda: _rust.wilson(1, 2, confidence=1.0), "confidence must lie between 0 and 1"),
        (lambda: _rust.clustered_stderr(np.array([0.0, math.nan]), np.array([0, 1])), "value 1 is NaN"),
        (lambda: _rust.holm([2.0]), "2 is no p-value"),
        (lambda: _rust.clustered_stderr(np.array([1.0, 2.0]), np.array([3, 3])), "two of them or more"),
        (lambda: _rust.against_chance(0, [4, 1]), "two choices or more"),
        (lambda: _rust.chi_square_uniform([0, 0]), "not all of them 0"),
        (lambda: _rust.probabilities(np.array([-1.0]), np.array([0, 2])), "must rise from 0 to their number, 1"),
        (
            lambda: _rust.calibration(np.array([-1.0, math.nan]), np.array([0, 2]), np.array([0])),
            "question 0: the log-likelihoods",
        ),
        (
            lambda: _rust.calibration(np.array([-1.0, -2.0]), np.array([0, 2]), np.array([2])),
            "question 0: 2 is none of its 2 choices",
        ),
    ],
)
def test_what_is_no_data_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
