//! The samples file of a task: one line a question, with lm-eval's keys, values and hashes.
//!
//! lm-eval repeats a question's context for each of its choices, which makes some 170 MB of MMLU with five examples. Lines are
//! therefore made in parallel, and each context is escaped and hashed once.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::runtime::parallel::{Cancel, install};
use crate::scores::aggregate::{Metric, Outcome};
use crate::scores::orders::{Answers, label};
use crate::text::prompt::Prompts;
use crate::text::pyjson::{push_escaped, push_float, push_formatted, push_json, push_json_float, push_string};
use crate::text::question::{Question, QuestionSet};

/// Lines made before they are written; bounds memory and the wait after Ctrl-C.
const LINES_AT_ONCE: usize = 1024;

/// Writes the samples file of a task. The file appears whole or not at all.
///
/// Each line is lm-eval's, with one key more at its end: `wmdp_fast` holds the predicted choice by either metric, the margin to the
/// runner-up in nats, whether that is a near-tie, and what the model answered in other orders of the choices if it was asked.
///
/// Returns lm-eval's hash over the task's documents, prompts and answers (`task_hashes` of a results file).
///
/// # Errors
/// [`Error::InvalidArgument`] if questions, prompts and outcome are not as many, [`Error::Io`] naming `path` if the file cannot be
/// written.
pub fn write_samples(
    path: &Path,
    questions: &QuestionSet,
    prompts: &Prompts,
    outcome: &Outcome,
    metrics: &[Metric],
    orders: Option<&[Answers]>,
    cancel: &Cancel,
) -> Result<String> {
    let task = Task::new(questions, prompts, outcome, metrics, orders)?;
    let mut task_hash = Sha256::new();
    write_whole(path, |file| {
        for start in (0..prompts.len()).step_by(LINES_AT_ONCE) {
            let stop = prompts.len().min(start + LINES_AT_ONCE);
            let samples: Vec<Sample> = install(|| {
                let each = (start..stop).into_par_iter().map(|question| {
                    cancel.check()?;
                    Ok(task.sample(question))
                });
                each.collect()
            })?;
            for sample in samples {
                for hash in &sample.hashes {
                    task_hash.update(hash);
                }
                file.write_all(sample.line.as_bytes()).map_err(|source| Error::Io { path: path.to_owned(), source })?;
            }
        }
        Ok(())
    })?;
    Ok(hex(task_hash))
}

/// lm-eval's hashes of each question's document, prompt and target, in hexadecimal, as [`write_samples`] writes them.
///
/// # Errors
/// [`Error::InvalidArgument`] if questions, prompts and outcome are not as many.
pub fn hashes(
    questions: &QuestionSet,
    prompts: &Prompts,
    outcome: &Outcome,
    cancel: &Cancel,
) -> Result<Vec<[String; 3]>> {
    let task = Task::new(questions, prompts, outcome, &[], None)?;
    install(|| {
        let each = (0..prompts.len()).into_par_iter().map(|question| {
            cancel.check()?;
            Ok(task.hashes(question, &task.document(question)))
        });
        each.collect()
    })
}

/// What the lines of a task share.
struct Task<'a> {
    questions: &'a QuestionSet,
    prompts: &'a Prompts,
    outcome: &'a Outcome,
    metrics: &'a [Metric],
    orders: Option<&'a [Answers]>,
    /// The prompts' prefix as it stands inside a JSON string.
    escaped_prefix: String,
    /// The hash of a context after its prefix.
    hashed_prefix: Sha256,
}

struct Sample {
    line: String,
    /// Of document, prompt and target, in hexadecimal.
    hashes: [String; 3],
}

impl<'a> Task<'a> {
    fn new(
        questions: &'a QuestionSet,
        prompts: &'a Prompts,
        outcome: &'a Outcome,
        metrics: &'a [Metric],
        orders: Option<&'a [Answers]>,
    ) -> Result<Self> {
        let in_orders = orders.map_or(prompts.len(), <[Answers]>::len);
        if questions.questions.len() != prompts.len() || prompts.len() != outcome.len() || prompts.len() != in_orders {
            return Err(Error::InvalidArgument(format!(
                "{} questions, {} prompts and {} scored questions do not make samples: there must be as many of each",
                questions.questions.len(),
                prompts.len(),
                outcome.len()
            )));
        }
        let mut escaped_prefix = String::new();
        push_escaped(&mut escaped_prefix, &prompts.prefix);
        let hashed_prefix = Sha256::new().chain_update(&prompts.prefix);
        Ok(Self { questions, prompts, outcome, metrics, orders, escaped_prefix, hashed_prefix })
    }

    fn document(&self, index: usize) -> Value {
        document(&self.questions.columns, &self.questions.questions[index])
    }

