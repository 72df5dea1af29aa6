//! Norms on the processor.

use numpy::Element;
use pyo3::prelude::*;
use wmdp_core::format::{Bfloat16, Float32, Format};
use wmdp_core::norm;

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
    run::<Float32>(py, &rows, &weight, &mut out, epsilon, false, threads)
}

/// The same of bfloat16, in float32 and rounded where it is written.
///
/// Args:
///     rows: bfloat16 [N, d], as uint16.
///     weight: float32 [d].
///     out: bfloat16 [N, d], as uint16, written.
///     epsilon: Added to the mean of the squares.
///     round_twice: Whether to round before the weight is multiplied by, too.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Shapes do not fit together.
#[pyfunction]
#[pyo3(signature = (rows, weight, out, *, epsilon, round_twice, threads = 1))]
pub(crate) fn rms_norm_bfloat16(
    py: Python<'_>,
    rows: Readonly2<'_, u16>,
    weight: Readonly1<'_, f32>,
    mut out: Writable2<'_, u16>,
    epsilon: f32,
    round_twice: bool,
    threads: usize,
) -> PyResult<()> {
    run::<Bfloat16>(py, &rows, &weight, &mut out, epsilon, round_twice, threads)
}

fn run<F: Format<Stored: Element>>(
    py: Python<'_>,
    rows: &Readonly2<'_, F::Stored>,
    weight: &Readonly1<'_, f32>,
    out: &mut Writable2<'_, F::Stored>,
    epsilon: f32,
    round_twice: bool,
    threads: usize,
) -> PyResult<()> {
    let (rows, weight, out) = (rows.view(), weight.view(), out.slice()?);
    detach::briefly(py, || norm::rms_norm::<F>(&rows, &weight, epsilon, round_twice, out, &OpenMp { threads }))
}
