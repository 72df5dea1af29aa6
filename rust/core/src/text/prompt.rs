//! Prompts: what a model is asked, as text, one task at a time.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What rendered the questions of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renderer {
    /// This crate.
    Rust,
    /// jinja2, as lm-eval.
    Jinja2,
    /// Somebody else: the contexts were given.
    Given,
}

impl Renderer {
    /// The name to show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Jinja2 => "jinja2",
            Self::Given => "given",
        }
    }
}

/// The prompts of one task. The context of question `i` is `prefix + bodies[i]`, its continuation `j` is
/// `delimiter + choices[i][j]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// Where the questions come from, for error messages: their file.
    pub source: String,
    /// Description and few-shot examples: the text that every context of the task begins with.
    pub prefix: String,
    /// The rest of each context.
    pub bodies: Vec<String>,
    /// What a model may answer, without the delimiter: letters or the choices' texts.
    pub choices: Vec<Vec<String>>,
    /// Stands between context and answer (lm-eval's `target_delimiter`).
    pub delimiter: String,
    /// Index of each question's right choice.
    pub answers: Vec<usize>,
    /// What rendered the questions.
    pub renderer: Renderer,
}

impl Prompts {
    /// Prompts from whole contexts; what all of them begin with becomes the prefix.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the lists differ in length, a question has no choices, or an answer is not one of them.
    pub fn from_contexts(
        contexts: &[String],
        choices: Vec<Vec<String>>,
        answers: Vec<usize>,
        delimiter: &str,
        source: &str,
    ) -> Result<Self> {
        if contexts.len() != choices.len() || contexts.len() != answers.len() {
            return Err(Error::InvalidArgument(format!(
                "{} contexts, {} lists of choices and {} answers do not make prompts: there must be as many of each",
                contexts.len(),
                choices.len(),
                answers.len()
            )));
        }
        if let Some(question) = (0..answers.len()).find(|&question| answers[question] >= choices[question].len()) {
            return Err(Error::InvalidArgument(format!(
                "{source}, row {}: answer {} is not one of its {} choices",
                question + 1,
                answers[question],
                choices[question].len()
            )));
        }
        let prefix = common_prefix(contexts);
        Ok(Self {
            source: source.to_owned(),
            bodies: contexts.iter().map(|context| context[prefix.len()..].to_owned()).collect(),
            prefix: prefix.to_owned(),
            choices,
            delimiter: delimiter.to_owned(),
            answers,
            renderer: Renderer::Given,
        })
    }

    /// The same questions, choices and answers after other contexts, such as those of a chat template.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are not as many contexts as questions.
    pub fn with_contexts(&self, contexts: &[String], delimiter: &str) -> Result<Self> {
        let given = Self::from_contexts(contexts, self.choices.clone(), self.answers.clone(), delimiter, &self.source)?;
        Ok(Self { renderer: self.renderer, ..given })
    }

    /// The prompts as bytes that [`Prompts::from_bytes`] reads, for pickling.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::Internal(format!("prompts cannot be written: {error}")))
    }

    /// The prompts that were written by [`Prompts::to_bytes`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they were not.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |problem| Error::InvalidArgument(format!("these bytes are no pickled prompts: {problem}"));
        let prompts: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        let same_length =
            prompts.bodies.len() == prompts.choices.len() && prompts.bodies.len() == prompts.answers.len();
        if !same_length
            || prompts.answers.iter().zip(&prompts.choices).any(|(&answer, choices)| answer >= choices.len())
        {
            return Err(invalid("questions, choices and answers do not fit together".to_owned()));
        }
        Ok(prompts)
    }

    /// Number of questions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Whether there are no questions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }

    /// The whole context of a question.
    #[must_use]
    pub fn context(&self, question: usize) -> String {
        [self.prefix.as_str(), self.bodies[question].as_str()].concat()
    }

    /// What follows the context if the model answers with `choice`.
    #[must_use]
    pub fn continuation(&self, question: usize, choice: usize) -> String {
        [self.delimiter.as_str(), self.choices[question][choice].as_str()].concat()
    }
}

/// The longest text that all texts begin with; one text alone shares nothing.
fn common_prefix(texts: &[String]) -> &str {
    let [first, rest @ ..] = texts else { return "" };
    if rest.is_empty() {
        return "";
    }
    let shared = |other: &String| first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let mut length = rest.iter().map(shared).min().unwrap_or(0);
    while !first.is_char_boundary(length) {
        length -= 1;
    }
    &first[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(contexts: &[&str]) -> Prompts {
        let contexts: Vec<String> = contexts.iter().map(|&text| text.to_owned()).collect();
        let choices = vec![vec!["A".to_owned(), "B".to_owned()]; contexts.len()];
        let answers = vec![1; contexts.len()];
        Prompts::from_contexts(&contexts, choices, answers, "", "chat").unwrap()
    }

    #[test]
    fn whole_contexts_share_their_beginning() {
        let prompts = prompts(&["chat: é one", "chat: è two"]);
        assert_eq!(prompts.prefix, "chat: ");
        assert_eq!(prompts.context(1), "chat: è two");
    }

    #[test]
    fn answers_must_be_choices() {
        let error =
            Prompts::from_contexts(&["q".to_owned()], vec![vec!["A".to_owned()]], vec![1], "", "chat").unwrap_err();
        assert!(error.to_string().contains("chat, row 1: answer 1"), "{error}");
    }
}
