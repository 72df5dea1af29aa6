//! The token trie of a run: its distinct token sequences with their common beginnings held once.
//!
//! A node of the trie is a *segment*, a run of tokens that every path below it has in common.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::runtime::parallel::{self, Cancel};
use crate::tokens::padded::{self, PaddedRow};
use crate::tokens::request::Requests;

/// A run of tokens that the paths `..= last_path`, from the first that goes through it, have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    /// The segment it continues.
    pub(crate) parent: Option<usize>,
    /// A path that goes through it.
    pub(crate) path: usize,
    /// The last path that goes through it.
    pub(crate) last_path: usize,
    /// Depth of its first token.
    pub(crate) begin: usize,
    /// Depth after its last token.
    pub(crate) end: usize,
}

/// A token whose probability is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScoredToken {
    /// The segment that holds the token before it.
    pub(crate) segment: usize,
    /// Depth of the token before it.
    pub(crate) position: usize,
    /// The token's place among the continuation tokens of the run.
    pub(crate) index: usize,
}

/// The trie of all inputs of a run, depth-first.
#[derive(Debug, Clone)]
pub struct Trie {
    /// The inputs that are not the beginning of another one, in the order of their tokens.
    paths: Vec<PaddedRow>,
    pub(crate) segments: Vec<Node>,
    /// In order.
    pub(crate) targets: Vec<ScoredToken>,
}

impl Trie {
    /// Builds the trie of all requests.
    ///
    /// ```
    /// use wmdp_core::runtime::parallel::Cancel;
    /// use wmdp_core::tokens::request::Requests;
    /// use wmdp_core::tokens::trie::Trie;
    ///
    /// // Two questions that begin alike, with two continuations of one token each.
    /// let contexts = [vec![1, 2, 3], vec![1, 2, 4, 5]];
    /// let continuations = [vec![vec![7], vec![8]], vec![vec![7], vec![8]]];
    /// let requests = Requests::from_tokens(&contexts, &continuations, 2048)?;
    ///
    /// let trie = Trie::new(&requests, &Cancel::default())?;
    /// assert_eq!(trie.num_paths(), 2);
    /// assert_eq!(trie.num_tokens(), 5); // 1 and 2 are run once
    /// # Ok::<(), wmdp_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn new(requests: &Requests, cancel: &Cancel) -> Result<Self> {
        parallel::install(|| {
            let mut rows = padded::all_rows(requests, cancel);
            cancel.check()?;
            rows.par_sort_by(|a, b| {
                cancel.unwind_if_set();
                tokens(requests, a).compare(tokens(requests, b))
            });
            cancel.check()?;
            let shared = rows.par_windows(2).with_min_len(parallel::PART).map(|pair| {
                cancel.unwind_if_set();
                tokens(requests, &pair[0]).shared(tokens(requests, &pair[1]))
            });
            let shared: Vec<usize> = shared.collect();
            let mut trie = Self { paths: Vec::new(), segments: Vec::new(), targets: Vec::new() };
            // A row is the beginning of another one only if it is that of the next; it lies on the path of the next that is not.
            let mut shared_with_last = Vec::new();
            let mut path_of_row = Vec::with_capacity(rows.len());
            let mut least = 0;
            for (index, row) in rows.iter().enumerate() {
                cancel.check()?;
                path_of_row.push(trie.paths.len());
                let shared_with_next = shared.get(index).copied().unwrap_or(0);
                if shared_with_next < row.length || index + 1 == rows.len() {
                    trie.paths.push(*row);
                    shared_with_last.push(least);
                    least = shared_with_next;
                }
            }
            trie.grow(&shared_with_last, cancel)?;
            trie.place_targets(requests, &rows, &path_of_row, cancel);
            Ok(trie)
        })
    }

    /// Number of paths: inputs that are not the beginning of another one.
    #[must_use]
    pub fn num_paths(&self) -> usize {
        self.paths.len()
    }

    /// Tokens to run: each distinct beginning of an input has one.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.segments.iter().map(|segment| segment.end - segment.begin).sum()
    }

    /// The path to start at if some choices have their scores already (a flag for each choice of the run): all that is unfinished
    /// is read on that path or later.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is not a flag for each choice.
    pub fn first_unfinished(&self, requests: &Requests, finished: &[bool]) -> Result<usize> {
        if finished.len() != requests.num_choices() {
            return Err(Error::InvalidArgument(format!(
                "there are {} choices, not {}",
                requests.num_choices(),
                finished.len()
            )));
        }
        let wanted: Vec<bool> = finished
            .iter()
            .zip(requests.continuation_offsets().windows(2))
            .flat_map(|(&finished, offsets)| std::iter::repeat_n(!finished, offsets[1] - offsets[0]))
            .collect();
        let unfinished = self.targets.iter().filter(|target| wanted[target.index]);
        Ok(unfinished.map(|target| self.segments[target.segment].last_path).min().unwrap_or(self.num_paths()))
    }

    /// Whether a segment ends its path.
    pub(crate) fn is_leaf(&self, segment: &Node) -> bool {
        segment.end == self.paths[segment.path].length
    }

    /// Appends a segment's tokens at depths `begin .. end`.
    pub(crate) fn push_tokens(
        &self,
        out: &mut Vec<i64>,
        requests: &Requests,
        segment: &Node,
        begin: usize,
        end: usize,
    ) {
        for part in tokens(requests, &self.paths[segment.path]).range(begin, end).0 {
            out.extend(part.iter().map(|&token| i64::from(token)));
        }
    }

    /// Makes the segments. `shared[i]` is how many tokens path i shares with the path before it.
    fn grow(&mut self, shared: &[usize], cancel: &Cancel) -> Result<()> {
        // Paths first .. last below a segment: they have more in common than the segments above them hold.
        let mut groups = vec![(0, self.paths.len(), None)];
        if self.paths.is_empty() {
            groups.clear();
        }
        while let Some((first, last, parent)) = groups.pop() {
            cancel.check()?;
            let begin = parent.map_or(0, |parent: usize| self.segments[parent].end);
            if last - first == 1 {
                let end = self.paths[first].length;
                self.segments.push(Node { parent, path: first, last_path: first, begin, end });
                continue;
            }
            let end = shared[first + 1..last].iter().copied().min().unwrap_or(0);
            let branches: Vec<usize> = (first + 1..last).filter(|&path| shared[path] == end).collect();
            let mut above = parent;
            // At the root paths may have nothing in common.
            if end > begin {
                above = Some(self.segments.len());
                self.segments.push(Node { parent, path: first, last_path: last - 1, begin, end });
            }
            // Taken from the end, so the last branch goes in first.
            let mut stop = last;
            for &branch in branches.iter().rev() {
                groups.push((branch, stop, above));
                stop = branch;
            }
            groups.push((first, stop, above));
        }
        Ok(())
    }

    /// Finds the segment of every target.
    fn place_targets(&mut self, requests: &Requests, rows: &[PaddedRow], path_of_row: &[usize], cancel: &Cancel) {
        let mut leaves = vec![0; self.paths.len()];
        for (index, segment) in self.segments.iter().enumerate() {
            if self.is_leaf(segment) {
                leaves[segment.path] = index;
            }
        }
        let segments = &self.segments;
        self.targets = rows
            .par_iter()
            .zip(path_of_row)
            .with_min_len(parallel::PART)
            .flat_map_iter(|(row, &path)| {
                cancel.unwind_if_set();
                let leaf = leaves[path];
                padded::choices(requests, *row).flat_map(move |choice| {
                    let first = requests.continuation_offsets()[choice];
                    let length = requests.continuation(choice).len();
                    (0..length).map(move |at| {
                        let position = row.length - length + at;
                        let mut segment = leaf;
                        while segments[segment].begin > position {
                            segment = segments[segment].parent.unwrap_or(segment);
                        }
                        ScoredToken { segment, position, index: first + at }
                    })
                })
            })
            .collect();
        self.targets.par_sort_unstable_by(|a, b| {
            cancel.unwind_if_set();
            a.cmp(b)
        });
    }
}

