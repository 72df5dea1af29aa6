//! Samples files read back: what a model scored on each question, without the prompts.
//!
//! Files of this package and of lm-eval since 0.4.0 are read: a JSON object a line, or before 0.4.3 one list of them. A prompt is repeated for each of its choices, which makes MMLU with five
//! examples 170 MB; it is passed over unparsed, lines are parsed in parallel, and only what statistics need is kept.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::dataset::fault::Fault;
use crate::dataset::json::Scalar;
use crate::error::{DatasetError, Error, Result};
use crate::runtime::parallel::{Cancel, install};
use crate::scores::aggregate::{ahead, argmax};
use crate::scores::{aggregate, samples};
use crate::text::prompt::Prompts;
use crate::text::question::QuestionSet;

/// Metrics whose value for a question is 0 or 1, and which follow from the log-likelihoods: lm-eval's names.
pub const METRICS: [&str; 3] = ["acc", "acc_norm", "acc_bytes"];

/// What was scored in one task, in the order of `doc_ids`.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Path of the file as it was given.
    pub file: String,
    /// Number of each question in its dataset, rising.
    pub doc_ids: Vec<u64>,
    /// For each question its first choice in the lists by choice, then their length.
    pub choice_offsets: Vec<usize>,
    /// Log-likelihood of each choice, in nats.
    pub loglikelihood: Vec<f64>,
    /// Whether each token of the choice is the model's most likely one.
    pub is_greedy: Vec<bool>,
    /// What the model was scored on for each choice, delimiter included.
    pub continuations: Vec<String>,
    /// Text between prompt and choice.
    pub delimiter: String,
    /// Index of each question's right choice, or None if its target names no single one.
    pub gold: Vec<Option<usize>>,
    /// For each question and each of [`METRICS`] the choice that the metric picks; the first of several equal ones.
    pub predicted: [Vec<usize>; 3],
    /// For each question how far the best choice is ahead of the runner-up, in nats; 0 is a tie.
    pub margin: Vec<f64>,
    /// Of [`METRICS`], what the file says for each question; empty where it says nothing.
    pub recorded: [Vec<f64>; 3],
    /// lm-eval's hashes of document, prompt and target of each question; empty strings in files of lm-eval before 0.4.3.
    pub hashes: Vec<[String; 3]>,
}

impl Samples {
    /// Number of questions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.doc_ids.len()
    }

    /// Whether there are no questions; never so for what [`read_samples`] returns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.doc_ids.is_empty()
    }

    /// The continuations of a question.
    #[must_use]
    pub fn continuations(&self, question: usize) -> &[String] {
        &self.continuations[self.choice_offsets[question]..self.choice_offsets[question + 1]]
    }

    /// For each question whether the choice that a metric (a position in [`METRICS`]) picks is right.
    ///
    /// Where the target names no single choice it is what the file says; None if it says nothing.
    #[must_use]
    pub fn correct(&self, metric: usize) -> Option<Vec<bool>> {
        let recorded = &self.recorded[metric];
        let each = self.gold.iter().zip(&self.predicted[metric]).enumerate().map(|(question, (gold, predicted))| {
            gold.map_or_else(|| recorded.get(question).map(|&value| value > 0.5), |gold| Some(gold == *predicted))
        });
        each.collect()
    }

    /// The samples of a task that was just scored, as [`read_samples`] would find them in the file that
    /// [`samples::write_samples`] makes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if questions, prompts and outcome are not as many.
    pub fn from_outcome(
        questions: &QuestionSet,
        prompts: &Prompts,
        outcome: &aggregate::Outcome,
        cancel: &Cancel,
    ) -> Result<Self> {
        let hashes = samples::hashes(questions, prompts, outcome, cancel)?;
        let continuations = (0..prompts.len())
            .flat_map(|question| {
                (0..prompts.choices[question].len()).map(move |choice| prompts.continuation(question, choice))
            })
            .collect();
        Ok(Self {
            file: questions.file.clone(),
            doc_ids: (0..prompts.len() as u64).collect(),
            choice_offsets: outcome.choice_offsets.clone(),
            loglikelihood: outcome.loglikelihood.clone(),
            is_greedy: outcome.is_greedy.clone(),
            continuations,
            delimiter: prompts.delimiter.clone(),
            gold: outcome.answers.iter().copied().map(Some).collect(),
            predicted: [Vec::new(), Vec::new(), Vec::new()],
            margin: Vec::new(),
            recorded: [Vec::new(), Vec::new(), Vec::new()],
            hashes,
        }
        .with_predictions())
    }

    /// Fills in what follows from the log-likelihoods.
    fn with_predictions(mut self) -> Self {
        let per = |scores: &[f64], choices: &[&str], length: fn(&str) -> usize| {
            let divided = scores.iter().zip(choices).map(|(score, choice)| score / length(choice) as f64);
            argmax(&divided.collect::<Vec<_>>())
        };
        for question in 0..self.len() {
            let range = self.choice_offsets[question]..self.choice_offsets[question + 1];
            let scores = &self.loglikelihood[range.clone()];
            let choices: Vec<&str> = self.continuations[range]
                .iter()
                .map(|text| text.strip_prefix(self.delimiter.as_str()).unwrap_or(text))
                .collect();
            let best = argmax(scores);
            self.predicted[0].push(best);
            self.predicted[1].push(per(scores, &choices, |choice| choice.chars().count()));
            self.predicted[2].push(per(scores, &choices, str::len));
            self.margin.push(ahead(scores, best));
        }
        self
    }
}

