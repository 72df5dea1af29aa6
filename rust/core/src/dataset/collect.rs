//! Where the readers of all formats meet: records are checked here and become questions.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::answer::TextAnswers;
use super::fault::{Fault, kind, quote};
use super::limits::MemoryBudget;
use crate::error::{DatasetError, Error, Result};
use crate::text::question::{CHOICES, COLUMNS, Question, QuestionSet};

/// The place of `subject` among [`COLUMNS`].
const SUBJECT: usize = 3;

/// Names that an error message lists.
const NAMES_SHOWN: usize = 20;

/// What a record is to have, for messages.
const EXPECTED: &str = "a question has `question` (text), `choices` (a list of texts) and `answer` (an index from 0, a letter or a \
                        choice's text)";

/// An answer as a file gives it.
#[derive(Debug)]
pub(super) enum GivenAnswer {
    /// Index of the choice, checked nowhere yet.
    Index(i64),
    /// A letter, an index or the choice itself.
    Text(String),
}

/// Gathers the questions of one file.
#[derive(Debug)]
pub(super) struct Collector {
    file: String,
    columns: Vec<String>,
    known_columns: HashSet<String>,
    questions: Vec<Question>,
    text_answers: TextAnswers,
    foreign: BTreeMap<String, String>,
    budget: Arc<MemoryBudget>,
}

impl Collector {
    /// For questions that take memory from `budget`: a small file can be written that unfolds into billions.
    pub(super) fn new(file: String, budget: Arc<MemoryBudget>) -> Self {
        Self {
            file,
            columns: Vec::new(),
            known_columns: HashSet::new(),
            questions: Vec::new(),
            text_answers: TextAnswers::default(),
            foreign: BTreeMap::new(),
            budget,
        }
    }

    /// The error for a fault in the record being read: the one after those that were added.
    pub(super) fn error(&self, fault: Fault) -> Error {
        self.error_at(Some(self.questions.len()), fault)
    }

    /// The error for a fault of the file as a whole.
    pub(super) fn error_in_file(&self, problem: impl Into<String>) -> Error {
        self.error_at(None, Fault::new(problem))
    }

    /// The error for a fault in the names of the columns.
    pub(super) fn error_in_header(&self, fault: Fault) -> Error {
        self.error_at(None, fault)
    }

    fn error_at(&self, place: Option<usize>, Fault { field, problem }: Fault) -> Error {
        DatasetError { file: self.file.clone(), row: place.map(|place| place as u64 + 1), field, problem }.into()
    }

    /// Adds to a fault in what the file's bytes are that it was met in the record being read.
    pub(super) fn locate(&self, error: Error) -> Error {
        match error {
            Error::Dataset(fault) if fault.row.is_none() => {
                DatasetError { row: Some(self.questions.len() as u64 + 1), ..*fault }.into()
            }
            other => other,
        }
    }

    /// Notes that the file has this column, after those already known.
    pub(super) fn add_column(&mut self, name: &str) {
        if !self.known_columns.contains(name) {
            self.known_columns.insert(name.to_owned());
            self.columns.push(name.to_owned());
        }
    }

    /// The columns noted so far.
    pub(super) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Notes that a column has a value without JSON form, which therefore stands as null (or as text) among the others: in the
    /// record being read, or `in_every_row`.
    pub(super) fn add_foreign(&mut self, column: &str, what: &str, in_every_row: bool) {
        if !self.foreign.contains_key(column) {
            let place = if in_every_row { String::new() } else { format!(" (in row {})", self.questions.len() + 1) };
            self.foreign.insert(column.to_owned(), format!("{what}{place}"));
        }
    }

