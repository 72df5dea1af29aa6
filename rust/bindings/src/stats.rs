//! Statistics.

use numpy::IntoPyArray;
use pyo3::prelude::*;
use wmdp_core::scores::stats as core;

use crate::array::{Array1, Readonly1};
use crate::error::to_py;

/// Wilson's score interval for a share: `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`.
///
/// Source: Wilson 1927, JASA 22(158).
///
/// Args:
///     successes: How many there are.
///     n: Of how many.
///     confidence: Confidence level of the interval.
///
/// Raises:
///     ValueError: If that is no share, or `confidence` is not between 0 and 1.
#[pyfunction]
#[pyo3(signature = (successes, n, *, confidence = 0.95))]
pub(crate) fn wilson(successes: u64, n: u64, confidence: f64) -> PyResult<(f64, f64)> {
    core::wilson(successes, n, confidence).map_err(to_py)
}

/// Standard error of a mean over values in clusters (questions by subject): `√(G/(G-1) · Σ_clusters (Σ (x - mean))²) / n`.
///
/// Source: Liang and Zeger 1986, with the factor of Cameron and Miller 2015; for evaluations Miller 2024, arXiv:2411.00640.
///
/// Args:
///     values: float64 `[n]`.
///     clusters: The number of each value's cluster: int64 `[n]`.
///
/// Raises:
///     ValueError: If the arrays differ in length, there are fewer than two clusters, or a value is not finite.
#[pyfunction]
pub(crate) fn clustered_stderr(values: Readonly1<'_, f64>, clusters: Readonly1<'_, i64>) -> PyResult<f64> {
    core::clustered_stderr(&values.view().to_vec(), &clusters.view().to_vec()).map_err(to_py)
}

/// The p-value of the exact McNemar test between two runs over the same questions, from the numbers of questions that changed either
/// way; 1 if none did.
///
/// Source: McNemar 1947, Psychometrika 12(2); exact by the binomial distribution with chance 1/2.
#[pyfunction]
pub(crate) fn mcnemar(right_to_wrong: u64, wrong_to_right: u64) -> PyResult<f64> {
    core::mcnemar(right_to_wrong, wrong_to_right).map_err(to_py)
}

/// Tango's score interval for how much the share of right answers changed between two runs over the same `n` questions.
///
/// It has a width even where nothing changed. Where it would leave out 0 although the exact McNemar test does not reject, it is the
/// one with a continuity correction of one question, so that interval and p-value do not contradict each other.
///
/// Source: Tango 1998, Statistics in Medicine 17(8); the correction is that of Edwards 1948, Psychometrika 13(3).
///
/// Args:
///     right_to_wrong: How many questions only the first run got right.
///     wrong_to_right: How many only the second one got right.
///     n: Number of questions.
///     confidence: Confidence level of the interval.
///
/// Raises:
///     ValueError: If more questions changed than there are, or `confidence` is not between 0 and 1.
#[pyfunction]
#[pyo3(signature = (right_to_wrong, wrong_to_right, n, *, confidence = 0.95))]
pub(crate) fn paired_interval(
    right_to_wrong: u64,
    wrong_to_right: u64,
    n: u64,
    confidence: f64,
) -> PyResult<(f64, f64)> {
    core::paired_interval(right_to_wrong, wrong_to_right, n, confidence).map_err(to_py)
}

/// p-values corrected for how many there are: the i-th smallest of m times m - i + 1, no smaller than those before it, at most 1.
///
/// Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
///
/// Raises:
///     ValueError: If one is not between 0 and 1.
#[pyfunction]
pub(crate) fn holm(p_values: Vec<f64>) -> PyResult<Vec<f64>> {
    core::holm(&p_values).map_err(to_py)
}

/// How far a number of right answers is from guessing, which is right with 1/k for k choices.
///
/// Args:
///     correct: Number of right answers.
///     num_choices: For each question its number of choices.
///
/// Returns:
///     The share that guessing gives; how many standard deviations of guessing the answers are above it; and the two-sided p-value of
///     the exact binomial test (with the mean of 1/k, if questions differ).
///
/// Raises:
///     ValueError: If there is no question, one with fewer than two choices, or more are right than there are.
#[pyfunction]
pub(crate) fn against_chance(correct: u64, num_choices: Vec<usize>) -> PyResult<(f64, f64, f64)> {
    core::against_chance(correct, &num_choices).map(|found| (found.share, found.z, found.p)).map_err(to_py)
}