/// Reads the samples file of a multiple-choice task, written by this package or by lm-eval.
///
/// `delimiter` is the text between a prompt and its answer (lm-eval's `target_delimiter`), which does not count for `acc_norm`; None
/// takes a space if every continuation begins with one, else nothing. Of a file with several filters the first one's lines are
/// read.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Dataset`] naming row and field for what is not a scored multiple-choice
/// question, or if a question occurs twice.
pub fn read_samples(path: &Path, delimiter: Option<&str>, cancel: &Cancel) -> Result<Samples> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let file = path.display().to_string();
    let fault = |row: usize, fault: Fault| -> Error {
        DatasetError { file: file.clone(), row: Some(row as u64 + 1), field: fault.field, problem: fault.problem }
            .into()
    };
    let lines: Vec<(usize, &[u8])> = if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        elements(&bytes).map_err(|(row, problem)| fault(row, Fault::new(problem)))?
    } else {
        let lines = bytes.split(|&byte| byte == b'\n').enumerate();
        lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace)).collect()
    };
    let mut questions: Vec<(usize, Line)> = install(|| {
        let each = lines.par_iter().map(|&(row, line)| {
            cancel.check()?;
            parse(line).map(|line| (row, line)).map_err(|problem| fault(row, problem))
        });
        each.collect()
    })?;
    drop(lines);
    let Some(filter) = questions.first().map(|(_, line)| line.filter.clone()) else {
        let problem = "the file is empty; was the run that wrote it interrupted?".to_owned();
        return Err(DatasetError { file, row: None, field: None, problem }.into());
    };
    check_filters(&questions, &filter).map_err(|(row, problem)| fault(row, Fault::in_field("filter", problem)))?;
    questions.retain(|(_, line)| line.filter == filter);
    let mut seen = HashMap::with_capacity(questions.len());
    for (row, line) in &questions {
        if let Some(first) = seen.insert(line.doc_id, *row) {
            let problem = format!(
                "question {} occurs twice, first in row {}; were two runs written into one file?",
                line.doc_id,
                first + 1
            );
            return Err(fault(*row, Fault::in_field("doc_id", problem)));
        }
    }
    // Several processes write in turn.
    questions.sort_by_key(|(_, line)| line.doc_id);
    let delimiter = delimiter.map_or_else(|| common_delimiter(&questions), str::to_owned);

    let mut found = Samples {
        file: file.clone(),
        doc_ids: Vec::new(),
        choice_offsets: vec![0],
        loglikelihood: Vec::new(),
        is_greedy: Vec::new(),
        continuations: Vec::new(),
        gold: Vec::new(),
        predicted: [Vec::new(), Vec::new(), Vec::new()],
        margin: Vec::new(),
        recorded: [Vec::new(), Vec::new(), Vec::new()],
        hashes: Vec::new(),
        delimiter,
    };
    let recorded = METRICS.map(|metric| questions.iter().all(|(_, line)| line.recorded(metric).is_some()));
    for (row, line) in questions {
        let num_choices = scored_choices(&line).map_err(|problem| fault(row, problem))?;
        let gold = gold(&line.target.0, &line.arguments.0[..num_choices], &found.delimiter);
        if gold.is_none() && line.acc.is_none() {
            let problem = format!("names none of the {num_choices} choices, and the line has no `acc`");
            return Err(fault(row, Fault::in_field("target", problem)));
        }
        for (metric, values) in
            METRICS.iter().zip(&mut found.recorded).zip(recorded).filter_map(|(it, all)| all.then_some(it))
        {
            values.extend(line.recorded(metric));
        }
        found.doc_ids.push(line.doc_id);
        found.gold.push(gold);
        found.loglikelihood.extend(line.filtered_resps.iter().take(num_choices).map(|response| response.loglikelihood));
        found.is_greedy.extend(line.filtered_resps.iter().take(num_choices).map(|response| response.is_greedy));
        found.continuations.extend(line.arguments.0.into_iter().take(num_choices));
        found.choice_offsets.push(found.loglikelihood.len());
        found.hashes.push([line.doc_hash, line.prompt_hash, line.target_hash]);
    }
    Ok(found.with_predictions())
}

