//! Rotary position embedding on the processor.

use numpy::Element;
use pyo3::prelude::*;
use wmdp_core::kernels::dtype::{Bfloat16, Float32, Format};
use wmdp_core::kernels::rotary;

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
    run::<Float32>(py, &rows, &cosines, &sines, &mut out, threads)
}

/// The same of bfloat16, rounded after each operation.
///
/// Args:
///     rows: Queries or keys, bfloat16 [heads, T, size], as uint16.
///     cosines: bfloat16 [T, size], as uint16.
///     sines: bfloat16 [T, size], as uint16.
///     out: bfloat16 [T, heads, size], as uint16, written.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Shapes do not fit together.
#[pyfunction]
#[pyo3(signature = (rows, cosines, sines, out, *, threads = 1))]
pub(crate) fn rotate_bfloat16(
    py: Python<'_>,
    rows: Readonly3<'_, u16>,
    cosines: Readonly2<'_, u16>,
    sines: Readonly2<'_, u16>,
    mut out: Writable3<'_, u16>,
    threads: usize,
) -> PyResult<()> {
    run::<Bfloat16>(py, &rows, &cosines, &sines, &mut out, threads)
}

fn run<F: Format<Stored: Element>>(
    py: Python<'_>,
    rows: &Readonly3<'_, F::Stored>,
    cosines: &Readonly2<'_, F::Stored>,
    sines: &Readonly2<'_, F::Stored>,
    out: &mut Writable3<'_, F::Stored>,
    threads: usize,
) -> PyResult<()> {
    let (rows, cosines, sines, out) = (rows.view(), cosines.view(), sines.view(), out.slice()?);
    detach::briefly(py, || rotary::rotate::<F>(&rows, &cosines, &sines, out, &OpenMp { threads }))
}
