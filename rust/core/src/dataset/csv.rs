//! CSV by RFC 4180: fields in quotes may hold commas, line ends and doubled quotes.
//!
//! Written here rather than taken from a crate because readers in use let a missing quote pass, and with it half a file as one
//! field. Here that is a fault with a row. Lines may end in `\n`, `\r\n` or `\r`; empty lines do not count as rows.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::answer;
use super::collect::{Collector, GivenAnswer, own_column};
use super::fault::{Fault, quote};
use super::json;
use super::source::{Scan, Source};
use crate::error::Result;
use crate::text::question::COLUMNS;

/// What may stand between fields. Which one a file has is never guessed from its rows: a header must name the columns with it.
const DELIMITERS: [(u8, &str); 3] = [(b',', "commas"), (b';', "semicolons"), (b'\t', "tabs")];

/// Reads a file whose first record is a header if it names the columns `question` and `answer`, in any case. Without a header
/// the columns are MMLU's original ones: the question, the choices, the answer, separated by commas.
pub(super) fn read(source: &mut Source<'_>, out: &mut Collector) -> Result<()> {
    let first_line = source.peek_line()?.to_vec();
    let named = |delimiter: u8| {
        let names: Vec<Option<usize>> = names_in(&first_line, delimiter).iter().map(|name| meaning(name)).collect();
        names.contains(&Some(QUESTION)) && names.contains(&Some(ANSWER))
    };
    let delimiter = DELIMITERS.into_iter().map(|(delimiter, _)| delimiter).find(|&delimiter| named(delimiter));
    let header = delimiter.is_some();
    let mut record = Record::new(delimiter.unwrap_or(b','));
    if !record.read(source, out)? {
        return Err(out.error_in_file("the file is empty"));
    }
    let layout = if header { Layout::of_header(&record) } else { Layout::without_header(&record, &first_line) };
    let layout = layout.map_err(|fault| if header { out.error_in_header(fault) } else { out.error(fault) })?;
    for name in &layout.names {
        out.add_column(name);
    }
    if !header {
        layout.add(&record, out)?;
    }
    while record.read(source, out)? {
        layout.add(&record, out)?;
    }
    Ok(())
}

/// Places among [`COLUMNS`].
const QUESTION: usize = 0;
const ANSWER: usize = 2;

/// The column of a question that a name in a header means, whatever its case: `prompt` too, beside choices in columns of their own.
fn meaning(name: &str) -> Option<usize> {
    own_column(name).or_else(|| name.trim_ascii().eq_ignore_ascii_case("prompt").then_some(QUESTION))
}

/// The fields of a line, quotes taken off, to see whether it is a header.
fn names_in(line: &[u8], delimiter: u8) -> Vec<String> {
    let mut quoted = false;
    let fields = line.split(|&byte| {
        quoted ^= byte == b'"';
        byte == delimiter && !quoted
    });
    fields.map(|field| String::from_utf8_lossy(field).trim().trim_matches('"').trim().to_owned()).collect()
}

/// The fields of a record, without their quotes, one after another.
#[derive(Debug)]
struct Record {
    text: Vec<u8>,
    /// Where each field ends.
    ends: Vec<usize>,
    delimiter: u8,
}

/// Where in a field the last byte was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Bare,
    Quoted,
    /// Behind a quote that ends the field, unless another one follows.
    Quote,
}

impl Record {
    fn new(delimiter: u8) -> Self {
        Self { text: Vec::new(), ends: Vec::new(), delimiter }
    }

