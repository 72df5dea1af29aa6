//! Question files: parquet, JSON, JSON lines and CSV, each also compressed with gzip or zstd.
//! What opens, decompresses and parses them also reads [`corpus`](crate::corpus) files.
//!
//! The extension decides the format. Every format turns its records into calls of [`collect::Collector`], which checks them and
//! makes the [`QuestionSet`]; [`source::Source`] opens, decompresses and bounds what is read. A file is read whole or not at all:
//! the first fault is a [`DatasetError`](crate::DatasetError) with file, row and field, and there is no partial result.

mod answer;
mod collect;
mod csv;
pub(crate) mod json;
pub(crate) mod parquet;
pub(crate) mod source;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::error::{DatasetError, Error, Result};
use crate::parallel::{self, Cancel};
use crate::question::QuestionSet;
use collect::Collector;
use source::{Compression, Source};

/// The most that is read. Real question files stay far below; what is above is a mistake or an attack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of one record.
    pub(crate) record: usize,
    /// Bytes that a compressed file may decompress to.
    pub(crate) decompressed: u64,
    /// Bytes of memory that the records may take.
    pub(crate) memory: u64,
}

const LIMITS: Limits = Limits { record: 16 << 20, decompressed: 4 << 30, memory: 4 << 30 };

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
/// # Errors
/// [`Error::Io`] if the file cannot be opened or read, [`Error::Dataset`] if it holds anything but questions,
/// [`Error::Cancelled`] if asked to stop.
pub fn read_questions(path: &Path, cancel: &Cancel) -> Result<QuestionSet> {
    read_within(path, &LIMITS, cancel)
}

/// Reads many files in parallel and keeps their order.
///
/// # Errors
/// As [`read_questions`]; if several files are faulty, the first of them is reported.
pub fn read_many(paths: &[impl AsRef<Path> + Sync], cancel: &Cancel) -> Result<Vec<QuestionSet>> {
    let sets: Vec<Result<QuestionSet>> =
        parallel::install(|| Ok(paths.par_iter().map(|path| read_questions(path.as_ref(), cancel)).collect()))?;
    sets.into_iter().collect()
}

/// Questions from rows in memory, checked as those of a JSON file are.
///
/// # Errors
/// [`Error::Dataset`] if the rows are not questions; `file` is the name it gives.
pub fn from_rows(rows: impl IntoIterator<Item = Map<String, Value>>, file: &str) -> Result<QuestionSet> {
    let mut collector = Collector::new(file.to_owned(), LIMITS.memory);
    for row in rows {
        collector.add_fields(row)?;
    }
    collector.finish()
}

fn read_within(path: &Path, limits: &Limits, cancel: &Cancel) -> Result<QuestionSet> {
    let Some((format, compression)) = format_of(path) else {
        return Err(unknown_format(path, ".parquet, .json, .jsonl or .csv"));
    };
    let mut collector = Collector::new(path.display().to_string(), limits.memory);
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
