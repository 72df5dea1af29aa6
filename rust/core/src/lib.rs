//! Data side of wmdp-fast: question files in, prompts, token batches and scored results out.
//!
//! The path of the data, one module a step: files are read by [`dataset`]; [`question`]s become [`prompt`]s by a
//! [`template`]; [`tokenizer`] and [`request`] turn prompts into token ids; [`trie`] finds what those have in common and
//! [`pack`] cuts it into batches for a model, or [`padded`] cuts them row by row; [`aggregate`] turns the model's scores
//! into numbers, [`samples`] writes them down question by question.
#![forbid(unsafe_code)]

pub mod aggregate;
pub mod ahead;
pub mod boundary;
pub mod dataset;
pub mod error;
pub mod pack;
pub mod padded;
pub mod parallel;
pub mod prompt;
pub mod pyjson;
pub mod question;
pub mod request;
pub mod samples;
pub mod template;
pub mod tokenizer;
pub mod trie;

pub use error::{DatasetError, Error, Result};
