//! Prompt templates: how a question becomes text.
//!
//! Two forms are built in and written out in Rust, and so are plain Jinja templates (see [`crate::text::plain`]). All others are jinja2's
//! to render, which the caller of this crate has: [`PromptTemplate::question_texts`] says where it is needed.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::runtime::parallel::{self, Cancel};
use crate::text::plain::PlainTemplate;
use crate::text::prompt::{Prompts, Renderer};
use crate::text::question::{Question, QuestionSet, letter};
use crate::text::space::strip;

/// Most bytes in the source of a template.
pub const LONGEST_SOURCE: usize = 1 << 20;

/// Most bytes that a template may make of all questions of a file.
pub const LONGEST_TEXTS: usize = 1 << 30;

/// What begins something that Jinja reads; text without any of them is no template.
const JINJA: [&str; 3] = ["{{", "{%", "{#"];

/// How the text of a question is made (lm-eval's `doc_to_text`).
#[derive(Debug, Clone)]
pub enum DocToText {
    /// MMLU's and WMDP's form: the stripped question, a line `A. …` for each choice, then `Answer:`.
    Letters,
    /// The continuation form: `Question: ` and the stripped question, then `Answer:`.
    Question,
    /// A Jinja template over the question's columns that is rendered here, as far as the columns allow it.
    Plain(PlainTemplate),
    /// Any other Jinja template over the question's columns.
    Jinja,
}

impl DocToText {
    /// The built-in form of that name (`mmlu` or `question`), else the Jinja template `source`. That of a template which is not
    /// plain is not looked at any further.
    ///
    /// # Errors
    /// [`Error::Template`] if the text is neither, or too long.
    pub fn parse(source: &str) -> Result<Self> {
        match source {
            "mmlu" => return Ok(Self::Letters),
            "question" => return Ok(Self::Question),
            _ => {}
        }
        if source.len() > LONGEST_SOURCE {
            let bytes = source.len();
            return Err(Error::Template(format!("it has {bytes} bytes; the most are {LONGEST_SOURCE}")));
        }
        if !JINJA.iter().any(|begin| source.contains(begin)) {
            return Err(Error::Template(format!(
                "{:?} is neither a built-in form (`mmlu`, `question`) nor a Jinja template such as \
                 \"{{{{question.strip()}}}}\\nAnswer:\"",
                beginning(source)
            )));
        }
        Ok(PlainTemplate::parse(source).map_or(Self::Jinja, Self::Plain))
    }

    /// Appends the text of a question; false if jinja2 is needed for it.
    fn render(&self, question: &Question, out: &mut String) -> bool {
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
                true
            }
            Self::Question => {
                out.push_str("Question: ");
                out.push_str(strip(&question.question));
                out.push_str("\nAnswer:");
                true
            }
            Self::Plain(template) => template.render(question, out).is_ok(),
            Self::Jinja => false,
        }
    }
}