/// Number and bytes of an element of a list.
type Element<'a> = (usize, &'a [u8]);

/// The elements of a JSON list, numbered, without parsing them; else the number of the element at fault and what it is.
fn elements(bytes: &[u8]) -> Result<Vec<Element<'_>>, (usize, String)> {
    let mut found = Vec::new();
    let (mut start, mut depth) = (0, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for (at, &byte) in bytes.iter().enumerate() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth == 1 {
                    start = at + 1;
                }
            }
            b',' if depth == 1 => {
                found.push((found.len(), &bytes[start..at]));
                start = at + 1;
            }
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && start > 0 {
            let last = &bytes[start..at];
            if !found.is_empty() || !last.iter().all(u8::is_ascii_whitespace) {
                found.push((found.len(), last));
            }
            let rest = &bytes[at + 1..];
            if !rest.iter().all(u8::is_ascii_whitespace) {
                return Err((found.len(), "stands behind the end of the list".to_owned()));
            }
            return Ok(found);
        }
    }
    Err((found.len(), "the list of samples has no end; was the run that wrote it interrupted?".to_owned()))
}

/// What is read of a line; everything else is passed over.
#[derive(Deserialize)]
struct Line {
    doc_id: u64,
    target: Scalar,
    arguments: Continuations,
    filtered_resps: Vec<Response>,
    #[serde(default)]
    filter: String,
    #[serde(default)]
    metrics: Vec<String>,
    #[serde(default)]
    doc_hash: String,
    #[serde(default)]
    prompt_hash: String,
    #[serde(default)]
    target_hash: String,
    acc: Option<f64>,
    acc_norm: Option<f64>,
    acc_bytes: Option<f64>,
    acc_mutual_info: Option<IgnoredAny>,
}

impl Line {
    fn recorded(&self, metric: &str) -> Option<f64> {
        match metric {
            "acc" => self.acc,
            "acc_norm" => self.acc_norm,
            _ => self.acc_bytes,
        }
    }
}

fn parse(line: &[u8]) -> Result<Line, Fault> {
    if let Ok(line) = serde_json::from_slice(line) {
        return Ok(line);
    }
    // Python's json module writes numbers that JSON has no form for.
    let line = without_constants(line);
    serde_json::from_slice(&line).map_err(|error| find_fault(&line).unwrap_or_else(|| Fault::new(error.to_string())))
}

/// The line with null for NaN and the infinities outside strings.
fn without_constants(line: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(line.len());
    let (mut at, mut in_string) = (0, false);
    while let Some(&byte) = line.get(at) {
        let constant = ["NaN", "Infinity", "-Infinity"].iter().find(|name| line[at..].starts_with(name.as_bytes()));
        if let (Some(name), false) = (constant, in_string) {
            replaced.extend_from_slice(b"null");
            at += name.len();
            continue;
        }
        in_string ^= byte == b'"';
        replaced.push(byte);
        at += 1;
        // What a backslash escapes ends no string.
        if let (b'\\', true, Some(&escaped)) = (byte, in_string, line.get(at)) {
            replaced.push(escaped);
            at += 1;
        }
    }
    replaced
}

/// Which field of a line that does not parse is at fault; None if it is no JSON object at all, or too long to look.
fn find_fault(line: &[u8]) -> Option<Fault> {
    fn field<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str, required: bool) -> Result<(), Fault> {
        match fields.get(name) {
            None if required => {
                Err(Fault::in_field(name, "is missing; is this a samples file of a multiple-choice task?"))
            }
            None => Ok(()),
            Some(value) => {
                T::deserialize(value.clone()).map(drop).map_err(|error| Fault::in_field(name, error.to_string()))
            }
        }
    }
    // Values take many times their text.
    const LONGEST: usize = 4 << 20;
    if line.len() > LONGEST {
        return None;
    }
    let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let check = || -> Result<(), Fault> {
        field::<u64>(&fields, "doc_id", true)?;
        field::<Scalar>(&fields, "target", true)?;
        field::<Vec<Response>>(&fields, "filtered_resps", true)?;
        field::<Continuations>(&fields, "arguments", true)?;
        for text in ["filter", "doc_hash", "prompt_hash", "target_hash"] {
            field::<String>(&fields, text, false)?;
        }
        field::<Vec<String>>(&fields, "metrics", false)?;
        METRICS.iter().try_for_each(|metric| field::<Option<f64>>(&fields, metric, false))
    };
    check().err()
}

