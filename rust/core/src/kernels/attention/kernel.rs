//! The innermost loops: a panel of query rows against a block of keys, in registers.

use std::ops::Range;

use pulp::Simd;

use crate::kernels::simd::{exp2, exp2_or_zero};

/// Query rows that are computed together.
pub(super) const ROWS: usize = 6;

/// Keys that are packed together, and left out together where none of them is seen: what the widest registers hold.
pub(super) const GRANULE: usize = LANES;

/// Granules that a panel attends to in one step.
pub(super) const MOST_GRANULES: usize = 4;

/// Keys of as many granules that follow each other.
pub(super) const BLOCK: usize = MOST_GRANULES * GRANULE;

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

/// How far a score may be above what its row takes for the largest, base 2, before that is raised. Weights may be so many
/// powers of two above 1: they have room for that, and most blocks then leave everything before them as it is.
const MOST_ABOVE: f32 = 8.0;

/// What is known of each row of a panel so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    /// Largest score, base 2, but for [`MOST_ABOVE`].
    maximum: [f32; ROWS],
    /// Sum of `exp2(score - maximum)`, in as many parts as a register has lanes.
    sum: [[f32; LANES]; ROWS],
}

impl Running {
    pub(super) const NEW: Self = Self { maximum: [NOTHING_SEEN; ROWS], sum: [[0.0; LANES]; ROWS] };

