//! The innermost loops: a panel of query rows against a block of keys, in registers.

use std::ops::Range;

use pulp::Simd;

use crate::kernels::simd::exp2;

/// Query rows that are computed together.
pub(super) const ROWS: usize = 6;

/// Keys that are computed together.
pub(super) const BLOCK: usize = 64;

/// So many keys of a block are left out if none of them is seen: what the widest registers hold.
pub(super) const GRANULE: usize = LANES;

/// Numbers in the widest registers.
const LANES: usize = 16;

/// The maximum of a row that has seen no key yet: lower than any score, and finite, so that no difference is NaN.
const NOTHING_SEEN: f32 = -1e30;

/// Memory that begins at a cache line, so that no vector lies across two.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    memory: Vec<f32>,
    range: Range<usize>,
}

impl Aligned {
    const LINE: usize = 64;

    pub(super) fn zeros(len: usize) -> Self {
        let memory = vec![0.0; len + Self::LINE / size_of::<f32>()];
        let start = memory.as_ptr().align_offset(Self::LINE);
        Self { memory, range: start..start + len }
    }

    /// Makes it so long; what it holds is then unknown.
    pub(super) fn resize(&mut self, len: usize) {
        if self.memory.len() < len + Self::LINE / size_of::<f32>() {
            *self = Self::zeros(len);
        }
        self.range.end = self.range.start + len;
    }

    pub(super) fn get(&self) -> &[f32] {
        &self.memory[self.range.clone()]
    }

    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.range.clone()]
    }
}

/// Puts a row, times a factor, into its panel: `[len, ROWS]`, panel after panel.
pub(super) fn pack_row(panels: &mut [f32], row: usize, numbers: &[f32], factor: f32) {
    let panel = &mut panels[row / ROWS * ROWS * numbers.len()..][..ROWS * numbers.len()];
    for (place, &number) in panel.as_chunks_mut::<ROWS>().0.iter_mut().zip(numbers) {
        place[row % ROWS] = number * factor;
    }
}

/// Packs the rows of one panel, times a factor: `[len, ROWS]`. All at once takes less time than one after the other.
pub(super) fn pack_panel(panel: &mut [f32], rows: [&[f32]; ROWS], factor: f32) {
    let len = panel.len() / ROWS;
    let rows = rows.map(|row| &row[..len]);
    for (index, place) in panel.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        for (place, row) in place.iter_mut().zip(rows) {
            *place = row[index] * factor;
        }
    }
}

/// What scores are made of products: base 2 throughout, as `exp2` is cheaper than `exp`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scores {
    /// What queries are multiplied by before the product.
    pub(super) query_scale: f32,
    /// Factor of the hyperbolic tangent of products, if scores have a soft cap.
    softcap: Option<f32>,
}

impl Scores {
    pub(super) fn new(scale: f32, softcap: Option<f32>) -> Self {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        match softcap {
            None => Self { query_scale: scale * LOG2_E, softcap: None },
            Some(cap) => Self { query_scale: scale / cap, softcap: Some(cap * LOG2_E) },
        }
    }
}

/// What is known of each row of a panel so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    /// Largest score, base 2.
    maximum: [f32; ROWS],
    /// Sum of `exp2(score - maximum)`, in as many parts as a register has lanes.
    sum: [[f32; LANES]; ROWS],
}

impl Running {
    pub(super) const NEW: Self = Self { maximum: [NOTHING_SEEN; ROWS], sum: [[0.0; LANES]; ROWS] };

    /// The sum of `exp(score - maximum)` and the logarithm of the sum of `exp(score)` of a row.
    pub(super) fn sums(&self, row: usize) -> (f32, f32) {
        let sum: f32 = self.sum[row].iter().sum();
        (sum, self.maximum[row].mul_add(std::f32::consts::LN_2, sum.ln()))
    }
}

/// The rows of a panel.
pub(super) struct Panel<'a> {
    /// Scaled queries: `[size, ROWS]`.
    pub(super) query: &'a [f32],
    pub(super) running: &'a mut Running,
    /// Sums of `exp2(score - maximum) * value`: `[ROWS, value size, in whole registers]`.
    pub(super) out: &'a mut [f32],
}

/// Keys and values, packed for registers of the kind at hand.
pub(super) struct Block<'a> {
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
    /// The part of the block that a panel sees something of, in granules.
    pub(super) granules: Range<usize>,
}

