//! Question sets, and what Python's dicts have to do with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use wmdp_core::scores::orders::Orders;
use wmdp_core::{dataset, text::question};

use crate::detach;
use crate::error::to_py;
use crate::hints::{JsonObject, Questions, Rows};
use crate::json::{rows_from_python, to_python};

/// The questions of one file, in file order.
///
/// A sequence of `Question`; immutable, can be pickled and shared between threads.
///
/// Example:
///     >>> from wmdp_fast import QuestionSet
///     >>> questions = QuestionSet.from_rows([
///     ...     {"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0},
///     ...     {"question": "Which bird crows?", "choices": ["jay", "cock"], "answer": 1},
///     ... ])
///     >>> len(questions), questions[1].choices
///     (2, ['jay', 'cock'])
///     >>> questions.head(1) == questions.select([0])
///     True
#[pyclass(frozen, eq, sequence, module = "wmdp_fast._rust")]
#[derive(PartialEq)]
pub(crate) struct QuestionSet {
    pub(crate) inner: Arc<question::QuestionSet>,
}

impl From<question::QuestionSet> for QuestionSet {
    fn from(inner: question::QuestionSet) -> Self {
        Self { inner: Arc::new(inner) }
    }
}

#[pymethods]
impl QuestionSet {
    /// Questions from rows in memory, checked as those of a JSON file are.
    ///
    /// Args:
    ///     rows: Dicts with the keys `question`, `choices` and `answer`; `subject` and any others are optional.
    ///     file: What error messages call the rows.
    ///
    /// Raises:
    ///     DatasetError: If a row is not a question; names row and field.
    #[staticmethod]
    #[pyo3(signature = (rows, file = "<memory>"))]
    fn from_rows(py: Python<'_>, rows: Rows<'_, '_>, file: &str) -> PyResult<Self> {
        let rows = rows_from_python(&rows.0, file)?;
        let file = file.to_owned();
        detach::run(py, move |cancel| dataset::from_rows(rows, &file, cancel)).map(Self::from)
    }

    /// The questions of several sets one after another: the shards of one split, for instance.
    ///
    /// Args:
    ///     sets: At least one set. The result's `file` is the first one's, its `columns` are those of all.
    ///
    /// Raises:
    ///     ValueError: If there is no set.
    #[staticmethod]
    fn concat(py: Python<'_>, sets: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let sets: Vec<Arc<question::QuestionSet>> = sets.iter().map(|set| Arc::clone(&set.inner)).collect();
        let concat = move |_: &_| question::QuestionSet::concat(&sets.iter().map(Arc::as_ref).collect::<Vec<_>>());
        detach::run(py, concat).map(Self::from)
    }

    /// Path of the file as it was given.
    #[getter]
    fn file(&self) -> &str {
        &self.inner.file
    }

    /// Column names in file order; a CSV file's choice columns count as one column `choices`.
    #[getter]
    fn columns(&self) -> Vec<&str> {
        self.inner.columns.iter().map(String::as_str).collect()
    }

    /// Columns with values that JSON has no form for, each with what those are: binary data, `NaN`, dates. They are None in
    /// `Question.extra` (dates, times and decimals are Python's text for them), and a template that names such a column is refused.
    #[getter]
    fn foreign_columns(&self) -> BTreeMap<String, String> {
        self.inner.foreign.clone()
    }

    /// SHA-256 of questions, choices and answers as 64 hexadecimal digits: the same for the same questions in any file format.
    ///
    /// Hashed are the bytes `wmdp-fast questions 1\n`, then for each question: the question, the number of choices, each
    /// choice, the answer's index. A text is its length in bytes, then its bytes in UTF-8; numbers are 64 bits, little-endian.
    #[getter]
    fn content_hash(&self, py: Python<'_>) -> PyResult<String> {
        let inner = Arc::clone(&self.inner);
        detach::run(py, move |cancel| inner.content_hash_until(cancel))
    }

    /// The distinct subjects, sorted.
    #[getter]
    fn subjects(&self) -> Vec<&str> {
        self.inner.subjects()
    }

    /// The questions at these places, in this order.
    ///
    /// Args:
    ///     indices: Places from 0; one may occur several times.
    ///
    /// Raises:
    ///     ValueError: If there is no such question.
    fn select(&self, py: Python<'_>, indices: Vec<usize>) -> PyResult<Self> {
        let inner = Arc::clone(&self.inner);
        detach::run(py, move |_| inner.select(&indices)).map(Self::from)
    }

