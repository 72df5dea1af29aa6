//! Attention of a packed batch on the processor.

use pyo3::prelude::*;
use wmdp_core::Error;
use wmdp_core::attention::{Attention, Segment};

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
