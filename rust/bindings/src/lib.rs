//! `wmdp_fast._rust`: the Python face of wmdp-core. One file per core module; a body parses arguments, calls the core off the
//! GIL through `detach::run`, and hands back numpy arrays or frozen objects.

// The pyfunction and pyclass macros want owned arguments. Doc comments here are Python docstrings, in Google's style, whose
// examples have lists: not links.
#![allow(clippy::needless_pass_by_value, clippy::doc_markdown, clippy::doc_link_with_quotes)]
#![allow(rustdoc::broken_intra_doc_links)]

mod aggregate;
mod array;
mod attention;
mod corpora_ahead;
mod corpus;
mod dataset;
mod detach;
mod error;
mod gate;
mod hints;
mod json;
mod log_softmax;
mod norm;
mod openmp;
mod orders;
mod parallel;
mod question;
mod read_ahead;
mod request;
mod rotary;
mod samples;
mod saved;
mod stats;
mod template;
mod tokenizer;
mod trie;

use pyo3::prelude::*;

/// Rust core of wmdp-fast.
#[pymodule]
mod _rust {
    #[pymodule_export]
    use crate::aggregate::{Outcome, aggregate, pool};
    #[pymodule_export]
    use crate::attention::{packed_attention, packed_attention_gradient};
    #[pymodule_export]
    use crate::corpora_ahead::CorporaAhead;
    #[pymodule_export]
    use crate::corpus::{EncodedCorpus, read_documents};
    #[pymodule_export]
    use crate::dataset::{read_many, read_questions};
    #[pymodule_export]
    use crate::gate::gate_in_place;
    #[pymodule_export]
    use crate::log_softmax::TokenLogprobs;
    #[pymodule_export]
    use crate::norm::rms_norm;
    #[pymodule_export]
    use crate::orders::{OrderAnswers, OrderEffects, order_effects};
    #[pymodule_export]
    use crate::parallel::num_threads;
    #[pymodule_export]
    use crate::question::{_restore_questions, Question, QuestionSet};
    #[pymodule_export]
    use crate::read_ahead::{ReadAhead, available_memory};
    #[pymodule_export]
    use crate::request::{_restore_requests, PaddedBatch, Requests};
    #[pymodule_export]
    use crate::rotary::{rotate, rotate_bfloat16};
    #[pymodule_export]
    use crate::samples::write_samples;
    #[pymodule_export]
    use crate::saved::{Samples, read_samples};
    #[pymodule_export]
    use crate::stats::{
        Calibration, against_chance, calibration, chi_square_uniform, clustered_stderr, holm, mcnemar, paired_interval,
        probabilities, wilson,
    };
    #[pymodule_export]
    use crate::template::{_restore_prompts, PromptTemplate, Prompts};
    #[pymodule_export]
    use crate::tokenizer::{_restore_tokenizer, Tokenizer};
    #[pymodule_export]
    use crate::trie::{Trie, TrieBatch, TrieBatches};

    /// Version of the extension, the same as the package's.
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Whether this is an optimized build; benchmarks of any other are meaningless.
    #[pymodule_export]
    const RELEASE_BUILD: bool = !cfg!(debug_assertions);
}
