//! The one door between Python and the core: releases the GIL, listens for Ctrl-C, maps errors, catches panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use wmdp_core::ahead::{Ahead, Waited};
use wmdp_core::parallel::{Cancel, error_of_panic};
use wmdp_core::{Error, Result};

use crate::error::to_py;

/// How often a long call asks Python whether Ctrl-C was pressed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs `work` without the GIL on a thread of its own while this one listens for signals.
///
/// # Errors
/// The core's error as its Python exception, `KeyboardInterrupt` after Ctrl-C (once the work has stopped), `InternalError` if the
/// work panicked.
#[allow(clippy::redundant_closure_for_method_calls)] // `Python::check_signals` by itself fits one lifetime only.
pub(crate) fn run<T: Send>(py: Python<'_>, work: impl FnOnce(&Cancel) -> Result<T> + Send) -> PyResult<T> {
    let cancel = Cancel::default();
    py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = channel();
            let cancel = &cancel;
            scope.spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| work(cancel)))
                    .unwrap_or_else(|payload| Err(error_of_panic(payload.as_ref())));
                // The receiver outlives this thread: it waits below until the message is there.
                let _ = sender.send(outcome);
            });
            let mut interrupt = None;
            loop {
                match receiver.recv_timeout(SIGNAL_INTERVAL) {
                    Ok(outcome) => return interrupt.map_or_else(|| outcome.map_err(to_py), Err),
                    Err(RecvTimeoutError::Timeout) => {
                        if interrupt.is_none()
                            && let Err(signal) = Python::attach(|py| py.check_signals())
                        {
                            cancel.set();
                            interrupt = Some(signal);
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(to_py(Error::Internal("a worker thread ended without a result".to_owned())));
                    }
                }
            }
        })
    })
}

/// Runs work of some milliseconds without the GIL, on this thread.
///
/// # Errors
/// The core's error as its Python exception, `InternalError` if the work panicked.
pub(crate) fn briefly<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| {
        catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|payload| Err(error_of_panic(payload.as_ref())))
            .map_err(to_py)
    })
}

/// The next result of work that is done ahead, without the GIL while there is none yet.
///
/// # Errors
/// As [`run`].
#[allow(clippy::redundant_closure_for_method_calls)] // As above.
pub(crate) fn next<T: Send + 'static>(py: Python<'_>, ahead: &Mutex<Ahead<T>>) -> PyResult<Option<T>> {
    loop {
        let waited =
            py.detach(|| ahead.lock().unwrap_or_else(PoisonError::into_inner).next(SIGNAL_INTERVAL).map_err(to_py))?;
        match waited {
            Waited::Result(result) => return Ok(result),
            Waited::NotYet => py.check_signals()?,
        }
    }
}
