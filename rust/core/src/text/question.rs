//! A multiple-choice question and a file's worth of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::runtime::parallel::Cancel;

/// Fewest and most choices a question can have; the upper bound is the number of letters to answer with.
pub const CHOICES: std::ops::RangeInclusive<usize> = 2..=26;

/// The columns with a meaning of their own; all others are extra.
pub const COLUMNS: [&str; 4] = ["question", "choices", "answer", "subject"];

/// Opens the hashed text, so that a later encoding cannot be mistaken for this one.
const HASH_HEADER: &[u8] = b"wmdp-fast questions 1\n";

/// The letter of a choice: 0 is `A`, 25 is `Z`.
#[must_use]
pub fn letter(index: usize) -> char {
    debug_assert!(index < *CHOICES.end());
    char::from(b'A' + index as u8)
}

/// One question with its choices and the index of the right one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The question as it stands in the file, white space included.
    pub question: String,
    /// The choices as they stand in the file; between 2 and 26.
    pub choices: Vec<String>,
    /// Index of the right choice, always below `choices.len()`.
    pub answer: usize,
    /// The MMLU subject, where the file has that column.
    pub subject: Option<String>,
    /// Columns beyond the four above, for custom templates and for the samples file.
    pub extra: Map<String, Value>,
}

/// The questions of one file, in file order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuestionSet {
    /// Path of the file as it was given.
    pub file: String,
    /// Column names in file order; a question's document in a samples file keeps this order.
    pub columns: Vec<String>,
    /// The questions; never empty as they are read, but a selection may be.
    pub questions: Vec<Question>,
    /// Columns with values that JSON has no form for, and what those are. They stand as null among the others, dates and decimals as
    /// Python's text for them.
    #[serde(default)]
    pub foreign: BTreeMap<String, String>,
}

impl QuestionSet {
    /// The questions at these places, in this order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such question.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let questions = indices
            .iter()
            .map(|&index| {
                self.questions.get(index).cloned().ok_or_else(|| {
                    Error::InvalidArgument(format!(
                        "{}: there is no question {index}, only {}",
                        self.file,
                        self.questions.len()
                    ))
                })
            })
            .collect::<Result<_>>()?;
        Ok(self.with_questions(questions))
    }

    /// Other questions with the same file and columns.
    pub(crate) fn with_questions(&self, questions: Vec<Question>) -> Self {
        Self { file: self.file.clone(), columns: self.columns.clone(), questions, foreign: self.foreign.clone() }
    }

    /// Refuses names that a template looks up if one is a column whose values are not what lm-eval's templates see.
    ///
    /// # Errors
    /// [`Error::Template`] naming file, column and what it holds.
    pub fn check_names(&self, names: &HashSet<String>) -> Result<()> {
        match self.foreign.iter().find(|(column, _)| names.contains(*column)) {
            None => Ok(()),
            Some((column, what)) => Err(Error::Template(format!(
                "{}: the template names the column `{column}`, which holds {what}: a template could not show it as lm-eval's would; write \
                 the column as text or plain numbers",
                self.file
            ))),
        }
    }

    /// Places of the questions that are in `others` too: the same but for white space around question and choices, in any order of
    /// the choices.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn shared_with(&self, others: &Self, cancel: &Cancel) -> Result<Vec<usize>> {
        let mut known: HashMap<&str, Vec<Vec<&str>>> = HashMap::new();
        for other in &others.questions {
            cancel.check()?;
            known.entry(other.question.trim()).or_default().push(sorted_choices(other));
        }
        let is_known = |question: &Question| {
            known.get(question.question.trim()).is_some_and(|found| found.contains(&sorted_choices(question)))
        };
        let mut shared = Vec::new();
        for (place, question) in self.questions.iter().enumerate() {
            cancel.check()?;
            if is_known(question) {
                shared.push(place);
            }
        }
        Ok(shared)
    }

    /// The first `n` questions, or all if there are fewer.
    #[must_use]
    pub fn head(&self, n: usize) -> Self {
        let questions = self.questions.iter().take(n).cloned().collect();
        self.with_questions(questions)
    }

    /// The questions of several sets one after another: the shards of one split, for instance.
    ///
    /// The columns are those of all sets, in the order in which they first appear; the file is the first set's.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no set at all.
    pub fn concat(sets: &[&Self]) -> Result<Self> {
        let Some((first, rest)) = sets.split_first() else {
            return Err(Error::InvalidArgument("there are no question sets to join".to_owned()));
        };
        let mut whole = (*first).clone();
        for set in rest {
            for column in &set.columns {
                if !whole.columns.contains(column) {
                    whole.columns.push(column.clone());
                }
            }
            whole.questions.extend_from_slice(&set.questions);
            for (column, what) in &set.foreign {
                whole.foreign.entry(column.clone()).or_insert_with(|| what.clone());
            }
        }
        Ok(whole)
    }

    /// The set as bytes that [`QuestionSet::from_bytes`] reads, for pickling.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::Internal(format!("questions cannot be written as bytes: {error}")))
    }

    /// The set that was written by [`QuestionSet::to_bytes`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it was not.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |problem| Error::InvalidArgument(format!("these bytes are no pickled question set: {problem}"));
        let set: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        for question in &set.questions {
            if !CHOICES.contains(&question.choices.len()) || question.answer >= question.choices.len() {
                return Err(invalid("a question has too few or too many choices, or no right one".to_owned()));
            }
        }
        Ok(set)
    }

    /// The questions as JSON, one line each: all columns under their names, as a Jinja template sees them.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn to_json_lines(&self, cancel: &Cancel) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        for question in &self.questions {
            cancel.check()?;
            let mut fields = question.extra.clone();
            fields.insert("question".to_owned(), question.question.as_str().into());
            fields.insert("choices".to_owned(), question.choices.clone().into());
            fields.insert("answer".to_owned(), question.answer.into());
            if question.subject.is_some() || self.columns.iter().any(|column| column == "subject") {
                fields.insert("subject".to_owned(), question.subject.clone().into());
            }
            serde_json::to_writer(&mut lines, &fields)
                .map_err(|error| Error::Internal(format!("questions cannot be written as JSON: {error}")))?;
            lines.push(b'\n');
        }
        Ok(lines)
    }

    /// The distinct subjects, sorted.
    #[must_use]
    pub fn subjects(&self) -> Vec<&str> {
        let distinct: BTreeSet<&str> =
            self.questions.iter().filter_map(|question| question.subject.as_deref()).collect();
        distinct.into_iter().collect()
    }

    /// SHA-256 of questions, choices and answers as 64 hexadecimal digits: the same for the same questions in any file format.
    ///
    /// Hashed are the bytes `wmdp-fast questions 1\n`, then for each question: the question, the number of choices, each choice,
    /// the answer's index. A text is its length in bytes, then its bytes in UTF-8; numbers are 64 bits, little-endian.
    #[must_use]
    pub fn content_hash(&self) -> String {
        self.content_hash_until(&Cancel::default()).unwrap_or_default()
    }

    /// The same, unless asked to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn content_hash_until(&self, cancel: &Cancel) -> Result<String> {
        let mut hasher = Sha256::new_with_prefix(HASH_HEADER);
        let text = |hasher: &mut Sha256, text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        for question in &self.questions {
            cancel.check()?;
            text(&mut hasher, &question.question);
            hasher.update((question.choices.len() as u64).to_le_bytes());
            for choice in &question.choices {
                text(&mut hasher, choice);
            }
            hasher.update((question.answer as u64).to_le_bytes());
        }
        Ok(format!("{:x}", hasher.finalize()))
    }
}

