//! Prompt templates and the prompts they make.

use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use wmdp_core::text::prompt::{self, Renderer};
use wmdp_core::text::question;
use wmdp_core::text::template::{self, ChoiceStyle, DocToText};

use crate::detach;
use crate::error::to_py;
use crate::question::QuestionSet;

/// How questions become prompts.
///
/// Args:
///     doc_to_text: `"mmlu"` (question, lettered choices, `Answer:`), `"question"` (`Question: ...`, `Answer:`), or a Jinja template
///         over the question's columns, rendered as lm-eval renders it: here if it is plain (columns, items of lists, `strip`, one
///         loop), else by jinja2 in a process of its own, whose time and memory are bounded.
///     choices: `"letters"` if the model answers with a letter, `"texts"` if with a choice's own text.
///     description: Text before everything else.
///     target_delimiter: Stands between a question and its answer.
///     fewshot_delimiter: Stands after each few-shot example.
///
/// Raises:
///     TemplateError: If `doc_to_text` is neither a built-in form nor a template that compiles, or has more than 2**20 bytes.
///     ValueError: If `choices` is neither `"letters"` nor `"texts"`.
///
/// Example:
///     >>> from wmdp_fast import PromptTemplate, QuestionSet
///     >>> questions = QuestionSet.from_rows([{"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0}])
///     >>> print(PromptTemplate("mmlu").render(questions).context(0))
///     Which bird hoots?
///     A. owl
///     B. hen
///     Answer:
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct PromptTemplate {
    inner: Arc<template::PromptTemplate>,
    doc_to_text: String,
}

#[pymethods]
impl PromptTemplate {
    #[new]
    #[pyo3(signature = (doc_to_text = "mmlu", *, choices = "letters", description = "", target_delimiter = " ", fewshot_delimiter = "\n\n"))]
    fn new(
        py: Python<'_>,
        doc_to_text: &str,
        choices: &str,
        description: &str,
        target_delimiter: &str,
        fewshot_delimiter: &str,
    ) -> PyResult<Self> {
        let choices = match choices {
            "letters" => ChoiceStyle::Letters,
            "texts" => ChoiceStyle::Texts,
            other => {
                return Err(PyValueError::new_err(format!("choices must be \"letters\" or \"texts\", not {other:?}")));
            }
        };
        let parsed = DocToText::parse(doc_to_text).map_err(to_py)?;
        if matches!(parsed, DocToText::Jinja) {
            py.import("wmdp_fast.prompts.jinja")?.call_method1("check", (doc_to_text,))?;
        }
        let inner = template::PromptTemplate {
            description: description.to_owned(),
            doc_to_text: parsed,
            choices,
            target_delimiter: target_delimiter.to_owned(),
            fewshot_delimiter: fewshot_delimiter.to_owned(),
        };
        Ok(Self { inner: Arc::new(inner), doc_to_text: doc_to_text.to_owned() })
    }

    /// The prompts of all questions.
    ///
    /// Args:
    ///     questions: The questions to ask.
    ///     fewshot: Where examples come from; the first `num_fewshot` are taken (lm-eval's sampler `first_n`).
    ///     num_fewshot: How many examples to put before each question.
    ///
    /// Raises:
    ///     TemplateError: If a question cannot be rendered; names file and row.
    ///     ValueError: If there are fewer examples than asked for.
    #[pyo3(signature = (questions, fewshot = None, num_fewshot = 0))]
    fn render(
        &self,
        py: Python<'_>,
        questions: &QuestionSet,
        fewshot: Option<&QuestionSet>,
        num_fewshot: usize,
    ) -> PyResult<Prompts> {
        let fewshot = fewshot.map(|set| set.inner.as_ref());
        let examples = template::PromptTemplate::examples(fewshot, num_fewshot).map_err(to_py)?.map(Arc::new);
        let (texts, renderer) = self.texts(py, &questions.inner)?;
        let example_texts = match &examples {
            Some(set) => self.texts(py, set)?.0,
            None => Vec::new(),
        };
        let (template, questions) = (Arc::clone(&self.inner), Arc::clone(&questions.inner));
        let inner = detach::run(py, move |_| {
            let examples: Vec<_> = examples.iter().flat_map(|set| &set.questions).zip(example_texts).collect();
            Ok(template.prompts(&questions, texts, &examples, renderer))
        })?;
        Ok(Prompts { inner: Arc::new(inner) })
    }

