//! Norms on the processor.

use pyo3::prelude::*;
use wmdp_core::kernels::norm;

use crate::array::{Readonly1, Readonly2, Writable2};
use crate::detach;
use crate::openmp::OpenMp;

/// Root-mean-square norms of rows: `x / sqrt(mean(x^2) + epsilon) * weight`.
///
/// Args:
///     rows: float32 [N, d].
///     weight: float32 [d].
///     out: float32 [N, d], written.
///     epsilon: Added to the mean of the squares.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Shapes do not fit together.
#[pyfunction]
#[pyo3(signature = (rows, weight, out, *, epsilon, threads = 1))]
pub(crate) fn rms_norm(
    py: Python<'_>,
    rows: Readonly2<'_, f32>,
    weight: Readonly1<'_, f32>,
    mut out: Writable2<'_, f32>,
    epsilon: f32,
    threads: usize,
) -> PyResult<()> {
    let (rows, weight) = (rows.view(), weight.view());
    let out = out.slice()?;
    detach::briefly(py, || norm::rms_norm(&rows, &weight, epsilon, out, &OpenMp { threads }))
}
