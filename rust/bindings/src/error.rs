//! Core errors as Python exceptions: built-in ones where Python has one, else those of `wmdp_fast.exceptions`.

use std::io::ErrorKind;

use pyo3::exceptions::{
    PyFileNotFoundError, PyIsADirectoryError, PyKeyboardInterrupt, PyOSError, PyPermissionError, PyValueError,
};
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
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => PyFileNotFoundError::new_err(message),
            ErrorKind::PermissionDenied => PyPermissionError::new_err(message),
            ErrorKind::IsADirectory => PyIsADirectoryError::new_err(message),
            _ => PyOSError::new_err(message),
        },
        Error::Dataset(fault) => exceptions::DatasetError::new_err((fault.file, fault.problem, fault.row, fault.field)),
        Error::Template(_) => exceptions::TemplateError::new_err(message),
        Error::Tokenizer(_) => exceptions::TokenizerError::new_err(message),
        Error::InvalidArgument(_) => PyValueError::new_err(message),
        Error::Cancelled => PyKeyboardInterrupt::new_err(()),
        _ => exceptions::InternalError::new_err(message),
    }
}
