//! Text as tokens, and tokens as batches: requests, tries, packed and padded rows.

pub mod boundary;
pub mod pack;
pub mod padded;
pub mod request;
pub mod tokenizer;
pub mod trie;
