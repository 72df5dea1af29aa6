//! The plain way of batching: one padded row for each distinct input, the longest first.
//!
//! lm-eval's `Collator` groups requests by context and all but the last token of the continuation; so the letters of a question
//! share one row, and choices of several tokens have a row each.

use rayon::prelude::*;

use crate::error::Result;
use crate::runtime::parallel::{self, Cancel};
use crate::tokens::request::Requests;

/// Token id that fills up short rows (lm-eval pads with 0 and passes no mask: causal attention never looks right).
const PADDING: i64 = 0;

/// One input of a model: a context and all but the last token of a continuation.
///
/// It owns no memory of its own: millions of rows are made, sorted and dropped in an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PaddedRow {
    /// The question, and the first choice whose continuation the row holds.
    question: usize,
    choice: usize,
    /// Tokens after truncation on the left.
    pub(crate) length: usize,
}

/// All rows of a run in the order in which they are scored: by length, the longest first, then as the requests came.
///
/// ```
/// use wmdp_core::runtime::parallel::Cancel;
/// use wmdp_core::tokens::padded::PaddedPlan;
/// use wmdp_core::tokens::request::Requests;
///
/// let requests = Requests::from_tokens(&[vec![1, 4], vec![1, 2, 3]], &[vec![vec![7]], vec![vec![8]]], 2048)?;
/// let plan = PaddedPlan::new(&requests, &Cancel::default())?;
/// let batch = plan.batch(&requests, 0, 100, &[]).expect("it has two rows");
/// assert_eq!(batch.input_ids, [1, 2, 3, 1, 4, 0]);
/// assert_eq!(batch.lengths, [3, 2]);
/// # Ok::<(), wmdp_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PaddedPlan {
    rows: Vec<PaddedRow>,
}

/// A rectangle of token ids and what to read from the model's answer; every array is row-major.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PaddedBatch {
    /// Token ids, `lengths.len()` rows of the longest length, filled up on the right with 0.
    pub input_ids: Vec<i64>,
    /// Tokens in each row.
    pub lengths: Vec<i64>,
    /// Pairs (row, position) whose next-token distribution is wanted, in order.
    pub readouts: Vec<i64>,
    /// For each target, its readout.
    pub target_readouts: Vec<i64>,
    /// For each target, the token whose probability is wanted.
    pub target_tokens: Vec<i64>,
    /// For each target, the choice (over the whole run) it is a token of; the tokens of a choice are in order.
    pub target_choices: Vec<i64>,
    /// The row of the plan after the batch's last.
    pub stop: usize,
}

impl PaddedPlan {
    /// Makes the rows of all requests and sorts them.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] if asked to stop before the sorting; during it, the work unwinds.
    pub fn new(requests: &Requests, cancel: &Cancel) -> Result<Self> {
        parallel::install(|| {
            let mut rows = all_rows(requests, cancel);
            cancel.check()?;
            rows.par_sort_by(|a, b| {
                cancel.unwind_if_set();
                b.length.cmp(&a.length)
            });
            Ok(Self { rows })
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of all rows, without padding.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.length).sum()
    }

    /// The batch that begins at sorted row `start`: as many rows as `token_budget` holds, padding included, but at least one. None
    /// past the last row. No batch holds rows shorter than a length of `cuts` beside rows at least as long.
    #[must_use]
    pub fn batch(&self, requests: &Requests, start: usize, token_budget: usize, cuts: &[usize]) -> Option<PaddedBatch> {
        let width = self.rows.get(start)?.length;
        let stop = self.rows.len().min(start + (token_budget / width).max(1));
        let least = cuts.iter().copied().filter(|&cut| cut <= width).max().unwrap_or(0);
        let stop = start + self.rows[start..stop].partition_point(|row| row.length >= least);
        let rows = &self.rows[start..stop];
        let mut batch = PaddedBatch { stop, ..PaddedBatch::default() };
        batch.input_ids.reserve_exact(rows.len() * width);
        for (index, row) in rows.iter().enumerate() {
            push_tokens(&mut batch.input_ids, requests, row);
            batch.input_ids.resize((index + 1) * width, PADDING);
            batch.lengths.push(row.length as i64);
            push_readouts(&mut batch, requests, row, index);
        }
        Some(batch)
    }
}

/// The rows of all questions, in order.
pub(crate) fn all_rows(requests: &Requests, cancel: &Cancel) -> Vec<PaddedRow> {
    let each = (0..requests.num_questions()).into_par_iter().with_min_len(parallel::PART).flat_map_iter(|question| {
        cancel.unwind_if_set();
        rows(requests, question)
    });
    each.collect()
}

/// The distinct rows of one question: one for each choice whose input no choice before it has.
fn rows(requests: &Requests, question: usize) -> impl Iterator<Item = PaddedRow> {
    let (prefix, own) = requests.context(question);
    let choices = requests.choices(question);
    let input = |choice: usize| all_but_last(requests.continuation(choice));
    let first = choices.start;
    choices.filter(move |&choice| (first..choice).all(|before| input(before) != input(choice))).map(move |choice| {
        PaddedRow {
            question,
            choice,
            length: (prefix.len() + own.len() + input(choice).len()).min(requests.max_length()),
        }
    })
}

/// Every choice that is read from a row, in order.
pub(crate) fn choices(requests: &Requests, row: PaddedRow) -> impl Iterator<Item = usize> {
    let input = all_but_last(requests.continuation(row.choice));
    let last = requests.choices(row.question).end;
    (row.choice..last).filter(move |&choice| all_but_last(requests.continuation(choice)) == input)
}

fn all_but_last(tokens: &[u32]) -> &[u32] {
    tokens.split_last().map_or(&[], |(_, rest)| rest)
}

/// A row's tokens before truncation: shared context, own context, continuation.
pub(crate) fn parts<'a>(requests: &'a Requests, row: &PaddedRow) -> [&'a [u32]; 3] {
    let (prefix, own) = requests.context(row.question);
    [prefix, own, all_but_last(requests.continuation(row.choice))]
}