    /// Of document, prompt and target.
    fn hashes(&self, index: usize, document: &Value) -> [String; 3] {
        let mut indented = String::new();
        push_json(&mut indented, document, Some(2));
        [
            hex(Sha256::new().chain_update(indented)),
            hex(self.hashed_prefix.clone().chain_update(&self.prompts.bodies[index])),
            hex(Sha256::new().chain_update(self.prompts.answers[index].to_string())),
        ]
    }

    fn sample(&self, index: usize) -> Sample {
        let document = self.document(index);
        let hashes = self.hashes(index, &document);

        let mut line = format!("{{\"doc_id\": {index}, \"doc\": ");
        push_json(&mut line, &document, None);
        line.push_str(", \"target\": ");
        push_string(&mut line, &self.prompts.answers[index].to_string());
        line.push_str(", \"arguments\": {");
        self.push_arguments(&mut line, index);
        let responses = self.responses(index);
        line.push_str("}, \"resps\": [");
        push_list(&mut line, responses.iter().map(|response| format!("[{response}]")));
        line.push_str("], \"filtered_resps\": [");
        push_list(&mut line, responses.iter());
        line.push_str("], \"filter\": \"none\", \"metrics\": [");
        push_list(&mut line, self.metrics.iter().map(|metric| format!("\"{}\"", metric.name())));
        line.push(']');
        for (name, hash) in ["doc_hash", "prompt_hash", "target_hash"].iter().zip(&hashes) {
            push_formatted(&mut line, format_args!(", \"{name}\": \"{hash}\""));
        }
        for &metric in self.metrics {
            let value = if self.outcome.score(metric).correct[index] { "1.0" } else { "0.0" };
            push_formatted(&mut line, format_args!(", \"{}\": {value}", metric.name()));
        }
        let (predicted, predicted_norm) = (self.outcome.acc.predicted[index], self.outcome.acc_norm.predicted[index]);
        line.push_str(", \"wmdp_fast\": {");
        push_formatted(&mut line, format_args!("\"predicted\": {predicted}, \"predicted_norm\": {predicted_norm}"));
        line.push_str(", \"margin\": ");
        push_json_float(&mut line, self.outcome.margin[index]);
        push_formatted(&mut line, format_args!(", \"near_tie\": {}", self.outcome.near_tie[index]));
        if let Some(orders) = self.orders {
            push_orders(&mut line, &orders[index]);
        }
        line.push_str("}}\n");
        Sample { line, hashes }
    }

    /// For each choice the context and the continuation.
    fn push_arguments(&self, line: &mut String, index: usize) {
        let mut context = self.escaped_prefix.clone();
        push_escaped(&mut context, &self.prompts.bodies[index]);
        for choice in 0..self.prompts.choices[index].len() {
            let comma = if choice == 0 { "" } else { ", " };
            push_formatted(line, format_args!("{comma}\"gen_args_{choice}\": {{\"arg_0\": \"{context}\", \"arg_1\": "));
            push_string(line, &self.prompts.continuation(index, choice));
            line.push('}');
        }
    }

    /// For each choice its log-likelihood and whether it is greedy, as the strings that lm-eval makes of both.
    fn responses(&self, index: usize) -> Vec<String> {
        let choices = self.outcome.choice_offsets[index]..self.outcome.choice_offsets[index + 1];
        let response = |choice: usize| {
            let mut text = String::from("[\"");
            push_float(&mut text, self.outcome.loglikelihood[choice]);
            text.push_str(if self.outcome.is_greedy[choice] { "\", \"True\"]" } else { "\", \"False\"]" });
            text
        };
        choices.map(response).collect()
    }
}

/// For each order of the choices the choice predicted and the log-likelihoods, choices numbered as in the question.
fn push_orders(line: &mut String, answers: &Answers) {
    line.push_str(", \"orders\": {");
    let entries = answers.answers.iter().map(|answer| {
        let (label, predicted) = (label(&answer.order), answer.predicted);
        let mut entry = format!("\"{label}\": {{\"predicted\": {predicted}, \"loglikelihood\": [");
        let score = |&score: &f64| {
            let mut text = String::new();
            push_json_float(&mut text, score);
            text
        };
        push_list(&mut entry, answer.loglikelihood.iter().map(score));
        entry.push_str("]}");
        entry
    });
    push_list(line, entries);
    line.push('}');
}

fn push_list(line: &mut String, items: impl Iterator<Item = impl AsRef<str>>) {
    for (at, item) in items.enumerate() {
        if at > 0 {
            line.push_str(", ");
        }
        line.push_str(item.as_ref());
    }
}

