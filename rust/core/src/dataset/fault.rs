//! What is wrong with a record, and the words in which error messages show what a file holds.

use serde_json::Value;

/// What is wrong with a record, before it is said which record.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The field at fault, if it is one.
    pub(crate) field: Option<String>,
    /// What is wrong with it, as the end of a sentence.
    pub(crate) problem: String,
}

impl Fault {
    /// A fault of the record as a whole.
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self { field: None, problem: problem.into() }
    }

    /// A fault of one field.
    pub(crate) fn in_field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: Some(field.into()), problem: problem.into() }
    }
}

/// What a value is, in the words of error messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a floating-point number",
        Value::Number(_) => "an integer",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A text in quotes for an error message, cut where it grows long.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}
