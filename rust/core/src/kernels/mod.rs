//! What of a model's work on a processor is no matrix product.

pub mod attention;
pub mod dtype;
pub mod gate;
pub mod log_softmax;
pub mod norm;
pub mod rotary;
pub(crate) mod rows;
mod simd;