/// The question as a row of its file: the columns in file order, what a row lacks as null.
fn document(columns: &[String], question: &Question) -> Value {
    let cell = |column: &str| match column {
        "question" => Value::from(question.question.as_str()),
        // With labels they stand as the file has them.
        "choices" => question.extra.get(column).cloned().unwrap_or_else(|| Value::from(question.choices.as_slice())),
        "answer" => Value::from(question.answer),
        "subject" if question.subject.is_some() => question.subject.as_deref().map_or(Value::Null, Value::from),
        other => question.extra.get(other).cloned().unwrap_or(Value::Null),
    };
    Value::Object(columns.iter().map(|column| (column.clone(), cell(column))).collect::<Map<_, _>>())
}

fn hex(hasher: Sha256) -> String {
    format!("{:x}", hasher.finalize())
}

/// Writes a file under a temporary name beside `path` and renames it once it is safe on disk; on failure nothing is left.
fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let temporary = temporary(path);
    let io_error = |source: io::Error| Error::Io { path: path.to_owned(), source };
    let mut file = File::create(&temporary).map_err(io_error)?;
    let written = write(&mut file)
        .and_then(|()| file.sync_all().map_err(io_error))
        .and_then(|()| fs::rename(&temporary, path).map_err(io_error));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scores::aggregate::aggregate;

    fn task(questions: usize) -> (QuestionSet, Prompts, Outcome) {
        let question = Question {
            question: "What is \"up\"?\n".to_owned(),
            choices: vec!["é".to_owned(), "down".to_owned()],
            answer: 1,
            subject: None,
            extra: [("note".to_owned(), json!({"a": [1.0, null]}))].into_iter().collect(),
        };
        let columns = ["note", "question", "answer", "choices", "missing"].map(str::to_owned).to_vec();
        let contexts: Vec<String> = (0..questions).map(|at| format!("pre\n{at}")).collect();
        let choices = vec![vec!["A".to_owned(), "B".to_owned()]; questions];
        let prompts = Prompts::from_contexts(&contexts, choices, vec![1; questions], " ", "test").unwrap();
        let scores: Vec<f64> = (0..questions).flat_map(|_| [-0.00001, -0.5]).collect();
        let outcome = aggregate(&prompts, &scores, &vec![true; 2 * questions], 0.1).unwrap();
        let set = QuestionSet {
            file: "f".to_owned(),
            columns,
            questions: vec![question; questions],
            foreign: std::collections::BTreeMap::new(),
        };
        (set, prompts, outcome)
    }

    fn write(path: &Path, questions: usize) -> Result<String> {
        let (set, prompts, outcome) = task(questions);
        write_samples(path, &set, &prompts, &outcome, &[Metric::Acc, Metric::AccNorm], None, &Cancel::default())
    }

    #[test]
    fn a_line_has_the_keys_and_values_of_lm_eval() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        write(&path, 1).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = concat!(
            r#"{"doc_id": 0, "doc": {"note": {"a": [1.0, null]}, "question": "What is \"up\"?\n", "answer": 1, "choices": ["é", "down"], "#,
            r#""missing": null}, "target": "1", "arguments": {"gen_args_0": {"arg_0": "pre\n0", "arg_1": " A"}, "#,
            r#""gen_args_1": {"arg_0": "pre\n0", "arg_1": " B"}}, "resps": [[["-1e-05", "True"]], [["-0.5", "True"]]], "#,
            r#""filtered_resps": [["-1e-05", "True"], ["-0.5", "True"]], "filter": "none", "metrics": ["acc", "acc_norm"], "#,
        );
        assert!(text.starts_with(expected), "{text}");
        let end = r#", "acc": 0.0, "acc_norm": 0.0, "wmdp_fast": {"predicted": 0, "predicted_norm": 0, "margin": 0.49999, "near_tie": false}}"#;
        assert!(text.ends_with(&format!("{end}\n")), "{text}");
    }

    #[test]
    fn lines_keep_the_order_of_the_questions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let questions = LINES_AT_ONCE + 7;
        let hash = write(&path, questions).unwrap();
        assert_eq!(hash.len(), 64);
        let text = fs::read_to_string(&path).unwrap();
        let ids: Vec<u64> =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["doc_id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (0..questions as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A folder of that name: the text can be written, but not renamed.
        let path = folder.path().join("samples.jsonl");
        fs::create_dir(&path).unwrap();
        let error = write(&path, 2).unwrap_err();
        assert!(error.to_string().contains("samples.jsonl"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_cancelled_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (set, prompts, outcome) = task(2);
        let cancel = Cancel::default();
        cancel.set();
        let path = folder.path().join("samples.jsonl");
        let error = write_samples(&path, &set, &prompts, &outcome, &[], None, &cancel).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
