//! Corpora tokenized on a thread while Python imports what it needs.

use std::path::PathBuf;

use pyo3::prelude::*;
use wmdp_core::corpus::ReadOptions;
use wmdp_core::corpus::ahead::{self, Wanted};
use wmdp_core::tokens::tokenizer;

use crate::corpus::EncodedCorpus;
use crate::detach;
use crate::error::to_py;
use crate::tokenizer::Tokenizer;

/// A corpus: paths, `max_length`, `field`, `raw_lines`, `min_chars` and `limit` of `Tokenizer.encode_corpus`.
type Corpus = (Vec<PathBuf>, usize, String, bool, usize, Option<usize>);

/// A tokenizer that is being loaded, and corpora that are tokenized with it after that, on a thread that needs no interpreter.
///
/// Dropping the object stops the thread without waiting for it.
///
/// Args:
///     json: As of `Tokenizer`.
///     add_special_tokens: Likewise.
///     prefix_token_id: Likewise.
///     prefix_text: Likewise.
///     corpora: For each corpus the arguments of `Tokenizer.encode_corpus`: `paths`, `max_length`, `field`, `raw_lines`, `min_chars`
///         and `limit`.
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct CorporaAhead {
    inner: ahead::CorporaAhead,
    /// Of the tokenizer, for pickling.
    json: String,
    add_special_tokens: bool,
}

#[pymethods]
impl CorporaAhead {
    #[new]
    #[pyo3(signature = (json, *, add_special_tokens, prefix_token_id, prefix_text, corpora))]
    fn new(
        json: String,
        add_special_tokens: bool,
        prefix_token_id: u32,
        prefix_text: String,
        corpora: Vec<Corpus>,
    ) -> PyResult<Self> {
        let wanted = corpora.into_iter().map(|(paths, max_length, field, raw_lines, min_chars, limit)| Wanted {
            paths,
            max_length,
            options: ReadOptions { field, raw_lines, min_chars, limit, ..ReadOptions::default() },
        });
        let text = json.clone();
        let load = move || tokenizer::Tokenizer::from_json(&text, add_special_tokens, prefix_token_id, &prefix_text);
        let inner = ahead::CorporaAhead::begin(load, wanted.collect()).map_err(to_py)?;
        Ok(Self { inner, json, add_special_tokens })
    }

    /// The tokenizer: waits until it is loaded.
    ///
    /// Raises:
    ///     TokenizerError: As `Tokenizer`; the first time.
    ///     ValueError: If that was raised before.
    fn tokenizer(&self, py: Python<'_>) -> PyResult<Tokenizer> {
        let inner = detach::patiently(py, |patience| self.inner.tokenizer(patience))?;
        Ok(Tokenizer::of(inner, &self.json, self.add_special_tokens))
    }

    /// The tokens of a corpus, by its place in `corpora`: waits for them. They are given once.
    ///
    /// Raises:
    ///     DatasetError, OSError, TokenizerError, ValueError: As `Tokenizer.encode_corpus`.
    fn take(&self, py: Python<'_>, corpus: usize) -> PyResult<EncodedCorpus> {
        let encoded = detach::patiently(py, |patience| self.inner.take(corpus, patience))?;
        Ok(EncodedCorpus::new(py, encoded))
    }

    /// Has the thread stop at the next document, or once the tokenizer is loaded.
    fn stop(&self) {
        self.inner.stop();
    }
}
