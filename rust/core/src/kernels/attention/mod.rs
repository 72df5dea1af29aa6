//! Attention over a packed token trie on the processor: scores, softmax and weighted sums in one pass, no mask in memory.
//!
//! The rule is [`crate::tokens::pack`]'s: a token sees `key <= itself < subtree_end[key]`. Keys are cut into blocks of
//! `kernel::BLOCK` and queries into panels of `kernel::ROWS` rows, a row being one query head of one token; a panel
//! goes over the blocks of which it sees something, with a running maximum and sum (`FlashAttention`, arXiv 2205.14135).
//! Whole blocks are skipped by two comparisons, so a batch of many short branches costs what its branches cost. Heads that
//! share keys are rows of the same panel: their keys are read once.

#![allow(clippy::inline_always)] // See `crate::kernels::simd`.

mod blocks;
mod gradient;
mod kernel;
#[cfg(test)]
mod tests;

pub use self::gradient::{ForwardState, Gradients};

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView3, Axis};
use pulp::{Arch, Simd, WithSimd};

use self::blocks::Blocks;
use self::blocks::Seen;
use self::kernel::{Aligned, BLOCK, Block, GRANULE, Panel, ROWS, Running, Scores, pack_panel};
use crate::error::{Error, Result};
use crate::kernels::simd::Processor;
use crate::runtime::parallel::{Team, for_each};

/// About so many rows are attended at a time: their queries and outputs stay in the second cache, and what is read of the
/// keys serves all of them.
const TILE_ROWS: usize = 32 * ROWS;

/// A run of tokens in a row on the path: where its keys begin and end, where its subtree ends, and the position of its
/// first token, as in [`crate::tokens::pack::TrieBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its first key.
    pub start: usize,
    /// Its last key + 1.
    pub end: usize,
    /// The last key of its subtree + 1.
    pub subtree_end: usize,
    /// Depth in tokens of its first key.
    pub position: usize,
}

/// One attention call; all arrays are float32.
#[derive(Debug, Clone)]
pub struct Attention<'a> {
    /// `[heads, T, size]`.
    pub query: ArrayView3<'a, f32>,
    /// Keys `[key heads, _, size]` and values `[key heads, _, value size]`, a run of tokens after the other: those carried
    /// over from the batch before, and last the T tokens of this one.
    pub keys: Vec<(ArrayView3<'a, f32>, ArrayView3<'a, f32>)>,
    /// All keys' segments, in their order.
    pub segments: &'a [Segment],
    /// Factor of the scores.
    pub scale: f32,
    /// A token sees only keys less than so many positions before it.
    pub window: Option<usize>,
    /// Scores s become `softcap * tanh(s / softcap)`.
    pub softcap: Option<f32>,
}