    /// Reads the next record that is not an empty line; false at the end of the file.
    fn read(&mut self, source: &mut Source<'_>, out: &Collector) -> Result<bool> {
        loop {
            source.skip(|byte| matches!(byte, b'\n' | b'\r')).map_err(|error| out.locate(error))?;
            self.ends.clear();
            let (mut state, mut length, mut any, mut stray) = (State::FieldStart, 0, false, None);
            let ended = source.scan(&mut self.text, |byte| {
                let (next, action) = match (state, byte) {
                    (State::FieldStart | State::Bare | State::Quote, b'\n' | b'\r') => (state, Scan::End),
                    (State::FieldStart | State::Bare | State::Quote, byte) if byte == self.delimiter => {
                        self.ends.push(length);
                        (State::FieldStart, Scan::Skip)
                    }
                    (State::FieldStart, b'"') => (State::Quoted, Scan::Skip),
                    (State::FieldStart | State::Bare, _) => (State::Bare, Scan::Keep),
                    (State::Quoted, b'"') => (State::Quote, Scan::Skip),
                    (State::Quoted, _) | (State::Quote, b'"') => (State::Quoted, Scan::Keep),
                    (State::Quote, _) => {
                        stray = Some(byte);
                        (state, Scan::End)
                    }
                };
                any |= action != Scan::End;
                length += usize::from(action == Scan::Keep);
                state = next;
                action
            });
            let ended = ended.map_err(|error| out.locate(error))?;
            if let Some(byte) = stray {
                let byte = char::from(byte);
                let problem = format!(
                    "expected {:?} or a line end behind a closing quote, not {byte:?}; double quotes in a field",
                    char::from(self.delimiter)
                );
                return Err(out.error(Fault::new(problem)));
            }
            if state == State::Quoted {
                return Err(out.error(Fault::new("the file ends inside a quoted field; a closing quote is missing")));
            }
            if any {
                self.ends.push(length);
                return Ok(true);
            }
            if !ended {
                return Ok(false);
            }
        }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn field(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.field(index))
    }
}

/// Which field of a record is what.
#[derive(Debug)]
struct Layout {
    /// The columns as a question set has them: all choices count as one.
    names: Vec<String>,
    width: usize,
    question: usize,
    choices: Choices,
    answer: usize,
    subject: Option<usize>,
    extra: Vec<(usize, String)>,
}

#[derive(Debug)]
enum Choices {
    /// One column for each.
    Columns(Vec<usize>),
    /// One column that holds a JSON list.
    List(usize),
}

impl Layout {
    /// The layout of MMLU's original files, if the first record can be a question in it and is no header of other names.
    fn without_header(record: &Record, first_line: &[u8]) -> Result<Self, Fault> {
        let width = record.len();
        let texts: Vec<String> = record.fields().map(|field| String::from_utf8_lossy(field).into_owned()).collect();
        let is_question = width >= 4 && {
            let choices = &texts[1..width - 1];
            answer::has_meaning(&texts[width - 1], choices) || record.field(width - 1).is_empty()
        };
        if is_question {
            let names = COLUMNS[..3].iter().map(|&name| name.to_owned()).collect();
            let choices = Choices::Columns((1..width - 1).collect());
            return Ok(Self {
                names,
                width,
                question: 0,
                choices,
                answer: width - 1,
                subject: None,
                extra: Vec::new(),
            });
        }
        let seen = DELIMITERS.into_iter().map(|(delimiter, name)| (names_in(first_line, delimiter), name));
        let (fields, delimiter) = seen.rev().max_by_key(|(fields, _)| fields.len()).unwrap_or_default();
        let fields: Vec<String> = fields.iter().take(30).map(|field| quote(field)).collect();
        Err(Fault::new(format!(
            "the first line is neither a question, its choices and its answer, separated by commas, nor a header that names them: it has \
             {} field{}{}: {}; give it a header with `question`, `answer` and the choices `A`, `B`, ... (or `choice0`, `choice1`, \
             ...), in English, separated by commas, semicolons or tabs",
            fields.len(),
            if fields.len() == 1 { "" } else { "s" },
            if fields.len() == 1 { String::new() } else { format!(" separated by {delimiter}") },
            fields.join(", ")
        )))
    }

