//! Corpora: documents read from files one after another, as many as are wanted and no more.
//!
//! A corpus is one or more files of JSON lines, parquet or plain text, each also compressed with gzip or zstd. What is held is one
//! record at a time; reading ends with the last document that is wanted, so the first 300 of a corpus of gigabytes cost what 300
//! documents cost. [`tokens`] turns them into token ids.

pub mod ahead;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::dataset::limits::{Limits, MEMORY_VARIABLE, MemoryBudget, in_gib, memory_limit};
use crate::dataset::source::{Compression, Scan, Source};
use crate::dataset::{extension_of, json, parquet, unknown_format};
use crate::error::{DatasetError, Error, Result};
use crate::runtime::parallel::Cancel;
use crate::text::space::is_json_space;

/// Bytes of one document.
const RECORD: usize = 64 << 20;

/// Names that a corpus file can have, for error messages.
const EXTENSIONS: &str = ".jsonl, .parquet or .txt";

/// How documents are read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Key or column that holds the text.
    pub field: String,
    /// Whether each line of a file as it stands, line end included, is a document.
    pub raw_lines: bool,
    /// Documents of no more characters than this are left out: those kept have more.
    pub min_chars: usize,
    /// Whether documents without a single character are kept all the same.
    pub keep_empty: bool,
    /// Most documents to read; all if none.
    pub limit: Option<usize>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { field: "text".to_owned(), raw_lines: false, min_chars: 0, keep_empty: false, limit: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CorpusFormat {
    JsonLines,
    Parquet,
    Text,
}

/// Passes the documents of files to `take`, in order. Returns their number.
///
/// # Errors
/// [`Error::Io`] if a file cannot be opened or read, [`Error::Dataset`] if it holds something else than documents,
/// [`Error::InvalidArgument`] if the options make no sense of it, [`Error::Cancelled`] if asked to stop, and what `take` gives.
pub fn for_each_document(
    paths: &[impl AsRef<Path>],
    options: &ReadOptions,
    cancel: &Cancel,
    mut take: impl FnMut(String) -> Result<()>,
) -> Result<usize> {
    let memory = memory_limit()?;
    let limits = |decompressed| Limits { record: RECORD, decompressed, budget: Arc::new(MemoryBudget::new(memory)) };
    // A compressed parquet file must be unpacked whole: its index is at its end.
    read_within(paths, options, &limits(u64::MAX), &limits(memory), cancel, &mut take)
}

/// Reads documents into memory.
///
/// ```
/// use wmdp_core::corpus::{ReadOptions, read_documents};
/// use wmdp_core::runtime::parallel::Cancel;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("corpus.jsonl");
/// std::fs::write(&path, "{\"text\": \"An owl.\"}\n{\"text\": \"A hen.\"}\n")?;
///
/// let documents = read_documents(&[path], &ReadOptions::default(), &Cancel::default())?;
/// assert_eq!(documents, ["An owl.", "A hen."]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`for_each_document`]; also [`Error::InvalidArgument`] if they are too many to be held.
pub fn read_documents(paths: &[impl AsRef<Path>], options: &ReadOptions, cancel: &Cancel) -> Result<Vec<String>> {
    let (mut documents, mut held) = (Vec::new(), 0);
    for_each_document(paths, options, cancel, |text| {
        // The list grows by doubling, and an allocation is never smaller than this.
        held += (text.len().next_multiple_of(16) + 16 + 2 * size_of::<String>()) as u64;
        documents.push(text);
        require_memory(held)
    })?;
    Ok(documents)
}

fn require_memory(held: u64) -> Result<()> {
    let limit = memory_limit()?;
    if held <= limit {
        return Ok(());
    }
    let limit = in_gib(limit);
    Err(Error::InvalidArgument(format!(
        "the corpus takes more than {limit} of memory; ask for fewer documents, or raise the limit with {MEMORY_VARIABLE}"
    )))
}

fn read_within(
    paths: &[impl AsRef<Path>],
    options: &ReadOptions,
    limits: &Limits,
    whole: &Limits,
    cancel: &Cancel,
    take: &mut dyn FnMut(String) -> Result<()>,
) -> Result<usize> {
    if options.limit == Some(0) {
        return Err(Error::InvalidArgument("the number of documents must be at least 1".to_owned()));
    }
    let wanted = options.limit.unwrap_or(usize::MAX);
    let (mut kept, mut seen) = (0, 0);
    let mut keep = |text: String| {
        seen += 1;
        // As Python's `len(text) > min_chars`.
        if text.chars().nth(options.min_chars).is_some() || (options.keep_empty && text.is_empty()) {
            kept += 1;
            take(text)?;
        }
        Ok(if kept < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    };
    for path in paths {
        if read_file(path.as_ref(), options, limits, whole, cancel, &mut keep)?.is_break() {
            break;
        }
    }
    if kept > 0 {
        return Ok(kept);
    }
    let Some(first) = paths.first() else {
        return Err(Error::InvalidArgument("a corpus needs at least one file".to_owned()));
    };
    let problem = match (seen, paths.len()) {
        (0, 1) => "there are no documents".to_owned(),
        (0, files) => format!("there are no documents in it, nor in the {} files after it", files - 1),
        _ => format!("none of the {seen} documents has more than {} characters", options.min_chars),
    };
    Err(DatasetError { file: first.as_ref().display().to_string(), row: None, field: None, problem }.into())
}

/// Reads the documents of one file until `keep` has enough.
fn read_file(
    path: &Path,
    options: &ReadOptions,
    limits: &Limits,
    whole: &Limits,
    cancel: &Cancel,
    keep: &mut dyn FnMut(String) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let (format, compression) = format_of(path).ok_or_else(|| unknown_format(path, EXTENSIONS))?;
    if format == CorpusFormat::Parquet {
        if options.raw_lines {
            let problem = "parquet has no lines; raw lines are those of a .jsonl or .txt file".to_owned();
            return Err(DatasetError { file: path.display().to_string(), row: None, field: None, problem }.into());
        }
        let mut flow = ControlFlow::Continue(());
        parquet::read_texts(path, compression, whole, cancel, &options.field, &mut |_, text| {
            flow = keep(text)?;
            Ok(flow)
        })?;
        return Ok(flow);
    }
    let mut source = Source::open(path, compression, limits, cancel)?;
    match format {
        _ if options.raw_lines => read_raw_lines(&mut source, path, keep),
        CorpusFormat::Text => read_text(&mut source, path, keep),
        CorpusFormat::JsonLines | CorpusFormat::Parquet => read_json_lines(&mut source, path, &options.field, keep),
    }
}

fn format_of(path: &Path) -> Option<(CorpusFormat, Compression)> {
    let (extension, compression) = extension_of(path)?;
    let format = match extension.as_str() {
        "jsonl" => CorpusFormat::JsonLines,
        "parquet" => CorpusFormat::Parquet,
        "txt" => CorpusFormat::Text,
        _ => return None,
    };
    Some((format, compression))
}

/// One JSON object or string a line; blank lines do not count as rows.
fn read_json_lines(
    source: &mut Source<'_>,
    path: &Path,
    field: &str,
    keep: &mut dyn FnMut(String) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let mut line = Vec::new();
    let mut row = 1;
    loop {
        source.skip_blank_lines().map_err(|error| locate(error, row))?;
        let more = source
            .scan(&mut line, |byte| if byte == b'\n' { Scan::End } else { Scan::Keep })
            .map_err(|error| locate(error, row))?;
        if !line.iter().copied().all(is_json_space) {
            let text = json::text_of_line(&line, field).map_err(|(field, problem)| {
                let file = path.display().to_string();
                Error::from(DatasetError { file, row: Some(row), field, problem })
            })?;
            if keep(text)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            row += 1;
        }
        if !more {
            return Ok(ControlFlow::Continue(()));
        }
    }
}

/// Lines as Python's text files give them: each with its line end, which is `\n` whether the file has `\n`, `\r\n` or `\r`.
fn read_raw_lines(
    source: &mut Source<'_>,
    path: &Path,
    keep: &mut dyn FnMut(String) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let mut line = Vec::new();
    let mut row = 1;
    let mut after_return = false;
    loop {
        let more = source
            .scan(&mut line, |byte| {
                let rest_of_line_end = std::mem::take(&mut after_return) && byte == b'\n';
                after_return = byte == b'\r';
                match byte {
                    b'\n' if rest_of_line_end => Scan::Skip,
                    b'\n' | b'\r' => Scan::End,
                    _ => Scan::Keep,
                }
            })
            .map_err(|error| locate(error, row))?;
        if more {
            line.push(b'\n');
        }
        if !line.is_empty() && keep(text_of(&line, path, Some(row))?)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if !more {
            return Ok(ControlFlow::Continue(()));
        }
        row += 1;
    }
}

/// A file that is one document.
fn read_text(
    source: &mut Source<'_>,
    path: &Path,
    keep: &mut dyn FnMut(String) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let mut text = Vec::new();
    source.scan(&mut text, |_| Scan::Keep).map_err(|error| match error {
        Error::Dataset(fault) if fault.problem.starts_with("the record is longer") => {
            let problem = "the document is longer than is read; split the file, or take its lines as documents";
            DatasetError { problem: problem.to_owned(), ..*fault }.into()
        }
        other => other,
    })?;
    keep(text_of(&text, path, None)?)
}

fn text_of(bytes: &[u8], path: &Path, row: Option<u64>) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| {
        let problem = json::not_utf8(&error);
        DatasetError { file: path.display().to_string(), row, field: None, problem }.into()
    })
}

/// Adds to a fault in what the file's bytes are that it was met in this row.
fn locate(error: Error, row: u64) -> Error {
    match error {
        Error::Dataset(fault) if fault.row.is_none() => DatasetError { row: Some(row), ..*fault }.into(),
        other => other,
    }
}