/// How many choices a line has. lm-eval adds to each choice one without a prompt if it is to compute `acc_mutual_info`.
fn scored_choices(line: &Line) -> Result<usize, Fault> {
    let (responses, continuations) = (line.filtered_resps.len(), line.arguments.0.len());
    if responses != continuations {
        let problem = format!("has {responses} responses, but there are {continuations} `arguments`");
        return Err(Fault::in_field("filtered_resps", problem));
    }
    // Older files do not list their metrics.
    let mutual_information =
        line.acc_mutual_info.is_some() || line.metrics.iter().any(|metric| metric == "acc_mutual_info");
    let choices = if mutual_information { responses / 2 } else { responses };
    if choices < 2 {
        return Err(Fault::in_field("filtered_resps", format!("has {choices} choices where two or more are needed")));
    }
    Ok(choices)
}

/// Refuses a file in which filters do not all have as many lines: one damaged name would drop its question in silence.
fn check_filters(questions: &[(usize, Line)], first: &str) -> Result<(), (usize, String)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for (_, line) in questions {
        *counts.entry(line.filter.as_str()).or_default() += 1;
    }
    let expected = counts.get(first).copied().unwrap_or_default();
    let odd = questions.iter().find(|(_, line)| counts.get(line.filter.as_str()) != Some(&expected));
    odd.map_or(Ok(()), |(row, line)| {
        let count = counts.get(line.filter.as_str()).copied().unwrap_or_default();
        let problem = format!(
            "there are {count} lines of the filter {:?}, but {expected} of {first:?}; the file is damaged or not whole",
            line.filter
        );
        Err((*row, problem))
    })
}

/// The choice that a target names, by its index or its text, as lm-eval reads it.
fn gold(target: &Value, continuations: &[String], delimiter: &str) -> Option<usize> {
    let text = match target {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    if let Ok(index) = text.trim().parse::<i64>() {
        return usize::try_from(index).ok().filter(|&index| index < continuations.len());
    }
    continuations.iter().position(|choice| choice.strip_prefix(delimiter).unwrap_or(choice) == text)
}

fn common_delimiter(questions: &[(usize, Line)]) -> String {
    let spaced = questions.iter().all(|(_, line)| line.arguments.0.iter().all(|text| text.starts_with(' ')));
    String::from(if spaced { " " } else { "" })
}

/// The second argument of each request: a choice with its delimiter. The first, the prompt, is not kept.
struct Continuations(Vec<String>);

impl<'de> Deserialize<'de> for Continuations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Arguments;

        #[derive(Deserialize)]
        struct Named {
            arg_1: String,
        }

        impl<'de> Visitor<'de> for Arguments {
            type Value = Continuations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("prompts and continuations, as {\"gen_args_0\": {\"arg_0\": ..., \"arg_1\": ...}}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some((key, arguments)) = map.next_entry::<String, Named>()? {
                    if key != format!("gen_args_{}", found.len()) {
                        return Err(A::Error::custom(format!("expected `gen_args_{}`, not `{key}`", found.len())));
                    }
                    found.push(arguments.arg_1);
                }
                Ok(Continuations(found))
            }

            // lm-eval before 0.4.3.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some((_, continuation)) = seq.next_element::<(IgnoredAny, String)>()? {
                    found.push(continuation);
                }
                Ok(Continuations(found))
            }
        }
        deserializer.deserialize_any(Arguments)
    }
}

/// A log-likelihood and whether the continuation is greedy; as text in today's files, as themselves in older ones.
struct Response {
    loglikelihood: f64,
    is_greedy: bool,
}

impl<'de> Deserialize<'de> for Response {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pair = Value::deserialize(deserializer)?;
        let read = || {
            let [loglikelihood, is_greedy] = pair.as_array()?.as_slice() else { return None };
            let loglikelihood = match loglikelihood {
                Value::String(text) => text.parse().ok()?,
                Value::Null => f64::NAN,
                other => other.as_f64()?,
            };
            let is_greedy = match is_greedy {
                Value::String(text) => text == "True",
                other => other.as_bool()?,
            };
            Some(Self { loglikelihood, is_greedy })
        };
        read().ok_or_else(|| {
            D::Error::custom(format!(
                "{pair} is not a log-likelihood and whether it is greedy; only multiple-choice tasks can be read"
            ))
        })
    }
}