    /// The layout that a header gives. Choices are in columns `choice0`, `choice1`, ..., or `A`, `B`, ..., or all in `choices`.
    fn of_header(record: &Record) -> Result<Self, Fault> {
        let header = record.fields().map(std::str::from_utf8).collect::<Result<Vec<&str>, _>>();
        let header = header.map_err(|_| Fault::new("the header is not UTF-8; save the file in UTF-8"))?;
        let mut folded: Vec<String> = header.iter().map(|name| name.trim_ascii().to_ascii_lowercase()).collect();
        // Columns under other names stand for ours where ours are not there.
        for place in [QUESTION, ANSWER] {
            let ours = COLUMNS[place];
            if !folded.iter().any(|name| name == ours)
                && let Some(other) = folded.iter().position(|name| meaning(name) == Some(place))
            {
                ours.clone_into(&mut folded[other]);
            }
        }
        let mut places = HashMap::new();
        for (index, name) in folded.iter().enumerate() {
            places.entry(name.as_str()).or_insert(index);
        }
        let place = |name: &str| places.get(name).copied();
        let required = |name: &str| place(name).ok_or_else(|| Fault::in_field(name, "is missing in the header"));

        let numbered: Vec<usize> = (0..).map_while(|index| place(&format!("choice{index}"))).collect();
        let lettered: Vec<usize> = ('a'..='z').map_while(|letter| place(letter.encode_utf8(&mut [0; 4]))).collect();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if folded.iter().filter(|name| name.strip_prefix("choice").is_some_and(is_number)).count() > numbered.len() {
            let missing = format!("choice{}", numbered.len());
            return Err(Fault::in_field(missing, "is missing in the header, or another choice is there twice"));
        }
        let choices = match (place("choices"), numbered.is_empty(), lettered.len()) {
            (Some(list), true, 0 | 1) => Choices::List(list),
            (None, false, 0 | 1) => Choices::Columns(numbered),
            // A single column `A` is one of its own kind.
            (None, true, 2..) => Choices::Columns(lettered),
            (None, true, 0 | 1) => {
                let names: Vec<String> = header.iter().take(30).map(|name| quote(name)).collect();
                return Err(Fault::in_field(
                    "choices",
                    format!(
                        "are missing in the header, which has {}: name them choice0, choice1, ..., or A, B, ..., or give one column \
                         `choices` with a JSON list",
                        names.join(", ")
                    ),
                ));
            }
            _ => return Err(Fault::in_field("choices", "are in the header in more than one form")),
        };

        let (question, answer, subject) = (required("question")?, required("answer")?, place("subject"));
        let mut is_choice = vec![false; header.len()];
        for &index in choices.columns() {
            is_choice[index] = true;
        }
        let mut names: Vec<String> = Vec::new();
        let mut extra = Vec::new();
        let mut known = HashSet::new();
        for (index, &name) in header.iter().enumerate() {
            let name = if is_choice[index] {
                COLUMNS[1]
            } else if let Some(column) = COLUMNS.into_iter().find(|column| *column == folded[index]) {
                column
            } else {
                extra.push((index, name.to_owned()));
                name
            };
            let repeats_choice = !is_choice[index] && is_choice[places[folded[index].as_str()]];
            if known.insert(name) && !repeats_choice {
                names.push(name.to_owned());
            } else if !is_choice[index] {
                return Err(Fault::in_field(name, "occurs twice in the header"));
            }
        }
        Ok(Self { names, width: header.len(), question, choices, answer, subject, extra })
    }

    /// Adds a record's question.
    fn add(&self, record: &Record, out: &mut Collector) -> Result<()> {
        if record.len() != self.width {
            let problem = format!("has {} fields, but the first line has {}", record.len(), self.width);
            return Err(out.error(Fault::new(problem)));
        }
        let text = |name: &str, index: usize| {
            let text = std::str::from_utf8(record.field(index));
            text.map_err(|_| out.error(Fault::in_field(name, "is not UTF-8; save the file in UTF-8")))
        };
        let filled = |name: &str, index: usize| match text(name, index)? {
            "" => Err(out.error(Fault::in_field(name, "is empty"))),
            text => Ok(text.to_owned()),
        };
        let question = filled("question", self.question)?;
        let choices = match &self.choices {
            Choices::Columns(columns) => columns
                .iter()
                .enumerate()
                .map(|(number, &index)| match text("choices", index)? {
                    "" => Err(out.error(Fault::in_field("choices", empty_choice(number)))),
                    text => Ok(text.to_owned()),
                })
                .collect::<Result<_>>()?,
            Choices::List(index) => {
                let list = json::parse_value(record.field(*index));
                out.texts(list.map_err(|problem| out.error(Fault::in_field("choices", problem)))?, "choice")?
            }
        };
        let answer = GivenAnswer::Text(filled("answer", self.answer)?);
        let subject = self.subject.map(|index| text("subject", index)).transpose()?;
        let subject = subject.filter(|subject| !subject.is_empty()).map(str::to_owned);
        let extra = self.extra.iter().map(|(index, name)| {
            let text = text(name, *index)?;
            Ok((name.clone(), if text.is_empty() { Value::Null } else { Value::from(text) }))
        });
        let extra = extra.collect::<Result<Map<_, _>>>()?;
        out.add(question, choices, answer, subject, extra)
    }
}

impl Choices {
    fn columns(&self) -> &[usize] {
        match self {
            Self::Columns(columns) => columns,
            Self::List(column) => std::slice::from_ref(column),
        }
    }
}

fn empty_choice(number: usize) -> String {
    format!(
        "choice {number} is empty; for questions with different numbers of choices give one column `choices` with a JSON list"
    )
}