    /// Places of the questions that are among others too: the same but for white space around question and choices, with the choices
    /// in any order.
    fn shared_with(&self, py: Python<'_>, others: PyRef<'_, Self>) -> PyResult<Vec<usize>> {
        let (inner, others) = (Arc::clone(&self.inner), Arc::clone(&others.inner));
        detach::run(py, move |cancel| inner.shared_with(&others, cancel))
    }

    /// The first `n` questions, or all if there are fewer.
    fn head(&self, py: Python<'_>, n: usize) -> PyResult<Self> {
        let inner = Arc::clone(&self.inner);
        detach::run(py, move |_| Ok(inner.head(n))).map(Self::from)
    }

    /// Each question in every order of its choices but the original one, question after question.
    ///
    /// Args:
    ///     orders: `"cyclic"` puts each choice once in each place, in n - 1 other orders of n choices; `"all"` is for at most 4
    ///         choices and gives all n! - 1 other orders.
    ///
    /// Raises:
    ///     ValueError: If a question has too many choices for all their orders; names file and row.
    fn permuted(&self, py: Python<'_>, orders: &str) -> PyResult<Self> {
        let orders = Orders::parse(orders).map_err(to_py)?;
        let inner = Arc::clone(&self.inner);
        detach::run(py, move |cancel| inner.permuted(orders, cancel)).map(Self::from)
    }

    fn __len__(&self) -> usize {
        self.inner.questions.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<Question> {
        let count = self.inner.questions.len();
        let place = if index < 0 { index.checked_add_unsigned(count) } else { Some(index) };
        match place.and_then(|place| usize::try_from(place).ok()) {
            Some(index) if index < count => Ok(Question { set: Arc::clone(&self.inner), index }),
            _ => Err(PyIndexError::new_err(format!("there is no question {index}, only {count}"))),
        }
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Questions<'py>> {
        let questions = (0..self.inner.questions.len()).map(|index| Question { set: Arc::clone(&self.inner), index });
        PyList::new(py, questions.collect::<Vec<_>>())?.try_iter().map(Questions)
    }

    fn __repr__(&self) -> String {
        format!("QuestionSet({:?}, {} questions)", self.inner.file, self.inner.questions.len())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let inner = Arc::clone(&self.inner);
        let state = detach::run(py, move |_| inner.to_bytes())?;
        let restore = py.import("wmdp_fast._rust")?.getattr("_restore_questions")?;
        Ok((restore, (PyBytes::new(py, &state),)))
    }
}

/// What pickle calls to make a `QuestionSet` again.
#[pyfunction]
pub(crate) fn _restore_questions(py: Python<'_>, state: Vec<u8>) -> PyResult<QuestionSet> {
    detach::run(py, move |_| question::QuestionSet::from_bytes(&state)).map(QuestionSet::from)
}

/// One multiple-choice question. Immutable; questions are equal if all their columns are.
///
/// Example:
///     >>> from wmdp_fast import QuestionSet
///     >>> [question] = QuestionSet.from_rows(
///     ...     [{"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0, "level": "easy"}]
///     ... )
///     >>> question.choices[question.answer], question.extra
///     ('owl', {'level': 'easy'})
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Question {
    set: Arc<question::QuestionSet>,
    index: usize,
}

impl Question {
    fn inner(&self) -> &question::Question {
        &self.set.questions[self.index]
    }
}

#[pymethods]
impl Question {
    /// The question as it stands in the file, white space included.
    #[getter]
    fn question(&self) -> &str {
        &self.inner().question
    }

    /// The choices as they stand in the file; between 2 and 26.
    #[getter]
    fn choices(&self) -> Vec<&str> {
        self.inner().choices.iter().map(String::as_str).collect()
    }

    /// Index of the right choice, from 0.
    #[getter]
    fn answer(&self) -> usize {
        self.inner().answer
    }

    /// The MMLU subject, or None if the file does not say.
    #[getter]
    fn subject(&self) -> Option<&str> {
        self.inner().subject.as_deref()
    }

    /// The other columns by name.
    #[getter]
    fn extra<'py>(&self, py: Python<'py>) -> PyResult<JsonObject<'py>> {
        let extra = PyDict::new(py);
        for (name, value) in &self.inner().extra {
            extra.set_item(name, to_python(py, value)?)?;
        }
        Ok(JsonObject(extra))
    }

    fn __eq__(&self, other: PyRef<'_, Self>) -> bool {
        self.inner() == other.inner()
    }

    fn __repr__(&self) -> String {
        let question::Question { question, choices, answer, .. } = self.inner();
        format!("Question({question:?}, choices={choices:?}, answer={answer})")
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (QuestionSet, usize))> {
        let alone = self.set.select(&[self.index]).map_err(to_py)?;
        Ok((py.import("operator")?.getattr("getitem")?, (alone.into(), 0)))
    }
}