/// The tokens of a row, which lie in up to three places.
fn tokens<'a>(requests: &'a Requests, row: &PaddedRow) -> Tokens<'a> {
    let whole = padded::parts(requests, row);
    let length: usize = whole.iter().map(|part| part.len()).sum();
    Tokens(whole).range(length - row.length, length)
}

#[derive(Clone, Copy)]
struct Tokens<'a>([&'a [u32]; 3]);

impl Tokens<'_> {
    fn range(self, begin: usize, end: usize) -> Self {
        let mut before = 0;
        Self(self.0.map(|part| {
            let within = |position: usize| position.saturating_sub(before).min(part.len());
            let cut = &part[within(begin)..within(end)];
            before += part.len();
            cut
        }))
    }

    /// How many tokens two rows begin with in common.
    fn shared(self, other: Self) -> usize {
        let (mut ours, mut theirs) = (self.0, other.0);
        let mut count = 0;
        loop {
            let Some(a) = ours.iter_mut().find(|part| !part.is_empty()) else { return count };
            let Some(b) = theirs.iter_mut().find(|part| !part.is_empty()) else { return count };
            let length = a.len().min(b.len());
            // A prefix that both have from the same place needs no comparison.
            let same = if std::ptr::eq(a.as_ptr(), b.as_ptr()) {
                length
            } else {
                a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count()
            };
            count += same;
            if same < length {
                return count;
            }
            *a = &a[length..];
            *b = &b[length..];
        }
    }

    fn at(self, position: usize) -> Option<u32> {
        self.range(position, position + 1).0.into_iter().flatten().copied().next()
    }

    fn compare(self, other: Self) -> std::cmp::Ordering {
        let shared = self.shared(other);
        self.at(shared).cmp(&other.at(shared))
    }
}
