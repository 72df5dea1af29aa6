//! Keys and values in blocks, laid out as the kernel reads them, and which block is seen by whom.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView3, Axis};

use super::kernel::{Aligned, BLOCK, Mask, ROWS};
use super::{Attention, Shape};
use crate::error::Result;
use crate::parallel::{Team, for_each};

/// All keys and values of a call.
#[derive(Debug)]
pub(super) struct Blocks {
    /// For each key head and block `[BLOCK / width, size, width]`, `width` keys being those that the kernel takes at once.
    key: Aligned,
    key_len: usize,
    /// For each key head and block `[BLOCK, value size]`, cut into columns as the kernel takes them.
    value: Aligned,
    value_len: usize,
    bounds: Vec<Bounds>,
    /// Of each key: its number, where its subtree ends, its position. In float32, which is exact for them, as that is what
    /// masks are computed in; those after the last key are seen by nobody.
    index: Vec<f32>,
    end: Vec<f32>,
    position: Vec<f32>,
}

/// Between what its keys lie.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    first: usize,
    last: usize,
    least_end: usize,
    largest_end: usize,
    least_position: usize,
    largest_position: usize,
}

impl Blocks {
    /// Packs them for a kernel that takes `width` keys and at most as many columns of values at once, and whose registers
    /// hold `lanes` numbers.
    pub(super) fn pack(
        call: &Attention<'_>,
        shape: &Shape,
        lanes: usize,
        width: usize,
        team: &dyn Team,
    ) -> Result<Self> {
        let num_keys = shape.num_carried + shape.tokens;
        let blocks = num_keys.div_ceil(BLOCK);
        let (mut end, mut position) = (vec![0; num_keys], vec![0; num_keys]);
        for segment in call.segments {
            end[segment.start..segment.end].fill(segment.subtree_end);
            for (depth, position) in position[segment.start..segment.end].iter_mut().enumerate() {
                *position = segment.position + depth;
            }
        }
        let bounds = (0..blocks).map(|block| Bounds::of(block * BLOCK, &end, &position)).collect();
        let padded = |numbers: Vec<usize>| {
            let mut floats: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
            floats.resize(blocks * BLOCK, 0.0);
            floats
        };
        let mut packed = Self {
            key: Aligned::default(),
            key_len: BLOCK * shape.size,
            value: Aligned::default(),
            value_len: BLOCK * shape.value_size.next_multiple_of(lanes),
            bounds,
            index: (0..blocks * BLOCK).map(|index| index as f32).collect(),
            end: padded(end),
            position: padded(position),
        };
        packed.key.resize(shape.key_heads * blocks * packed.key_len);
        packed.value.resize(shape.key_heads * blocks * packed.value_len);
        let destinations: Vec<_> = packed
            .key
            .get_mut()
            .chunks_mut(packed.key_len)
            .zip(packed.value.get_mut().chunks_mut(packed.value_len))
            .enumerate()
            .collect();
        for_each(
            destinations,
            team,
            || (),
            |(), (index, (key, value))| {
                let (head, first) = (index / blocks, index % blocks * BLOCK);
                // What lies beyond the last key must be finite, as a weight of 0 does not hide NaN.
                key.fill(0.0);
                value.fill(0.0);
                let mut run_start = 0;
                for (keys, values) in &call.keys {
                    let run = run_start..run_start + keys.dim().1;
                    for index in first.max(run.start)..(first + BLOCK).min(run.end) {
                        pack_key(&row(keys, head, index - run_start), index - first, width, key);
                        pack_value(&row(values, head, index - run_start), index - first, lanes, width, value);
                    }
                    run_start = run.end;
                }
            },
        )?;
        Ok(packed)
    }

    /// Keys and values of a block.
    pub(super) fn of(&self, head: usize, block: usize) -> (&[f32], &[f32]) {
        let at = head * self.bounds.len() + block;
        (
            &self.key.get()[at * self.key_len..(at + 1) * self.key_len],
            &self.value.get()[at * self.value_len..(at + 1) * self.value_len],
        )
    }

