//! Where the readers of all formats meet: records are checked here and become questions.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::answer::TextAnswers;
use crate::error::{DatasetError, Error, Result};
use crate::question::{CHOICES, Question, QuestionSet};

/// What is wrong with a record, before it is said which record.
#[derive(Debug)]
pub(super) struct Fault {
    field: Option<String>,
    problem: String,
}

impl Fault {
    /// A fault of the record as a whole.
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { field: None, problem: problem.into() }
    }

    /// A fault of one field.
    pub(super) fn in_field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: Some(field.into()), problem: problem.into() }
    }
}

/// An answer as a file gives it.
#[derive(Debug)]
pub(super) enum Answer {
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
    /// Bytes of memory that the questions take, and may take.
    held: u64,
    limit: u64,
}

impl Collector {
    /// For questions that take up to `limit` bytes of memory: a small file can be written that unfolds into billions.
    pub(super) fn new(file: String, limit: u64) -> Self {
        Self {
            file,
            columns: Vec::new(),
            known_columns: HashSet::new(),
            questions: Vec::new(),
            text_answers: TextAnswers::default(),
            held: 0,
            limit,
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

    /// Adds a record given as named values.
    pub(super) fn add_fields(&mut self, fields: Map<String, Value>) -> Result<()> {
        let (mut question, mut choices, mut answer, mut subject) = (None, None, None, None);
        let mut extra = Map::new();
        for (name, value) in fields {
            self.add_column(&name);
            match name.as_str() {
                "question" => question = Some(value),
                "choices" => choices = Some(value),
                "answer" => answer = Some(value),
                "subject" => subject = Some(value),
                _ => {
                    extra.insert(name, value);
                }
            }
        }
        let question = self.present("question", question).and_then(|value| self.text("question", value))?;
        let choices = self.present("choices", choices).and_then(|value| self.choices(value))?;
        let answer = self.present("answer", answer).and_then(|value| self.answer(value))?;
        let subject = match subject {
            None | Some(Value::Null) => None,
            Some(value) => Some(self.text("subject", value)?),
        };
        self.add(question, choices, answer, subject, extra)
    }

    fn present(&self, field: &'static str, value: Option<Value>) -> Result<Value> {
        value.ok_or_else(|| self.error(Fault::in_field(field, "is missing")))
    }

    fn text(&self, field: &'static str, value: Value) -> Result<String> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(self.error(Fault::in_field(field, format!("must be text, not {}", kind(&other))))),
        }
    }

    /// The choices in a value that should be a list of texts.
    pub(super) fn choices(&self, value: Value) -> Result<Vec<String>> {
        let wrong = |problem| self.error(Fault::in_field("choices", problem));
        let Value::Array(choices) = value else {
            return Err(wrong(format!("must be a list of texts, not {}", kind(&value))));
        };
        choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| match choice {
                Value::String(text) => Ok(text),
                other => Err(wrong(format!("choice {index} must be text, not {}", kind(&other)))),
            })
            .collect()
    }

    fn answer(&self, value: Value) -> Result<Answer> {
        match value {
            Value::String(text) => Ok(Answer::Text(text)),
            // Above i64 is above any index all the same.
            Value::Number(number) if !number.is_f64() => Ok(Answer::Index(number.as_i64().unwrap_or(i64::MAX))),
            other => Err(self.error(Fault::in_field(
                "answer",
                format!("must be an index, a letter or a choice's text, not {}", kind(&other)),
            ))),
        }
    }

    /// Adds a record; all readers end here.
    pub(super) fn add(
        &mut self,
        question: String,
        choices: Vec<String>,
        answer: Answer,
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
        let texts = choices.iter().map(|choice| choice.len() + size_of::<String>()).sum::<usize>() + question.len();
        self.held += (texts + size_of::<Question>()) as u64;
        if self.held > self.limit {
            return Err(self.error(Fault::new(format!("the questions take more than {} bytes of memory", self.limit))));
        }
        self.questions.push(Question { question, choices, answer, subject, extra });
        Ok(())
    }

    /// The answer's index; for a textual one 0 until [`Collector::finish`], when the file's convention is known.
    fn index_of(&mut self, place: usize, answer: Answer, choices: &[String]) -> Result<usize, Fault> {
        match answer {
            Answer::Index(index) => {
                usize::try_from(index).ok().filter(|&index| index < choices.len()).ok_or_else(|| {
                    Fault::in_field(
                        "answer",
                        format!("{index} is out of range: the indices are 0 to {}", choices.len() - 1),
                    )
                })
            }
            Answer::Text(text) => self.text_answers.add(place, text, choices).map(|()| 0),
        }
    }

    /// The questions, once all records were added.
    pub(super) fn finish(self) -> Result<QuestionSet> {
        let Self { file, columns, mut questions, text_answers, .. } = self;
        let error = |place: Option<usize>, Fault { field, problem }| {
            let row = place.map(|place| place as u64 + 1);
            DatasetError { file: file.clone(), row, field, problem }
        };
        if questions.is_empty() {
            return Err(error(None, Fault::new("there are no questions")).into());
        }
        text_answers.resolve(&mut questions).map_err(|(place, fault)| error(Some(place), fault))?;
        Ok(QuestionSet { file, columns, questions })
    }
}

/// What a value is, in the words of error messages.
pub(super) fn kind(value: &Value) -> &'static str {
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
pub(super) fn quote(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}
