//! Files of weights read into the page cache on threads.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use wmdp_core::runtime::{memory, read_ahead};

use crate::detach;
use crate::error::to_py;

/// How long a wait goes on before it looks for Ctrl-C.
const INTERVAL: Duration = Duration::from_millis(50);

/// Safetensors files being read into the page cache by threads that need no interpreter.
///
/// A hint and never an error: whatever is wrong with a file is left to the code that loads it. Nothing is read where the files
/// would take more than five sixths of the available memory. Dropping the object stops the threads without waiting for them.
///
/// Args:
///     files: The files, first come first read.
///     last_layer: Of tensors with a number in their names, only those up to this one; None reads all.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct ReadAhead(read_ahead::ReadAhead);

#[pymethods]
impl ReadAhead {
    #[new]
    #[pyo3(signature = (files, *, last_layer=None))]
    fn new(files: Vec<PathBuf>, last_layer: Option<u64>) -> PyResult<Self> {
        read_ahead::ReadAhead::begin(files, last_layer).map(Self).map_err(to_py)
    }

    /// Bytes that are wanted; 0 until the files were opened.
    #[getter]
    fn bytes_total(&self) -> u64 {
        self.0.progress().total
    }

    /// Bytes read so far.
    #[getter]
    fn bytes_read(&self) -> u64 {
        self.0.progress().read
    }

    /// Bytes that the page cache held already.
    #[getter]
    fn bytes_cached(&self) -> u64 {
        self.0.progress().cached
    }

    /// Why nothing is read, or None.
    #[getter]
    fn why_skipped(&self) -> Option<String> {
        self.0.progress().skipped
    }

    /// Waits until nothing more will be read.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        detach::run_to_end(py, |cancel| {
            while !self.0.wait(INTERVAL) {
                cancel.check()?;
            }
            Ok(())
        })
    }

    /// Has the threads stop after what they are reading at the moment.
    fn stop(&self) {
        self.0.stop();
    }
}

/// Bytes that this process can take without swapping and without reaching the limit of a control group.
///
/// What the page cache holds counts as free, since it gives way.
///
/// Returns:
///     None where the system does not say.
#[pyfunction]
pub(crate) fn available_memory() -> Option<u64> {
    memory::available()
}
