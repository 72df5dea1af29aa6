//! Rotary position embedding on the processor.

use pyo3::prelude::*;
use wmdp_core::rotary;

use crate::array::{Readonly2, Readonly3, Writable3};
use crate::detach;
use crate::openmp::OpenMp;

/// Rotary position embedding: turns each pair of numbers that lie half a row apart by its token's angle.
///
/// Args:
///     rows: Queries or keys, float32 [heads, T, size].
///     cosines: float32 [T, size].
///     sines: float32 [T, size].
///     out: float32 [T, heads, size], written.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Shapes do not fit together.
#[pyfunction]
#[pyo3(signature = (rows, cosines, sines, out, *, threads = 1))]
pub(crate) fn rotate(
    py: Python<'_>,
    rows: Readonly3<'_, f32>,
    cosines: Readonly2<'_, f32>,
    sines: Readonly2<'_, f32>,
    mut out: Writable3<'_, f32>,
    threads: usize,
) -> PyResult<()> {
    let (rows, cosines, sines) = (rows.view(), cosines.view(), sines.view());
    let out = out.slice()?;
    detach::briefly(py, || rotary::rotate(&rows, &cosines, &sines, out, &OpenMp { threads }))
}
