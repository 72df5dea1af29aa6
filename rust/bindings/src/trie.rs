//! The token trie of a run and the batches it is cut into.

use std::sync::{Arc, Mutex};

use numpy::IntoPyArray;
use pyo3::prelude::*;
use wmdp_core::runtime::ahead::Ahead;
use wmdp_core::tokens::pack::{self, Batches, Budget};
use wmdp_core::tokens::request;
use wmdp_core::tokens::trie;

use crate::array::{Array1, Array2, Readonly1};
use crate::detach;
use crate::error::to_py;
use crate::request::{Requests, matrix};

/// Batches planned while the one before them is run: the next one lies ready, and another is in the making.
const BATCHES_AHEAD: usize = 2;

/// The inputs of a run as a trie: their common beginnings held, and run, once.
///
/// A *path* is an input that is not the beginning of another one; paths are sorted by their tokens.
///
/// Args:
///     requests: What is to be scored.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Trie {
    inner: Arc<trie::Trie>,
    requests: Arc<request::Requests>,
}

#[pymethods]
impl Trie {
    #[new]
    fn new(py: Python<'_>, requests: &Requests) -> PyResult<Self> {
        let requests = Arc::clone(&requests.inner);
        let theirs = Arc::clone(&requests);
        let inner = detach::run(py, move |cancel| trie::Trie::new(&theirs, cancel))?;
        Ok(Self { inner: Arc::new(inner), requests })
    }

    /// Number of paths.
    #[getter]
    fn num_paths(&self) -> usize {
        self.inner.num_paths()
    }

    /// Tokens to run: no plan can run fewer.
    #[getter]
    fn num_tokens(&self) -> usize {
        self.inner.num_tokens()
    }

    /// The path to start at if some choices have their scores already: all that is unfinished is read on it or later.
    ///
    /// Args:
    ///     finished: Whether a choice is finished: bool `[num_choices]`.
    ///
    /// Raises:
    ///     ValueError: If `finished` has another length.
    fn first_unfinished(&self, py: Python<'_>, finished: Readonly1<'_, bool>) -> PyResult<usize> {
        let finished = finished.view().to_vec();
        let (trie, requests) = (Arc::clone(&self.inner), Arc::clone(&self.requests));
        detach::run(py, move |_| trie.first_unfinished(&requests, &finished))
    }

    /// The batches that run the paths from `start` on, in order. Each must be run after the one before it.
    ///
    /// They are planned on another thread, two ahead of the one that is taken.
    ///
    /// Args:
    ///     token_budget: Maximum tokens per batch.
    ///     readout_budget: Most readouts in a batch; each is a row as wide as the vocabulary.
    ///     start: 0, or the `stop` of a batch to go on after it.
    ///
    /// Raises:
    ///     ValueError: If a budget is 0 or there is no path `start`.
    #[pyo3(signature = (token_budget, readout_budget, start = 0))]
    fn batches(&self, token_budget: usize, readout_budget: usize, start: usize) -> PyResult<TrieBatches> {
        let budget = Budget { tokens: token_budget, readouts: readout_budget };
        let mut batches = Batches::new(&self.inner, budget, start).map_err(to_py)?;
        let (trie, requests) = (Arc::clone(&self.inner), Arc::clone(&self.requests));
        let ahead = Ahead::new(BATCHES_AHEAD, move || Ok(batches.next(&trie, &requests))).map_err(to_py)?;
        Ok(TrieBatches(Mutex::new(ahead)))
    }
}

/// Iterator of the batches of a trie.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct TrieBatches(Mutex<Ahead<pack::TrieBatch>>);

#[pymethods]
impl TrieBatches {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<TrieBatch>> {
        let batch = detach::next(py, &self.0)?;
        batch.map(|batch| TrieBatch::new(py, batch)).transpose()
    }
}

/// One row of tokens, the segments of a trie depth-first, and what to read from the model's answer.
///
/// All arrays are int64 and writable. Keys are numbered with the carried tokens first, then the batch's own.
///
/// Attributes:
///     input_ids: `[T]`, token ids.
///     position_ids: `[T]`, depth of each token in the trie.
///     num_carried: Tokens whose keys and values the batch before has left: the path above the first token.
///     segments: `[S, 4]`, for each segment, carried ones first: its first key, its last key + 1, its subtree's last key + 1, and
///         the depth of its first token. Token q sees token k if and only if `k <= q < subtree end of k's segment`.
///     keep: `[K, 2]`, runs of keys (first, last + 1) to leave to the next batch, the root first.
///     readouts: `[R]`, tokens of the batch whose next-token distribution is wanted, in order.
///     target_readouts: `[N]`, for each target its readout.
///     target_tokens: `[N]`, the token whose probability is wanted.
///     targets: `[N]`, the token's place among the continuation tokens of the run.
///     stop: Number of paths that are done after the batch.
#[pyclass(frozen, get_all, module = "wmdp_fast._rust")]
pub(crate) struct TrieBatch {
    input_ids: Array1<i64>,
    position_ids: Array1<i64>,
    num_carried: usize,
    segments: Array2<i64>,
    keep: Array2<i64>,
    readouts: Array1<i64>,
    target_readouts: Array1<i64>,
    target_tokens: Array1<i64>,
    targets: Array1<i64>,
    stop: usize,
}

impl TrieBatch {
    fn new(py: Python<'_>, batch: pack::TrieBatch) -> PyResult<Self> {
        Ok(Self {
            input_ids: batch.input_ids.into_pyarray(py).into(),
            position_ids: batch.position_ids.into_pyarray(py).into(),
            num_carried: batch.num_carried,
            segments: matrix(py, batch.segments, 4)?,
            keep: matrix(py, batch.keep, 2)?,
            readouts: batch.readouts.into_pyarray(py).into(),
            target_readouts: batch.target_readouts.into_pyarray(py).into(),
            target_tokens: batch.target_tokens.into_pyarray(py).into(),
            targets: batch.targets.into_pyarray(py).into(),
            stop: batch.stop,
        })
    }
}
