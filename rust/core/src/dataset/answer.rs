//! Answers that are text: letters, indices or the choices themselves?
//!
//! `"2"` may be the third choice, or the choice that reads 2; `"A"` the first choice, or the one that reads A. Real MMLU has 77
//! such questions. No rule for a single answer gets all of them right, but a file follows one convention, and the other
//! conventions almost always fail on some row. So: a file's textual answers are all letters, all indices or all texts, whichever
//! makes sense of every row. If two conventions do and disagree, that is an error. Integers in typed formats are indices, always.

use super::fault::{Fault, quote};
use crate::text::question::{Question, letter};

/// The conventions, in the order of the arrays below.
const CONVENTIONS: [&str; 3] = ["a letter", "an index", "a choice's text"];

/// The choice that an answer means under each convention.
type Readings = [Option<usize>; 3];

/// An answer as written.
#[derive(Debug)]
struct TextAnswer {
    /// Which question it answers, from 0.
    place: usize,
    text: String,
    readings: Readings,
}

/// The textual answers of a file, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct TextAnswers(Vec<TextAnswer>);

impl TextAnswers {
    /// Notes the answer of a question; [`TextAnswers::resolve`] gives its index once all are known.
    pub(super) fn add(&mut self, place: usize, text: String, choices: &[String]) -> Result<(), Fault> {
        let readings = readings(&text, choices);
        if readings == [None; 3] {
            return Err(Fault::in_field("answer", meaningless(&text, choices)));
        }
        self.0.push(TextAnswer { place, text, readings });
        Ok(())
    }

    /// Finds the convention and writes the indices into the questions.
    ///
    /// # Errors
    /// The place of the question whose answer breaks the others' convention, or means two different choices, and the fault.
    pub(super) fn resolve(&self, questions: &mut [Question]) -> Result<(), (usize, Fault)> {
        // The first answer that each convention does not explain.
        let failed: [Option<usize>; 3] =
            std::array::from_fn(|convention| self.0.iter().position(|answer| answer.readings[convention].is_none()));
        let Some(chosen) = failed.iter().position(Option::is_none) else {
            return Err(self.mixed(failed));
        };
        for answer in &self.0 {
            let Some(index) = answer.readings[chosen] else { continue };
            for (other, failed_at) in failed.iter().enumerate() {
                if let (None, Some(other_index)) = (failed_at, answer.readings[other])
                    && other_index != index
                {
                    let problem = format!(
                        "{} is ambiguous: read as {} it means choice {}, read as {} choice {}, and the other rows do not tell \
                         which; give letters, or integers in JSON or parquet",
                        quote(&answer.text),
                        CONVENTIONS[chosen],
                        letter(index),
                        CONVENTIONS[other],
                        letter(other_index),
                    );
                    return Err((answer.place, Fault::in_field("answer", problem)));
                }
            }
            questions[answer.place].answer = index;
        }
        Ok(())
    }

    /// The fault if no convention explains all answers: the one with which the last convention failed, and an earlier one.
    fn mixed(&self, failed: [Option<usize>; 3]) -> (usize, Fault) {
        let last = failed.into_iter().flatten().max().unwrap_or_default();
        let TextAnswer { place, text, readings } = &self.0[last];
        let earlier = failed.iter().zip(readings).zip(CONVENTIONS).find_map(|((failed_at, reading), convention)| {
            reading.and(*failed_at).map(|earlier| (convention, &self.0[earlier]))
        });
        let contrast = earlier.map_or_else(String::new, |(convention, earlier)| {
            let (text, other) = (quote(text), quote(&earlier.text));
            format!("{text} is {convention}, but {other} in row {} is not; ", earlier.place + 1)
        });
        (*place, Fault::in_field("answer", format!("{contrast}write all answers of a file in the same way")))
    }
}

/// Whether a text can be the answer to a question with these choices.
pub(super) fn has_meaning(text: &str, choices: &[String]) -> bool {
    readings(text, choices) != [None; 3]
}

/// What a textual answer may mean. White space around letters and digits does not count; a text must match exactly.
fn readings(text: &str, choices: &[String]) -> Readings {
    let trimmed = text.trim_ascii().as_bytes();
    let letter = match trimmed {
        [byte] if byte.is_ascii_alphabetic() => Some(usize::from(byte.to_ascii_uppercase() - b'A')),
        _ => None,
    };
    let digits = !trimmed.is_empty() && trimmed.iter().all(u8::is_ascii_digit);
    let index = if digits { text.trim_ascii().parse().ok() } else { None };
    let mut same = choices.iter().enumerate().filter(|(_, choice)| !text.is_empty() && *choice == text);
    let text = match (same.next(), same.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    };
    let in_range = |index: &usize| *index < choices.len();
    [letter.filter(in_range), index.filter(in_range), text]
}

fn meaningless(text: &str, choices: &[String]) -> String {
    if choices.iter().filter(|choice| *choice == text).count() > 1 {
        return format!("{} is the text of more than one choice; give a letter or an index", quote(text));
    }
    let last = choices.len() - 1;
    format!(
        "{} is neither a letter from A to {}, nor an index from 0 to {last}, nor a choice",
        quote(text),
        letter(last)
    )
}