    /// Adds a record given as named values.
    ///
    /// A column that is not called as it should be, but in another case or as in a well-known dataset, is kept among the others too:
    /// documents are written as they stand in the file.
    pub(super) fn add_fields(&mut self, fields: Map<String, Value>) -> Result<()> {
        let mut own: [Option<Value>; 4] = [const { None }; 4];
        let mut extra = Map::new();
        for (name, value) in fields {
            self.add_column(&name);
            match COLUMNS.iter().position(|column| *column == name) {
                // A subject that is a number, for instance, is a column like others.
                Some(SUBJECT) if !matches!(value, Value::Null | Value::String(_)) => {
                    extra.insert(name, value);
                }
                Some(place) => own[place] = Some(value),
                None => {
                    extra.insert(name, value);
                }
            }
        }
        let called: Vec<usize> = (0..COLUMNS.len()).filter(|&place| own[place].is_some()).collect();
        for (place, value) in own.iter_mut().enumerate() {
            if value.is_none() && !extra.contains_key(COLUMNS[place]) {
                *value = self.under_another_name(place, &extra)?;
            }
        }
        let [question, choices, answer, subject] = own;
        let missing = |place: usize| {
            let names = called.iter().map(|&place| COLUMNS[place]).chain(extra.keys().map(String::as_str));
            let names: Vec<String> = names.take(NAMES_SHOWN).map(quote).collect();
            let there = if names.is_empty() {
                "there are no keys".to_owned()
            } else {
                format!("the keys are {}", names.join(", "))
            };
            self.error(Fault::in_field(COLUMNS[place], format!("is missing; {there}; {EXPECTED}")))
        };
        let question = self.text(COLUMNS[0], question.ok_or_else(|| missing(0))?)?;
        let choices = choices.ok_or_else(|| missing(1))?;
        let written = (!is_plain(&choices)).then(|| choices.clone());
        let (choices, labels) = self.choices(choices)?;
        let answer = self.answer(answer.ok_or_else(|| missing(2))?, labels.as_deref())?;
        if let Some(written) = written
            && !extra.values().any(|value| *value == written)
        {
            extra.insert(COLUMNS[1].to_owned(), written);
        }
        let subject = match subject {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        self.add(question, choices, answer, subject, extra)
    }

    /// The value of the one column that can be meant by a name of our own.
    fn under_another_name(&self, place: usize, extra: &Map<String, Value>) -> Result<Option<Value>> {
        let mut meant = extra.iter().filter(|(name, _)| own_column(name) == Some(place));
        match (meant.next(), meant.next()) {
            (Some((one, _)), Some((other, _))) if place != SUBJECT => {
                let problem = format!("could be {} or {}; rename one of them", quote(one), quote(other));
                Err(self.error(Fault::in_field(COLUMNS[place], problem)))
            }
            (Some((_, value)), None) if place != SUBJECT || matches!(value, Value::Null | Value::String(_)) => {
                Ok(Some(value.clone()))
            }
            _ => Ok(None),
        }
    }

    fn text(&self, field: &'static str, value: Value) -> Result<String> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(self.error(Fault::in_field(field, format!("must be text, not {}", kind(&other))))),
        }
    }

    /// The choices in a value: a list of texts, or with labels `{"text": [...], "label": [...]}` or `[{"text": ..., "label": ...}]`.
    pub(super) fn choices(&self, value: Value) -> Result<(Vec<String>, Option<Vec<String>>)> {
        let wrong = |problem| self.error(Fault::in_field("choices", problem));
        let (texts, labels) = match value {
            Value::Array(items) if items.first().is_some_and(Value::is_object) => {
                let mut texts = Vec::with_capacity(items.len());
                let mut labels = Vec::with_capacity(items.len());
                for mut item in items {
                    let mut take = |name: &str| item.get_mut(name).map(Value::take);
                    texts.push(take("text").unwrap_or_default());
                    labels.extend(take("label"));
                }
                (Value::Array(texts), (!labels.is_empty()).then_some(Value::Array(labels)))
            }
            Value::Object(mut fields) if fields.contains_key("text") => {
                (fields.remove("text").unwrap_or_default(), fields.remove("label"))
            }
            Value::Object(fields) => {
                let names: Vec<String> = fields.keys().take(NAMES_SHOWN).map(|name| quote(name)).collect();
                return Err(wrong(format!(
                    "must be a list of texts, or an object with the lists `text` and `label`, not one with {}",
                    names.join(", ")
                )));
            }
            other => (other, None),
        };
        let texts = self.texts(texts, "choice")?;
        let Some(labels) = labels else { return Ok((texts, None)) };
        let labels = self.texts(labels, "the label of choice")?;
        let distinct: HashSet<&String> = labels.iter().collect();
        if labels.len() != texts.len() || distinct.len() < labels.len() {
            return Err(wrong(format!("{} choices have {} different labels", texts.len(), distinct.len())));
        }
        Ok((texts, Some(labels)))
    }

    /// The texts in a value that should be a list of them.
    pub(super) fn texts(&self, value: Value, what: &str) -> Result<Vec<String>> {
        let wrong = |problem| self.error(Fault::in_field("choices", problem));
        let Value::Array(items) = value else {
            return Err(wrong(format!("must be a list of texts, not {}", kind(&value))));
        };
        let texts = items.into_iter().enumerate().map(|(index, item)| match item {
            Value::String(text) => Ok(text),
            other => Err(wrong(format!("{what} {index} must be text, not {}", kind(&other)))),
        });
        texts.collect()
    }

    /// What the answer is; the label of one of the choices where they have labels.
    fn answer(&self, value: Value, labels: Option<&[String]>) -> Result<GivenAnswer> {
        let wrong = |problem| Err(self.error(Fault::in_field("answer", problem)));
        match (value, labels) {
            (Value::String(text), None) => Ok(GivenAnswer::Text(text)),
            (Value::String(text), Some(labels)) => match labels.iter().position(|label| *label == text) {
                Some(index) => Ok(GivenAnswer::Index(index as i64)),
                None => wrong(format!("{} is none of the choices' labels {}", quote(&text), quote(&labels.join(", ")))),
            },
            (Value::Number(number), Some(labels)) if labels.iter().any(|label| label.parse::<i64>().is_ok()) => {
                wrong(format!(
                    "{number} may be an index or the label of a choice, which are {}; write the label as text",
                    quote(&labels.join(", "))
                ))
            }
            // Above i64 is above any index all the same.
            (Value::Number(number), _) if !number.is_f64() => {
                Ok(GivenAnswer::Index(number.as_i64().unwrap_or(i64::MAX)))
            }
            (other, _) => wrong(format!("must be an index, a letter or a choice's text, not {}", kind(&other))),
        }
    }

