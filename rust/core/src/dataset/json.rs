//! JSON lines and JSON documents, strictly: no key twice, no lone surrogates, nothing behind the end.
//!
//! A document is never parsed as a whole. Its elements are cut out of the stream by counting brackets, then each is parsed by
//! itself; so memory is bounded by the longest record, faults have a row, and an array costs what lines cost.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::collect::Collector;
use super::fault::{Fault, kind, quote};
use super::numbers;
use super::source::{Scan, Source};
use crate::error::Result;
use crate::text::space::is_json_space;

/// Reads one object a line; blank lines do not count as rows.
pub(super) fn read_lines(source: &mut Source<'_>, out: &mut Collector) -> Result<()> {
    let mut line = Vec::new();
    loop {
        source.skip_blank_lines().map_err(|error| out.locate(error))?;
        let ended = source
            .scan(&mut line, |byte| if byte == b'\n' { Scan::End } else { Scan::Keep })
            .map_err(|error| out.locate(error))?;
        if !line.iter().copied().all(is_json_space) {
            add_record(&line, out)?;
        }
        if !ended {
            return Ok(());
        }
    }
}

/// Reads an array of objects, or an object with such an array under the key `data`.
pub(super) fn read_document(source: &mut Source<'_>, out: &mut Collector) -> Result<()> {
    match next_token(source, out)? {
        None => return Err(out.error_in_file("the file is empty")),
        Some(b'[') => read_array(source, out)?,
        Some(b'{') => read_object(source, out)?,
        Some(_) => return Err(out.error_in_file("must be an array of objects, or an object with the key `data`")),
    }
    if next_token(source, out)?.is_some() {
        return Err(out.error_in_file("there is text behind the end of the JSON document; name JSON lines .jsonl"));
    }
    Ok(())
}

/// The next byte that is not white space, left unread.
fn next_token(source: &mut Source<'_>, out: &Collector) -> Result<Option<u8>> {
    source.skip(is_json_space).and_then(|()| source.peek()).map_err(|error| out.locate(error))
}

/// Passes over what separates two members of an array or object; false if `close` ends it.
fn next_member(source: &mut Source<'_>, out: &Collector, close: u8) -> Result<bool> {
    match next_token(source, out)? {
        Some(b',') => {
            source.advance();
            Ok(true)
        }
        Some(byte) if byte == close => {
            source.advance();
            Ok(false)
        }
        Some(byte) => Err(out.error(Fault::new(format!(
            "expected `,` or `{}` here, not {:?}",
            char::from(close),
            char::from(byte)
        )))),
        None => Err(out.error_in_file("the file ends in the middle of the JSON document")),
    }
}

/// Reads the array that begins at the next byte.
fn read_array(source: &mut Source<'_>, out: &mut Collector) -> Result<()> {
    source.advance();
    if next_token(source, out)? == Some(b']') {
        source.advance();
        return Ok(());
    }
    let mut record = Vec::new();
    loop {
        read_value(source, out, &mut record)?;
        add_record(&record, out)?;
        if !next_member(source, out, b']')? {
            return Ok(());
        }
    }
}

/// Reads the object that begins at the next byte: the questions under `data`, whatever else there is passed over.
fn read_object(source: &mut Source<'_>, out: &mut Collector) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    source.advance();
    let mut more = next_token(source, out)? != Some(b'}');
    let mut text = Vec::new();
    while more {
        next_token(source, out)?;
        read_value(source, out, &mut text)?;
        let key: String = parse(&text).map_err(|problem| out.error_in_file(format!("in a key: {problem}")))?;
        if next_token(source, out)? != Some(b':') {
            return Err(out.error_in_file(format!("expected `:` behind the key {}", quote(&key))));
        }
        source.advance();
        let is_array = next_token(source, out)? == Some(b'[');
        if key == "data" && is_array {
            read_array(source, out)?;
        } else {
            read_value(source, out, &mut text)?;
            check_value(&text).map_err(|problem| out.error_in_file(format!("under {}: {problem}", quote(&key))))?;
            if key == "data" {
                return Err(out.error_in_file("what is under `data` must be an array"));
            }
        }
        let name = quote(&key);
        if !seen.insert(key) {
            return Err(out.error_in_file(format!("the key {name} occurs twice")));
        }
        more = next_member(source, out, b'}')?;
    }
    if seen.is_empty() {
        source.advance();
    }
    if seen.contains("data") {
        return Ok(());
    }
    Err(out.error_in_file("the object has no key `data`; if the file holds one object a line, name it .jsonl"))
}

