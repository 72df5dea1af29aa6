//! JSON values to and from Python's own.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use serde_json::{Number, Value};
use wmdp_core::dataset::Row;
use wmdp_core::{DatasetError, Error};

use crate::error::to_py;

/// Deepest nesting taken from Python, the same as the JSON parser's.
const DEEPEST: usize = 128;

/// A JSON value as Python's `json` module would give it.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => integer.into_pyobject(py)?.into_any(),
            (None, Some(integer)) => integer.into_pyobject(py)?.into_any(),
            (None, None) => number.as_f64().into_pyobject(py)?,
        },
        Value::Array(values) => {
            let list = PyList::empty(py);
            for value in values {
                list.append(to_python(py, value)?)?;
            }
            list.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (name, value) in fields {
                dict.set_item(name, to_python(py, value)?)?;
            }
            dict.into_any()
        }
    })
}

/// Rows that are read from Python before it is asked whether Ctrl-C was pressed.
const ROWS_BETWEEN_SIGNALS: usize = 1024;

/// Rows as the core wants them.
///
/// # Errors
/// `DatasetError` with row and field for a value that JSON has no form for, `TypeError` if `rows` are not mappings,
/// `KeyboardInterrupt` after Ctrl-C.
pub(crate) fn rows_from_python(rows: &Bound<'_, PyAny>, file: &str) -> PyResult<Vec<Row>> {
    let fault = |row: usize, field: Option<String>, problem| {
        to_py(Error::from(DatasetError { file: file.to_owned(), row: Some(row as u64 + 1), field, problem }))
    };
    let mut read = Vec::new();
    for (row, fields) in rows.try_iter()?.enumerate() {
        if row % ROWS_BETWEEN_SIGNALS == 0 {
            rows.py().check_signals()?;
        }
        let fields = fields?;
        let fields = fields
            .cast::<PyMapping>()
            .map_err(|_| PyTypeError::new_err(format!("row {} must be a dict, not {}", row + 1, kind(&fields))))?;
        let mut record = Row::default();
        for item in fields.items()?.iter() {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let name = text(&key).map_err(|problem| fault(row, None, format!("a key {problem}")))?;
            let mut lost = None;
            let value =
                from_python(&value, DEEPEST, &mut lost).map_err(|problem| fault(row, Some(name.clone()), problem))?;
            record.foreign.extend(lost.map(|what| (name.clone(), what)));
            record.fields.insert(name, value);
        }
        read.push(record);
    }
    Ok(read)
}

/// A Python value as JSON, or what is wrong with it. A number that JSON has no form for becomes null, and `lost` says what it was.
fn from_python(value: &Bound<'_, PyAny>, depth: usize, lost: &mut Option<String>) -> Result<Value, String> {
    if depth == 0 {
        return Err(format!("is nested more than {DEEPEST} deep"));
    }
    if value.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if value.is_instance_of::<PyString>() {
        return text(value).map(Value::String);
    }
    if value.is_instance_of::<PyInt>() {
        let integer = value.extract::<i64>().map(Number::from).or_else(|_| value.extract::<u64>().map(Number::from));
        return Ok(integer.map_or_else(|_| lose(lost, "an integer of more than 64 bits"), Value::Number));
    }
    if let Ok(float) = value.cast::<PyFloat>() {
        let number = Number::from_f64(float.value());
        return Ok(number.map_or_else(|| lose(lost, &float.value().to_string()), Value::Number));
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let items = value.try_iter().map_err(|error| error.to_string())?;
        let items = items.map(|item| from_python(&item.map_err(|error| error.to_string())?, depth - 1, lost));
        return items.collect::<Result<_, _>>().map(Value::Array);
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        let fields = dict.iter().map(|(key, value)| Ok((text(&key)?, from_python(&value, depth - 1, lost)?)));
        return fields.collect::<Result<_, String>>().map(Value::Object);
    }
    Err(format!("must be text, a number, a boolean, None, a list or a dict, not {}", kind(value)))
}

fn lose(lost: &mut Option<String>, what: &str) -> Value {
    lost.get_or_insert_with(|| what.to_owned());
    Value::Null
}

fn text(value: &Bound<'_, PyAny>) -> Result<String, String> {
    let text = value.cast::<PyString>().map_err(|_| format!("must be text, not {}", kind(value)))?;
    text.to_cow()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| "has a lone surrogate, which is no character".to_owned())
}

fn kind(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "another type".to_owned(), |name| name.to_string())
}
