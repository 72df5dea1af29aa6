//! Reading question files.

use std::path::PathBuf;

use pyo3::prelude::*;
use wmdp_core::dataset;

use crate::detach;
use crate::question::QuestionSet;

/// Reads the questions of one file.
///
/// The extension says the format; `.gz` or `.zst` may stand behind it.
///
/// - `.parquet`: the columns `question` (text), `choices` (list of texts) and `answer` (integer or text).
/// - `.jsonl`: one object with these keys on a line. `.json`: an array of such objects, or an object that has it as `data`.
/// - `.csv`: with a header that names `question`, `answer`, and the choices `choice0`, `choice1`, ... or `A`, `B`, ... or
///   `choices` (a JSON list); or MMLU's original form without header: question, choices, answer.
///
/// The column `subject` is optional; others become `Question.extra`. An integer answer is an index from 0. Answers that are text
/// are all letters, all indices or all texts of choices: whichever makes sense of the whole file. If more than one does and they
/// disagree, that is an error. Text is UTF-8, with or without byte-order mark.
///
/// Args:
///     path: The file.
///
/// Raises:
///     DatasetError: The file holds something else than questions; names file, row and field.
///     OSError: The file cannot be opened or read; `FileNotFoundError` and others as Python raises them.
///
/// Example:
///     >>> from wmdp_fast import demo, load_questions
///     >>> questions = load_questions(demo.questions_path("forget"))
///     >>> [len(question.choices) for question in questions.head(3)]
///     [4, 4, 4]
#[pyfunction]
pub(crate) fn read_questions(py: Python<'_>, path: PathBuf) -> PyResult<QuestionSet> {
    detach::run(py, move |cancel| dataset::read_questions(&path, cancel)).map(QuestionSet::from)
}

/// Reads many files in parallel.
///
/// Args:
///     paths: The files.
///
/// Returns:
///     One set for each file, in the same order.
///
/// Raises:
///     DatasetError: A file holds something else than questions; if several do, the first of them is named.
///     OSError: A file cannot be opened or read.
#[pyfunction]
pub(crate) fn read_many(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Vec<QuestionSet>> {
    let sets = detach::run(py, move |cancel| dataset::read_many(&paths, cancel))?;
    Ok(sets.into_iter().map(QuestionSet::from).collect())
}