/// Cuts out the value that begins at the next byte; whether it is one is for the parser to say.
fn read_value(source: &mut Source<'_>, out: &Collector, value: &mut Vec<u8>) -> Result<()> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let ended = source.scan(value, |byte| {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            return Scan::Keep;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b',' | b':' | b']' | b'}' if depth == 0 => return Scan::EndBefore,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        Scan::Keep
    });
    if ended.map_err(|error| out.locate(error))? {
        return Ok(());
    }
    Err(out.error(Fault::new("the file ends in the middle of the JSON document")))
}

fn add_record(text: &[u8], out: &mut Collector) -> Result<()> {
    let record: Record<true> = match parse(text) {
        Ok(record) => record,
        Err(problem) => return add_foreign_record(text, problem, out),
    };
    if let Some(key) = record.duplicate {
        return Err(out.error(Fault::in_field(key, "occurs twice")));
    }
    out.add_fields(record.fields)
}

/// Adds a record with numbers that JSON has no form for (`NaN`, as Python writes it) or that are larger than numbers are read here:
/// they become null, and their column is noted.
fn add_foreign_record(text: &[u8], problem: String, out: &mut Collector) -> Result<()> {
    let record: Record<false> = match numbers::mark(text) {
        Some(marked) => parse(&marked).map_err(|_| out.error(Fault::new(problem)))?,
        // Large numbers that were written as floats are what they are.
        None => parse(text).map_err(|problem| out.error(Fault::new(problem)))?,
    };
    if let Some(key) = record.duplicate {
        return Err(out.error(Fault::in_field(key, "occurs twice")));
    }
    let mut fields = record.fields;
    for (name, value) in &mut fields {
        if let Some(what) = numbers::unmark(value) {
            out.add_foreign(name, &what, false);
        }
    }
    out.add_fields(fields)
}

/// The text in a line of a corpus: the line if it is a JSON string, else what its object has under `field`.
///
/// The other values of the object are passed over, not kept.
///
/// # Errors
/// What is wrong, and the field it is in if it is in one.
pub(crate) fn text_of_line(line: &[u8], field: &str) -> Result<String, (Option<String>, String)> {
    if line.trim_ascii_start().starts_with(b"\"") {
        return parse(line).map_err(|problem| (None, problem));
    }
    let text = std::str::from_utf8(line).map_err(|error| (None, not_utf8(&error)))?;
    let find = |text: &str| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let found = TextField(field).deserialize(&mut deserializer)?;
        deserializer.end().map(|()| found)
    };
    // Of other fields' values nothing is asked, not even that they are numbers as JSON has them.
    let found = find(text).or_else(|error| {
        let marked = numbers::mark(line).and_then(|marked| String::from_utf8(marked).ok());
        marked.and_then(|marked| find(&marked).ok()).ok_or(error)
    });
    match found {
        Ok(Found { more_than_once: true, .. }) => Err((Some(field.to_owned()), "occurs twice".to_owned())),
        Ok(Found { value: Some(Value::String(text)), .. }) if numbers::is_mark(&text) => {
            Err((Some(field.to_owned()), "must be text, not a number".to_owned()))
        }
        Ok(Found { value: Some(Value::String(text)), .. }) => Ok(text),
        Ok(Found { value: Some(other), .. }) => {
            Err((Some(field.to_owned()), format!("must be text, not {}", kind(&other))))
        }
        Ok(Found { keys, .. }) => {
            let keys: Vec<String> = keys.iter().map(|key| quote(key)).collect();
            let there = if keys.is_empty() {
                "there are no keys".to_owned()
            } else {
                format!("the keys are {}", keys.join(", "))
            };
            Err((
                Some(field.to_owned()),
                format!("is missing; {there}; a line is a text, or an object with it under `{field}`"),
            ))
        }
        Err(error) => Err((None, not_json(&error))),
    }
}

/// The value of one key of an object, read without keeping the others.
struct TextField<'a>(&'a str);