impl Block<'_> {
    /// The part of the block that a panel sees something of.
    fn keys(&self) -> Range<usize> {
        self.granules.start * GRANULE..self.granules.end * GRANULE
    }
}

/// Which keys of a block each row sees.
pub(super) struct Mask<'a> {
    /// Numbers of the block's keys.
    pub(super) index: &'a [f32],
    /// Where their subtrees end.
    pub(super) end: &'a [f32],
    /// Their positions.
    pub(super) position: &'a [f32],
    /// The row's own number among the keys.
    pub(super) row: [f32; ROWS],
    /// A row sees only keys at higher positions.
    pub(super) beyond: [f32; ROWS],
}

impl Panel<'_> {
    /// Attends to a block.
    #[inline(always)]
    pub(super) fn step<S: Simd, const V: usize>(
        self,
        simd: S,
        scores: &Scores,
        block: &Block<'_>,
        mask: Option<&Mask<'_>>,
    ) {
        let keys = block.keys();
        let mut weights = [[0.0; BLOCK]; ROWS];
        products::<S, V>(simd, self.query, block, &mut weights);
        let mut largest = [0.0; ROWS];
        for (row, weights) in weights.iter_mut().enumerate() {
            let weights = &mut weights[keys.clone()];
            if let Some(cap) = scores.softcap {
                for score in S::as_mut_simd_f32s(weights).0 {
                    *score = simd.mul_f32s(simd.splat_f32s(cap), tanh(simd, *score));
                }
            }
            if let Some(mask) = mask {
                hide(simd, mask, row, keys.clone(), weights);
            }
            largest[row] = maximum(simd, weights);
        }
        let factors = raise(simd, &mut self.running.maximum, &largest);
        for (row, weights) in weights.iter_mut().enumerate() {
            let (maximum, sum) = (self.running.maximum[row], &mut self.running.sum[row]);
            exponentials(simd, &mut weights[keys.clone()], maximum, factors[row], sum);
        }
        add_values::<S, V>(simd, &weights, block.value, keys, &factors, self.out);
    }
}

/// Scores of a panel: query x key.
#[inline(always)]
fn products<S: Simd, const V: usize>(simd: S, query: &[f32], block: &Block<'_>, scores: &mut [[f32; BLOCK]; ROWS]) {
    let width = V * S::F32_LANES;
    let (query, _) = query.as_chunks::<ROWS>();
    let wanted = block.granules.start * GRANULE / S::F32_LANES..block.granules.end * GRANULE / S::F32_LANES;
    for (group, key) in block.key.chunks_exact(query.len() * width).enumerate() {
        let (from, to) = (wanted.start.max(group * V), wanted.end.min((group + 1) * V));
        if from >= to {
            continue;
        }
        let (key, _) = S::as_simd_f32s(key).0.as_chunks::<V>();
        let at = from - group * V;
        match to - from {
            1 if V > 1 => product::<S, V, 1>(simd, query, key, at, from, scores),
            2 if V > 2 => product::<S, V, 2>(simd, query, key, at, from, scores),
            3 if V > 3 => product::<S, V, 3>(simd, query, key, at, from, scores),
            _ => product::<S, V, V>(simd, query, key, at, from, scores),
        }
    }
}

/// The same for the vectors `at .. at + N` of a group of keys, which are `from .. from + N` of the block.
#[inline(always)]
fn product<S: Simd, const V: usize, const N: usize>(
    simd: S,
    query: &[[f32; ROWS]],
    key: &[[S::f32s; V]],
    at: usize,
    from: usize,
    scores: &mut [[f32; BLOCK]; ROWS],
) {
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for (query, key) in query.iter().zip(key) {
        for (sums, &query) in sums.iter_mut().zip(query) {
            let query = simd.splat_f32s(query);
            for (sum, &key) in sums.iter_mut().zip(&key[at..at + N]) {
                *sum = simd.mul_add_e_f32s(query, key, *sum);
            }
        }
    }
    for (scores, sums) in scores.iter_mut().zip(sums) {
        S::as_mut_simd_f32s(scores).0[from..from + N].copy_from_slice(&sums);
    }
}

