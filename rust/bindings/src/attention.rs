//! Attention of a packed batch on the processor.

use pyo3::prelude::*;
use wmdp_core::Error;
use wmdp_core::kernels::attention::{Attention, ForwardState, Gradients, Segment};

use crate::array::{Readonly2, Readonly3, Writable2, Writable3};
use crate::detach;
use crate::error::to_py;
use crate::openmp::OpenMp;

/// Attention of a packed batch's tokens to their ancestors and themselves, on the processor.
///
/// Args:
///     query: float32 [heads, T, size].
///     keys: Keys, float32 [key heads, N, size], and values, float32 [key heads, N, value size], of a run of tokens after
///         the other; the last run is the batch's own T tokens.
///     segments: int64 [S, 4], as `TrieBatch.segments`; together they are all keys.
///     out: float32 [T, heads, value size], written.
///     log_sum_exp: float32 [T, heads], written: the log-sum-exps of the scores.
///     scale: Factor of the scores.
///     window: A token sees only keys less than so many positions before it.
///     softcap: Scores s become `softcap * tanh(s / softcap)`.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Shapes do not fit together.
#[pyfunction]
#[pyo3(signature = (query, keys, segments, out, log_sum_exp, *, scale, window = None, softcap = None, threads = 1))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn packed_attention(
    py: Python<'_>,
    query: Readonly3<'_, f32>,
    keys: Vec<(Readonly3<'_, f32>, Readonly3<'_, f32>)>,
    segments: Readonly2<'_, i64>,
    mut out: Writable3<'_, f32>,
    mut log_sum_exp: Writable2<'_, f32>,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
    threads: usize,
) -> PyResult<()> {
    let segments = segments_of(&segments).map_err(to_py)?;
    let query = query.view();
    let keys: Vec<_> = keys.iter().map(|(key, value)| (key.view(), value.view())).collect();
    let call = Attention { query, keys, segments: &segments, scale, window, softcap };
    let (out, log_sum_exp) = (out.slice()?, log_sum_exp.slice()?);
    detach::briefly(py, || call.run(out, log_sum_exp, &OpenMp { threads }))
}

/// The gradient of `packed_attention`, for batches to which nothing was carried over.
///
/// Args:
///     query: As it was given: float32 [heads, T, size].
///     key: float32 [key heads, T, size].
///     value: float32 [key heads, T, value size].
///     segments: int64 [S, 4].
///     out: What `packed_attention` wrote: float32 [T, heads, value size].
///     log_sum_exp: Likewise: float32 [T, heads].
///     out_gradient: float32 [T, heads, value size].
///     log_sum_exp_gradient: float32 [T, heads].
///     query_gradient: float32 [key heads, T, heads / key heads * size], written.
///     key_gradient: float32 [key heads, T, size], written.
///     value_gradient: float32 [key heads, T, value size], written.
///     scale: As it was given.
///     window: As it was given.
///     softcap: As it was given.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Shapes do not fit together.
#[pyfunction]
#[pyo3(signature = (
    query, key, value, segments, out, log_sum_exp, out_gradient, log_sum_exp_gradient, query_gradient, key_gradient,
    value_gradient, *, scale, window = None, softcap = None, threads = 1,
))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn packed_attention_gradient(
    py: Python<'_>,
    query: Readonly3<'_, f32>,
    key: Readonly3<'_, f32>,
    value: Readonly3<'_, f32>,
    segments: Readonly2<'_, i64>,
    out: Readonly3<'_, f32>,
    log_sum_exp: Readonly2<'_, f32>,
    out_gradient: Readonly3<'_, f32>,
    log_sum_exp_gradient: Readonly2<'_, f32>,
    mut query_gradient: Writable3<'_, f32>,
    mut key_gradient: Writable3<'_, f32>,
    mut value_gradient: Writable3<'_, f32>,
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
    threads: usize,
) -> PyResult<()> {
    let segments = segments_of(&segments).map_err(to_py)?;
    let keys = vec![(key.view(), value.view())];
    let call = Attention { query: query.view(), keys, segments: &segments, scale, window, softcap };
    let forward = ForwardState {
        out: out.view(),
        log_sum_exp: log_sum_exp.view(),
        out_gradient: out_gradient.view(),
        log_sum_exp_gradient: log_sum_exp_gradient.view(),
    };
    let (query, key, value) = (query_gradient.slice()?, key_gradient.slice()?, value_gradient.slice()?);
    detach::briefly(py, || call.differentiate(&forward, Gradients { query, key, value }, &OpenMp { threads }))
}

fn segments_of(segments: &Readonly2<'_, i64>) -> wmdp_core::Result<Vec<Segment>> {
    let wrong = || Error::InvalidArgument("segments must be four numbers each, none of them negative".to_owned());
    let number = |number: i64| usize::try_from(number).map_err(|_| wrong());
    segments
        .view()
        .rows()
        .into_iter()
        .map(|row| {
            let [start, end, subtree_end, position]: [i64; 4] = row.to_vec().try_into().map_err(|_| wrong())?;
            Ok(Segment {
                start: number(start)?,
                end: number(end)?,
                subtree_end: number(subtree_end)?,
                position: number(position)?,
            })
        })
        .collect()
}
