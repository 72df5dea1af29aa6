//! Numbers that Python's JSON has and this parser has not: `NaN`, `Infinity`, and those out of range.
//!
//! Most files have none. One that has some in a column that nobody asks for should be read all the same; so a record that does not parse
//! is looked at once more, with such numbers replaced by texts that no file can contain by chance or by intent.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;

use serde_json::Value;

use crate::text::space::is_json_space;

/// What a mark begins with; another one in every process, so that no file can hold it.
fn nonce() -> &'static str {
    static NONCE: OnceLock<String> = OnceLock::new();
    NONCE.get_or_init(|| {
        let random = || RandomState::new().hash_one(0);
        format!("\u{f8ff}{:016x}{:016x} ", random(), random())
    })
}

/// Whether a text is what [`mark`] put in a number's place.
pub(super) fn is_mark(text: &str) -> bool {
    text.starts_with(nonce())
}

/// The text of a record with marks in place of such numbers; none if there are none.
pub(super) fn mark(text: &[u8]) -> Option<Vec<u8>> {
    let mut marked = Vec::with_capacity(text.len());
    let (mut any, mut at) = (false, 0);
    while at < text.len() {
        let length = match text[at] {
            b'"' => string_length(&text[at..]),
            byte if is_of_token(byte) => text[at..].iter().take_while(|&&byte| is_of_token(byte)).count(),
            _ => 1,
        };
        let token = &text[at..at + length];
        at += length;
        let is_key = text[at..].iter().find(|&&byte| !is_json_space(byte)) == Some(&b':');
        match std::str::from_utf8(token).ok().filter(|_| !is_key).and_then(replacement) {
            Some(replacement) => {
                any = true;
                marked.extend_from_slice(replacement.as_bytes());
            }
            None => marked.extend_from_slice(token),
        }
    }
    any.then_some(marked)
}

/// Puts null in the place of every mark in a value, and gives the first one's number.
pub(super) fn unmark(value: &mut Value) -> Option<String> {
    match value {
        Value::String(text) => {
            let what = text.strip_prefix(nonce())?.to_owned();
            *value = Value::Null;
            Some(what)
        }
        Value::Array(items) => items.iter_mut().filter_map(unmark).reduce(|first, _| first),
        Value::Object(fields) => fields.values_mut().filter_map(unmark).reduce(|first, _| first),
        _ => None,
    }
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// Bytes of the string that begins here, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// What stands in the place of a token that is such a number.
fn replacement(token: &str) -> Option<String> {
    let mark = |what: &str| Some(format!("\"{}{what}\"", nonce()));
    match token {
        "NaN" | "Infinity" | "-Infinity" => return mark(token),
        // Python's integers have one zero.
        "-0" => return Some("0".to_owned()),
        _ => {}
    }
    let digits = token.strip_prefix('-').unwrap_or(token);
    if !digits.starts_with(|first: char| first.is_ascii_digit())
        || (digits.starts_with('0') && is_integer(digits) && digits.len() > 1)
    {
        return None;
    }
    if is_integer(digits) {
        let fits = token.parse::<i64>().is_ok() || token.parse::<u64>().is_ok();
        return if fits { None } else { mark("an integer of more than 64 bits") };
    }
    let is_beyond = is_number(digits) && token.parse::<f64>().is_ok_and(f64::is_infinite);
    if is_beyond { mark("a number beyond a float's range") } else { None }
}

/// Whether digits with a fraction or an exponent are a number as JSON has them.
fn is_number(digits: &str) -> bool {
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(whole, rest)| (whole, Some(rest)));
    let filled = |digits: &str| !digits.is_empty() && is_integer(digits);
    filled(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(filled)
        && exponent.is_none_or(|exponent| filled(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

fn is_integer(digits: &str) -> bool {
    digits.bytes().all(|byte| byte.is_ascii_digit())
}