impl Attention<'_> {
    /// Attends.
    ///
    /// # Arguments
    /// - `out`: `[T, heads, value size]`, written.
    /// - `log_sum_exp`: `[T, heads]`, written: the logarithm of the sum of the exponentials of a row's scores.
    /// - `team`: The threads to work on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if shapes do not fit together.
    pub fn run(&self, out: &mut [f32], log_sum_exp: &mut [f32], team: &dyn Team) -> Result<()> {
        self.run_on(Arch::new(), out, log_sum_exp, team)
    }

    fn run_on(
        &self,
        processor: impl Processor,
        out: &mut [f32],
        log_sum_exp: &mut [f32],
        team: &dyn Team,
    ) -> Result<()> {
        let shape = self.shape()?;
        let (tokens, heads) = (shape.tokens, shape.heads());
        if out.len() != tokens * heads * shape.value_size || log_sum_exp.len() != tokens * heads {
            return Err(Error::InvalidArgument("the outputs of an attention call do not fit its inputs".to_owned()));
        }
        let (lanes, width) = processor.run(Registers);
        let blocks = Blocks::pack(self, &shape, lanes, width, team)?;
        let step = (TILE_ROWS / shape.group).max(1);
        // The last tokens see most, so they come first and the threads end together.
        let tiles: Vec<_> = out
            .chunks_mut(step * heads * shape.value_size)
            .zip(log_sum_exp.chunks_mut(step * heads))
            .enumerate()
            .rev()
            .collect();
        for_each(tiles, team, Scratch::default, |scratch, (index, (out, log_sum_exp))| {
            let tokens = index * step..((index + 1) * step).min(shape.tokens);
            processor.run(Tile { call: self, shape: &shape, blocks: &blocks, tokens, out, log_sum_exp, scratch });
        })
    }

    fn shape(&self) -> Result<Shape> {
        let wrong =
            |what: &str| Err(Error::InvalidArgument(format!("an attention call does not fit together: {what}")));
        let (heads, tokens, size) = self.query.dim();
        let Some((own, own_values)) = self.keys.last() else {
            return wrong("it has no keys");
        };
        let (key_heads, own_tokens, _) = own.dim();
        let value_size = own_values.dim().2;
        if own_tokens != tokens {
            return wrong("the last keys are not those of its queries");
        }
        if key_heads == 0 || heads % key_heads != 0 || size == 0 || value_size == 0 {
            return wrong("its query heads are no multiple of its key heads");
        }
        for (key, value) in &self.keys {
            if key.dim().0 != key_heads || key.dim().2 != size {
                return wrong("its keys have other heads or another size than its queries");
            }
            if value.dim() != (key_heads, key.dim().1, value_size) {
                return wrong("its values are not shaped like its keys");
            }
        }
        let num_keys: usize = self.keys.iter().map(|(key, _)| key.dim().1).sum();
        if num_keys >= 1 << f32::MANTISSA_DIGITS {
            return wrong("it has more than 16 million keys");
        }
        let mut next = 0;
        for segment in self.segments {
            if segment.start != next || segment.end <= segment.start || segment.subtree_end < segment.end {
                return wrong("its segments are not one after another");
            }
            next = segment.end;
        }
        if next != num_keys {
            return wrong("its segments are not all its keys");
        }
        Ok(Shape { key_heads, group: heads / key_heads, tokens, num_carried: num_keys - tokens, size, value_size })
    }
}

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
struct Shape {
    key_heads: usize,
    /// Query heads that share a key head.
    group: usize,
    tokens: usize,
    num_carried: usize,
    size: usize,
    value_size: usize,
}

impl Shape {
    fn heads(&self) -> usize {
        self.key_heads * self.group
    }
}

/// How many numbers a register of this processor holds, and how many the kernel takes at once.
struct Registers;

impl WithSimd for Registers {
    type Output = (usize, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
        (S::F32_LANES, S::F32_LANES * if has_many_registers::<S>() { 4 } else { 2 })
    }
}

/// Whether four registers a row can be taken: beside those of a panel's sums, four and one more are needed. Else it is two.
const fn has_many_registers<S: Simd>() -> bool {
    S::REGISTER_COUNT > ROWS * 4 + 4
}

/// Memory of one thread, used again from tile to tile.
#[derive(Debug, Default)]
struct Scratch {
    /// The tokens of each panel's rows, numbered as keys.
    tokens: Vec<[usize; ROWS]>,
    query: Aligned,
    /// Queries of one panel that do not lie in one piece.
    strewn: Vec<f32>,
    running: Vec<Running>,
    out: Aligned,
}

/// Some tokens of a batch, all their heads.
struct Tile<'a, 'b> {
    call: &'a Attention<'b>,
    shape: &'a Shape,
    blocks: &'a Blocks,
    tokens: Range<usize>,
    out: &'a mut [f32],
    log_sum_exp: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Tile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if const { has_many_registers::<S>() } { self.run::<S, 4>(simd) } else { self.run::<S, 2>(simd) }
    }
}

