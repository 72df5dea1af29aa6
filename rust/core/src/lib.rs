//! Data side of wmdp-fast: question files in, prompts, token batches and scored results out.
//!
//! The path of the data, one module a step: files are read by [`dataset`]; [`question`]s become [`prompt`]s by a
//! [`template`]; [`tokenizer`] and [`request`] turn prompts into token ids; [`trie`] finds what those have in common and
//! [`pack`] cuts it into batches for a model, or [`padded`] cuts them row by row; on a processor [`attention`],
//! [`log_softmax`], [`norm`] and [`rotary`] do what of the model's work is no matrix product; [`aggregate`] turns the model's
//! scores into numbers, [`orders`] says what the order of the choices does to them and [`stats`] how sure they are; [`samples`] writes
//! them down question by question and [`saved`] reads them back. [`corpus`] reads and tokenizes documents for unlearning.
#![forbid(unsafe_code)]

pub mod aggregate;
pub mod ahead;
pub mod attention;
pub mod boundary;
pub mod corpus;
pub mod dataset;
pub mod error;
pub mod format;
pub mod log_softmax;
pub mod norm;
pub mod orders;
pub mod pack;
pub mod padded;
pub mod parallel;
pub mod plain;
pub mod prompt;
pub mod pyjson;
pub mod question;
pub mod request;
pub mod rotary;
mod rows;
pub mod samples;
pub mod saved;
mod simd;
pub mod stats;
pub mod template;
pub mod tokenizer;
pub mod trie;

pub use error::{DatasetError, Error, Result};
