//! Core errors as Python exceptions: built-in ones where Python has one, else those of `wmdp_fast.exceptions`.

use std::io::ErrorKind;

use pyo3::exceptions::{PyIsADirectoryError, PyKeyboardInterrupt, PyOSError, PyValueError};
use pyo3::prelude::*;
use wmdp_core::Error;

mod exceptions {
    use pyo3::import_exception;
    import_exception!(wmdp_fast.exceptions, DatasetError);
    import_exception!(wmdp_fast.exceptions, InternalError);
    import_exception!(wmdp_fast.exceptions, TemplateError);
    import_exception!(wmdp_fast.exceptions, TokenizerError);
}

/// The Python exception for a core error.
pub(crate) fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        // With a number, Python makes `FileNotFoundError` and the like of it; without one nobody knows more than the message.
        Error::Io { path, source } => match source.raw_os_error() {
            Some(number) => PyOSError::new_err((number, in_words(&source, number), path.into_os_string())),
            None if source.kind() == ErrorKind::IsADirectory => PyIsADirectoryError::new_err(message),
            None => PyOSError::new_err(message),
        },
        Error::Dataset(fault) => exceptions::DatasetError::new_err((fault.file, fault.problem, fault.row, fault.field)),
        Error::Template(_) => exceptions::TemplateError::new_err(message),
        Error::Tokenizer(_) => exceptions::TokenizerError::new_err(message),
        Error::InvalidArgument(_) => PyValueError::new_err(message),
        Error::Cancelled => PyKeyboardInterrupt::new_err(()),
        _ => exceptions::InternalError::new_err(message),
    }
}

/// What the operating system calls an error, without its number, which Python puts in front.
fn in_words(error: &std::io::Error, number: i32) -> String {
    let text = error.to_string();
    text.strip_suffix(&format!(" (os error {number})")).map_or_else(|| text.clone(), str::to_owned)
}
