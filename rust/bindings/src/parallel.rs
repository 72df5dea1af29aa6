//! How many threads the core works with.

use pyo3::prelude::*;

use crate::error::to_py;

/// Threads used for parallel work: `WMDP_FAST_NUM_THREADS`, else the number of cores, at most 8.
///
/// Raises:
///     ValueError: The variable is set to something else than a positive number.
#[pyfunction]
pub(crate) fn num_threads() -> PyResult<usize> {
    wmdp_core::runtime::parallel::num_threads().map_err(to_py)
}
