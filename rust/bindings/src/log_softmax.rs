//! Log-probabilities of a few tokens.

use numpy::IntoPyArray;
use pyo3::prelude::*;
use wmdp_core::Error;
use wmdp_core::log_softmax::{self, Target};

use crate::array::{Array1, Readonly1, Readonly2};
use crate::detach;
use crate::error::to_py;
use crate::openmp::OpenMp;

/// Log-probabilities of tokens in next-token distributions, without those of the whole vocabulary.
///
/// Args:
///     logits: float32 [R, V].
///     readouts: For each token, its row: int64 [N].
///     tokens: Token ids: int64 [N].
///     threads: Threads to use.
///
/// Returns:
///     Log-probability of each token, float32 [N], and whether no token is more probable and none before it as probable,
///     bool [N].
///
/// Raises:
///     ValueError: There is no such row or token.
#[pyfunction]
#[pyo3(signature = (logits, readouts, tokens, *, threads = 1))]
pub(crate) fn token_logprobs(
    py: Python<'_>,
    logits: Readonly2<'_, f32>,
    readouts: Readonly1<'_, i64>,
    tokens: Readonly1<'_, i64>,
    threads: usize,
) -> PyResult<(Array1<f32>, Array1<bool>)> {
    let (readouts, tokens) = (readouts.view(), tokens.view());
    if readouts.len() != tokens.len() {
        return Err(to_py(Error::InvalidArgument("there must be as many readouts as tokens".to_owned())));
    }
    let targets: Option<Vec<_>> = readouts
        .iter()
        .zip(tokens)
        .map(|(&row, &token)| Some(Target { row: usize::try_from(row).ok()?, token: usize::try_from(token).ok()? }))
        .collect();
    let targets =
        targets.ok_or_else(|| to_py(Error::InvalidArgument("readouts and tokens must not be negative".to_owned())))?;
    let logits = logits.view();
    let found = detach::briefly(py, || log_softmax::look_up(&logits, &targets, &OpenMp { threads }))?;
    let (logprobs, greedy): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Ok((logprobs.into_pyarray(py).into(), greedy.into_pyarray(py).into()))
}
