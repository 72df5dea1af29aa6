//! Questions as text: prompts, and the templates that make them.

pub mod plain;
pub mod prompt;
pub mod pyjson;
pub mod question;
pub mod space;
pub mod template;
