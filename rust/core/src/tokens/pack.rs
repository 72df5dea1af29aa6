//! Batches of a token trie: one row of tokens each, depth-first, cut to a budget.
//!
//! What hangs below a segment that an earlier batch has run is not run again: the model keeps that segment's keys and values, and a
//! batch says which of its own and of those it was given the next one needs.

use crate::error::{Error, Result};
use crate::tokens::request::Requests;
use crate::tokens::trie::{Node, ScoredToken, Trie};

/// What a batch may hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Tokens to run.
    pub tokens: usize,
    /// Positions whose next-token distribution is wanted; each is a row as wide as the vocabulary.
    pub readouts: usize,
}

/// One forward pass. Keys are numbered with the carried tokens first, then the batch's own; matrices are row-major.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrieBatch {
    /// Token ids, depth-first.
    pub input_ids: Vec<i64>,
    /// Depth of each token in the trie.
    pub position_ids: Vec<i64>,
    /// Tokens carried over from the batch before: the path above the first token.
    pub num_carried: usize,
    /// For each segment, carried ones first: its first key, its last key + 1, its subtree's last key + 1, depth of its first token.
    pub segments: Vec<i64>,
    /// Runs of keys (first, last + 1) that the next batch wants carried over, root first.
    pub keep: Vec<i64>,
    /// Tokens of the batch whose next-token distribution is wanted, in order.
    pub readouts: Vec<i64>,
    /// For each target, its readout.
    pub target_readouts: Vec<i64>,
    /// For each target, the token whose probability is wanted.
    pub target_tokens: Vec<i64>,
    /// For each target, its place among the continuation tokens of the run.
    pub targets: Vec<i64>,
    /// Number of paths that are done after the batch.
    pub stop: usize,
}

/// A place between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The segment to go on with.
    segment: usize,
    /// Depth of its first token that was not run.
    position: usize,
}

/// The batches of a trie from some path on, one after another.
///
/// ```
/// use wmdp_core::runtime::parallel::Cancel;
/// use wmdp_core::tokens::pack::{Batches, Budget};
/// use wmdp_core::tokens::request::Requests;
/// use wmdp_core::tokens::trie::Trie;
///
/// let continuations = [vec![vec![7], vec![8]], vec![vec![7], vec![8]]];
/// let requests = Requests::from_tokens(&[vec![1, 2, 3], vec![1, 2, 4, 5]], &continuations, 2048)?;
/// let trie = Trie::new(&requests, &Cancel::default())?;
///
/// let mut batches = Batches::new(&trie, Budget { tokens: 100, readouts: 100 }, 0)?;
/// let batch = batches.next(&trie, &requests).expect("it has two paths");
/// assert_eq!(batch.input_ids, [1, 2, 3, 4, 5]);
/// assert_eq!(batch.position_ids, [0, 1, 2, 2, 3]);
/// assert!(batches.next(&trie, &requests).is_none());
/// # Ok::<(), wmdp_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    budget: Budget,
    start: usize,
    stop: usize,
    next: Option<Place>,
}

/// A run of a segment's tokens among the keys of a batch.
struct Entry {
    segment: usize,
    begin: usize,
    end: usize,
    key: usize,
}

impl Batches {
    /// The batches that run the paths from `start` on; what those hang below is run again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the budget is zero or there is no such path.
    pub fn new(trie: &Trie, budget: Budget, start: usize) -> Result<Self> {
        if budget.tokens == 0 || budget.readouts == 0 {
            return Err(Error::InvalidArgument("a batch must be allowed at least 1 token and 1 readout".to_owned()));
        }
        if start > trie.num_paths() {
            return Err(Error::InvalidArgument(format!(
                "cannot start at path {start} of a trie that has {}",
                trie.num_paths()
            )));
        }
        let mut batches = Self { budget, start, stop: start, next: None };
        batches.next = batches.place(trie, 0);
        Ok(batches)
    }

