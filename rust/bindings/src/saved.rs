//! Samples files read back.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use wmdp_core::scores::saved as core;

use crate::aggregate::{Outcome, read_only};
use crate::array::Array1;
use crate::detach;
use crate::question::QuestionSet;
use crate::template::Prompts;

/// What was scored in one task, question by question, as a samples file has it. Arrays are read-only, questions in the order of
/// `doc_ids`.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Samples {
    pub(crate) inner: core::Samples,
    /// Number of each question in its dataset, rising: int64 `[num_questions]`.
    #[pyo3(get)]
    doc_ids: Array1<i64>,
    /// Choices of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`: int64 `[num_questions + 1]`.
    #[pyo3(get)]
    choice_offsets: Array1<i64>,
    /// Log-likelihood of each choice in nats: float64 `[num_choices]`.
    #[pyo3(get)]
    loglikelihood: Array1<f64>,
    /// Whether each token of a choice is the model's most likely one: bool `[num_choices]`.
    #[pyo3(get)]
    is_greedy: Array1<bool>,
    /// The right choice, or -1 where the target names no single one: int64 `[num_questions]`.
    #[pyo3(get)]
    gold: Array1<i64>,
    /// How far the best choice is ahead of the runner-up, in nats; 0 is a tie: float64 `[num_questions]`.
    #[pyo3(get)]
    margin: Array1<f64>,
}

#[pymethods]
impl Samples {
    /// The samples of a task that was just scored, as `read_samples` would find them in the file that `write_samples` makes.
    ///
    /// Raises:
    ///     ValueError: If questions, prompts and outcome are not as many.
    #[staticmethod]
    fn from_outcome(py: Python<'_>, questions: &QuestionSet, prompts: &Prompts, outcome: &Outcome) -> PyResult<Self> {
        let (questions, prompts) = (Arc::clone(&questions.inner), Arc::clone(&prompts.inner));
        let outcome = Arc::clone(&outcome.inner);
        let inner = detach::run(py, move |cancel| core::Samples::from_outcome(&questions, &prompts, &outcome, cancel))?;
        Ok(Self::new(py, inner))
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// Path of the file as it was given.
    #[getter]
    fn file(&self) -> &str {
        &self.inner.file
    }

    /// Text between prompt and choice.
    #[getter]
    fn delimiter(&self) -> &str {
        &self.inner.delimiter
    }

    /// What the model was scored on for each choice of a question, delimiter included.
    ///
    /// Raises:
    ///     IndexError: If there is no such question.
    fn continuations(&self, question: usize) -> PyResult<Vec<String>> {
        if question >= self.inner.len() {
            return Err(PyIndexError::new_err(format!("there are {} questions", self.inner.len())));
        }
        Ok(self.inner.continuations(question).to_vec())
    }

    /// The choice that a metric (`acc`, `acc_norm`, `acc_bytes`) picks, the first of several equal ones: int64 `[num_questions]`.
    ///
    /// `acc` takes the highest log-likelihood, `acc_norm` that after dividing by the choice's characters, `acc_bytes` by its bytes in
    /// UTF-8.
    ///
    /// Raises:
    ///     ValueError: If the metric is another.
    fn predicted(&self, py: Python<'_>, metric: &str) -> PyResult<Array1<i64>> {
        let picked = &self.inner.predicted[position(metric)?];
        Ok(read_only(py, picked.iter().map(|&choice| choice as i64).collect()))
    }

    /// Whether the choice that a metric picks is right: bool `[num_questions]`.
    ///
    /// Where the target names no single choice, it is what the file says; None if it says nothing.
    ///
    /// Raises:
    ///     ValueError: If the metric is not `acc`, `acc_norm` or `acc_bytes`.
    fn correct(&self, py: Python<'_>, metric: &str) -> PyResult<Option<Array1<bool>>> {
        let correct = self.inner.correct(position(metric)?);
        Ok(correct.map(|correct| read_only(py, correct)))
    }

    /// What the file itself says of a metric (`acc`, `acc_norm`, `acc_bytes`), or None if it says nothing: float64
    /// `[num_questions]`.
    ///
    /// Raises:
    ///     ValueError: If the metric is another.
    fn recorded(&self, py: Python<'_>, metric: &str) -> PyResult<Option<Array1<f64>>> {
        let values = &self.inner.recorded[position(metric)?];
        Ok((!values.is_empty()).then(|| read_only(py, values.clone())))
    }

    /// lm-eval's hash of each question's document; empty in files of lm-eval before 0.4.3.
    #[getter]
    fn doc_hashes(&self) -> Vec<String> {
        self.hashes(0)
    }

    /// lm-eval's hash of each prompt, few-shot examples included; empty in files of lm-eval before 0.4.3.
    #[getter]
    fn prompt_hashes(&self) -> Vec<String> {
        self.hashes(1)
    }

    /// lm-eval's hash of each answer; empty in files of lm-eval before 0.4.3.
    #[getter]
    fn target_hashes(&self) -> Vec<String> {
        self.hashes(2)
    }

    fn __repr__(&self) -> String {
        format!("Samples({} questions, file={:?})", self.inner.len(), self.inner.file)
    }
}

impl Samples {
    fn new(py: Python<'_>, inner: core::Samples) -> Self {
        let gold = inner.gold.iter().map(|gold| gold.map_or(-1, |choice| choice as i64)).collect();
        Self {
            doc_ids: read_only(py, inner.doc_ids.iter().map(|&id| id as i64).collect()),
            choice_offsets: read_only(py, inner.choice_offsets.iter().map(|&offset| offset as i64).collect()),
            loglikelihood: read_only(py, inner.loglikelihood.clone()),
            is_greedy: read_only(py, inner.is_greedy.clone()),
            gold: read_only(py, gold),
            margin: read_only(py, inner.margin.clone()),
            inner,
        }
    }

    fn hashes(&self, which: usize) -> Vec<String> {
        self.inner.hashes.iter().map(|hashes| hashes[which].clone()).collect()
    }
}

fn position(metric: &str) -> PyResult<usize> {
    core::METRICS.iter().position(|&known| known == metric).ok_or_else(|| {
        PyValueError::new_err(format!("{metric:?} does not follow from samples; {} do", core::METRICS.join(", ")))
    })
}

/// Reads the samples file of a multiple-choice task, written by this package or by lm-eval (0.4.0 and later). Prompts are not kept.
///
/// Args:
///     path: The file, `samples_{task}_{time}.jsonl`.
///     delimiter: Text between a prompt and its answer (lm-eval's `target_delimiter`), which does not count for `acc_norm`. None takes
///         a space if every continuation begins with one, else nothing.
///
/// Raises:
///     OSError: If the file cannot be read; names it.
///     DatasetError: For what is not a scored multiple-choice question, or one that occurs twice; names file, row and field.
#[pyfunction]
#[pyo3(signature = (path, *, delimiter = None))]
pub(crate) fn read_samples(py: Python<'_>, path: PathBuf, delimiter: Option<String>) -> PyResult<Samples> {
    let inner = detach::run(py, move |cancel| core::read_samples(&path, delimiter.as_deref(), cancel))?;
    Ok(Samples::new(py, inner))
}