/// The probability of each choice among its question's: softmax of the log-likelihoods. float64 `[num_choices]`.
///
/// Args:
///     loglikelihood: Of each choice in nats, question after question: float64 `[num_choices]`.
///     choice_offsets: Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
///
/// Raises:
///     ValueError: If the offsets do not fit, or a question's log-likelihoods give no probabilities; names the question.
#[pyfunction]
pub(crate) fn probabilities(
    py: Python<'_>,
    loglikelihood: Readonly1<'_, f64>,
    choice_offsets: Readonly1<'_, i64>,
) -> PyResult<Array1<f64>> {
    let (scores, offsets) = (loglikelihood.view().to_vec(), choice_offsets.view().to_vec());
    let choices = core::Choices::new(&scores, &offsets).map_err(to_py)?;
    Ok(choices.probabilities().into_pyarray(py).into())
}

/// How far probabilities can be believed. Bin b of B holds confidences above b/B up to (b+1)/B; the lowest holds 0, too.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Calibration {
    /// Expected calibration error: over the bins, weighted by size, how far mean confidence is from the share of right answers.
    #[pyo3(get)]
    ece: f64,
    /// lm-eval's Brier score: mean over questions of `Σ_choices (probability - 1 if right else 0)²`; 0 is perfect, 2 the worst.
    #[pyo3(get)]
    brier: f64,
    /// Number of questions by bin: int64 `[num_bins]`.
    #[pyo3(get)]
    counts: Array1<i64>,
    /// Mean probability of the predicted choice by bin; NaN if the bin is empty: float64 `[num_bins]`.
    #[pyo3(get)]
    confidence: Array1<f64>,
    /// Share of right answers by bin; NaN if the bin is empty: float64 `[num_bins]`.
    #[pyo3(get)]
    accuracy: Array1<f64>,
}

#[pymethods]
impl Calibration {
    fn __repr__(&self) -> String {
        format!("Calibration(ece={:.4}, brier={:.4})", self.ece, self.brier)
    }
}

/// Calibration of the probabilities that softmax over a question's choices gives.
///
/// Source: Naeini, Cooper and Hauskrecht 2015 (AAAI); Guo et al. 2017, arXiv:1706.04599; Brier 1950, as in lm-eval's `brier_score`.
///
/// Args:
///     loglikelihood: Of each choice in nats, question after question: float64 `[num_choices]`.
///     choice_offsets: Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
///     gold: The right choice: int64 `[num_questions]`.
///     num_bins: Bins of equal width between 0 and 1.
///
/// Raises:
///     ValueError: If the arrays do not fit, there are no bins, or a question's log-likelihoods give no probabilities.
#[pyfunction]
#[pyo3(signature = (loglikelihood, choice_offsets, gold, *, num_bins = 15))]
pub(crate) fn calibration(
    py: Python<'_>,
    loglikelihood: Readonly1<'_, f64>,
    choice_offsets: Readonly1<'_, i64>,
    gold: Readonly1<'_, i64>,
    num_bins: usize,
) -> PyResult<Calibration> {
    let (scores, offsets) = (loglikelihood.view().to_vec(), choice_offsets.view().to_vec());
    let choices = core::Choices::new(&scores, &offsets).map_err(to_py)?;
    let found = core::calibration(&choices, &gold.view().to_vec(), num_bins).map_err(to_py)?;
    let counts: Vec<i64> = found.counts.iter().map(|&count| count as i64).collect();
    Ok(Calibration {
        ece: found.ece,
        brier: found.brier,
        counts: counts.into_pyarray(py).into(),
        confidence: found.confidence.into_pyarray(py).into(),
        accuracy: found.accuracy.into_pyarray(py).into(),
    })
}

/// Pearson's chi-square test of counts against equal frequency: the statistic and its p-value.
///
/// Raises:
///     ValueError: If there are fewer than two kinds, or nothing was counted.
#[pyfunction]
pub(crate) fn chi_square_uniform(counts: Vec<u64>) -> PyResult<(f64, f64)> {
    core::chi_square_uniform(&counts).map_err(to_py)
}
