//! Gated feed-forward blocks on the processor.

use pyo3::prelude::*;
use wmdp_core::kernels::gate::{self, Activation};

use crate::array::{Readonly1, Writable1};
use crate::detach;
use crate::error::to_py;
use crate::openmp::OpenMp;

/// What is between the products of a gated feed-forward block: `opened * sigmoid(scale * (opened + cubic * opened^3)) * inner`.
///
/// Args:
///     opened: The gate's product, float32 [N]; overwritten with the result.
///     inner: What the gate lets through, float32 [N], contiguous.
///     scale: 1 for `SiLU`, 2 sqrt(2 / pi) for GELU by the hyperbolic tangent.
///     cubic: 0 for `SiLU`, 0.044715 for that GELU.
///     threads: Threads to use.
///
/// Raises:
///     ValueError: Lengths differ, an array is not contiguous, or scale or cubic is out of range.
#[pyfunction]
#[pyo3(signature = (opened, inner, *, scale, cubic, threads = 1))]
pub(crate) fn gate_in_place(
    py: Python<'_>,
    mut opened: Writable1<'_, f32>,
    inner: Readonly1<'_, f32>,
    scale: f32,
    cubic: f32,
    threads: usize,
) -> PyResult<()> {
    let opened = opened.slice()?;
    let inner = inner.view();
    let strewn = || to_py(wmdp_core::Error::InvalidArgument("what a gate lets through must be contiguous".to_owned()));
    let inner = inner.to_slice().ok_or_else(strewn)?;
    detach::briefly(py, || gate::gate(opened, inner, Activation { scale, cubic }, &OpenMp { threads }))
}