    /// Adds a record; all readers end here.
    pub(super) fn add(
        &mut self,
        question: String,
        choices: Vec<String>,
        answer: GivenAnswer,
        subject: Option<String>,
        extra: Map<String, Value>,
    ) -> Result<()> {
        let place = self.questions.len();
        let checked = if choices.is_empty() {
            Err(Fault::in_field("choices", "the list is empty"))
        } else if CHOICES.contains(&choices.len()) {
            self.index_of(place, answer, &choices)
        } else {
            let (low, high, n) = (CHOICES.start(), CHOICES.end(), choices.len());
            Err(Fault::in_field("choices", format!("there must be {low} to {high} of them, not {n}")))
        };
        let answer = checked.map_err(|fault| self.error_at(Some(place), fault))?;
        let question = Question { question, choices, answer, subject, extra };
        self.budget.charge(memory_of(&question)).map_err(|problem| self.error(Fault::new(problem)))?;
        self.questions.push(question);
        Ok(())
    }

    /// The answer's index; for a textual one 0 until [`Collector::finish`], when the file's convention is known.
    fn index_of(&mut self, place: usize, answer: GivenAnswer, choices: &[String]) -> Result<usize, Fault> {
        match answer {
            GivenAnswer::Index(index) => {
                usize::try_from(index).ok().filter(|&index| index < choices.len()).ok_or_else(|| {
                    Fault::in_field(
                        "answer",
                        format!("{index} is out of range: the indices are 0 to {}", choices.len() - 1),
                    )
                })
            }
            GivenAnswer::Text(text) => self.text_answers.add(place, text, choices).map(|()| 0),
        }
    }

    /// The questions, once all records were added.
    pub(super) fn finish(self) -> Result<QuestionSet> {
        let Self { file, columns, mut questions, text_answers, foreign, .. } = self;
        let error = |place: Option<usize>, Fault { field, problem }| {
            let row = place.map(|place| place as u64 + 1);
            DatasetError { file: file.clone(), row, field, problem }
        };
        if questions.is_empty() {
            return Err(error(None, Fault::new("there are no questions")).into());
        }
        text_answers.resolve(&mut questions).map_err(|(place, fault)| error(Some(place), fault))?;
        Ok(QuestionSet { file, columns, questions, foreign })
    }
}

/// The place in [`COLUMNS`] of the column that another name can mean: the same in another case, or that of a well-known dataset (ARC,
/// `CommonsenseQA` and `OpenBookQA` have `answerKey`, the last one `question_stem`).
pub(super) fn own_column(name: &str) -> Option<usize> {
    let name = name.trim_ascii();
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    COLUMNS
        .iter()
        .position(|column| is(column))
        .or_else(|| if is("question_stem") { Some(0) } else { (is("answerKey") || is("answer_key")).then_some(2) })
}

/// Whether choices are nothing but texts.
fn is_plain(choices: &Value) -> bool {
    choices.as_array().is_some_and(|items| !items.first().is_some_and(Value::is_object))
}

/// Bytes of memory that a question takes, what the allocator adds included.
fn memory_of(question: &Question) -> u64 {
    let texts = question.choices.iter().chain(&question.subject).map(|text| heap(text.len()));
    let extra: u64 = question.extra.iter().map(|(name, value)| entry_of(name, value)).sum();
    // The list of questions grows by doubling, and their answers may be noted as text until the end.
    let itself = 3 * size_of::<Question>() + heap(question.choices.len() * size_of::<String>());
    (texts.sum::<usize>() + itself + heap(question.question.len())) as u64 + extra
}

fn entry_of(name: &str, value: &Value) -> u64 {
    const ENTRY: usize = size_of::<String>() + size_of::<Value>() + 4 * size_of::<usize>();
    (ENTRY + heap(name.len())) as u64 + memory_of_value(value)
}

/// Bytes that a value takes beyond its own size.
fn memory_of_value(value: &Value) -> u64 {
    match value {
        Value::String(text) => heap(text.len()) as u64,
        Value::Array(items) => {
            heap(items.len() * size_of::<Value>()) as u64 + items.iter().map(memory_of_value).sum::<u64>()
        }
        Value::Object(fields) => fields.iter().map(|(name, value)| entry_of(name, value)).sum(),
        _ => 0,
    }
}

/// Bytes that an allocation takes.
fn heap(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
}