/// Appends the last `row.length` tokens of context and continuation.
fn push_tokens(out: &mut Vec<i64>, requests: &Requests, row: &PaddedRow) {
    let parts = parts(requests, row);
    let mut skip = parts.iter().map(|part| part.len()).sum::<usize>() - row.length;
    for part in parts {
        let dropped = skip.min(part.len());
        skip -= dropped;
        out.extend(part[dropped..].iter().map(|&token| i64::from(token)));
    }
}

/// Appends what is to be read from a row: the distributions before each token of its continuations.
fn push_readouts(batch: &mut PaddedBatch, requests: &Requests, row: &PaddedRow, index: usize) {
    let first_readout = batch.readouts.len() / 2;
    let continuation = requests.continuation(row.choice).len();
    for position in row.length - continuation..row.length {
        batch.readouts.extend([index as i64, position as i64]);
    }
    for choice in choices(requests, *row) {
        for (at, &token) in requests.continuation(choice).iter().enumerate() {
            batch.target_readouts.push((first_readout + at) as i64);
            batch.target_tokens.push(i64::from(token));
            batch.target_choices.push(choice as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two questions: letters after a context of 3 tokens, and texts of 2 and 1 tokens after a context of 5.
    fn requests(max_length: usize) -> Requests {
        let stored = serde_json::json!({
            "prefixes": [[1, 2], []],
            "context_prefixes": [0, 0],
            "context_offsets": [0, 1, 4],
            "context_tokens": [3, 4, 5, 6],
            "choice_offsets": [0, 2, 4],
            "continuation_offsets": [0, 1, 2, 4, 5],
            "continuation_tokens": [10, 11, 20, 21, 22],
            "max_length": max_length,
            "encoding": null,
        });
        Requests::from_bytes(stored.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn letters_share_a_row_and_texts_do_not() {
        let requests = requests(100);
        let plan = PaddedPlan::new(&requests, &Cancel::default()).unwrap();
        assert_eq!((plan.num_rows(), plan.num_tokens()), (3, 6 + 5 + 3));
        let batch = plan.batch(&requests, 0, 100, &[]).unwrap();
        assert_eq!(batch.input_ids, [1, 2, 4, 5, 6, 20, 1, 2, 4, 5, 6, 0, 1, 2, 3, 0, 0, 0]);
        assert_eq!(batch.lengths, [6, 5, 3]);
        assert_eq!(batch.readouts, [0, 4, 0, 5, 1, 4, 2, 2]);
        assert_eq!(batch.target_readouts, [0, 1, 2, 3, 3]);
        assert_eq!(batch.target_tokens, [20, 21, 22, 10, 11]);
        assert_eq!(batch.target_choices, [2, 2, 3, 0, 1]);
        assert_eq!(batch.stop, 3);
        assert!(plan.batch(&requests, 3, 100, &[]).is_none());
    }

    #[test]
    fn a_budget_holds_at_least_one_row() {
        let requests = requests(100);
        let plan = PaddedPlan::new(&requests, &Cancel::default()).unwrap();
        assert_eq!(plan.batch(&requests, 0, 1, &[]).unwrap().stop, 1);
        assert_eq!(plan.batch(&requests, 0, 12, &[]).unwrap().stop, 2);
    }

    #[test]
    fn a_cut_parts_shorter_rows_from_those_as_long() {
        let requests = requests(100);
        let plan = PaddedPlan::new(&requests, &Cancel::default()).unwrap();
        let stops = |cuts: &[usize]| [0, 1, 2].map(|start| plan.batch(&requests, start, 100, cuts).unwrap().stop);
        assert_eq!(stops(&[7]), [3, 3, 3]);
        assert_eq!(stops(&[6]), [1, 3, 3]);
        assert_eq!(stops(&[5, 6]), [1, 2, 3]);
        assert_eq!(stops(&[4]), [2, 2, 3]);
        assert_eq!(stops(&[3, 0]), [3, 3, 3]);
    }

    #[test]
    fn long_rows_lose_tokens_on_the_left() {
        let requests = requests(4);
        let batch = PaddedPlan::new(&requests, &Cancel::default()).unwrap().batch(&requests, 0, 4, &[]).unwrap();
        assert_eq!(batch.input_ids, [4, 5, 6, 20]);
        assert_eq!(batch.readouts, [0, 2, 0, 3]);
    }
}
