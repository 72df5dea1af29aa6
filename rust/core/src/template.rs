//! Prompt templates: how a question becomes text.
//!
//! Two forms are built in and written out in Rust; anything else is a Jinja template with lm-eval's settings (strict undefined
//! names, a trailing newline is kept, values print as Python prints them).

use std::sync::Arc;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind, Output, State, UndefinedBehavior};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::parallel::{self, Cancel};
use crate::prompt::Prompts;
use crate::question::{Question, QuestionSet, letter};

/// Name under which a custom template is stored in its environment.
const TEMPLATE: &str = "doc_to_text";

/// How the text of a question is made (lm-eval's `doc_to_text`).
#[derive(Debug, Clone)]
pub enum DocToText {
    /// MMLU's and WMDP's form: the stripped question, a line `A. …` for each choice, then `Answer:`.
    Letters,
    /// The continuation form: `Question: ` and the stripped question, then `Answer:`.
    Question,
    /// A Jinja template over the question's columns.
    Jinja(Arc<Environment<'static>>),
}

impl DocToText {
    /// The built-in form of that name (`mmlu` or `question`), else `source` compiled as a Jinja template.
    ///
    /// # Errors
    /// [`Error::Template`] if the text is neither, or does not compile.
    pub fn parse(source: &str) -> Result<Self> {
        match source {
            "mmlu" => return Ok(Self::Letters),
            "question" => return Ok(Self::Question),
            _ => {}
        }
        if !source.contains("{{") && !source.contains("{%") {
            return Err(Error::Template(format!(
                "{source:?} is neither a built-in form (`mmlu`, `question`) nor a Jinja template such as \
                 \"{{{{question.strip()}}}}\\nAnswer:\""
            )));
        }
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_keep_trailing_newline(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(string_method);
        environment.add_filter("trim", trim);
        environment.set_formatter(python_formatter);
        environment
            .add_template_owned(TEMPLATE, source.to_owned())
            .map_err(|error| Error::Template(format!("{} (in {source:?})", describe(&error))))?;
        Ok(Self::Jinja(Arc::new(environment)))
    }

    fn render(&self, question: &Question, out: &mut String) -> Result<()> {
        match self {
            Self::Letters => {
                out.push_str(strip(&question.question));
                for (index, choice) in question.choices.iter().enumerate() {
                    out.push('\n');
                    out.push(letter(index));
                    out.push_str(". ");
                    out.push_str(choice);
                }
                out.push_str("\nAnswer:");
            }
            Self::Question => {
                out.push_str("Question: ");
                out.push_str(strip(&question.question));
                out.push_str("\nAnswer:");
            }
            Self::Jinja(environment) => {
                let rendered = environment
                    .get_template(TEMPLATE)
                    .and_then(|template| template.render(context(question)))
                    .map_err(|error| Error::Template(describe(&error)))?;
                out.push_str(&rendered);
            }
        }
        Ok(())
    }
}

/// What a model may answer with (lm-eval's `doc_to_choice`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceStyle {
    /// The choices' letters.
    Letters,
    /// The choices' own texts.
    Texts,
}

/// A complete prompt format.
#[derive(Debug, Clone)]
pub struct PromptTemplate {
    /// Text before everything else.
    pub description: String,
    /// How a question is written.
    pub doc_to_text: DocToText,
    /// How a choice is written.
    pub choices: ChoiceStyle,
    /// Stands between a question and its answer.
    pub target_delimiter: String,
    /// Stands after each few-shot example.
    pub fewshot_delimiter: String,
}

impl PromptTemplate {
    /// The text of one question, without description and examples.
    pub fn question_text(&self, question: &Question) -> Result<String> {
        let size = question.question.len() + question.choices.iter().map(|choice| choice.len() + 4).sum::<usize>() + 24;
        let mut text = String::with_capacity(size);
        self.doc_to_text.render(question, &mut text)?;
        Ok(text)
    }

    /// What the model may answer to one question.
    #[must_use]
    pub fn choices(&self, question: &Question) -> Vec<String> {
        match self.choices {
            ChoiceStyle::Letters => (0..question.choices.len()).map(|index| letter(index).to_string()).collect(),
            ChoiceStyle::Texts => question.choices.clone(),
        }
    }