/// Sets the scores of keys that a row does not see to -infinity.
#[inline(always)]
fn hide<S: Simd>(simd: S, mask: &Mask<'_>, row: usize, keys: Range<usize>, scores: &mut [f32]) {
    let (own, beyond) = (simd.splat_f32s(mask.row[row]), simd.splat_f32s(mask.beyond[row]));
    let index = S::as_simd_f32s(&mask.index[keys.clone()]).0;
    let end = S::as_simd_f32s(&mask.end[keys.clone()]).0;
    let position = S::as_simd_f32s(&mask.position[keys]).0;
    for (((score, &index), &end), &position) in
        S::as_mut_simd_f32s(scores).0.iter_mut().zip(index).zip(end).zip(position)
    {
        let above = simd.and_m32s(simd.less_than_or_equal_f32s(index, own), simd.less_than_f32s(own, end));
        let seen = simd.and_m32s(above, simd.less_than_f32s(beyond, position));
        *score = simd.select_f32s(seen, *score, simd.splat_f32s(f32::NEG_INFINITY));
    }
}

/// The largest score of a row.
#[inline(always)]
fn maximum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let row = S::as_simd_f32s(row).0;
    let mut largest = row[0];
    for &score in &row[1..] {
        largest = simd.max_f32s(largest, score);
    }
    simd.reduce_max_f32s(largest)
}

/// Raises the maxima of a panel's rows to their largest new scores; returns what older weights are to be multiplied by.
///
/// All rows at once, and not by the C library: of short segments most of the time is spent between the products.
#[inline(always)]
fn raise<S: Simd>(simd: S, maxima: &mut [f32; ROWS], largest: &[f32; ROWS]) -> [f32; ROWS] {
    let mut factors = [0.0; LANES];
    for ((maximum, &largest), factor) in maxima.iter_mut().zip(largest).zip(&mut factors) {
        let before = *maximum;
        *maximum = before.max(largest);
        *factor = before - *maximum;
    }
    // What has seen no key yet has sums of 0, and the least power of two times that is 0.
    for factor in S::as_mut_simd_f32s(&mut factors).0 {
        *factor = exp2(simd, *factor);
    }
    std::array::from_fn(|row| factors[row])
}

/// Turns a row's scores into weights `exp2(score - maximum)`, and adds them to their sum, times a factor.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &mut [f32], maximum: f32, factor: f32, sum: &mut [f32; LANES]) {
    let sum = &mut S::as_mut_simd_f32s(sum).0[0];
    let mut total = simd.mul_f32s(*sum, simd.splat_f32s(factor));
    let subtract = simd.splat_f32s(maximum);
    for score in S::as_mut_simd_f32s(row).0 {
        *score = exp2(simd, simd.sub_f32s(*score, subtract));
        total = simd.add_f32s(total, *score);
    }
    *sum = total;
}

/// out = out x factors + weights x values.
#[inline(always)]
fn add_values<S: Simd, const V: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    value: &[f32],
    keys: Range<usize>,
    factors: &[f32; ROWS],
    out: &mut [f32],
) {
    let stride = out.len() / ROWS;
    let value = S::as_simd_f32s(value).0;
    let out = S::as_mut_simd_f32s(out).0;
    let vectors = stride / S::F32_LANES;
    let whole = vectors / V * V;
    for first in (0..whole).step_by(V) {
        add_columns::<S, V>(simd, weights, &value[first * BLOCK..], keys.clone(), factors, out, first);
    }
    let rest = &value[whole * BLOCK..];
    match vectors - whole {
        1 => add_columns::<S, 1>(simd, weights, rest, keys, factors, out, whole),
        2 => add_columns::<S, 2>(simd, weights, rest, keys, factors, out, whole),
        3 => add_columns::<S, 3>(simd, weights, rest, keys, factors, out, whole),
        _ => {}
    }
}

