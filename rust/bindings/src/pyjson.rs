//! Python's text for numbers and documents, so that tests can hold it against Python's own.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use wmdp_core::text::pyjson;

/// What `str(value)` gives.
#[pyfunction]
pub(crate) fn float_text(value: f64) -> String {
    let mut text = String::new();
    pyjson::push_float(&mut text, value);
    text
}

/// What `json.dumps(json.loads(source), ensure_ascii=False, indent=indent)` gives.
///
/// Raises:
///     ValueError: If `source` is not JSON.
#[pyfunction]
#[pyo3(signature = (source, indent = None))]
pub(crate) fn json_text(source: &str, indent: Option<usize>) -> PyResult<String> {
    let document = serde_json::from_str(source).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let mut text = String::new();
    pyjson::push_json(&mut text, &document, indent);
    Ok(text)
}
