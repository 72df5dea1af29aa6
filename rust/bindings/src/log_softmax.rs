//! Log-probabilities of a few tokens.

use std::sync::{Mutex, PoisonError};

use numpy::IntoPyArray;
use pyo3::prelude::*;
use wmdp_core::Error;
use wmdp_core::kernels::log_softmax::{self, Target};

use crate::array::{Array1, Readonly1, Readonly2};
use crate::detach;
use crate::error::to_py;
use crate::openmp::OpenMp;

/// Looks up tokens in next-token distributions, without writing down those of the whole vocabulary.
///
/// Logits are given some columns at a time, in order.
///
/// Args:
///     readouts: For each token, its row: int64 [N].
///     tokens: Token ids: int64 [N].
///     rows: Number of rows, R.
///
/// Raises:
///     ValueError: There is no such row.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct TokenLogprobs(Mutex<log_softmax::LookUp>);

#[pymethods]
impl TokenLogprobs {
    #[new]
    fn new(readouts: Readonly1<'_, i64>, tokens: Readonly1<'_, i64>, rows: usize) -> PyResult<Self> {
        let (readouts, tokens) = (readouts.view(), tokens.view());
        if readouts.len() != tokens.len() {
            return Err(to_py(Error::InvalidArgument("there must be as many readouts as tokens".to_owned())));
        }
        let targets: Option<Vec<_>> = readouts
            .iter()
            .zip(tokens)
            .map(|(&row, &token)| Some(Target { row: usize::try_from(row).ok()?, token: usize::try_from(token).ok()? }))
            .collect();
        let negative = || to_py(Error::InvalidArgument("readouts and tokens must not be negative".to_owned()));
        let look_up = log_softmax::LookUp::new(targets.ok_or_else(negative)?, rows).map_err(to_py)?;
        Ok(Self(Mutex::new(look_up)))
    }

    /// The next columns.
    ///
    /// Args:
    ///     logits: float32 [R, columns].
    ///     threads: Threads to use.
    ///
    /// Raises:
    ///     ValueError: There is another number of rows.
    #[pyo3(signature = (logits, *, threads = 1))]
    fn add(&self, py: Python<'_>, logits: Readonly2<'_, f32>, threads: usize) -> PyResult<()> {
        let logits = logits.view();
        detach::briefly(py, || self.0.lock().unwrap_or_else(PoisonError::into_inner).add(&logits, &OpenMp { threads }))
    }

    /// What the columns up to now say.
    ///
    /// Returns:
    ///     Log-probability of each token, float32 [N], and whether its logit is the first of the largest in its row, bool [N].
    ///
    /// Raises:
    ///     ValueError: A token is not among the columns.
    fn found(&self, py: Python<'_>) -> PyResult<(Array1<f32>, Array1<bool>)> {
        let found = detach::briefly(py, || self.0.lock().unwrap_or_else(PoisonError::into_inner).found())?;
        let (logprobs, greedy): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        Ok((logprobs.into_pyarray(py).into(), greedy.into_pyarray(py).into()))
    }
}
