//! From a model's scores to numbers, and the files that hold them.

pub mod aggregate;
pub mod orders;
pub mod samples;
pub mod saved;
pub mod stats;
