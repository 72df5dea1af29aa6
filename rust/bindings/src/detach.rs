//! The one door between Python and the core: releases the GIL, listens for Ctrl-C, maps errors, catches panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use wmdp_core::runtime::ahead::{Ahead, Waited};
use wmdp_core::runtime::parallel::{Cancel, error_of_panic};
use wmdp_core::{Error, Result};

use crate::error::to_py;

/// How often a long call asks Python whether Ctrl-C was pressed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// How long Ctrl-C waits for work to stop and to drop what it has made, before it is left to do so by itself.
const LAST_WAIT: Duration = Duration::from_millis(150);

/// Runs `work` without the GIL on a thread of its own while this one listens for signals.
///
/// After Ctrl-C the work is asked to stop. Between two places where it looks for that it may sort, copy or drop the millions of
/// questions of a run: then it is left behind, and ends at the next such place. So it must own all it works on, and leave nothing
/// outside its memory; what writes files is for [`run_to_end`].
///
/// # Errors
/// The core's error as its Python exception, `KeyboardInterrupt` after Ctrl-C, `InternalError` if the work panicked.
pub(crate) fn run<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let cancel = Cancel::default();
    py.detach(|| {
        let (sender, receiver) = channel();
        let theirs = cancel.clone();
        thread::Builder::new()
            // Nobody may be there any more to receive it.
            .spawn(move || drop(sender.send(outcome(work, &theirs))))
            .map_err(|error| to_py(Error::Internal(format!("a thread could not be started: {error}"))))?;
        wait(&receiver, &cancel, Some(LAST_WAIT))
    })
}

/// The same for work that borrows, or that has to tidy up: after Ctrl-C it is waited for.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_to_end<T: Send>(py: Python<'_>, work: impl FnOnce(&Cancel) -> Result<T> + Send) -> PyResult<T> {
    let cancel = Cancel::default();
    py.detach(|| {
        thread::scope(|scope| {
            let (sender, receiver) = channel();
            let cancel = &cancel;
            scope.spawn(move || drop(sender.send(outcome(work, cancel))));
            wait(&receiver, cancel, None)
        })
    })
}

fn outcome<T>(work: impl FnOnce(&Cancel) -> Result<T>, cancel: &Cancel) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| work(cancel))).unwrap_or_else(|payload| Err(error_of_panic(payload.as_ref())))
}

/// Waits for an outcome; after a signal no longer than `last_wait`.
#[allow(clippy::redundant_closure_for_method_calls)] // `Python::check_signals` by itself fits one lifetime only.
fn wait<T>(receiver: &Receiver<Result<T>>, cancel: &Cancel, last_wait: Option<Duration>) -> PyResult<T> {
    let ended = || to_py(Error::Internal("a worker thread ended without a result".to_owned()));
    loop {
        match receiver.recv_timeout(SIGNAL_INTERVAL) {
            Ok(outcome) => return outcome.map_err(to_py),
            Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(signal) = Python::attach(|py| py.check_signals()) {
            cancel.set();
            match last_wait {
                Some(last_wait) => drop(receiver.recv_timeout(last_wait)),
                None => drop(receiver.recv()),
            }
            return Err(signal);
        }
    }
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

/// Waits for something that is on its way, without the GIL; `ask` waits up to so long and returns None if it is not there by then.
///
/// # Errors
/// As [`run`].
pub(crate) fn patiently<T: Send>(py: Python<'_>, ask: impl Fn(Duration) -> Result<Option<T>> + Sync) -> PyResult<T> {
    loop {
        if let Some(found) = py.detach(|| ask(SIGNAL_INTERVAL).map_err(to_py))? {
            return Ok(found);
        }
        py.check_signals()?;
    }
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
