//! The gradient of attention: scores and weights are computed once more, block by block, from what the forward pass left.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayView3, Axis};
use pulp::{Arch, Simd};

use super::blocks::{Blocks, Seen};
use super::kernel::{Aligned, BLOCK, GRANULE, MOST_GRANULES, ROWS, Rows, Scores, Weights, pack_row};
use super::{AskRegisters, Attention, Dispatched, ForRegisters, Shape};
use crate::error::{Error, Result};
use crate::kernels::rows::contiguous;
use crate::kernels::simd::Processor;
use crate::runtime::parallel::{Team, for_each};

/// What the forward pass left, and the gradients with respect to that; all float32.
#[derive(Debug, Clone)]
pub struct ForwardState<'a> {
    /// The output, `[T, heads, value size]`.
    pub out: ArrayView3<'a, f32>,
    /// `[T, heads]`.
    pub log_sum_exp: ArrayView2<'a, f32>,
    /// `[T, heads, value size]`.
    pub out_gradient: ArrayView3<'a, f32>,
    /// `[T, heads]`.
    pub log_sum_exp_gradient: ArrayView2<'a, f32>,
}

/// Gradients with respect to what was put in, written.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[key heads, T, heads / key heads, size]`.
    pub query: &'a mut [f32],
    /// `[key heads, T, size]`.
    pub key: &'a mut [f32],
    /// `[key heads, T, value size]`.
    pub value: &'a mut [f32],
}

impl Attention<'_> {
    /// Differentiates (`FlashAttention`, arXiv 2205.14135, appendix B.2).
    ///
    /// Trees of the batch that see nothing of each other, and key heads, are worked on in parallel.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if shapes do not fit together, or keys were carried over from another batch.
    pub fn differentiate(&self, forward: &ForwardState<'_>, gradients: Gradients<'_>, team: &dyn Team) -> Result<()> {
        self.differentiate_on(Arch::new(), forward, gradients, team)
    }

    pub(super) fn differentiate_on(
        &self,
        processor: impl Processor,
        forward: &ForwardState<'_>,
        gradients: Gradients<'_>,
        team: &dyn Team,
    ) -> Result<()> {
        let shape = self.shape()?;
        let (tokens, heads, group) = (shape.tokens, shape.heads(), shape.group);
        let out = (tokens, heads, shape.value_size);
        let fit = forward.out.dim() == out
            && forward.out_gradient.dim() == out
            && [&forward.log_sum_exp, &forward.log_sum_exp_gradient].iter().all(|sums| sums.dim() == (tokens, heads));
        let per_key_head = [group * shape.size, shape.size, shape.value_size];
        let lens = [gradients.query.len(), gradients.key.len(), gradients.value.len()];
        if !fit || lens != per_key_head.map(|per_token| shape.key_heads * tokens * per_token) {
            let message = "the gradients of an attention call do not fit its inputs".to_owned();
            return Err(Error::InvalidArgument(message));
        }
        if shape.num_carried > 0 {
            let message = "attention to keys that were carried over has no gradient".to_owned();
            return Err(Error::InvalidArgument(message));
        }
        let registers = processor.run(Dispatched(AskRegisters));
        let keys = Blocks::pack(self, &shape, registers, team)?;
        // Gradients multiply by values where the forward pass does by keys, and the other way round.
        let swapped = Shape { size: shape.value_size, value_size: shape.size, ..shape };
        let values = Blocks::pack(&self.swapped(), &swapped, registers, team)?;
        let mut trees = Vec::new();
        let mut rest = [gradients.query, gradients.key, gradients.value];
        for head in 0..shape.key_heads {
            for tokens in self.trees() {
                let parts = std::array::from_fn(|index| {
                    let (part, others) =
                        std::mem::take(&mut rest[index]).split_at_mut(tokens.len() * per_key_head[index]);
                    rest[index] = others;
                    part
                });
                trees.push((head, tokens, parts));
            }
        }
        // The largest come first, so that the threads end together.
        trees.sort_by_key(|(_, tokens, _)| std::cmp::Reverse(tokens.len()));
        for_each(trees, team, Scratch::default, |scratch, (head, tokens, [query, key, value])| {
            let gradients = Gradients { query, key, value };
            processor.run(Dispatched(Tree {
                call: self,
                shape: &shape,
                keys: &keys,
                values: &values,
                forward,
                head,
                tokens,
                gradients,
                scratch,
            }));
        })
    }

    /// Runs of tokens that see nothing of each other.
    fn trees(&self) -> Vec<Range<usize>> {
        let mut trees: Vec<Range<usize>> = Vec::new();
        for segment in self.segments {
            match trees.last_mut() {
                Some(tree) if segment.start < tree.end => tree.end = tree.end.max(segment.subtree_end),
                _ => trees.push(segment.start..segment.subtree_end),
            }
        }
        if let (Some(tree), Some(segment)) = (trees.last_mut(), self.segments.last()) {
            // Its subtree may end in a later batch.
            tree.end = segment.end;
        }
        trees
    }

    /// The same call with keys and values in each other's place.
    fn swapped(&self) -> Self {
        Self { keys: self.keys.iter().map(|&(key, value)| (value, key)).collect(), ..self.clone() }
    }
}

