//! The one error type of the crate. Every variant says what is wrong, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// What went wrong. The Python side maps each variant to one exception class.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read; the operating system's own words.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file in question.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file was read, but what it holds is not a set of questions.
    #[error(transparent)]
    Dataset(Box<DatasetError>),
    /// A prompt template does not compile, or fails on a question.
    #[error("template: {0}")]
    Template(String),
    /// A tokenizer cannot be loaded, or fails on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The caller asked for something that cannot be done.
    #[error("{0}")]
    InvalidArgument(String),
    /// The caller asked to stop (Ctrl-C).
    #[error("cancelled")]
    Cancelled,
    /// A fault of this crate, never of the input.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

/// A fault in a data file, located as exactly as the format allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetError {
    /// Path of the file as it was given.
    pub file: String,
    /// 1-based number of the record (a CSV header is not a record), if the fault lies in one.
    pub row: Option<u64>,
    /// Name of the column or key, if the fault lies in one.
    pub field: Option<String>,
    /// What is wrong and what to do, as one sentence without a final stop.
    pub problem: String,
}

impl fmt::Display for DatasetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ", field `{field}`")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for DatasetError {}

impl From<DatasetError> for Error {
    fn from(error: DatasetError) -> Self {
        Self::Dataset(Box::new(error))
    }
}

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
