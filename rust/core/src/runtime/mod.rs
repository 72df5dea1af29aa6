//! Work in parallel, ahead of its use, and stopped when asked; files read ahead of theirs, as memory allows.

pub mod ahead;
pub mod memory;
mod page_cache;
pub mod parallel;
pub mod read_ahead;