/// The same for the columns `first..first + N`, counted in vectors; `value` is `[BLOCK, N]` and more.
#[inline(always)]
fn add_columns<S: Simd, const N: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    value: &[S::f32s],
    keys: Range<usize>,
    factors: &[f32; ROWS],
    out: &mut [S::f32s],
    first: usize,
) {
    let vectors = out.len() / ROWS;
    let (value, _) = value.as_chunks::<N>();
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for row in 0..ROWS {
        let factor = simd.splat_f32s(factors[row]);
        let out = &out[row * vectors + first..][..N];
        for column in 0..N {
            sums[row][column] = simd.mul_f32s(out[column], factor);
        }
    }
    for (key, value) in keys.clone().zip(&value[keys]) {
        for row in 0..ROWS {
            let weight = simd.splat_f32s(weights[row][key]);
            for column in 0..N {
                sums[row][column] = simd.mul_add_e_f32s(weight, value[column], sums[row][column]);
            }
        }
    }
    for row in 0..ROWS {
        out[row * vectors + first..][..N].copy_from_slice(&sums[row]);
    }
}

/// What the forward pass left of each row of a panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    /// Log-sum-exp of its scores, base 2.
    log_sum_exp: [f32; ROWS],
    /// What is subtracted from the gradients of its weights: their mean, less the log-sum-exp's gradient.
    along: [f32; ROWS],
}

impl Rows {
    /// Of rows that are none: with gradients of 0 they add nothing.
    pub(super) const NONE: Self = Self { log_sum_exp: [0.0; ROWS], along: [0.0; ROWS] };

    /// Sets a row; `log_sum_exp` is natural.
    pub(super) fn set(&mut self, row: usize, log_sum_exp: f32, along: f32) {
        self.log_sum_exp[row] = log_sum_exp * std::f32::consts::LOG2_E;
        self.along[row] = along;
    }
}

/// The weights of a block's keys in a panel's rows, and the gradients of what their scores were before a soft cap.
pub(super) struct Weights {
    weights: [[f32; BLOCK]; ROWS],
    gradients: [[f32; BLOCK]; ROWS],
}

impl Weights {
    /// Computes them again.
    ///
    /// # Arguments
    /// - `query`: Scaled queries, `[size, ROWS]`.
    /// - `gradient`: Gradients of the outputs, `[value size, ROWS]`.
    /// - `keys`: The block's keys.
    /// - `values`: The block's values, packed as keys are.
    /// - `mask`: Which keys the rows see, unless it is all.
    /// - `rows`: What is known of the rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new<S: Simd, const V: usize>(
        simd: S,
        scores: &Scores,
        query: &[f32],
        gradient: &[f32],
        keys: &Block<'_>,
        values: &Block<'_>,
        mask: Option<&Mask<'_>>,
        rows: &Rows,
    ) -> Self {
        let range = keys.keys();
        let mut this = Self { weights: [[0.0; BLOCK]; ROWS], gradients: [[0.0; BLOCK]; ROWS] };
        products::<S, V>(simd, query, keys, &mut this.weights);
        products::<S, V>(simd, gradient, values, &mut this.gradients);
        let one = simd.splat_f32s(1.0);
        for (row, (weights, gradients)) in this.weights.iter_mut().zip(&mut this.gradients).enumerate() {
            let (weights, gradients) = (&mut weights[range.clone()], &mut gradients[range.clone()]);
            let along = simd.splat_f32s(rows.along[row]);
            let gradients = S::as_mut_simd_f32s(gradients).0;
            for (gradient, weight) in gradients.iter_mut().zip(S::as_mut_simd_f32s(weights).0) {
                *gradient = simd.sub_f32s(*gradient, along);
                if let Some(cap) = scores.softcap {
                    let capped = tanh(simd, *weight);
                    *weight = simd.mul_f32s(simd.splat_f32s(cap), capped);
                    *gradient = simd.mul_f32s(*gradient, simd.sub_f32s(one, simd.mul_f32s(capped, capped)));
                }
            }
            if let Some(mask) = mask {
                hide(simd, mask, row, range.clone(), weights);
            }
            let log_sum_exp = simd.splat_f32s(rows.log_sum_exp[row]);
            for (gradient, weight) in gradients.iter_mut().zip(S::as_mut_simd_f32s(weights).0) {
                // Rounding may put a score above the log-sum-exp that it is part of.
                let score = simd.min_f32s(simd.sub_f32s(*weight, log_sum_exp), simd.splat_f32s(0.0));
                *weight = exp2(simd, score);
                *gradient = simd.mul_f32s(*gradient, *weight);
            }
        }
        this
    }

    /// Adds to the gradients of a panel's queries, `[ROWS, size in whole registers]`, but for the scale.
    #[inline(always)]
    pub(super) fn add_to_queries<S: Simd, const V: usize>(&self, simd: S, keys: &Block<'_>, sums: &mut [f32]) {
        add_values::<S, V>(simd, &self.gradients, keys.value, keys.keys(), &[1.0; ROWS], sums);
    }

    /// Adds to the gradients of a block's keys, `[BLOCK, size in whole registers]`, but for the scale.
    #[inline(always)]
    pub(super) fn add_to_keys<S: Simd, const V: usize>(
        &self,
        simd: S,
        keys: &Block<'_>,
        queries: &[f32],
        sums: &mut [f32],
    ) {
        add_rows::<S, V>(simd, &self.gradients, keys.keys(), queries, sums);
    }

    /// Adds to the gradients of a block's values, `[BLOCK, value size in whole registers]`.
    #[inline(always)]
    pub(super) fn add_to_values<S: Simd, const V: usize>(
        &self,
        simd: S,
        keys: &Block<'_>,
        gradients: &[f32],
        sums: &mut [f32],
    ) {
        add_rows::<S, V>(simd, &self.weights, keys.keys(), gradients, sums);
    }
}