    /// The text of each question by itself, without description and examples.
    ///
    /// Raises:
    ///     TemplateError: If a question cannot be rendered; names file and row.
    fn question_texts(&self, py: Python<'_>, questions: &QuestionSet) -> PyResult<Vec<String>> {
        Ok(self.texts(py, &questions.inner)?.0)
    }

    /// What the model may answer to each question, without the delimiter.
    fn choice_texts(&self, questions: &QuestionSet) -> Vec<Vec<String>> {
        questions.inner.questions.iter().map(|question| self.inner.choices(question)).collect()
    }

    /// Text before everything else.
    #[getter]
    fn description(&self) -> &str {
        &self.inner.description
    }

    /// The built-in form's name or the Jinja source.
    #[getter]
    fn doc_to_text(&self) -> &str {
        &self.doc_to_text
    }

    /// `"letters"` or `"texts"`.
    #[getter]
    fn choices(&self) -> &'static str {
        match self.inner.choices {
            ChoiceStyle::Letters => "letters",
            ChoiceStyle::Texts => "texts",
        }
    }

    /// Stands between a question and its answer.
    #[getter]
    fn target_delimiter(&self) -> &str {
        &self.inner.target_delimiter
    }

    /// Stands after each few-shot example.
    #[getter]
    fn fewshot_delimiter(&self) -> &str {
        &self.inner.fewshot_delimiter
    }

    fn __getnewargs_ex__(&self) -> ((&str,), std::collections::HashMap<&'static str, &str>) {
        let options = [
            ("choices", self.choices()),
            ("description", self.description()),
            ("target_delimiter", self.target_delimiter()),
            ("fewshot_delimiter", self.fewshot_delimiter()),
        ];
        ((&self.doc_to_text,), options.into_iter().collect())
    }

    fn __repr__(&self) -> String {
        format!(
            "PromptTemplate({:?}, choices={:?}, description={:?})",
            self.doc_to_text,
            self.choices(),
            self.description()
        )
    }
}

impl PromptTemplate {
    /// The text of each question, and what rendered them.
    fn texts(&self, py: Python<'_>, questions: &Arc<question::QuestionSet>) -> PyResult<(Vec<String>, Renderer)> {
        let (template, theirs) = (Arc::clone(&self.inner), Arc::clone(questions));
        if let Some(texts) = detach::run(py, move |cancel| template.question_texts(&theirs, cancel))? {
            return Ok((texts, Renderer::Rust));
        }
        if !questions.foreign.is_empty() {
            let names = py.import("wmdp_fast.prompts.jinja")?.call_method1("names", (&self.doc_to_text,))?.extract()?;
            questions.check_names(&names).map_err(to_py)?;
        }
        let theirs = Arc::clone(questions);
        let documents = detach::run(py, move |cancel| theirs.to_json_lines(cancel))?;
        let arguments = (&self.doc_to_text, PyBytes::new(py, &documents), &questions.file);
        let texts = py.import("wmdp_fast.prompts.jinja")?.call_method1("render", arguments)?.extract()?;
        Ok((texts, Renderer::Jinja2))
    }
}

/// The prompts of one task, in question order.
///
/// A context and one of its continuations, joined, are what a model reads; the continuation is what it is scored on.
/// Immutable; can be pickled and shared between threads.
///
/// Example:
///     >>> from wmdp_fast import Prompts
///     >>> prompts = Prompts.from_contexts(["Which bird hoots? The"], [["owl", "hen"]], [0], delimiter=" ")
///     >>> prompts.context(0) + prompts.continuation(0, 1)
///     'Which bird hoots? The hen'
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Prompts {
    pub(crate) inner: Arc<prompt::Prompts>,
}