    /// Length of a row of values, in whole registers.
    pub(super) fn value_stride(&self) -> usize {
        self.value_len / BLOCK
    }

    /// The blocks of which any of some tokens, numbered as keys, sees something but for a window, and a few others.
    pub(super) fn before(&self, tokens: &Range<usize>) -> impl Iterator<Item = usize> + use<'_> {
        let (first, last) = (tokens.start, tokens.end - 1);
        (0..=last / BLOCK).filter(move |&block| self.bounds[block].largest_end > first)
    }

    /// What tokens, numbered as keys, see of a block.
    pub(super) fn seen(&self, block: usize, tokens: &Range<usize>, window: Option<usize>) -> Seen {
        let (first, last) = (tokens.start, tokens.end - 1);
        let bounds = &self.bounds[block];
        let mut seen = if bounds.first > last || bounds.largest_end <= first {
            Seen::Nothing
        } else if bounds.last <= first && bounds.least_end > last {
            Seen::All
        } else {
            Seen::Some
        };
        if let Some(window) = window {
            let positions = &self.position[tokens.clone()];
            let nearest = positions.iter().copied().fold(f32::INFINITY, f32::min);
            let farthest = positions.iter().copied().fold(0.0, f32::max);
            if nearest >= bounds.largest_position.saturating_add(window) as f32 {
                seen = Seen::Nothing;
            } else if farthest >= bounds.least_position.saturating_add(window) as f32 && seen == Seen::All {
                seen = Seen::Some;
            }
        }
        seen
    }

    /// The mask of a block for rows of these tokens, numbered as keys.
    pub(super) fn mask(&self, block: usize, row_tokens: [usize; ROWS], window: Option<usize>) -> Mask<'_> {
        let keys = block * BLOCK..(block + 1) * BLOCK;
        Mask {
            index: &self.index[keys.clone()],
            end: &self.end[keys.clone()],
            position: &self.position[keys],
            row: row_tokens.map(|token| token as f32),
            beyond: row_tokens
                .map(|token| window.map_or(f32::NEG_INFINITY, |window| self.position[token] - window as f32)),
        }
    }
}

/// How much of a block some rows see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    Some,
    All,
}

impl Bounds {
    fn of(first: usize, end: &[usize], position: &[usize]) -> Self {
        let stop = (first + BLOCK).min(end.len());
        let (end, position) = (&end[first..stop], &position[first..stop]);
        let least = |numbers: &[usize]| numbers.iter().copied().min().unwrap_or_default();
        let largest = |numbers: &[usize]| numbers.iter().copied().max().unwrap_or_default();
        Self {
            first,
            // A block that is not full has keys that nobody sees.
            last: first + BLOCK - 1,
            least_end: if stop == first + BLOCK { least(end) } else { 0 },
            largest_end: largest(end),
            least_position: least(position),
            largest_position: largest(position),
        }
    }
}

fn row<'a>(array: &'a ArrayView3<'_, f32>, head: usize, row: usize) -> ArrayView1<'a, f32> {
    array.index_axis(Axis(0), head).index_axis_move(Axis(0), row)
}

fn pack_key(key: &ArrayView1<'_, f32>, row: usize, width: usize, block: &mut [f32]) {
    let group = &mut block[row / width * width * key.len()..][row % width..];
    for (&number, place) in key.iter().zip(group.iter_mut().step_by(width)) {
        *place = number;
    }
}

fn pack_value(value: &ArrayView1<'_, f32>, row: usize, lanes: usize, width: usize, block: &mut [f32]) {
    let stride = value.len().next_multiple_of(lanes);
    let mut numbers = value.iter();
    for first in (0..stride).step_by(width) {
        let columns = (stride - first).min(width);
        for (place, &number) in block[first * BLOCK + row * columns..][..columns].iter_mut().zip(&mut numbers) {
            *place = number;
        }
    }
}