    /// The sum of `exp(score - maximum)` and the logarithm of the sum of `exp(score)` of a row.
    #[inline(always)]
    pub(super) fn sums<S: Simd>(&self, simd: S, row: usize) -> (f32, f32) {
        let sum = simd.reduce_sum_f32s(S::as_simd_f32s(&self.sum[row]).0[0]);
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

/// Some keys and their values, packed for registers of the kind at hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granule<'a> {
    /// `[GRANULE / width, size, width]`, `width` keys being those of `U` registers.
    pub(super) key: &'a [f32],
    /// `[GRANULE, value size in whole registers]`, cut into columns of `V` registers.
    pub(super) value: &'a [f32],
    /// Numbers of the keys.
    pub(super) index: &'a [f32],
    /// Where their subtrees end.
    pub(super) end: &'a [f32],
    /// Their positions.
    pub(super) position: &'a [f32],
}

/// Which keys each row of a panel sees.
#[derive(Debug)]
pub(super) struct Mask {
    /// The row's own number among the keys.
    pub(super) row: [f32; ROWS],
    /// A row sees only keys at higher positions.
    pub(super) beyond: [f32; ROWS],
}

impl Panel<'_> {
    /// Attends to at most [`MOST_GRANULES`].
    #[inline(always)]
    pub(super) fn step<S: Simd, const V: usize, const U: usize>(
        self,
        simd: S,
        scores: &Scores,
        granules: &[Granule<'_>],
        mask: Option<&Mask>,
    ) {
        // Loops whose number of turns is known have no branch to be guessed wrongly, which few keys would not make up for.
        match *granules {
            [] => {}
            [a] => self.step_over::<S, V, U, 1>(simd, scores, [a], mask),
            [a, b] => self.step_over::<S, V, U, 2>(simd, scores, [a, b], mask),
            [a, b, c] => self.step_over::<S, V, U, 3>(simd, scores, [a, b, c], mask),
            [a, b, c, d, ..] => self.step_over::<S, V, U, MOST_GRANULES>(simd, scores, [a, b, c, d], mask),
        }
    }

    /// The same for so many.
    #[inline(always)]
    pub(super) fn step_over<S: Simd, const V: usize, const U: usize, const G: usize>(
        self,
        simd: S,
        scores: &Scores,
        granules: [Granule<'_>; G],
        mask: Option<&Mask>,
    ) {
        let mut weights = [[0.0; BLOCK]; ROWS];
        products::<S, V, U>(simd, self.query, &granules, &mut weights);
        let mut largest = [simd.splat_f32s(NOTHING_SEEN); ROWS];
        let mut above = simd.splat_f32s(NOTHING_SEEN);
        for (row, (weights, largest)) in weights.iter_mut().zip(&mut largest).enumerate() {
            let weights = &mut weights[..G * GRANULE];
            if let Some(cap) = scores.softcap {
                for score in S::as_mut_simd_f32s(weights).0 {
                    *score = simd.mul_f32s(simd.splat_f32s(cap), tanh(simd, *score));
                }
            }
            if let Some(mask) = mask {
                hide(simd, mask, row, &granules, weights);
            }
            for &score in S::as_simd_f32s(weights).0 {
                *largest = simd.max_f32s(*largest, score);
            }
            above = simd.max_f32s(above, simd.sub_f32s(*largest, simd.splat_f32s(self.running.maximum[row])));
        }
        let factors = if simd.reduce_max_f32s(above) > MOST_ABOVE {
            Some(raise(simd, &mut self.running.maximum, largest))
        } else {
            None
        };
        for (row, weights) in weights.iter_mut().enumerate() {
            let (maximum, sum) = (self.running.maximum[row], &mut self.running.sum[row]);
            let factor = factors.map(|factors| factors[row]);
            exponentials(simd, &mut weights[..G * GRANULE], maximum, factor, sum);
        }
        add_values::<S, V>(simd, &weights, &granules, factors.as_ref(), self.out);
    }
}

/// Scores of a panel: query x key.
#[inline(always)]
fn products<S: Simd, const V: usize, const U: usize>(
    simd: S,
    query: &[f32],
    granules: &[Granule<'_>],
    scores: &mut [[f32; BLOCK]; ROWS],
) {
    let (query, _) = query.as_chunks::<ROWS>();
    if const { V > U } {
        // Registers hold the sums of several granules.
        match granules {
            [a] => product::<S, U, 1>(simd, query, [a.key], 0, scores),
            [a, b] => product::<S, U, 2>(simd, query, [a.key, b.key], 0, scores),
            [a, b, c] => product::<S, U, 3>(simd, query, [a.key, b.key, c.key], 0, scores),
            [a, b, c, d] => product::<S, U, 4>(simd, query, [a.key, b.key, c.key, d.key], 0, scores),
            _ => {}
        }
        return;
    }
    let width = U * S::F32_LANES;
    for (granule, first) in granules.iter().zip((0..).step_by(GRANULE)) {
        for (key, first) in granule.key.chunks_exact(query.len() * width).zip((first..).step_by(width)) {
            product::<S, U, 1>(simd, query, [key], first, scores);
        }
    }
}

/// The same for `N` times `U` registers of keys, the first of which is `first` of the scores.
#[inline(always)]
fn product<S: Simd, const U: usize, const N: usize>(
    simd: S,
    query: &[[f32; ROWS]],
    keys: [&[f32]; N],
    first: usize,
    scores: &mut [[f32; BLOCK]; ROWS],
) {
    let mut packed: [&[[S::f32s; U]]; N] = [&[]; N];
    for (packed, key) in packed.iter_mut().zip(keys) {
        *packed = &S::as_simd_f32s(key).0.as_chunks::<U>().0[..query.len()];
    }
    let mut sums = [[[simd.splat_f32s(0.0); U]; N]; ROWS];
    for (at, query) in query.iter().enumerate() {
        for (sums, &query) in sums.iter_mut().zip(query) {
            let query = simd.splat_f32s(query);
            for (sums, key) in sums.iter_mut().zip(&packed) {
                for (sum, &key) in sums.iter_mut().zip(&key[at]) {
                    *sum = simd.mul_add_e_f32s(query, key, *sum);
                }
            }
        }
    }
    let first = first / S::F32_LANES;
    for (scores, sums) in scores.iter_mut().zip(sums) {
        let scores = &mut S::as_mut_simd_f32s(scores).0[first..first + N * U];
        scores.copy_from_slice(sums.as_flattened());
    }
}

/// Sets the scores of keys that a row does not see to -infinity.
#[inline(always)]
fn hide<S: Simd>(simd: S, mask: &Mask, row: usize, granules: &[Granule<'_>], scores: &mut [f32]) {
    let (own, beyond) = (simd.splat_f32s(mask.row[row]), simd.splat_f32s(mask.beyond[row]));
    for (scores, granule) in scores.as_chunks_mut::<GRANULE>().0.iter_mut().zip(granules) {
        let index = S::as_simd_f32s(granule.index).0;
        let end = S::as_simd_f32s(granule.end).0;
        let position = S::as_simd_f32s(granule.position).0;
        for (((score, &index), &end), &position) in
            S::as_mut_simd_f32s(scores).0.iter_mut().zip(index).zip(end).zip(position)
        {
            let above = simd.and_m32s(simd.less_than_or_equal_f32s(index, own), simd.less_than_f32s(own, end));
            let seen = simd.and_m32s(above, simd.less_than_f32s(beyond, position));
            *score = simd.select_f32s(seen, *score, simd.splat_f32s(f32::NEG_INFINITY));
        }
    }
}

/// Raises the maxima of a panel's rows to their largest new scores, of which there is one in each lane; returns what older
/// weights are to be multiplied by.
///
/// All rows at once, and not by the C library: of short segments most of the time is spent between the products.
#[inline(always)]
fn raise<S: Simd>(simd: S, maxima: &mut [f32; ROWS], largest: [S::f32s; ROWS]) -> [f32; ROWS] {
    let mut factors = [0.0; LANES];
    for ((maximum, largest), factor) in maxima.iter_mut().zip(largest).zip(&mut factors) {
        let before = *maximum;
        *maximum = before.max(simd.reduce_max_f32s(largest));
        *factor = before - *maximum;
    }
    // What has seen no key yet has sums of 0, and keeps them.
    for factor in S::as_mut_simd_f32s(&mut factors).0 {
        *factor = exp2_or_zero(simd, *factor);
    }
    std::array::from_fn(|row| factors[row])
}

/// Turns a row's scores into weights `exp2(score - maximum)`, and adds them to their sum, times a factor if there is one.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &mut [f32], maximum: f32, factor: Option<f32>, sum: &mut [f32; LANES]) {
    let sum = &mut S::as_mut_simd_f32s(sum).0[0];
    let mut total = *sum;
    if let Some(factor) = factor {
        total = simd.mul_f32s(total, simd.splat_f32s(factor));
    }
    let subtract = simd.splat_f32s(maximum);
    for score in S::as_mut_simd_f32s(row).0 {
        *score = exp2_or_zero(simd, simd.sub_f32s(*score, subtract));
        total = simd.add_f32s(total, *score);
    }
    *sum = total;
}

/// out = out x factors, if there are any, + weights x values.
#[inline(always)]
fn add_values<S: Simd, const V: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    granules: &[Granule<'_>],
    factors: Option<&[f32; ROWS]>,
    out: &mut [f32],
) {
    let out = S::as_mut_simd_f32s(out).0;
    let vectors = out.len() / ROWS;
    let whole = vectors / V * V;
    for first in (0..whole).step_by(V) {
        add_columns::<S, V>(simd, weights, granules, factors, out, first);
    }
    match vectors - whole {
        1 => add_columns::<S, 1>(simd, weights, granules, factors, out, whole),
        2 => add_columns::<S, 2>(simd, weights, granules, factors, out, whole),
        3 => add_columns::<S, 3>(simd, weights, granules, factors, out, whole),
        _ => {}
    }
}

/// The same for the columns `first..first + N`, counted in vectors.
#[inline(always)]
fn add_columns<S: Simd, const N: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    granules: &[Granule<'_>],
    factors: Option<&[f32; ROWS]>,
    out: &mut [S::f32s],
    first: usize,
) {
    let vectors = out.len() / ROWS;
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for row in 0..ROWS {
        sums[row].copy_from_slice(&out[row * vectors + first..][..N]);
        if let Some(factors) = factors {
            let factor = simd.splat_f32s(factors[row]);
            for sum in &mut sums[row] {
                *sum = simd.mul_f32s(*sum, factor);
            }
        }
    }
    for (granule, from) in granules.iter().zip((0..BLOCK).step_by(GRANULE)) {
        let (value, _) = S::as_simd_f32s(granule.value).0[first * GRANULE..].as_chunks::<N>();
        for (value, key) in value[..GRANULE].iter().zip(from..from + GRANULE) {
            for row in 0..ROWS {
                let weight = simd.splat_f32s(weights[row][key]);
                for column in 0..N {
                    sums[row][column] = simd.mul_add_e_f32s(weight, value[column], sums[row][column]);
                }
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

/// The weights of some keys in a panel's rows, and the gradients of what their scores were before a soft cap.
pub(super) struct Weights {
    softmax: [[f32; BLOCK]; ROWS],
    gradients: [[f32; BLOCK]; ROWS],
    /// How many keys there are.
    len: usize,
}

impl Weights {
    /// Computes them again.
    ///
    /// # Arguments
    /// - `query`: Scaled queries, `[size, ROWS]`.
    /// - `gradient`: Gradients of the outputs, `[value size, ROWS]`.
    /// - `keys`: The keys, at most [`MOST_GRANULES`].
    /// - `values`: Their values, packed as keys are.
    /// - `mask`: Which keys the rows see, unless it is all.
    /// - `rows`: What is known of the rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new<S: Simd, const V: usize, const U: usize>(
        simd: S,
        scores: &Scores,
        query: &[f32],
        gradient: &[f32],
        keys: &[Granule<'_>],
        values: &[Granule<'_>],
        mask: Option<&Mask>,
        rows: &Rows,
    ) -> Self {
        let len = keys.len() * GRANULE;
        let mut this = Self { softmax: [[0.0; BLOCK]; ROWS], gradients: [[0.0; BLOCK]; ROWS], len };
        products::<S, V, U>(simd, query, keys, &mut this.softmax);
        products::<S, V, U>(simd, gradient, values, &mut this.gradients);
        let one = simd.splat_f32s(1.0);
        for (row, (weights, gradients)) in this.softmax.iter_mut().zip(&mut this.gradients).enumerate() {
            let (weights, gradients) = (&mut weights[..len], &mut gradients[..len]);
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
                hide(simd, mask, row, keys, weights);
            }
            let log_sum_exp = simd.splat_f32s(rows.log_sum_exp[row]);
            for (gradient, weight) in gradients.iter_mut().zip(S::as_mut_simd_f32s(weights).0) {
                // Rounding may put a score above the log-sum-exp that it is part of.
                let score = simd.min_f32s(simd.sub_f32s(*weight, log_sum_exp), simd.splat_f32s(0.0));
                *weight = exp2_or_zero(simd, score);
                *gradient = simd.mul_f32s(*gradient, *weight);
            }
        }
        this
    }

    /// Adds to the gradients of a panel's queries, `[ROWS, size in whole registers]`, but for the scale.
    ///
    /// `keys` has as its values the keys.
    #[inline(always)]
    pub(super) fn add_to_queries<S: Simd, const V: usize>(&self, simd: S, keys: &[Granule<'_>], sums: &mut [f32]) {
        add_values::<S, V>(simd, &self.gradients, keys, None, sums);
    }

    /// Adds to the gradients of the keys, `[keys, size in whole registers]`, but for the scale.
    #[inline(always)]
    pub(super) fn add_to_keys<S: Simd, const V: usize>(&self, simd: S, queries: &[f32], sums: &mut [f32]) {
        add_rows::<S, V>(simd, &self.gradients, self.len, queries, sums);
    }

    /// Adds to the gradients of the values, `[keys, value size in whole registers]`.
    #[inline(always)]
    pub(super) fn add_to_values<S: Simd, const V: usize>(&self, simd: S, gradients: &[f32], sums: &mut [f32]) {
        add_rows::<S, V>(simd, &self.softmax, self.len, gradients, sums);
    }
}

/// sums = sums + transposed weights x rows, for the first `len` weights of each row.
#[inline(always)]
fn add_rows<S: Simd, const V: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    len: usize,
    rows: &[f32],
    sums: &mut [f32],
) {
    let rows = S::as_simd_f32s(rows).0;
    let sums = S::as_mut_simd_f32s(sums).0;
    let vectors = rows.len() / ROWS;
    let whole = vectors / V * V;
    for first in (0..whole).step_by(V) {
        add_row_columns::<S, V>(simd, weights, len, rows, sums, first);
    }
    match vectors - whole {
        1 => add_row_columns::<S, 1>(simd, weights, len, rows, sums, whole),
        2 => add_row_columns::<S, 2>(simd, weights, len, rows, sums, whole),
        3 => add_row_columns::<S, 3>(simd, weights, len, rows, sums, whole),
        _ => {}
    }
}

/// The same for the columns `first..first + N`, counted in vectors.
#[inline(always)]
fn add_row_columns<S: Simd, const N: usize>(
    simd: S,
    weights: &[[f32; BLOCK]; ROWS],
    len: usize,
    rows: &[S::f32s],
    sums: &mut [S::f32s],
    first: usize,
) {
    let vectors = rows.len() / ROWS;
    let held: [[S::f32s; N]; ROWS] =
        std::array::from_fn(|row| std::array::from_fn(|column| rows[row * vectors + first + column]));
    for (key, sums) in (0..len).zip(sums.chunks_exact_mut(vectors)) {
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