#[pymethods]
impl Prompts {
    /// Prompts from texts made elsewhere, a chat template for instance.
    ///
    /// Args:
    ///     contexts: The whole text before each answer.
    ///     choices: What the model may answer to each question.
    ///     answers: Index of each question's right choice.
    ///     delimiter: Stands between a context and an answer.
    ///     source: Where the questions come from, for error messages.
    ///
    /// Raises:
    ///     ValueError: If the lists differ in length, a question has no choices, or an answer is not one of them.
    #[staticmethod]
    #[pyo3(signature = (contexts, choices, answers, *, delimiter = "", source = "<memory>"))]
    fn from_contexts(
        py: Python<'_>,
        contexts: Vec<String>,
        choices: Vec<Vec<String>>,
        answers: Vec<usize>,
        delimiter: &str,
        source: &str,
    ) -> PyResult<Self> {
        let (delimiter, source) = (delimiter.to_owned(), source.to_owned());
        let inner =
            detach::run(py, move |_| prompt::Prompts::from_contexts(&contexts, choices, answers, &delimiter, &source))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same questions, choices and answers after other contexts, such as those of a chat template.
    ///
    /// Args:
    ///     contexts: The whole text before each answer.
    ///     delimiter: Stands between a context and an answer.
    ///
    /// Raises:
    ///     ValueError: If there are not as many contexts as questions.
    #[pyo3(signature = (contexts, *, delimiter = ""))]
    fn with_contexts(&self, py: Python<'_>, contexts: Vec<String>, delimiter: &str) -> PyResult<Self> {
        let (inner, delimiter) = (Arc::clone(&self.inner), delimiter.to_owned());
        let inner = detach::run(py, move |_| inner.with_contexts(&contexts, &delimiter))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// Number of choices of all questions together.
    #[getter]
    fn num_choices(&self) -> usize {
        self.inner.choices.iter().map(Vec::len).sum()
    }

    /// The text that every context begins with: description and few-shot examples.
    #[getter]
    fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// Stands between a context and an answer.
    #[getter]
    fn delimiter(&self) -> &str {
        &self.inner.delimiter
    }

    /// What rendered the questions: `"rust"`, `"jinja2"`, or `"given"` if the contexts were.
    #[getter]
    fn renderer(&self) -> &'static str {
        self.inner.renderer.name()
    }

    /// Index of each question's right choice.
    #[getter]
    fn answers(&self) -> Vec<usize> {
        self.inner.answers.clone()
    }

    /// The whole context of a question.
    fn context(&self, question: usize) -> PyResult<String> {
        self.check(question)?;
        Ok(self.inner.context(question))
    }

    /// What the model may answer to a question, without the delimiter.
    fn choices(&self, question: usize) -> PyResult<Vec<String>> {
        self.check(question)?;
        Ok(self.inner.choices[question].clone())
    }

    /// What follows a question's context if the model answers with a choice.
    fn continuation(&self, question: usize, choice: usize) -> PyResult<String> {
        self.check(question)?;
        if choice >= self.inner.choices[question].len() {
            return Err(PyIndexError::new_err(format!("question {question} has no choice {choice}")));
        }
        Ok(self.inner.continuation(question, choice))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let inner = Arc::clone(&self.inner);
        let state = detach::run(py, move |_| inner.to_bytes())?;
        let restore = py.import("wmdp_fast._rust")?.getattr("_restore_prompts")?;
        Ok((restore, (PyBytes::new(py, &state),)))
    }
}

/// What pickle calls to make `Prompts` again.
#[pyfunction]
pub(crate) fn _restore_prompts(py: Python<'_>, state: Vec<u8>) -> PyResult<Prompts> {
    let inner = detach::run(py, move |_| prompt::Prompts::from_bytes(&state))?;
    Ok(Prompts { inner: Arc::new(inner) })
}

impl Prompts {
    fn check(&self, question: usize) -> PyResult<()> {
        if question >= self.inner.len() {
            return Err(PyIndexError::new_err(format!("there is no question {question}, only {}", self.inner.len())));
        }
        Ok(())
    }
}