/// What to quote of a template: its first line, or as much of it as fits into a message.
fn beginning(source: &str) -> String {
    let line: String = source.lines().next().unwrap_or_default().chars().take(80).collect();
    if line.len() < source.len() { line + "…" } else { line }
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
///
/// ```
/// use wmdp_core::dataset::{Row, from_rows};
/// use wmdp_core::runtime::parallel::Cancel;
/// use wmdp_core::text::template::{ChoiceStyle, DocToText, PromptTemplate};
///
/// let serde_json::Value::Object(fields) =
///     serde_json::json!({"question": "Which bird hoots?", "choices": ["owl", "hen"], "answer": 0})
/// else {
///     unreachable!()
/// };
/// let questions = from_rows([Row { fields, ..Row::default() }], "birds", &Cancel::default())?;
/// let template = PromptTemplate {
///     description: String::new(),
///     doc_to_text: DocToText::parse("mmlu")?,
///     choices: ChoiceStyle::Letters,
///     target_delimiter: " ".to_owned(),
///     fewshot_delimiter: "\n\n".to_owned(),
/// };
/// let texts = template.question_texts(&questions, &Cancel::default())?;
/// assert_eq!(texts, Some(vec!["Which bird hoots?\nA. owl\nB. hen\nAnswer:".to_owned()]));
/// # Ok::<(), wmdp_core::Error>(())
/// ```
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
    /// The text of each question, without description and examples; None if jinja2 is needed for one of them.
    ///
    /// # Errors
    /// [`Error::Template`] if the texts are too long, or the template names a column whose values are not what lm-eval's templates
    /// see; [`Error::Cancelled`].
    pub fn question_texts(&self, questions: &QuestionSet, cancel: &Cancel) -> Result<Option<Vec<String>>> {
        if matches!(self.doc_to_text, DocToText::Jinja) {
            return Ok(None);
        }
        if let DocToText::Plain(template) = &self.doc_to_text
            && !questions.foreign.is_empty()
        {
            questions.check_names(&template.columns())?;
        }
        let total = AtomicUsize::new(0);
        parallel::install(|| {
            questions
                .questions
                .par_iter()
                .map(|question| {
                    cancel.check()?;
                    let choices = question.choices.iter().map(|choice| choice.len() + 4).sum::<usize>();
                    let mut text = String::with_capacity(question.question.len() + choices + 24);
                    let rendered = self.doc_to_text.render(question, &mut text);
                    if total.fetch_add(text.len(), Ordering::Relaxed) > LONGEST_TEXTS {
                        return Err(Error::Template(format!(
                            "the prompts of {} are more than {LONGEST_TEXTS} bytes together",
                            questions.file
                        )));
                    }
                    Ok(rendered.then_some(text))
                })
                .collect()
        })
    }

    /// What the model may answer to one question.
    #[must_use]
    pub fn choices(&self, question: &Question) -> Vec<String> {
        match self.choices {
            ChoiceStyle::Letters => (0..question.choices.len()).map(|index| letter(index).to_string()).collect(),
            ChoiceStyle::Texts => question.choices.clone(),
        }
    }

    /// The first `num_fewshot` of `fewshot` (lm-eval's sampler `first_n`).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are too few.
    pub fn examples(fewshot: Option<&QuestionSet>, num_fewshot: usize) -> Result<Option<QuestionSet>> {
        if num_fewshot == 0 {
            return Ok(None);
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
        Ok(Some(examples.head(num_fewshot)))
    }

    /// The prompts of questions whose texts are known, after examples with their answers.
    #[must_use]
    pub fn prompts(
        &self,
        questions: &QuestionSet,
        texts: Vec<String>,
        examples: &[(&Question, String)],
        renderer: Renderer,
    ) -> Prompts {
        let mut prefix = self.description.clone();
        for (example, text) in examples {
            prefix.push_str(text);
            prefix.push_str(&self.target_delimiter);
            match self.choices {
                ChoiceStyle::Letters => prefix.push(letter(example.answer)),
                ChoiceStyle::Texts => prefix.push_str(&example.choices[example.answer]),
            }
            prefix.push_str(&self.fewshot_delimiter);
        }
        Prompts {
            source: questions.file.clone(),
            prefix,
            bodies: texts,
            choices: questions.questions.iter().map(|question| self.choices(question)).collect(),
            delimiter: self.target_delimiter.clone(),
            answers: questions.questions.iter().map(|question| question.answer).collect(),
            renderer,
        }
    }
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

    /// The prompts of one question after itself.
    fn prompts(template: &PromptTemplate) -> Prompts {
        let birds = set(vec![question()]);
        let texts = template.question_texts(&birds, &Cancel::default()).unwrap().unwrap();
        let examples = PromptTemplate::examples(Some(&birds), 1).unwrap().unwrap();
        let example = [(&examples.questions[0], texts[0].clone())];
        template.prompts(&birds, texts, &example, Renderer::Rust)
    }

    #[test]
    fn letters_form_is_lm_evals() {
        let prompts = prompts(&template("mmlu", ChoiceStyle::Letters));
        let body = "Which bird is blue?\nA. wren\nB. jay\nC. it's a \"tit\"\nD. x\nAnswer:";
        assert_eq!(prompts.context(0), format!("Birds.\n\n{body} B\n\n{body}"));
        assert_eq!(prompts.continuation(0, 2), " C");
    }

    #[test]
    fn question_form_continues_with_the_choices() {
        let prompts = prompts(&template("question", ChoiceStyle::Texts));
        assert_eq!(prompts.prefix, "Birds.\n\nQuestion: Which bird is blue?\nAnswer: jay\n\n");
        assert_eq!(prompts.continuation(0, 0), " wren");
    }

    #[test]
    fn jinja2_is_needed_where_a_template_or_a_value_is_not_plain() {
        let birds = set(vec![question()]);
        for (source, plain) in [("{{ question }}", true), ("{{ level }}", false), ("{{ question|upper }}", false)] {
            let texts = template(source, ChoiceStyle::Letters).question_texts(&birds, &Cancel::default()).unwrap();
            assert_eq!(texts.is_some(), plain, "{source}");
        }
    }

    #[test]
    fn what_is_no_template_is_quoted_in_short() {
        let error = DocToText::parse(&("mmul\n".to_owned() + &"x".repeat(1000))).unwrap_err().to_string();
        assert!(error.contains("neither a built-in form") && error.len() < 300, "{error}");
        let error = DocToText::parse(&"{{x}}".repeat(1 << 20)).unwrap_err().to_string();
        assert!(error.contains("5242880 bytes"), "{error}");
    }

    #[test]
    fn too_few_examples_are_refused() {
        let error = PromptTemplate::examples(Some(&set(vec![question()])), 5).unwrap_err();
        assert!(error.to_string().contains("birds.jsonl holds only 1"), "{error}");
    }
}
