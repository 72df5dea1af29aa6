//! Tokenizers and the requests they make of prompts.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use wmdp_core::corpus::{ReadOptions, tokens};
use wmdp_core::tokens::padded::PaddedPlan;
use wmdp_core::tokens::{request, tokenizer};

use crate::corpus::EncodedCorpus;
use crate::detach;
use crate::request::Requests;
use crate::template::Prompts;

/// What a tokenizer is made of again after pickling: the arguments of its constructor.
type Arguments<'a> = (&'a str, bool, u32, &'a str);

/// A tokenizer as a `tokenizer.json` describes it, under lm-eval's rules for special tokens.
///
/// Two engines stand behind it: the crate `fastokens` where its tokens equal those of the crate `tokenizers` on prompts of the run at hand,
/// else `tokenizers` itself. `Requests.engine` says which one it was. Immutable; can be pickled and shared between threads.
///
/// Args:
///     json: The text of a `tokenizer.json`; of a transformers tokenizer, `tokenizer.backend_tokenizer.to_str()`.
///     add_special_tokens: Whether texts get the special tokens of the tokenizer's post-processor (BOS, mostly).
///     prefix_token_id: Token in front of a continuation that has no context (lm-eval: BOS, else EOS).
///     prefix_text: What that token decodes to; a text that begins with it gets no special tokens.
///
/// Raises:
///     TokenizerError: If the text is not a tokenizer that the crate `tokenizers` can load.
///
/// Example:
///     >>> from wmdp_fast import Tokenizer, demo
///     >>> json = (demo.model_path() / "tokenizer.json").read_text(encoding="utf-8")
///     >>> tokenizer = Tokenizer(json, add_special_tokens=False, prefix_token_id=0, prefix_text="")
///     >>> len(tokenizer.encode("Which lantern is lit?")) > 0
///     True
#[pyclass(frozen, module = "wmdp_fast._rust")]
pub(crate) struct Tokenizer {
    inner: Arc<tokenizer::Tokenizer>,
    /// For pickling: what it was made from.
    json: String,
    add_special_tokens: bool,
}

impl Tokenizer {
    /// One that is loaded already, from this text.
    pub(crate) fn of(inner: Arc<tokenizer::Tokenizer>, json: &str, add_special_tokens: bool) -> Self {
        Self { inner, json: json.to_owned(), add_special_tokens }
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    #[pyo3(signature = (json, *, add_special_tokens, prefix_token_id, prefix_text))]
    fn new(
        py: Python<'_>,
        json: &str,
        add_special_tokens: bool,
        prefix_token_id: u32,
        prefix_text: &str,
    ) -> PyResult<Self> {
        let load = |_: &_| tokenizer::Tokenizer::from_json(json, add_special_tokens, prefix_token_id, prefix_text);
        let inner = Arc::new(detach::run_to_end(py, load)?);
        Ok(Self::of(inner, json, add_special_tokens))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Arguments<'_>)> {
        let restore = py.import("wmdp_fast._rust")?.getattr("_restore_tokenizer")?;
        let state = (&*self.json, self.add_special_tokens, self.inner.prefix_token_id(), self.inner.prefix_text());
        Ok((restore, state))
    }

    /// The tokens of a text, special tokens included where they are due; made by the crate `tokenizers`.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        detach::run_to_end(py, |_| self.inner.encode(text))
    }

    /// The prompts of a run as token ids, by lm-eval's `_encode_pair`.
    ///
    /// Args:
    ///     tasks: The prompts of each task.
    ///     max_length: Maximum sequence length of the model; longer requests lose tokens on the left.
    ///
    /// Raises:
    ///     TokenizerError: If a context or a continuation has no tokens, or a continuation is longer than `max_length`; names
    ///         file and row.
    ///     ValueError: If `max_length` is 0.
    fn encode_requests(&self, py: Python<'_>, tasks: Vec<PyRef<'_, Prompts>>, max_length: usize) -> PyResult<Requests> {
        let tasks: Vec<_> = tasks.iter().map(|prompts| Arc::clone(&prompts.inner)).collect();
        let tokenizer = Arc::clone(&self.inner);
        detach::run(py, move |cancel| {
            let tasks: Vec<_> = tasks.iter().map(Arc::as_ref).collect();
            let inner = request::Requests::encode(&tokenizer, &tasks, max_length, cancel)?;
            let plan = PaddedPlan::new(&inner, cancel)?;
            Ok(Requests { inner: Arc::new(inner), plan })
        })
    }

    /// Reads and tokenizes the documents of a corpus, in parallel and no more of them than are wanted.
    ///
    /// Each document gets the tokenizer's special tokens and loses tokens on the right if it is too long; the tokens are those of
    /// transformers with `truncation=True` and `truncation_side="right"`.
    ///
    /// Args:
    ///     paths: The files, as `read_documents` takes them.
    ///     max_length: Maximum tokens of a document, special tokens included.
    ///     field: Key or column that holds the text.
    ///     raw_lines: Whether each line as it stands is a document.
    ///     min_chars: Only documents of more characters than this are kept.
    ///     limit: Most documents to read; None reads all.
    ///
    /// Raises:
    ///     DatasetError: A file holds something else than documents, or there are none; names file, row and field.
    ///     OSError: A file cannot be opened or read.
    ///     TokenizerError: A text cannot be tokenized.
    ///     ValueError: `max_length` leaves no room for text, `limit` is 0, or the tokens take more than 4 GiB.
    #[pyo3(signature = (
        paths, *, max_length, field = "text".to_owned(), raw_lines = false, min_chars = 0, limit = None
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keyword arguments.
    fn encode_corpus(
        &self,
        py: Python<'_>,
        paths: Vec<PathBuf>,
        max_length: usize,
        field: String,
        raw_lines: bool,
        min_chars: usize,
        limit: Option<usize>,
    ) -> PyResult<EncodedCorpus> {
        let options = ReadOptions { field, raw_lines, min_chars, limit, ..ReadOptions::default() };
        let tokenizer = Arc::clone(&self.inner);
        let encoded = detach::run(py, move |cancel| tokens::encode(&tokenizer, &paths, &options, max_length, cancel))?;
        Ok(EncodedCorpus::new(py, encoded))
    }

    /// Why fastokens cannot load this tokenizer, or None if it can.
    #[getter]
    fn why_not_fast(&self) -> Option<&str> {
        self.inner.why_not_fast()
    }

    /// Why no text of this tokenizer is tokenized in parts, or None if that is proven safe.
    #[getter]
    fn why_no_cuts(&self) -> Option<&str> {
        self.inner.boundaries().why_none()
    }
}

/// What pickle calls to make a `Tokenizer` again.
#[pyfunction]
pub(crate) fn _restore_tokenizer(
    py: Python<'_>,
    json: &str,
    add_special_tokens: bool,
    prefix_token_id: u32,
    prefix_text: &str,
) -> PyResult<Tokenizer> {
    Tokenizer::new(py, json, add_special_tokens, prefix_token_id, prefix_text)
}
