//! Requests and the padded batches cut from them.

use std::sync::Arc;

use numpy::{IntoPyArray, ndarray};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use wmdp_core::tokens::padded::{self, PaddedPlan};
use wmdp_core::tokens::request;

use crate::array::{Array1, Array2};
use crate::detach;

/// The tokenized prompts of a run: the questions of all its tasks, one task after another.
///
/// Choices are numbered over the whole run; those of question `q` are `choice_offsets[q]` up to `choice_offsets[q + 1]`.
/// Immutable; can be pickled and shared between threads.
///
/// Example:
///     >>> from wmdp_fast import Requests
///     >>> requests = Requests.from_tokens([[1, 2, 3]], [[[7], [8, 9]]], max_length=2048)
///     >>> requests.num_choices, requests.context(0).tolist(), requests.continuation(1).tolist()
///     (2, [1, 2, 3], [8, 9])
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Requests {
    pub(crate) inner: Arc<request::Requests>,
    pub(crate) plan: PaddedPlan,
}

#[pymethods]
impl Requests {
    /// Requests that another program has tokenized.
    ///
    /// Args:
    ///     contexts: Token ids of each question's context.
    ///     continuations: For each question, the token ids of each choice's continuation.
    ///     max_length: Maximum sequence length of the model; longer requests lose tokens on the left.
    ///
    /// Raises:
    ///     ValueError: If a context or continuation is empty, or a continuation longer than `max_length`.
    #[staticmethod]
    fn from_tokens(
        py: Python<'_>,
        contexts: Vec<Vec<u32>>,
        continuations: Vec<Vec<Vec<u32>>>,
        max_length: usize,
    ) -> PyResult<Self> {
        detach::run(py, move |cancel| {
            let inner = Arc::new(request::Requests::from_tokens(&contexts, &continuations, max_length)?);
            let plan = PaddedPlan::new(&inner, cancel)?;
            Ok(Self { inner, plan })
        })
    }

    /// Some of the questions as a run of their own, with all their choices.
    ///
    /// Args:
    ///     questions: Which; they are numbered from 0 in this order.
    ///
    /// Raises:
    ///     ValueError: If there is no such question.
    fn part(&self, py: Python<'_>, questions: Vec<usize>) -> PyResult<Self> {
        let whole = Arc::clone(&self.inner);
        detach::run(py, move |cancel| {
            let inner = Arc::new(whole.part(&questions)?);
            let plan = PaddedPlan::new(&inner, cancel)?;
            Ok(Self { inner, plan })
        })
    }

    /// Number of questions.
    #[getter]
    fn num_questions(&self) -> usize {
        self.inner.num_questions()
    }

    /// Number of choices of all questions together.
    #[getter]
    fn num_choices(&self) -> usize {
        self.inner.num_choices()
    }

    /// Number of distinct model inputs: contexts with all but the last token of a continuation.
    #[getter]
    fn num_rows(&self) -> usize {
        self.plan.num_rows()
    }

    /// Tokens of all distinct model inputs, after truncation and without padding.
    #[getter]
    fn num_tokens(&self) -> usize {
        self.plan.num_tokens()
    }

    /// Maximum sequence length of the model.
    #[getter]
    fn max_length(&self) -> usize {
        self.inner.max_length()
    }

    /// How much of the prompts the model cannot read, since they are longer than `max_length`; they lose it on the left.
    ///
    /// Returns:
    ///     Four numbers: questions that lose tokens, choices that do, the most tokens that one loses, and the question that loses those
    ///     (-1 if there is none).
    fn truncation(&self, py: Python<'_>) -> PyResult<(usize, usize, usize, isize)> {
        let inner = Arc::clone(&self.inner);
        let cut = detach::run(py, move |_| Ok(inner.truncation()))?;
        Ok((cut.questions, cut.choices, cut.most, cut.worst.map_or(-1, |question| question as isize)))
    }