    /// The next batch, or None after the last.
    pub fn next(&mut self, trie: &Trie, requests: &Requests) -> Option<TrieBatch> {
        let mut place = self.next?;
        let mut batch = TrieBatch::default();
        let mut entries = path_above(trie, place);
        batch.num_carried = entries.last().map_or(0, |entry| entry.key + entry.end - entry.begin);
        let mut next = Some(place);
        while let Some(now) = next {
            place = now;
            let segment = &trie.segments[place.segment];
            let end = self.fitting(trie, place, &batch);
            let begun = batch.input_ids.is_empty() || segment.end - segment.begin > self.budget.tokens;
            if end > place.position && (end == segment.end || begun) {
                entries.push(Entry {
                    segment: place.segment,
                    begin: place.position,
                    end,
                    key: batch.num_carried + batch.input_ids.len(),
                });
                push_readouts(&mut batch, trie, requests, place, end);
                trie.push_tokens(&mut batch.input_ids, requests, segment, place.position, end);
                batch.position_ids.extend(place.position as i64..end as i64);
                place.position = end;
            }
            next = Some(place);
            if place.position < segment.end {
                break;
            }
            if trie.is_leaf(segment) {
                self.stop = segment.last_path + 1;
            }
            next = self.place(trie, place.segment + 1);
        }
        batch.stop = self.stop;
        self.next = next;
        push_segments(&mut batch, &entries);
        if let Some(place) = self.next {
            let wanted = path_above(trie, place);
            for entry in entries.iter().filter(|entry| wanted.iter().any(|above| above.segment == entry.segment)) {
                batch.keep.extend([entry.key as i64, (entry.key + entry.end - entry.begin) as i64]);
            }
        }
        Some(batch)
    }

    /// The first segment from `segment` on that leads to a path that is to be run.
    fn place(&self, trie: &Trie, segment: usize) -> Option<Place> {
        let found = trie.segments[segment..].iter().position(|segment| segment.last_path >= self.start)?;
        let segment = segment + found;
        Some(Place { segment, position: trie.segments[segment].begin })
    }

    /// How far the segment at hand can be run in what is left of a batch.
    fn fitting(&self, trie: &Trie, place: Place, batch: &TrieBatch) -> usize {
        let tokens = self.budget.tokens - batch.input_ids.len();
        let end = trie.segments[place.segment].end.min(place.position + tokens);
        let readouts = self.budget.readouts - batch.readouts.len();
        let mut positions: Vec<usize> =
            targets(trie, place.segment, place.position, end).iter().map(|target| target.position).collect();
        positions.dedup();
        positions.get(readouts).copied().unwrap_or(end)
    }
}

/// The targets that are read from a segment's tokens at depths `begin .. end`.
fn targets(trie: &Trie, segment: usize, begin: usize, end: usize) -> &[ScoredToken] {
    let first = |position: usize| {
        trie.targets.partition_point(|target| (target.segment, target.position) < (segment, position))
    };
    &trie.targets[first(begin)..first(end)]
}

/// What is above a place, root first, with the keys that they have as the first of a batch.
fn path_above(trie: &Trie, place: Place) -> Vec<Entry> {
    let mut entries = Vec::new();
    let Node { parent, begin, .. } = trie.segments[place.segment];
    if place.position > begin {
        entries.push(Entry { segment: place.segment, begin, end: place.position, key: 0 });
    }
    let mut above = parent;
    while let Some(segment) = above {
        let Node { parent, begin, end, .. } = trie.segments[segment];
        entries.push(Entry { segment, begin, end, key: 0 });
        above = parent;
    }
    entries.reverse();
    // A path has all depths from 0 on, so a carried token's key is its depth.
    for entry in &mut entries {
        entry.key = entry.begin;
    }
    entries
}

fn push_readouts(batch: &mut TrieBatch, trie: &Trie, requests: &Requests, place: Place, end: usize) {
    let first = batch.input_ids.len();
    for target in targets(trie, place.segment, place.position, end) {
        let readout = (first + target.position - place.position) as i64;
        if batch.readouts.last() != Some(&readout) {
            batch.readouts.push(readout);
        }
        batch.target_readouts.push(batch.readouts.len() as i64 - 1);
        batch.target_tokens.push(i64::from(requests.continuation_token(target.index)));
        batch.targets.push(target.index as i64);
    }
}

/// A segment's subtree ends where a segment follows that does not begin below it.
fn push_segments(batch: &mut TrieBatch, entries: &[Entry]) {
    let num_keys = batch.num_carried + batch.input_ids.len();
    for (index, entry) in entries.iter().enumerate() {
        let after = entries[index + 1..].iter().find(|after| after.begin < entry.end);
        let subtree_end = after.map_or(num_keys, |after| after.key);
        let end = entry.key + entry.end - entry.begin;
        batch.segments.extend([entry.key as i64, end as i64, subtree_end as i64, entry.begin as i64]);
    }
}
