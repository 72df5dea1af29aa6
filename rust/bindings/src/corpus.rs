//! Corpora: their documents, and those as tokens.

use std::path::PathBuf;

use numpy::IntoPyArray;
use pyo3::prelude::*;
use wmdp_core::corpus::{self, ReadOptions, tokens};

use crate::array::Array1;
use crate::detach;

/// Reads the documents of a corpus.
///
/// The extension says the format; `.gz` or `.zst` may stand behind it.
///
/// - `.jsonl`: on a line a JSON object with the text under `field`, or a JSON string, which is the text. Blank lines are passed over.
/// - `.parquet`: the column `field`; no other is read.
/// - `.txt`: the file is one document.
///
/// Text is UTF-8; a byte-order mark at the beginning is passed over. Nothing is read behind the last document that is wanted.
///
/// Args:
///     paths: The files, in order.
///     field: Key or column that holds the text.
///     raw_lines: Whether each line of a `.jsonl` or `.txt` file as it stands is a document: blank ones too, JSON not parsed, line
///         ends included (as `\n`, whatever they are in the file), as Python's text files give them.
///     min_chars: Only documents of more characters than this are kept.
///     keep_empty: Whether documents without a single character are kept all the same.
///     limit: Most documents to read; None reads all.
///
/// Raises:
///     DatasetError: A file holds something else than documents, or there are none; names file, row and field.
///     OSError: A file cannot be opened or read.
///     ValueError: `limit` is 0, there are no files, or the texts take more than 4 GiB.
#[pyfunction]
#[pyo3(signature = (
    paths, *, field = "text".to_owned(), raw_lines = false, min_chars = 0, keep_empty = false, limit = None
))]
pub(crate) fn read_documents(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    field: String,
    raw_lines: bool,
    min_chars: usize,
    keep_empty: bool,
    limit: Option<usize>,
) -> PyResult<Vec<String>> {
    let options = ReadOptions { field, raw_lines, min_chars, keep_empty, limit };
    detach::run(py, move |cancel| corpus::read_documents(&paths, &options, cancel))
}

/// The documents of a corpus as token ids.
///
/// Attributes:
///     tokens: int64 `[N]`, all documents' ids one after another, writable.
///     offsets: int64 `[documents + 1]`, where each document's ids begin, then their number.
///     content_hash: SHA-256 over the documents' texts.
///     engine: The crate that made the tokens: `"fastokens"` or `"tokenizers"`.
///     why_not_fast: Why it was not fastokens, or None if it was.
#[pyclass(frozen, get_all, module = "wmdp_fast._rust")]
pub(crate) struct EncodedCorpus {
    tokens: Array1<i64>,
    offsets: Array1<i64>,
    content_hash: String,
    engine: &'static str,
    why_not_fast: Option<String>,
}

impl EncodedCorpus {
    pub(crate) fn new(py: Python<'_>, encoded: tokens::EncodedCorpus) -> Self {
        Self {
            tokens: encoded.tokens.into_pyarray(py).into(),
            offsets: encoded.offsets.into_pyarray(py).into(),
            content_hash: encoded.content_hash,
            engine: encoded.encoding.engine.name(),
            why_not_fast: encoded.encoding.why_not_fast,
        }
    }
}