fn sorted_choices(question: &Question) -> Vec<&str> {
    let mut choices: Vec<&str> = question.choices.iter().map(|choice| choice.trim()).collect();
    choices.sort_unstable();
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, subject: Option<&str>) -> Question {
        Question {
            question: text.to_owned(),
            choices: vec!["yes".to_owned(), "no".to_owned()],
            answer: 1,
            subject: subject.map(str::to_owned),
            extra: Map::new(),
        }
    }

    fn set(columns: &[&str], questions: Vec<Question>) -> QuestionSet {
        QuestionSet {
            file: "birds.jsonl".to_owned(),
            columns: columns.iter().map(|&c| c.to_owned()).collect(),
            questions,
            foreign: BTreeMap::new(),
        }
    }

    #[test]
    fn selection_keeps_the_order_asked_for() {
        let birds = set(&["question"], ["a", "b", "c"].map(|text| question(text, None)).to_vec());
        let chosen = birds.select(&[2, 0, 2]).unwrap();
        assert_eq!(chosen.questions.iter().map(|q| q.question.as_str()).collect::<Vec<_>>(), ["c", "a", "c"]);
        assert!(
            matches!(birds.select(&[3]), Err(Error::InvalidArgument(text)) if text.contains("no question 3, only 3"))
        );
        assert_eq!(birds.head(2).questions.len(), 2);
        assert_eq!(birds.head(9), birds);
    }

    #[test]
    fn concatenation_unites_columns() {
        let one = set(&["question", "note"], vec![question("a", None)]);
        let two = set(&["id", "question"], vec![question("b", None)]);
        let both = QuestionSet::concat(&[&one, &two]).unwrap();
        assert_eq!(both.columns, ["question", "note", "id"]);
        assert_eq!(both.questions.len(), 2);
        assert!(QuestionSet::concat(&[]).is_err());
    }

    #[test]
    fn subjects_are_distinct_and_sorted() {
        let birds = set(&[], [Some("owls"), None, Some("jays"), Some("owls")].map(|s| question("q", s)).to_vec());
        assert_eq!(birds.subjects(), ["jays", "owls"]);
    }

    #[test]
    fn the_hash_is_of_the_questions_alone() {
        let birds = set(&["question"], vec![question("a", None)]);
        let mut renamed = set(&["x"], vec![question("a", Some("owls"))]);
        renamed.file = "other.csv".to_owned();
        assert_eq!(birds.content_hash(), renamed.content_hash());
        // printf 'wmdp-fast questions 1\n' and the fields by hand, through sha256sum.
        assert_eq!(birds.content_hash().len(), 64);
        let mut moved = birds.clone();
        moved.questions[0].answer = 0;
        assert_ne!(birds.content_hash(), moved.content_hash());
        // The borders between texts count.
        let mut shifted = birds.clone();
        shifted.questions[0].choices = vec!["ye".to_owned(), "sno".to_owned()];
        assert_ne!(birds.content_hash(), shifted.content_hash());
    }
}