/// What [`TextField`] found.
struct Found {
    value: Option<Value>,
    more_than_once: bool,
    /// The first keys there are, for an error message.
    keys: Vec<String>,
}

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with the key `{}`, or a string", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        const KEYS_NAMED: usize = 20;
        let mut found = Found { value: None, more_than_once: false, keys: Vec::new() };
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                let Scalar(value) = map.next_value()?;
                found.more_than_once |= found.value.replace(value).is_some();
            } else {
                map.next_value::<IgnoredAny>()?;
                if found.keys.len() < KEYS_NAMED {
                    found.keys.push(key);
                }
            }
        }
        Ok(found)
    }
}

/// A JSON value, of which lists and objects are passed over and come out empty: for
/// where only text or numbers will do, since a record can hold millions of values.
pub(crate) struct Scalar(pub(crate) Value);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor).map(Self)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        StrictVisitor::<false>.visit_unit()
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        StrictVisitor::<false>.visit_bool(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        StrictVisitor::<false>.visit_i64(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        StrictVisitor::<false>.visit_u64(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        StrictVisitor::<false>.visit_f64(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        StrictVisitor::<false>.visit_str(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Object(Map::new()))
    }
}

/// Parses one JSON value, or says what is wrong with it.
pub(super) fn parse_value(text: &[u8]) -> Result<Value, String> {
    parse(text).map(|Strict::<false>(value)| value)
}

/// Parses a value that nobody asks for, only to see that it is one.
fn check_value(text: &[u8]) -> Result<(), String> {
    let Err(problem) = parse::<Strict<false>>(text) else { return Ok(()) };
    numbers::mark(text).and_then(|marked| parse::<Strict<false>>(&marked).ok()).map(|_| ()).ok_or(problem)
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    let text = std::str::from_utf8(text).map_err(|error| not_utf8(&error))?;
    if text.trim_ascii().is_empty() {
        return Err("a value is missing".to_owned());
    }
    serde_json::from_str(text).map_err(|error| not_json(&error))
}

/// What is said of bytes that are no text.
pub(crate) fn not_utf8(error: &std::str::Utf8Error) -> String {
    format!("byte {} of it is not UTF-8; save the file in UTF-8", error.valid_up_to() + 1)
}

fn not_json(error: &serde_json::Error) -> String {
    // The parser adds a position of its own, which counts from the record's start: said here.
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let (line, column) = (error.line(), error.column());
    format!("not valid JSON: {message} (line {line}, column {column} of it)")
}

/// From here on a number that was parsed as a float may have been written as an integer.
const FIRST_INEXACT: f64 = 9_223_372_036_854_775_808.0;

/// One row: an object, and a key that occurs twice in it.
struct Record<const EXACT: bool> {
    fields: Map<String, Value>,
    duplicate: Option<String>,
}

impl<'de, const EXACT: bool> Deserialize<'de> for Record<EXACT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RecordVisitor::<EXACT>)
    }
}

struct RecordVisitor<const EXACT: bool>;

impl<'de, const EXACT: bool> Visitor<'de> for RecordVisitor<EXACT> {
    type Value = Record<EXACT>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the keys `question`, `choices` and `answer`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record<EXACT>, A::Error> {
        let mut record = Record { fields: Map::new(), duplicate: None };
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict<EXACT>>()? {
            if record.fields.contains_key(&key) {
                record.duplicate.get_or_insert(key);
            } else {
                record.fields.insert(key, value);
            }
        }
        Ok(record)
    }
}

/// A JSON value in which no object has a key twice; `serde_json` itself keeps the last of them. If `EXACT`, a number that may not be what
/// is written (an integer of more than 64 bits) is an error.
struct Strict<const EXACT: bool>(Value);

impl<'de, const EXACT: bool> Deserialize<'de> for Strict<EXACT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor::<EXACT>).map(Self)
    }
}

struct StrictVisitor<const EXACT: bool>;

impl<'de, const EXACT: bool> Visitor<'de> for StrictVisitor<EXACT> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        if EXACT && (value.abs() >= FIRST_INEXACT || (value == 0.0 && value.is_sign_negative())) {
            return Err(E::custom("number out of range"));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict::<EXACT>(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict<EXACT>>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {} occurs twice", quote(&key))));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