/// Memory of one thread, used again from tree to tree.
#[derive(Debug, Default)]
struct Scratch {
    /// Scaled queries and the outputs' gradients, `[panels, size, ROWS]`.
    query: Aligned,
    gradient: Aligned,
    /// The same by row, in whole registers, queries without the scale: `[rows, size]`.
    query_rows: Aligned,
    gradient_rows: Aligned,
    /// Gradients of queries: `[rows, size in whole registers]`.
    query_sums: Aligned,
    /// Gradients of a block's keys and values: `[BLOCK, size in whole registers]`.
    key_sums: Aligned,
    value_sums: Aligned,
    rows: Vec<Rows>,
    copy: Vec<f32>,
}

/// A run of tokens that see nothing of others, and a key head.
struct Tree<'a, 'b, 'c> {
    call: &'a Attention<'b>,
    shape: &'a Shape,
    keys: &'a Blocks,
    values: &'a Blocks,
    forward: &'a ForwardState<'c>,
    head: usize,
    tokens: Range<usize>,
    gradients: Gradients<'a>,
    scratch: &'a mut Scratch,
}

impl ForRegisters for Tree<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize, const U: usize>(mut self, simd: S) {
        let scores = Scores::new(self.call.scale, self.call.softcap);
        let (size, value_size) = (self.shape.size, self.shape.value_size);
        // Rows of keys lie in whole registers where they are multiplied as values are.
        let (stride, value_stride) = (self.values.value_stride(), self.keys.value_stride());
        self.begin(scores.query_scale, stride, value_stride);
        for block in self.tokens.start / BLOCK..self.tokens.end.div_ceil(BLOCK) {
            let values = self.values.granules(self.head, block);
            // As their values they have themselves, which are added to the gradients of queries.
            let mut keys = self.keys.granules(self.head, block);
            for (key, value) in keys.iter_mut().zip(&values) {
                key.value = value.value;
            }
            self.scratch.key_sums.get_mut().fill(0.0);
            self.scratch.value_sums.get_mut().fill(0.0);
            let first = block * MOST_GRANULES;
            for panel in 0..self.scratch.rows.len() {
                let tokens = self.row_tokens(panel);
                let seen = self.keys.seen(block, &(tokens[0]..tokens[ROWS - 1] + 1), self.call.window);
                let (granules, mask) = match seen {
                    Seen::Nothing => continue,
                    Seen::Some(granules) => {
                        (granules.start - first..granules.end - first, Some(self.keys.mask(tokens, self.call.window)))
                    }
                    Seen::All => (0..MOST_GRANULES, None),
                };
                let scratch = &mut *self.scratch;
                let query = &scratch.query.get()[panel * ROWS * size..][..ROWS * size];
                let gradient = &scratch.gradient.get()[panel * ROWS * value_size..][..ROWS * value_size];
                let rows = &scratch.rows[panel];
                let (keys, values) = (&keys[granules.clone()], &values[granules.clone()]);
                let weights =
                    Weights::new::<S, V, U>(simd, &scores, query, gradient, keys, values, mask.as_ref(), rows);
                let range = panel * ROWS * stride..(panel + 1) * ROWS * stride;
                weights.add_to_queries::<S, V>(simd, keys, &mut scratch.query_sums.get_mut()[range.clone()]);
                let query_rows = &scratch.query_rows.get()[range];
                let from = granules.start * GRANULE;
                weights.add_to_keys::<S, V>(simd, query_rows, &mut scratch.key_sums.get_mut()[from * stride..]);
                let gradient_rows =
                    &scratch.gradient_rows.get()[panel * ROWS * value_stride..(panel + 1) * ROWS * value_stride];
                let sums = &mut scratch.value_sums.get_mut()[from * value_stride..];
                weights.add_to_values::<S, V>(simd, gradient_rows, sums);
            }
            self.write_block(block, stride, value_stride);
        }
        self.write_queries(stride);
    }
}