    /// Prompts for all questions, after the first `num_fewshot` of `fewshot` with their answers (lm-eval's sampler `first_n`).
    ///
    /// # Errors
    /// [`Error::Template`] naming file and row if a question cannot be rendered, [`Error::InvalidArgument`] if there are too few
    /// examples, [`Error::Cancelled`].
    pub fn render(
        &self,
        questions: &QuestionSet,
        fewshot: Option<&QuestionSet>,
        num_fewshot: usize,
        cancel: &Cancel,
    ) -> Result<Prompts> {
        self.check_columns(questions)?;
        fewshot.filter(|_| num_fewshot > 0).map_or(Ok(()), |examples| self.check_columns(examples))?;
        let prefix = self.prefix(fewshot, num_fewshot)?;
        let bodies = parallel::install(|| {
            questions
                .questions
                .par_iter()
                .enumerate()
                .map(|(index, question)| {
                    cancel.check()?;
                    self.question_text(question).map_err(|error| locate(error, questions, index))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Prompts {
            source: questions.file.clone(),
            prefix,
            bodies,
            choices: questions.questions.iter().map(|question| self.choices(question)).collect(),
            delimiter: self.target_delimiter.clone(),
            answers: questions.questions.iter().map(|question| question.answer).collect(),
        })
    }

    /// Refuses a template that names a column whose values are not what lm-eval's templates see.
    ///
    /// # Errors
    /// [`Error::Template`] naming file, column and what it holds.
    pub fn check_columns(&self, questions: &QuestionSet) -> Result<()> {
        let DocToText::Jinja(environment) = &self.doc_to_text else { return Ok(()) };
        if questions.foreign.is_empty() {
            return Ok(());
        }
        let template = environment.get_template(TEMPLATE).map_err(|error| Error::Template(describe(&error)))?;
        questions.check_names(&template.undeclared_variables(false))
    }

    fn prefix(&self, fewshot: Option<&QuestionSet>, num_fewshot: usize) -> Result<String> {
        let mut prefix = self.description.clone();
        if num_fewshot == 0 {
            return Ok(prefix);
        }
        let Some(examples) = fewshot else {
            return Err(Error::InvalidArgument(format!(
                "{num_fewshot} few-shot examples were asked for, but there is no file to take them from"
            )));
        };
        if examples.questions.len() < num_fewshot {
            return Err(Error::InvalidArgument(format!(
                "{num_fewshot} few-shot examples were asked for, but {} holds only {}",
                examples.file,
                examples.questions.len()
            )));
        }
        for (index, example) in examples.questions[..num_fewshot].iter().enumerate() {
            self.doc_to_text.render(example, &mut prefix).map_err(|error| locate(error, examples, index))?;
            prefix.push_str(&self.target_delimiter);
            match self.choices {
                ChoiceStyle::Letters => prefix.push(letter(example.answer)),
                ChoiceStyle::Texts => prefix.push_str(&example.choices[example.answer]),
            }
            prefix.push_str(&self.fewshot_delimiter);
        }
        Ok(prefix)
    }
}

fn locate(error: Error, questions: &QuestionSet, index: usize) -> Error {
    match error {
        Error::Template(problem) => Error::Template(format!("{problem}; at {}, row {}", questions.file, index + 1)),
        other => other,
    }
}

/// Whether Python's `str.isspace` holds for the character: Unicode's white space and the four separators U+001C to U+001F.
#[must_use]
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip()`.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

fn context(question: &Question) -> Value {
    let mut fields: Vec<(String, Value)> =
        question.extra.iter().map(|(name, value)| (name.clone(), Value::from_serialize(value))).collect();
    fields.push(("question".to_owned(), Value::from(question.question.as_str())));
    fields.push(("choices".to_owned(), Value::from(question.choices.clone())));
    fields.push(("answer".to_owned(), Value::from(question.answer)));
    if let Some(subject) = &question.subject {
        fields.push(("subject".to_owned(), Value::from(subject.as_str())));
    }
    fields.into_iter().collect()
}

/// Python's string methods; the stripping ones by Python's idea of white space, the rest from minijinja's own collection.
fn string_method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, JinjaError> {
    if let (Some(text), []) = (value.as_str(), args) {
        match method {
            "strip" => return Ok(Value::from(strip(text))),
            "lstrip" => return Ok(Value::from(text.trim_start_matches(is_python_space))),
            "rstrip" => return Ok(Value::from(text.trim_end_matches(is_python_space))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Jinja's filter `trim`, by Python's idea of white space.
fn trim(text: &str, characters: Option<&str>) -> String {
    characters.map_or_else(|| strip(text), |set| text.trim_matches(|c| set.contains(c))).to_owned()
}

/// Prints a value as Python's `str` does; Jinja in Python prints `True`, `None` and `['a']`, minijinja by itself does not.
fn python_formatter(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), JinjaError> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => minijinja::escape_formatter(out, state, value),
        _ => {
            let mut text = String::new();
            python_repr(value, &mut text)?;
            out.write_str(&text).map_err(|_| JinjaError::new(ErrorKind::WriteFailure, "the text could not be written"))
        }
    }
}

fn python_repr(value: &Value, out: &mut String) -> Result<(), JinjaError> {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => python_string_repr(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                python_repr(&item, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                python_repr(&key, out)?;
                out.push_str(": ");
                python_repr(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Python's `repr` of a string: single quotes unless the text holds only single ones, the usual escapes.
fn python_string_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// An error of the template engine with its causes, on one line.
fn describe(error: &JinjaError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn question() -> Question {
        Question {
            question: "\n  Which bird is blue? ".to_owned(),
            choices: ["wren", "jay", "it's a \"tit\"", "x"].map(String::from).to_vec(),
            answer: 1,
            subject: None,
            extra: Map::from_iter([("level".to_owned(), serde_json::json!(true))]),
        }
    }

    fn set(questions: Vec<Question>) -> QuestionSet {
        QuestionSet {
            file: "birds.jsonl".to_owned(),
            columns: vec![],
            questions,
            foreign: std::collections::BTreeMap::new(),
        }
    }

    fn template(doc_to_text: &str, choices: ChoiceStyle) -> PromptTemplate {
        PromptTemplate {
            description: "Birds.\n\n".to_owned(),
            doc_to_text: DocToText::parse(doc_to_text).unwrap(),
            choices,
            target_delimiter: " ".to_owned(),
            fewshot_delimiter: "\n\n".to_owned(),
        }
    }

    #[test]
    fn letters_form_is_lm_evals() {
        let prompts = template("mmlu", ChoiceStyle::Letters)
            .render(&set(vec![question()]), Some(&set(vec![question()])), 1, &Cancel::default())
            .unwrap();
        let body = "Which bird is blue?\nA. wren\nB. jay\nC. it's a \"tit\"\nD. x\nAnswer:";
        assert_eq!(prompts.context(0), format!("Birds.\n\n{body} B\n\n{body}"));
        assert_eq!(prompts.continuation(0, 2), " C");
    }

    #[test]
    fn question_form_continues_with_the_choices() {
        let prompts = template("question", ChoiceStyle::Texts)
            .render(&set(vec![question()]), Some(&set(vec![question()])), 1, &Cancel::default())
            .unwrap();
        assert_eq!(prompts.prefix, "Birds.\n\nQuestion: Which bird is blue?\nAnswer: jay\n\n");
        assert_eq!(prompts.continuation(0, 0), " wren");
    }

    #[test]
    fn jinja_prints_like_python() {
        let text = template("{{ level }} {{ choices }} {{ none }} {{ answer }}\n", ChoiceStyle::Letters)
            .question_text(&question())
            .unwrap();
        assert_eq!(text, "True ['wren', 'jay', 'it\\'s a \"tit\"', 'x'] None 1\n");
    }

    #[test]
    fn a_bad_template_is_named() {
        assert!(DocToText::parse("mmul").unwrap_err().to_string().contains("neither a built-in form"));
        assert!(DocToText::parse("{{ question").unwrap_err().to_string().contains("{{ question"));
        let missing = template("{{ hint }}", ChoiceStyle::Letters)
            .render(&set(vec![question()]), None, 0, &Cancel::default())
            .unwrap_err();
        assert!(missing.to_string().contains("birds.jsonl, row 1"), "{missing}");
    }

    #[test]
    fn too_few_examples_are_refused() {
        let error = template("mmlu", ChoiceStyle::Letters)
            .render(&set(vec![question()]), Some(&set(vec![question()])), 5, &Cancel::default())
            .unwrap_err();
        assert!(error.to_string().contains("birds.jsonl holds only 1"), "{error}");
    }
}
