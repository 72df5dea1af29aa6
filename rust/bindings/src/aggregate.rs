//! Predictions, accuracies and group means.

use std::sync::Arc;

use numpy::{Element, IntoPyArray, PyArrayMethods};
use pyo3::prelude::*;
use wmdp_core::scores::aggregate as core;

use crate::array::{Array1, Readonly1};
use crate::detach;
use crate::error::to_py;
use crate::template::Prompts;

/// The scores of one task and what follows from them. Questions and choices are in the task's order; arrays are read-only.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Outcome {
    pub(crate) inner: Arc<core::Outcome>,
    /// Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
    #[pyo3(get)]
    choice_offsets: Array1<i64>,
    /// Log-likelihood of each choice in nats: float64 `[num_choices]`.
    #[pyo3(get)]
    loglikelihood: Array1<f64>,
    /// Whether each token of a choice is the model's most likely one: bool `[num_choices]`.
    #[pyo3(get)]
    is_greedy: Array1<bool>,
    /// The right choice: int64 `[num_questions]`.
    #[pyo3(get)]
    answers: Array1<i64>,
    /// The choice of highest log-likelihood, the first of several equal ones: int64 `[num_questions]`.
    #[pyo3(get)]
    predicted: Array1<i64>,
    /// The same after dividing by each choice's length in characters (lm-eval's `acc_norm`): int64 `[num_questions]`.
    #[pyo3(get)]
    predicted_norm: Array1<i64>,
    /// Whether `predicted` is right: bool `[num_questions]`.
    #[pyo3(get)]
    correct: Array1<bool>,
    /// Whether `predicted_norm` is right: bool `[num_questions]`.
    #[pyo3(get)]
    correct_norm: Array1<bool>,
    /// How far the best choice is ahead of the runner-up, in nats; 0 is a tie: float64 `[num_questions]`.
    #[pyo3(get)]
    margin: Array1<f64>,
    /// Whether the margin is so small that rounding may have decided: bool `[num_questions]`.
    #[pyo3(get)]
    near_tie: Array1<bool>,
}

#[pymethods]
impl Outcome {
    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// Share of right answers.
    #[getter]
    fn acc(&self) -> f64 {
        self.inner.acc.mean
    }

    /// Standard error of `acc`, or None for a single question.
    #[getter]
    fn acc_stderr(&self) -> Option<f64> {
        self.inner.acc.stderr
    }

    /// Share of right answers by `predicted_norm`.
    #[getter]
    fn acc_norm(&self) -> f64 {
        self.inner.acc_norm.mean
    }

    /// Standard error of `acc_norm`, or None for a single question.
    #[getter]
    fn acc_norm_stderr(&self) -> Option<f64> {
        self.inner.acc_norm.stderr
    }

    fn __repr__(&self) -> String {
        format!("Outcome({} questions, acc={:.4}, acc_norm={:.4})", self.inner.len(), self.acc(), self.acc_norm())
    }
}

impl Outcome {
    fn new(py: Python<'_>, inner: core::Outcome) -> Self {
        let indices = |values: &[usize]| read_only(py, values.iter().map(|&value| value as i64).collect());
        Self {
            choice_offsets: indices(&inner.choice_offsets),
            loglikelihood: read_only(py, inner.loglikelihood.clone()),
            is_greedy: read_only(py, inner.is_greedy.clone()),
            answers: indices(&inner.answers),
            predicted: indices(&inner.acc.predicted),
            predicted_norm: indices(&inner.acc_norm.predicted),
            correct: read_only(py, inner.acc.correct.clone()),
            correct_norm: read_only(py, inner.acc_norm.correct.clone()),
            margin: read_only(py, inner.margin.clone()),
            near_tie: read_only(py, inner.near_tie.clone()),
            inner: Arc::new(inner),
        }
    }
}

pub(crate) fn read_only<T: Element>(py: Python<'_>, values: Vec<T>) -> Array1<T> {
    let array = values.into_pyarray(py);
    array.readwrite().make_nonwriteable();
    array.into()
}

/// Turns the log-likelihoods of a task's choices into predictions, accuracies and their standard errors.
///
/// Args:
///     prompts: The task's prompts.
///     loglikelihood: Of each choice in nats, question after question: float64 `[num_choices]`.
///     is_greedy: Whether each choice is what greedy decoding gives: bool `[num_choices]`.
///     near_tie: Margin in nats up to which a prediction counts as a near-tie.
///
/// Raises:
///     ValueError: If the arrays do not fit the prompts, there is no question, or a log-likelihood is NaN or positive infinity;
///         names file and row.
///
/// Example:
///     >>> import numpy as np
///     >>> from wmdp_fast import Prompts, aggregate
///     >>> prompts = Prompts.from_contexts(["Which hoots?", "Which crows?"], [["owl", "hen"], ["jay", "cock"]], [0, 1])
///     >>> outcome = aggregate(prompts, np.array([-1.0, -3.0, -2.0, -2.5]), np.zeros(4, bool), near_tie=0.01)
///     >>> outcome.acc, outcome.predicted.tolist()
///     (0.5, [0, 0])
#[pyfunction]
#[pyo3(signature = (prompts, loglikelihood, is_greedy, *, near_tie))]
pub(crate) fn aggregate(
    py: Python<'_>,
    prompts: &Prompts,
    loglikelihood: Readonly1<'_, f64>,
    is_greedy: Readonly1<'_, bool>,
    near_tie: f64,
) -> PyResult<Outcome> {
    let (loglikelihood, is_greedy) = (loglikelihood.view().to_vec(), is_greedy.view().to_vec());
    let prompts = Arc::clone(&prompts.inner);
    let inner = detach::run(py, move |_| core::aggregate(&prompts, &loglikelihood, &is_greedy, near_tie))?;
    Ok(Outcome::new(py, inner))
}

/// The mean of several tasks and its standard error, by lm-eval's formulas for groups.
///
/// Args:
///     means: Of each task.
///     stderrs: Their standard errors; None where there is none.
///     sizes: Number of questions of each task.
///     weight_by_size: Whether the mean is that over all questions, with a standard error from the pooled variance within the
///         tasks (what they differ by does not enter); else each task counts the same.
///
/// Returns:
///     The mean, and its standard error unless a task has none.
///
/// Raises:
///     ValueError: If the lists differ in length or are empty, or a task has no question.
#[pyfunction]
#[pyo3(signature = (means, stderrs, sizes, *, weight_by_size = true))]
pub(crate) fn pool(
    means: Vec<f64>,
    stderrs: Vec<Option<f64>>,
    sizes: Vec<usize>,
    weight_by_size: bool,
) -> PyResult<(f64, Option<f64>)> {
    core::pool(&means, &stderrs, &sizes, weight_by_size).map_err(to_py)
}