/// sums = sums + transposed weights x rows.
#[inline(always)]
fn add_rows<S: Simd, const V: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    keys: Range<usize>,
    rows: &[f32],
    sums: &mut [f32],
) {
    let rows = S::as_simd_f32s(rows).0;
    let sums = S::as_mut_simd_f32s(sums).0;
    let vectors = rows.len() / ROWS;
    let whole = vectors / V * V;
    for first in (0..whole).step_by(V) {
        add_row_columns::<S, V>(simd, weights, keys.clone(), rows, sums, first);
    }
    match vectors - whole {
        1 => add_row_columns::<S, 1>(simd, weights, keys, rows, sums, whole),
        2 => add_row_columns::<S, 2>(simd, weights, keys, rows, sums, whole),
        3 => add_row_columns::<S, 3>(simd, weights, keys, rows, sums, whole),
        _ => {}
    }
}

/// The same for the columns `first..first + N`, counted in vectors.
#[inline(always)]
fn add_row_columns<S: Simd, const N: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    keys: Range<usize>,
    rows: &[S::f32s],
    sums: &mut [S::f32s],
    first: usize,
) {
    let vectors = rows.len() / ROWS;
    let held: [[S::f32s; N]; ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|column| rows[row * vectors + first + column]));
    for (key, sums) in keys.clone().zip(sums[keys.start * vectors..].chunks_exact_mut(vectors)) {
        let mut added: [S::f32s; N] = std::array::from_fn(|column| sums[first + column]);
        for row in 0..ROWS {
            let weight = simd.splat_f32s(weights[row][key]);
            for column in 0..N {
                added[column] = simd.mul_add_e_f32s(weight, held[row][column], added[column]);
            }
        }
        sums[first..first + N].copy_from_slice(&added);
    }
}

/// The hyperbolic tangent to two units in the last place. NaN stays NaN.
#[inline(always)]
fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const SMALL: f32 = 0.6;
    // (tanh(x) / x - 1) / x^2 as a polynomial in x^2 for |x| <= SMALL, highest power first.
    const POLYNOMIAL: [f32; 5] = [-5.895_157e-3, 2.079_597_1e-2, -5.378_383e-2, 1.333_192_4e-1, -3.333_33e-1];
    let square = simd.mul_f32s(x, x);
    let mut small = simd.splat_f32s(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        small = simd.mul_add_e_f32s(small, square, simd.splat_f32s(coefficient));
    }
    small = simd.mul_add_e_f32s(simd.mul_f32s(small, square), x, x);
    // 1 - 2 e^-2|x| / (1 + e^-2|x|) otherwise, with the sign of x.
    let absolute = simd.abs_f32s(x);
    let decayed = exp2(simd, simd.mul_f32s(absolute, simd.splat_f32s(-2.0 * std::f32::consts::LOG2_E)));
    let one = simd.splat_f32s(1.0);
    let large = simd.div_f32s(simd.sub_f32s(one, decayed), simd.add_f32s(one, decayed));
    let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    let large = simd.select_f32s(negative, simd.neg_f32s(large), large);
    simd.select_f32s(simd.less_than_f32s(absolute, simd.splat_f32s(SMALL)), small, large)
}
