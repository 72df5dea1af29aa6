//! The one door between Python and the core: releases the GIL, listens for Ctrl-C, maps errors, catches panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use wmdp_core::parallel::Cancel;
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
                    .unwrap_or_else(|payload| Err(Error::Internal(panic_message(payload.as_ref()))));
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

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}
