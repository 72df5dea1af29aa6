//! Work in parallel, ahead of its use, and stopped when asked.

pub mod ahead;
pub mod parallel;
