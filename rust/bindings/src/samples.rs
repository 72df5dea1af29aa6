//! Samples files.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use wmdp_core::Result;
use wmdp_core::scores::aggregate::Metric;
use wmdp_core::scores::samples;

use crate::aggregate::Outcome;
use crate::detach;
use crate::orders::OrderAnswers;
use crate::question::QuestionSet;
use crate::template::Prompts;

/// Writes lm-eval's samples file of a task, one line a question. The file appears whole or not at all.
///
/// Each line has one key more than lm-eval's, `wmdp_fast`: the predicted choice by either metric, the margin to the runner-up,
/// whether that is a near-tie, and what the model answered in other orders of the choices if it was asked.
///
/// Args:
///     path: The file to write.
///     questions: The questions asked.
///     prompts: What the model read.
///     outcome: What `aggregate` made of the scores.
///     metrics: Names of the metrics to write, in lm-eval's order: `acc`, `acc_norm`.
///     orders: The answers in other orders of the choices.
///
/// Returns:
///     lm-eval's hash over the task's documents, prompts and answers.
///
/// Raises:
///     OSError: If the file cannot be written; names it.
///     ValueError: If questions, prompts and outcome are not as many, or a metric is unknown.
#[pyfunction]
#[pyo3(signature = (path, questions, prompts, outcome, metrics, orders = None))]
pub(crate) fn write_samples(
    py: Python<'_>,
    path: PathBuf,
    questions: &QuestionSet,
    prompts: &Prompts,
    outcome: &Outcome,
    metrics: Vec<String>,
    orders: Option<PyRef<'_, OrderAnswers>>,
) -> PyResult<String> {
    let orders = orders.map(|orders| Arc::clone(&orders.inner));
    detach::run_to_end(py, |cancel| {
        let orders = orders.as_ref().map(|orders| orders.as_slice());
        let metrics = metrics.iter().map(|name| Metric::parse(name)).collect::<Result<Vec<_>>>()?;
        samples::write_samples(&path, &questions.inner, &prompts.inner, &outcome.inner, &metrics, orders, cancel)
    })
}
