//! Question files: parquet, JSON, JSON lines and CSV, each also compressed with gzip or zstd.
//! What opens, decompresses and parses them also reads [`corpus`](crate::corpus) files.
//!
//! The extension decides the format. Every format turns its records into calls of `collect::Collector`, which checks them and
//! makes the [`QuestionSet`]; `source::Source` opens, decompresses and bounds what is read. A file is read whole or not at all:
//! the first fault is a [`DatasetError`] with file, row and field, and there is no partial result.

mod answer;
mod collect;
mod csv;
pub(crate) mod fault;
pub(crate) mod json;
pub mod limits;
mod numbers;
pub(crate) mod parquet;
pub(crate) mod source;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::error::{DatasetError, Error, Result};
use crate::runtime::parallel::{self, Cancel};
use crate::text::question::QuestionSet;
use collect::Collector;
use limits::Limits;
use source::{Compression, Source};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Csv,
    Json,
    JsonLines,
    Parquet,
}

/// Format and compression by the file's extension, whatever its case.
fn format_of(path: &Path) -> Option<(Format, Compression)> {
    let (extension, compression) = extension_of(path)?;
    let format = match extension.as_str() {
        "csv" => Format::Csv,
        "json" => Format::Json,
        "jsonl" => Format::JsonLines,
        "parquet" => Format::Parquet,
        _ => return None,
    };
    Some((format, compression))
}

/// A file's extension in lower case and without that of its compression, and the compression.
pub(crate) fn extension_of(path: &Path) -> Option<(String, Compression)> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let (name, compression) = match name.rsplit_once('.')? {
        (stem, "gz") => (stem, Compression::Gzip),
        (stem, "zst") => (stem, Compression::Zstd),
        _ => (name.as_str(), Compression::None),
    };
    Some((name.rsplit_once('.')?.1.to_owned(), compression))
}

/// Reads the questions of one file.
///
/// ```
/// use wmdp_core::dataset::read_questions;
/// use wmdp_core::runtime::parallel::Cancel;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("birds.csv");
/// std::fs::write(&path, "question,A,B,answer\nWhich bird hoots?,owl,hen,A\n")?;
///
/// let questions = read_questions(&path, &Cancel::default())?;
/// assert_eq!(questions.questions[0].choices, ["owl", "hen"]);
/// assert_eq!(questions.questions[0].answer, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened or read, [`Error::Dataset`] if it holds anything but questions,
/// [`Error::Cancelled`] if asked to stop.
pub fn read_questions(path: &Path, cancel: &Cancel) -> Result<QuestionSet> {
    read_within(path, &Limits::of_questions()?, cancel)
}

/// Reads many files in parallel and keeps their order.
///
/// # Errors
/// As [`read_questions`]; if several files are faulty, the first of them is reported.
pub fn read_many(paths: &[impl AsRef<Path> + Sync], cancel: &Cancel) -> Result<Vec<QuestionSet>> {
    let limits = Limits::of_questions()?;
    let sets: Vec<Result<QuestionSet>> =
        parallel::install(|| Ok(paths.par_iter().map(|path| read_within(path.as_ref(), &limits, cancel)).collect()))?;
    sets.into_iter().collect()
}

/// A row in memory.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Its values by name.
    pub fields: Map<String, Value>,
    /// Names of those that JSON has no form for, which are null, and what they were.
    pub foreign: Vec<(String, String)>,
}

/// Questions from rows in memory, checked as those of a JSON file are.
///
/// # Errors
/// [`Error::Dataset`] if the rows are not questions; `file` is the name it gives.
pub fn from_rows(rows: impl IntoIterator<Item = Row>, file: &str, cancel: &Cancel) -> Result<QuestionSet> {
    let mut collector = Collector::new(file.to_owned(), Limits::of_questions()?.budget);
    for row in rows {
        cancel.check()?;
        for (column, what) in &row.foreign {
            collector.add_foreign(column, what, false);
        }
        collector.add_fields(row.fields)?;
    }
    collector.finish()
}

fn read_within(path: &Path, limits: &Limits, cancel: &Cancel) -> Result<QuestionSet> {
    let Some((format, compression)) = format_of(path) else {
        return Err(unknown_format(path, ".parquet, .json, .jsonl or .csv"));
    };
    let mut collector = Collector::new(path.display().to_string(), Arc::clone(&limits.budget));
    if format == Format::Parquet {
        parquet::read(path, compression, limits, cancel, &mut collector)?;
        return collector.finish();
    }
    let mut source = Source::open(path, compression, limits, cancel)?;
    match format {
        Format::Csv => csv::read(&mut source, &mut collector)?,
        Format::Json => json::read_document(&mut source, &mut collector)?,
        Format::JsonLines | Format::Parquet => json::read_lines(&mut source, &mut collector)?,
    }
    collector.finish()
}

/// The error for a file that no reader is for; that it is missing or a folder is the better reason.
pub(crate) fn unknown_format(path: &Path, extensions: &str) -> Error {
    let source = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => ErrorKind::IsADirectory.into(),
        Ok(_) => {
            return DatasetError {
                file: path.display().to_string(),
                row: None,
                field: None,
                problem: format!("the name must end in {extensions}, also with .gz or .zst behind"),
            }
            .into();
        }
        Err(error) => error,
    };
    Error::Io { path: path.to_owned(), source }
}
