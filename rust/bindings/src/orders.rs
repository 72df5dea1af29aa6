//! Questions asked with their choices in other orders.

use std::sync::Arc;

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use wmdp_core::scores::orders as core;

use crate::aggregate::Outcome;
use crate::detach;
use crate::error::to_py;
use crate::question::QuestionSet;

/// The answers to a task's questions in several orders of their choices.
///
/// An order is written as the letters of the choices that stand in its places: `BCDA` has the second choice first. Choices are
/// numbered as in the question, not by place.
///
/// Args:
///     questions: The questions.
///     orders: `"cyclic"` or `"all"`, as given to `QuestionSet.permuted`.
///     original: The outcome of the questions as they are.
///     others: The outcome of `questions.permuted(orders)`.
///
/// Raises:
///     ValueError: If an outcome is of other questions.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct OrderAnswers {
    pub(crate) inner: Arc<Vec<core::Answers>>,
}

#[pymethods]
impl OrderAnswers {
    #[new]
    fn new(
        py: Python<'_>,
        questions: &QuestionSet,
        orders: &str,
        original: &Outcome,
        others: &Outcome,
    ) -> PyResult<Self> {
        let orders = core::Orders::parse(orders).map_err(to_py)?;
        let questions = Arc::clone(&questions.inner);
        let (original, others) = (Arc::clone(&original.inner), Arc::clone(&others.inner));
        let inner = detach::run(py, move |cancel| core::answers(&questions, orders, &original, &others, cancel))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// For each order of a question's choices, the original one first, the choice that the model picked.
    fn predicted(&self, question: usize) -> PyResult<Vec<(String, usize)>> {
        let answers = &self.question(question)?.answers;
        Ok(answers.iter().map(|answer| (core::label(&answer.order), answer.predicted)).collect())
    }

    /// For each order of a question's choices, the original one first, the log-likelihood of each choice in nats.
    fn loglikelihood(&self, question: usize) -> PyResult<Vec<(String, Vec<f64>)>> {
        let answers = &self.question(question)?.answers;
        Ok(answers.iter().map(|answer| (core::label(&answer.order), answer.loglikelihood.clone())).collect())
    }
}

impl OrderAnswers {
    fn question(&self, question: usize) -> PyResult<&core::Answers> {
        let missing = || PyIndexError::new_err(format!("there is no question {question}, only {}", self.inner.len()));
        self.inner.get(question).ok_or_else(missing)
    }
}

/// What the order of the choices does to the answers. Each question counts the same.
///
/// Attributes:
///     orders: For each order its letters, the number of questions asked in it, and the share of right answers.
///     mean: Share of right answers over all orders.
///     sd: Sample standard deviation (n - 1) of the orders' accuracies; None if questions differ in their number of choices.
///     changed: Share of the other orders in which the answer is another text than in the original order.
///     consistent: Share of questions that are answered with the same text in all orders.
///     letters: For each letter its share of right answers and of predictions in the original order, and its share of
///         predictions over all orders.
#[pyclass(frozen, get_all, module = "wmdp_fast._rust")]
pub(crate) struct OrderEffects {
    orders: Vec<(String, usize, f64)>,
    mean: f64,
    sd: Option<f64>,
    changed: f64,
    consistent: f64,
    letters: Vec<(char, f64, f64, f64)>,
}

/// Sums up the answers to the questions of one or several tasks.
///
/// Raises:
///     ValueError: If there is no question.
#[pyfunction]
pub(crate) fn order_effects(py: Python<'_>, tasks: Vec<PyRef<'_, OrderAnswers>>) -> PyResult<OrderEffects> {
    let tasks: Vec<Arc<Vec<core::Answers>>> = tasks.iter().map(|task| Arc::clone(&task.inner)).collect();
    let effects = detach::run(py, move |_| core::effects(tasks.iter().flat_map(|task| task.iter())))?;
    Ok(OrderEffects {
        orders: effects.orders,
        mean: effects.mean,
        sd: effects.sd,
        changed: effects.changed,
        consistent: effects.consistent,
        letters: effects
            .letters
            .iter()
            .map(|shares| (shares.letter, shares.right, shares.original, shares.all_orders))
            .collect(),
    })
}
