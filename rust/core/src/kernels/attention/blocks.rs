//! Keys and values in blocks, laid out as the kernel reads them, and which block is seen by whom.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView3, Axis};

use super::kernel::{Aligned, BLOCK, GRANULE, Granule, MOST_GRANULES, Mask, ROWS};
use super::{Attention, Registers, Shape};
use crate::error::Result;
use crate::kernels::rows::contiguous;
use crate::runtime::parallel::{Team, for_each};

/// All keys and values of a call.
#[derive(Debug)]
pub(super) struct Blocks {
    /// For each key head and granule, as [`Granule`] has them.
    key: Aligned,
    key_len: usize,
    value: Aligned,
    value_len: usize,
    /// Of each granule and of each block.
    granules: Vec<Bounds>,
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
    least_position: f32,
    largest_position: f32,
}

impl Blocks {
    /// Packs them for these registers.
    pub(super) fn pack(call: &Attention<'_>, shape: &Shape, registers: Registers, team: &dyn Team) -> Result<Self> {
        let num_keys = shape.num_carried + shape.tokens;
        let blocks = num_keys.div_ceil(BLOCK);
        let (mut end, mut position) = (vec![0; num_keys], vec![0; num_keys]);
        for segment in call.segments {
            end[segment.start..segment.end].fill(segment.subtree_end);
            for (depth, position) in position[segment.start..segment.end].iter_mut().enumerate() {
                *position = segment.position + depth;
            }
        }
        let bounds = |len: usize| -> Vec<_> {
            (0..blocks * BLOCK).step_by(len).map(|first| Bounds::of(first, len, &end, &position)).collect()
        };
        let (granules, bounds) = (bounds(GRANULE), bounds(BLOCK));
        let padded = |numbers: Vec<usize>| {
            let mut floats: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
            floats.resize(blocks * BLOCK, 0.0);
            floats
        };
        let Registers { lanes, keys, columns } = registers;
        let granules_of_head = blocks * MOST_GRANULES;
        let (key_len, value_len) = (GRANULE * shape.size, GRANULE * shape.value_size.next_multiple_of(lanes));
        // What lies beyond the last key stays 0: it must be finite, as a weight of 0 does not hide NaN.
        let mut packed = Self {
            key: Aligned::zeros(shape.key_heads * granules_of_head * key_len),
            key_len,
            value: Aligned::zeros(shape.key_heads * granules_of_head * value_len),
            value_len,
            granules,
            bounds,
            index: (0..blocks * BLOCK).map(|index| index as f32).collect(),
            end: padded(end),
            position: padded(position),
        };
        let destinations: Vec<_> = packed
            .key
            .get_mut()
            .chunks_mut(MOST_GRANULES * key_len)
            .zip(packed.value.get_mut().chunks_mut(MOST_GRANULES * value_len))
            .enumerate()
            .collect();
        for_each(destinations, team, Vec::new, |copy: &mut Vec<f32>, (index, (key, value))| {
            let (head, first) = (index / blocks, index % blocks * BLOCK);
            let mut run_start = 0;
            for (run_keys, run_values) in &call.keys {
                let run = run_start..run_start + run_keys.dim().1;
                for index in first.max(run.start)..(first + BLOCK).min(run.end) {
                    let (row, granule, place) = (index - run_start, (index - first) / GRANULE, index % GRANULE);
                    let key = &mut key[granule * key_len..][..key_len];
                    pack_key(contiguous(&row_of(run_keys, head, row), copy), place, keys, key);
                    let value = &mut value[granule * value_len..][..value_len];
                    pack_value(contiguous(&row_of(run_values, head, row), copy), place, lanes, columns, value);
                }
                run_start = run.end;
            }
        })?;
        Ok(packed)
    }

    /// The granules of a block, packed.
    pub(super) fn granules(&self, head: usize, block: usize) -> [Granule<'_>; MOST_GRANULES] {
        std::array::from_fn(|granule| self.granule(head, block * MOST_GRANULES + granule))
    }

