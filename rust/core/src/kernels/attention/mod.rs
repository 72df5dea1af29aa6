//! Attention over a packed token trie on the processor: scores, softmax and weighted sums in one pass, no mask in memory.
//!
//! The rule is [`crate::tokens::pack`]'s: a token sees `key <= itself < subtree_end[key]`. Keys are cut into granules of
//! `kernel::GRANULE`, four of which make a block, and queries into panels of `kernel::ROWS` rows, a row being one query head of one
//! token; a panel goes over the keys of which it sees something, with a running maximum and sum (`FlashAttention`, arXiv
//! 2205.14135). Whole blocks are skipped by two comparisons, so a batch of many short branches costs what its branches cost; the
//! granules that a panel sees some keys of, far from each other in a trie, go through the registers four at a time. Heads that share
//! keys are rows of the same panel: their keys are read once.

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
use self::kernel::{Aligned, GRANULE, MOST_GRANULES, Mask, Panel, ROWS, Running, Scores, pack_panel};
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
        let blocks = Blocks::pack(self, &shape, processor.run(Dispatched(AskRegisters)), team)?;
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
            let tile = Tile { call: self, shape: &shape, blocks: &blocks, tokens, out, log_sum_exp, scratch };
            processor.run(Dispatched(tile));
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

/// Work whose loops are made for the registers of a processor.
trait ForRegisters {
    type Output;

    /// Works with `V` registers of columns of values at once, and `U` of keys that lie side by side, at most a granule.
    fn run<S: Simd, const V: usize, const U: usize>(self, simd: S) -> Self::Output;
}

/// Such work, for the registers at hand.
struct Dispatched<W>(W);

impl<W: ForRegisters> WithSimd for Dispatched<W> {
    type Output = W::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> W::Output {
        if const { !has_many_registers::<S>() } {
            self.0.run::<S, 2, 2>(simd)
        } else if const { S::F32_LANES < GRANULE } {
            self.0.run::<S, 4, 4>(simd)
        } else {
            self.0.run::<S, 4, 1>(simd)
        }
    }
}

/// What the kernel takes at once on a processor.
#[derive(Debug, Clone, Copy)]
struct Registers {
    /// Numbers in a register.
    lanes: usize,
    /// Keys that lie side by side.
    keys: usize,
    /// Columns of values that lie side by side.
    columns: usize,
}

/// What they are.
struct AskRegisters;

impl ForRegisters for AskRegisters {
    type Output = Registers;

    #[inline(always)]
    fn run<S: Simd, const V: usize, const U: usize>(self, _: S) -> Registers {
        Registers { lanes: S::F32_LANES, keys: U * S::F32_LANES, columns: V * S::F32_LANES }
    }
}

/// Whether four registers a row can be taken: beside those of a panel's sums, four and one more are needed. Else it is two.
const fn has_many_registers<S: Simd>() -> bool {
    S::REGISTER_COUNT > ROWS * 4 + 4
}

/// A step of a panel over some granules, of which it may see only a part.
#[derive(Debug)]
struct Part {
    panel: usize,
    /// They are `len` from here on in [`Scratch::granules`].
    first: usize,
    len: usize,
}

/// Memory of one thread, used again from tile to tile.
#[derive(Debug, Default)]
struct Scratch {
    /// Blocks that a panel sees the whole of, with the panel.
    whole: Vec<(usize, usize)>,
    /// What else panels see.
    parts: Vec<Part>,
    granules: Vec<usize>,
    /// Of each panel.
    masks: Vec<Mask>,
    query: Aligned,
    /// Queries of one panel that do not lie in one piece.
    strewn: Vec<f32>,
    running: Vec<Running>,
    out: Aligned,
}

/// A panel of those in a thread's memory.
#[inline(always)]
fn panel_of<'a>(query: &'a Aligned, running: &'a mut [Running], out: &'a mut Aligned, panel: usize) -> Panel<'a> {
    let (query_len, out_len) = (query.get().len() / running.len(), out.get().len() / running.len());
    Panel {
        query: &query.get()[panel * query_len..][..query_len],
        out: &mut out.get_mut()[panel * out_len..][..out_len],
        running: &mut running[panel],
    }
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

impl ForRegisters for Tile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize, const U: usize>(mut self, simd: S) {
        let scores = Scores::new(self.call.scale, self.call.softcap);
        self.look();
        for head in 0..self.shape.key_heads {
            self.begin(head, scores.query_scale);
            for &(block, panel) in &self.scratch.whole {
                let panel = panel_of(&self.scratch.query, &mut self.scratch.running, &mut self.scratch.out, panel);
                panel.step_over::<S, V, U, MOST_GRANULES>(simd, &scores, self.blocks.granules(head, block), None);
            }
            for &Part { panel, first, len } in &self.scratch.parts {
                let numbers = &self.scratch.granules[first..first + len];
                let mut granules = [self.blocks.granule(head, numbers[0]); MOST_GRANULES];
                for (granule, &number) in granules.iter_mut().zip(numbers) {
                    *granule = self.blocks.granule(head, number);
                }
                let mask = &self.scratch.masks[panel];
                let panel = panel_of(&self.scratch.query, &mut self.scratch.running, &mut self.scratch.out, panel);
                panel.step::<S, V, U>(simd, &scores, &granules[..len], Some(mask));
            }
            self.end(simd, head);
        }
    }
}

impl Tile<'_, '_> {
    /// Finds out what each panel sees, which is the same for all heads.
    fn look(&mut self) {
        let panels = (self.tokens.len() * self.shape.group).div_ceil(ROWS);
        let rows: Vec<_> = (0..panels).map(|panel| self.row_tokens(panel)).collect();
        let scratch = &mut *self.scratch;
        scratch.masks.clear();
        scratch.whole.clear();
        scratch.parts.clear();
        scratch.granules.clear();
        for (panel, rows) in rows.into_iter().enumerate() {
            let (tokens, first) = (rows[0]..rows[ROWS - 1] + 1, scratch.granules.len());
            for block in self.blocks.before(&tokens) {
                match self.blocks.seen(block, &tokens, self.call.window) {
                    Seen::Nothing => {}
                    Seen::All => scratch.whole.push((block, panel)),
                    Seen::Some(granules) => scratch.granules.extend(granules),
                }
            }
            scratch.masks.push(self.blocks.mask(rows, self.call.window));
            // Steps as long as each other: what one costs beside its products is the same for few granules and many.
            let len = scratch.granules.len() - first;
            let steps = len.div_ceil(MOST_GRANULES);
            for step in 0..steps {
                let (from, to) = (step * len / steps, (step + 1) * len / steps);
                scratch.parts.push(Part { panel, first: first + from, len: to - from });
            }
        }
        // What is read of a block then serves all panels that see it.
        scratch.whole.sort_unstable();
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
    fn end<S: Simd>(&mut self, simd: S, head: usize) {
        let (group, size, heads) = (self.shape.group, self.shape.value_size, self.shape.heads());
        let stride = self.blocks.value_stride();
        for row in 0..self.tokens.len() * group {
            let (sum, log_sum_exp) = self.scratch.running[row / ROWS].sums(simd, row % ROWS);
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
