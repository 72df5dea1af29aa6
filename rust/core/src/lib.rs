//! Data side of wmdp-fast: question files in, prompts, token batches and scored results out.
//!
//! The path of the data, one folder a step:
//! - [`dataset`] reads question files, and [`corpus`] reads and tokenizes documents for unlearning.
//! - [`text`]: a [`question`](text::question) becomes a [`prompt`](text::prompt) by a [`template`](text::template).
//! - [`tokens`]: [`tokenizer`](tokens::tokenizer) and [`request`](tokens::request) turn prompts into token ids;
//!   [`trie`](tokens::trie) finds what those have in common and [`pack`](tokens::pack) cuts it into batches for a model, or
//!   [`padded`](tokens::padded) cuts them row by row.
//! - [`kernels`]: what of the model's work is no matrix product, on a processor: [`attention`](kernels::attention),
//!   [`log_softmax`](kernels::log_softmax), [`norm`](kernels::norm) and [`rotary`](kernels::rotary).
//! - [`scores`]: [`aggregate`](scores::aggregate) turns a model's scores into numbers, [`orders`](scores::orders) says what the
//!   order of the choices does to them and [`stats`](scores::stats) how sure they are; [`samples`](scores::samples) writes them
//!   down question by question and [`saved`](scores::saved) reads them back.
//! - [`runtime`]: a thread pool that survives `fork`, work done and files read ahead of their use, and the flag that stops them.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod dataset;
pub mod error;
pub mod kernels;
pub mod runtime;
pub mod scores;
pub mod text;
pub mod tokens;

pub use error::{DatasetError, Error, Result};