impl Tile<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const V: usize>(&mut self, simd: S) {
        let scores = Scores::new(self.call.scale, self.call.softcap);
        let stride = self.blocks.value_stride();
        let keys = self.tokens.start + self.shape.num_carried..self.tokens.end + self.shape.num_carried;
        let panels = (self.tokens.len() * self.shape.group).div_ceil(ROWS);
        self.scratch.tokens = (0..panels).map(|panel| self.row_tokens(panel)).collect();
        for head in 0..self.shape.key_heads {
            self.begin(head, scores.query_scale);
            for block in self.blocks.before(&keys) {
                let (key, value) = self.blocks.of(head, block);
                for panel in 0..self.scratch.running.len() {
                    let rows = self.scratch.tokens[panel];
                    let seen = self.blocks.seen(block, &(rows[0]..rows[ROWS - 1] + 1), self.call.window);
                    let (granules, mask) = match seen {
                        Seen::Nothing => continue,
                        Seen::Some(granules) => (granules, Some(self.blocks.mask(block, rows, self.call.window))),
                        Seen::All => (0..BLOCK / GRANULE, None),
                    };
                    let query = self.shape.size * ROWS;
                    Panel {
                        query: &self.scratch.query.get()[panel * query..(panel + 1) * query],
                        running: &mut self.scratch.running[panel],
                        out: &mut self.scratch.out.get_mut()[panel * ROWS * stride..(panel + 1) * ROWS * stride],
                    }
                    .step::<S, V>(simd, &scores, &Block { key, value, granules }, mask.as_ref());
                }
            }
            self.end(head);
        }
    }

    /// The tokens of a panel's rows, numbered as keys. A row is a query head of a token; the last panel repeats the last.
    fn row_tokens(&self, panel: usize) -> [usize; ROWS] {
        std::array::from_fn(|row| {
            let token = self.tokens.start + (panel * ROWS + row) / self.shape.group;
            token.min(self.tokens.end - 1) + self.shape.num_carried
        })
    }

    /// Packs the queries of a key head and forgets what was computed before.
    fn begin(&mut self, head: usize, scale: f32) {
        let (group, size) = (self.shape.group, self.shape.size);
        let rows = self.tokens.len() * group;
        let panels = rows.div_ceil(ROWS);
        self.scratch.running.clear();
        self.scratch.running.resize(panels, Running::NEW);
        self.scratch.out.resize(panels * ROWS * self.blocks.value_stride());
        self.scratch.out.get_mut().fill(0.0);
        self.scratch.query.resize(panels * ROWS * size);
        self.scratch.strewn.resize(ROWS * size, 0.0);
        for (panel, packed) in self.scratch.query.get_mut().chunks_exact_mut(ROWS * size).enumerate() {
            let queries: [ArrayView1<'_, f32>; ROWS] = std::array::from_fn(|row| {
                // The last panel's rows beyond the last repeat it.
                let of = (panel * ROWS + row).min(rows - 1);
                let queries = self.call.query.index_axis(Axis(0), head * group + of % group);
                queries.index_axis_move(Axis(0), self.tokens.start + of / group)
            });
            for (query, copy) in queries.iter().zip(self.scratch.strewn.chunks_exact_mut(size)) {
                if query.to_slice().is_none() {
                    copy.iter_mut().zip(query).for_each(|(copy, &number)| *copy = number);
                }
            }
            let strewn = self.scratch.strewn.as_slice();
            let rows = std::array::from_fn(|row| queries[row].to_slice().unwrap_or(&strewn[row * size..][..size]));
            pack_panel(packed, rows, scale);
        }
    }

    /// Writes down what was computed for a key head.
    #[inline(always)]
    fn end(&mut self, head: usize) {
        let (group, size, heads) = (self.shape.group, self.shape.value_size, self.shape.heads());
        let stride = self.blocks.value_stride();
        for row in 0..self.tokens.len() * group {
            let (sum, log_sum_exp) = self.scratch.running[row / ROWS].sums(row % ROWS);
            let place = row / group * heads + head * group + row % group;
            self.log_sum_exp[place] = log_sum_exp;
            let weighted = &self.scratch.out.get()[row * stride..][..size];
            let factor = 1.0 / sum;
            for (out, &number) in self.out[place * size..][..size].iter_mut().zip(weighted) {
                *out = number * factor;
            }
        }
    }
}