    /// Choices whose first characters became one token with the end of their context. What is scored of them is the rest, as in lm-eval.
    #[getter]
    fn joined_choices(&self) -> usize {
        self.inner.joined()
    }

    /// File and row of the first question with such a choice, or None.
    #[getter]
    fn first_joined(&self) -> Option<&str> {
        self.inner.first_joined()
    }

    /// For each question its first choice, then the number of choices: int64 `[num_questions + 1]`.
    #[getter]
    fn choice_offsets(&self, py: Python<'_>) -> Array1<i64> {
        self.inner.choice_offsets().iter().map(|&offset| offset as i64).collect::<Vec<_>>().into_pyarray(py).into()
    }

    /// For each choice where its tokens begin among the continuation tokens of the run, then their number: int64 `[num_choices + 1]`.
    #[getter]
    fn continuation_offsets(&self, py: Python<'_>) -> Array1<i64> {
        self.inner
            .continuation_offsets()
            .iter()
            .map(|&offset| offset as i64)
            .collect::<Vec<_>>()
            .into_pyarray(py)
            .into()
    }

    /// SHA-256 of what is asked, as 64 hexadecimal digits: the same for the same tokens, however they were made.
    ///
    /// Hashed are the bytes `wmdp-fast requests 1\n` and `max_length`, then for each question the context's tokens, the number of
    /// choices, and each continuation's tokens. Tokens are their number, then 32 bits each; all other numbers are 64 bits,
    /// little-endian.
    #[getter]
    fn content_hash(&self, py: Python<'_>) -> PyResult<String> {
        let inner = Arc::clone(&self.inner);
        detach::run(py, move |cancel| inner.content_hash_until(cancel))
    }

    /// The crate that made the tokens: `"fastokens"` or `"tokenizers"`; None if they were given.
    #[getter]
    fn engine(&self) -> Option<&'static str> {
        self.inner.encoding().map(|encoding| encoding.engine.name())
    }

    /// Why it was not fastokens, or None if it was.
    #[getter]
    fn why_not_fast(&self) -> Option<&str> {
        self.inner.encoding()?.why_not_fast.as_deref()
    }

    /// Why contexts were tokenized whole, or None if their common beginnings were shared.
    #[getter]
    fn why_no_cuts(&self) -> Option<&str> {
        self.inner.encoding()?.why_no_cuts.as_deref()
    }

    /// The first question with a token id that is not below `num_tokens`, and that token; None if there is none.
    fn token_beyond(&self, py: Python<'_>, num_tokens: u32) -> PyResult<Option<(usize, u32)>> {
        let inner = Arc::clone(&self.inner);
        detach::run(py, move |_| Ok(inner.token_beyond(num_tokens)))
    }

    /// Token ids of a question's context, before truncation: int64 `[length]`.
    fn context(&self, py: Python<'_>, question: usize) -> PyResult<Array1<i64>> {
        if question >= self.inner.num_questions() {
            return Err(PyIndexError::new_err(format!("there is no question {question}")));
        }
        let (prefix, own) = self.inner.context(question);
        Ok(ids(&[prefix, own].concat()).into_pyarray(py).into())
    }

    /// Token ids of a choice's continuation: int64 `[length]`. `choice` counts over the whole run.
    fn continuation(&self, py: Python<'_>, choice: usize) -> PyResult<Array1<i64>> {
        if choice >= self.inner.num_choices() {
            return Err(PyIndexError::new_err(format!("there is no choice {choice}")));
        }
        Ok(ids(self.inner.continuation(choice)).into_pyarray(py).into())
    }

    /// The batch that begins at row `start`, or None past the last row.
    ///
    /// Rows are sorted by length, the longest first, so that the first batch is the one that needs the most memory.
    ///
    /// Args:
    ///     start: Where to begin; 0, then the `stop` of the batch before.
    ///     token_budget: Maximum tokens in the batch, padding included; one row is taken even if it is longer.
    ///     cuts: Lengths at which batches are cut: none holds rows shorter than one of these beside rows at least as long.
    ///
    /// Raises:
    ///     ValueError: If `token_budget` is 0.
    #[pyo3(signature = (start, token_budget, cuts=Vec::new()))]
    fn padded_batch(
        &self,
        py: Python<'_>,
        start: usize,
        token_budget: usize,
        cuts: Vec<usize>,
    ) -> PyResult<Option<PaddedBatch>> {
        if token_budget == 0 {
            return Err(PyValueError::new_err("token_budget must be at least 1"));
        }
        let batch = py.detach(|| self.plan.batch(&self.inner, start, token_budget, &cuts));
        batch.map(|batch| PaddedBatch::new(py, batch)).transpose()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let inner = Arc::clone(&self.inner);
        let state = detach::run(py, move |_| inner.to_bytes())?;
        let restore = py.import("wmdp_fast._rust")?.getattr("_restore_requests")?;
        Ok((restore, (PyBytes::new(py, &state),)))
    }
}

