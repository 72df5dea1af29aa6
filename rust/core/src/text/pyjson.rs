//! Text of numbers and documents exactly as Python writes it: `str(float)` and `json.dumps(..., ensure_ascii=False)`.
//!
//! lm-eval's samples files hold such text, and its hashes are taken over it, so that one character off is a different hash.

use std::fmt::Write;

use serde_json::Value;

/// Appends what Python's `str(value)` gives: the shortest digits that read back as `value`, in positional notation from `1e-4` up to
/// `1e16` and in scientific notation (exponent of at least two digits) beyond.
pub fn push_float(out: &mut String, value: f64) {
    if !value.is_finite() {
        out.push_str(if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        });
        return;
    }
    // Rust's exponent form holds the same shortest digits: `-1.2345e-5`.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        // `Display` is positional; only whole numbers lack Python's point.
        let start = out.len();
        push_formatted(out, format_args!("{value}"));
        if !out[start..].contains('.') {
            out.push_str(".0");
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        push_formatted(out, format_args!("{mantissa}e{sign}{:02}", exponent.unsigned_abs()));
    }
}

/// Appends a number as `json.dumps` does: like `str`, but with JavaScript's names for what is not finite.
pub fn push_json_float(out: &mut String, value: f64) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        push_float(out, value);
    }
}

/// Appends a string with quotes. Only what JSON demands is escaped: quote, backslash and control characters.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    push_escaped(out, text);
    out.push('"');
}

/// Appends a string's inside, escaped but without quotes, so that a long text can be put together from parts.
pub fn push_escaped(out: &mut String, text: &str) {
    let mut copied = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[copied..at]);
        copied = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            _ => push_formatted(out, format_args!("\\u{byte:04x}")),
        }
    }
    out.push_str(&text[copied..]);
}

/// Appends a document as `json.dumps(value, ensure_ascii=False, indent=indent)` does; without `indent` it is one line.
pub fn push_json(out: &mut String, value: &Value, indent: Option<usize>) {
    push_nested(out, value, indent, 0);
}

fn push_nested(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => push_json_float(out, float),
            _ => push_formatted(out, format_args!("{number}")),
        },
        Value::String(text) => push_string(out, text),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(fields) if fields.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                push_separator(out, at == 0, indent, depth + 1);
                push_nested(out, item, indent, depth + 1);
            }
            push_closing(out, ']', indent, depth);
        }
        Value::Object(fields) => {
            out.push('{');
            for (at, (name, item)) in fields.iter().enumerate() {
                push_separator(out, at == 0, indent, depth + 1);
                push_string(out, name);
                out.push_str(": ");
                push_nested(out, item, indent, depth + 1);
            }
            push_closing(out, '}', indent, depth);
        }
    }
}

fn push_separator(out: &mut String, first: bool, indent: Option<usize>, depth: usize) {
    match indent {
        Some(width) => {
            out.push_str(if first { "\n" } else { ",\n" });
            push_spaces(out, width * depth);
        }
        None if first => {}
        None => out.push_str(", "),
    }
}

fn push_closing(out: &mut String, bracket: char, indent: Option<usize>, depth: usize) {
    if let Some(width) = indent {
        out.push('\n');
        push_spaces(out, width * depth);
    }
    out.push(bracket);
}

fn push_spaces(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Appends `format_args!(...)`.
pub(crate) fn push_formatted(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn float(value: f64) -> String {
        let mut out = String::new();
        push_float(&mut out, value);
        out
    }

    #[test]
    fn floats_read_as_python_prints_them() {
        let expected = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, text) in expected {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn json_names_what_is_not_finite_as_javascript_does() {
        for (value, text) in [(f64::NAN, "NaN"), (f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity")] {
            let mut out = String::new();
            push_json_float(&mut out, value);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn strings_are_escaped_only_where_json_demands_it() {
        let mut out = String::new();
        push_string(&mut out, "é \"x\"\\/\n\r\t\u{8}\u{c}\u{1f}\u{7f}\u{2028}😀");
        assert_eq!(out, "\"é \\\"x\\\"\\\\/\\n\\r\\t\\b\\f\\u001f\u{7f}\u{2028}😀\"");
    }

    #[test]
    fn documents_are_laid_out_as_python_lays_them_out() {
        let document = json!({"a": [], "b": {}, "c": [1, {"x": [true, null]}], "d": 1e16});
        let mut line = String::new();
        push_json(&mut line, &document, None);
        assert_eq!(line, r#"{"a": [], "b": {}, "c": [1, {"x": [true, null]}], "d": 1e+16}"#);
        let mut indented = String::new();
        push_json(&mut indented, &document, Some(2));
        let expected = "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1,\n    {\n      \"x\": [\n        true,\n        null\n      ]\n    }\n  ],\n  \"d\": 1e+16\n}";
        assert_eq!(indented, expected);
    }
}