    /// A granule, packed.
    pub(super) fn granule(&self, head: usize, granule: usize) -> Granule<'_> {
        let at = head * self.granules.len() + granule;
        let keys = granule * GRANULE..(granule + 1) * GRANULE;
        Granule {
            key: &self.key.get()[at * self.key_len..][..self.key_len],
            value: &self.value.get()[at * self.value_len..][..self.value_len],
            index: &self.index[keys.clone()],
            end: &self.end[keys.clone()],
            position: &self.position[keys],
        }
    }

    /// Length of a row of values, in whole registers.
    pub(super) fn value_stride(&self) -> usize {
        self.value_len / GRANULE
    }

    /// The blocks of which any of some tokens, numbered as keys, sees something but for a window, and a few others.
    pub(super) fn before(&self, tokens: &Range<usize>) -> impl Iterator<Item = usize> + use<'_> {
        let (first, last) = (tokens.start, tokens.end - 1);
        (0..=last / BLOCK).filter(move |&block| self.bounds[block].largest_end > first)
    }

    /// What tokens, numbered as keys, see of a block.
    pub(super) fn seen(&self, block: usize, tokens: &Range<usize>, window: Option<usize>) -> Seen {
        let window = window.map(|size| self.window(tokens, size));
        match self.bounds[block].seen(tokens, window.as_ref()) {
            Seen::Some(_) => {}
            other => return other,
        }
        let first = block * MOST_GRANULES;
        let is_seen = |granule: usize| self.granules[granule].seen(tokens, window.as_ref()) != Seen::Nothing;
        let mut seen = (first..first + MOST_GRANULES).filter(|&granule| is_seen(granule));
        match (seen.next(), seen.next_back()) {
            (Some(from), to) => Seen::Some(from..to.unwrap_or(from) + 1),
            _ => Seen::Nothing,
        }
    }

    fn window(&self, tokens: &Range<usize>, size: usize) -> Window {
        let positions = self.position[tokens.clone()].iter().copied();
        Window {
            nearest: positions.clone().fold(f32::INFINITY, f32::min),
            farthest: positions.fold(0.0, f32::max),
            size: size as f32,
        }
    }

    /// The mask for rows of these tokens, numbered as keys.
    pub(super) fn mask(&self, row_tokens: [usize; ROWS], window: Option<usize>) -> Mask {
        Mask {
            row: row_tokens.map(|token| token as f32),
            beyond: row_tokens
                .map(|token| window.map_or(f32::NEG_INFINITY, |window| self.position[token] - window as f32)),
        }
    }
}

/// How much of a block some rows see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    /// Something of these granules, numbered over all blocks, and of none beside them.
    Some(Range<usize>),
    All,
}

/// A sliding window, and between what the positions of some tokens lie.
struct Window {
    nearest: f32,
    farthest: f32,
    size: f32,
}

impl Bounds {
    /// Of `len` keys from `first` on.
    fn of(first: usize, len: usize, end: &[usize], position: &[usize]) -> Self {
        let keys = first.min(end.len())..(first + len).min(end.len());
        let is_whole = keys.len() == len;
        let (end, position) = (&end[keys.clone()], &position[keys]);
        let least = |numbers: &[usize]| numbers.iter().copied().min().unwrap_or_default();
        let largest = |numbers: &[usize]| numbers.iter().copied().max().unwrap_or_default();
        Self {
            first,
            last: first + len - 1,
            // What goes beyond the last key has some that nobody sees.
            least_end: if is_whole { least(end) } else { 0 },
            largest_end: largest(end),
            least_position: least(position) as f32,
            largest_position: largest(position) as f32,
        }
    }

    /// What tokens see of these keys. Some may turn out to be nothing once it is looked at key by key.
    fn seen(&self, tokens: &Range<usize>, window: Option<&Window>) -> Seen {
        let (first, last) = (tokens.start, tokens.end - 1);
        let far = |window: &Window| window.nearest >= self.largest_position + window.size;
        let partly_far = |window: &Window| window.farthest >= self.least_position + window.size;
        if self.first > last || self.largest_end <= first || window.is_some_and(far) {
            Seen::Nothing
        } else if self.last <= first && self.least_end > last && !window.is_some_and(partly_far) {
            Seen::All
        } else {
            Seen::Some(self.first / GRANULE..(self.last + 1).div_ceil(GRANULE))
        }
    }
}

fn row_of<'a>(array: &'a ArrayView3<'_, f32>, head: usize, row: usize) -> ArrayView1<'a, f32> {
    array.index_axis(Axis(0), head).index_axis_move(Axis(0), row)
}

fn pack_key(key: &[f32], row: usize, width: usize, granule: &mut [f32]) {
    let group = &mut granule[row / width * width * key.len()..][..width * key.len()];
    for (line, &number) in group.chunks_exact_mut(width).zip(key) {
        line[row % width] = number;
    }
}

fn pack_value(value: &[f32], row: usize, lanes: usize, width: usize, granule: &mut [f32]) {
    let stride = value.len().next_multiple_of(lanes);
    for (part, first) in value.chunks(width).zip((0..).step_by(width)) {
        let columns = (stride - first).min(width);
        granule[first * GRANULE + row * columns..][..part.len()].copy_from_slice(part);
    }
}