/// What pickle calls to make `Requests` again.
#[pyfunction]
pub(crate) fn _restore_requests(py: Python<'_>, state: Vec<u8>) -> PyResult<Requests> {
    detach::run(py, move |cancel| {
        let inner = Arc::new(request::Requests::from_bytes(&state)?);
        let plan = PaddedPlan::new(&inner, cancel)?;
        Ok(Requests { inner, plan })
    })
}

fn ids(tokens: &[u32]) -> Vec<i64> {
    tokens.iter().map(|&token| i64::from(token)).collect()
}

/// A rectangle of token ids and what to read from the model's answer. All arrays are int64 and writable.
///
/// Attributes:
///     input_ids: `[B, T]`, filled up on the right with 0.
///     lengths: `[B]`, tokens in each row.
///     readouts: `[R, 2]`, pairs (row, position) whose next-token distribution is wanted, in order.
///     target_readouts: `[N]`, for each target its readout.
///     target_tokens: `[N]`, the token whose probability is wanted.
///     target_choices: `[N]`, the choice (over the whole run) it belongs to; the tokens of a choice are in order.
///     stop: The row of the run after the batch's last.
///
/// Example:
///     >>> from wmdp_fast import Requests, plan
///     >>> requests = Requests.from_tokens([[1, 2, 3], [1, 4]], [[[7], [8]], [[7], [8]]], max_length=2048)
///     >>> [batch] = plan(requests)
///     >>> batch.input_ids.tolist()
///     [[1, 2, 3], [1, 4, 0]]
///     >>> batch.readouts.tolist(), batch.target_tokens.tolist()
///     ([[0, 2], [1, 1]], [7, 8, 7, 8])
#[pyclass(frozen, get_all, module = "wmdp_fast._rust")]
pub(crate) struct PaddedBatch {
    input_ids: Array2<i64>,
    lengths: Array1<i64>,
    readouts: Array2<i64>,
    target_readouts: Array1<i64>,
    target_tokens: Array1<i64>,
    target_choices: Array1<i64>,
    stop: usize,
}

impl PaddedBatch {
    fn new(py: Python<'_>, batch: padded::PaddedBatch) -> PyResult<Self> {
        let width = batch.input_ids.len() / batch.lengths.len().max(1);
        Ok(Self {
            input_ids: matrix(py, batch.input_ids, width)?,
            lengths: batch.lengths.into_pyarray(py).into(),
            readouts: matrix(py, batch.readouts, 2)?,
            target_readouts: batch.target_readouts.into_pyarray(py).into(),
            target_tokens: batch.target_tokens.into_pyarray(py).into(),
            target_choices: batch.target_choices.into_pyarray(py).into(),
            stop: batch.stop,
        })
    }
}

pub(crate) fn matrix(py: Python<'_>, values: Vec<i64>, width: usize) -> PyResult<Array2<i64>> {
    let rows = values.len() / width.max(1);
    ndarray::Array2::from_shape_vec((rows, width), values)
        .map(|array| array.into_pyarray(py).into())
        .map_err(|error| PyValueError::new_err(error.to_string()))
}