impl Tree<'_, '_, '_> {
    /// Panels hold all heads of a token side by side; the last one repeats the last row.
    fn row_tokens(&self, panel: usize) -> [usize; ROWS] {
        std::array::from_fn(|row| {
            (self.tokens.start + (panel * ROWS + row) / self.shape.group).min(self.tokens.end - 1)
        })
    }

    /// Packs queries and gradients.
    fn begin(&mut self, scale: f32, stride: usize, value_stride: usize) {
        let (group, size, value_size) = (self.shape.group, self.shape.size, self.shape.value_size);
        let rows = self.tokens.len() * group;
        let panels = rows.div_ceil(ROWS);
        let scratch = &mut *self.scratch;
        for (memory, len) in [
            (&mut scratch.query, panels * ROWS * size),
            (&mut scratch.gradient, panels * ROWS * value_size),
            (&mut scratch.query_rows, panels * ROWS * stride),
            (&mut scratch.gradient_rows, panels * ROWS * value_stride),
            (&mut scratch.query_sums, panels * ROWS * stride),
            (&mut scratch.key_sums, BLOCK * stride),
            (&mut scratch.value_sums, BLOCK * value_stride),
        ] {
            memory.resize(len);
            memory.get_mut().fill(0.0);
        }
        scratch.rows.clear();
        scratch.rows.resize(panels, Rows::NONE);
        // Rows of the last panel beyond the last keep gradients of 0, so that they add nothing.
        for row in 0..rows {
            let (token, head) = (self.tokens.start + row / group, self.head * group + row % group);
            let query = self.call.query.index_axis(Axis(0), head);
            let query = query.index_axis(Axis(0), token);
            let query = contiguous(&query, &mut scratch.copy);
            pack_row(scratch.query.get_mut(), row, query, scale);
            scratch.query_rows.get_mut()[row * stride..][..size].copy_from_slice(query);
            let out = self.forward.out.index_axis(Axis(0), token);
            let out = out.index_axis(Axis(0), head);
            let gradient = self.forward.out_gradient.index_axis(Axis(0), token);
            let gradient = gradient.index_axis(Axis(0), head);
            let gradient = contiguous(&gradient, &mut scratch.copy);
            pack_row(scratch.gradient.get_mut(), row, gradient, 1.0);
            scratch.gradient_rows.get_mut()[row * value_stride..][..value_size].copy_from_slice(gradient);
            let along: f32 = gradient.iter().zip(&out).map(|(gradient, out)| gradient * out).sum();
            let along = along - self.forward.log_sum_exp_gradient[[token, head]];
            scratch.rows[row / ROWS].set(row % ROWS, self.forward.log_sum_exp[[token, head]], along);
        }
    }

    /// Writes down the gradients of a block's keys and values that are the tree's.
    fn write_block(&mut self, block: usize, stride: usize, value_stride: usize) {
        let (size, value_size) = (self.shape.size, self.shape.value_size);
        for key in (block * BLOCK).max(self.tokens.start)..((block + 1) * BLOCK).min(self.tokens.end) {
            let (from, to) = (key - block * BLOCK, key - self.tokens.start);
            let sums = &self.scratch.key_sums.get()[from * stride..][..size];
            for (out, &sum) in self.gradients.key[to * size..][..size].iter_mut().zip(sums) {
                *out = sum * self.call.scale;
            }
            let sums = &self.scratch.value_sums.get()[from * value_stride..][..value_size];
            self.gradients.value[to * value_size..][..value_size].copy_from_slice(sums);
        }
    }

    /// Writes down the gradients of the queries.
    fn write_queries(&mut self, stride: usize) {
        let size = self.shape.size;
        let sums = self.scratch.query_sums.get().chunks_exact(stride);
        for (out, sums) in self.gradients.query.chunks_exact_mut(size).zip(sums) {
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = sum * self.call.scale;
            }
        }
    }
}
