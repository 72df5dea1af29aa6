//! Root-mean-square norms on the processor, a row read and written once.
#![allow(clippy::inline_always)] // See `crate::simd`.

use ndarray::{ArrayView1, ArrayView2, Axis};
use pulp::{Arch, Simd, WithSimd};

use crate::error::{Error, Result};
use crate::format::Format;
use crate::parallel::{Team, for_each};
use crate::rows::contiguous;
use crate::simd::Processor;

/// Rows that a thread takes at a time.
const ROWS: usize = 32;

/// `out = x / sqrt(mean(x^2) + epsilon) * weight`, row by row (Root Mean Square Layer Normalization, arXiv 1910.07467).
///
/// In float32, and rounded where it is written; as some models do, also before it is multiplied by the weight.
///
/// # Arguments
/// - `rows`: `[N, d]`.
/// - `weight`: `[d]`.
/// - `round_twice`: Whether to round before that.
/// - `out`: `[N, d]`, written.
/// - `team`: The threads to work on.
///
/// # Errors
/// [`Error::InvalidArgument`] if shapes do not fit together.
pub fn rms_norm<F: Format>(
    rows: &ArrayView2<'_, F::Stored>,
    weight: &ArrayView1<'_, f32>,
    epsilon: f32,
    round_twice: bool,
    out: &mut [F::Stored],
    team: &dyn Team,
) -> Result<()> {
    rms_norm_on::<F>(Arch::new(), rows, weight, epsilon, round_twice, out, team)
}

fn rms_norm_on<F: Format>(
    processor: impl Processor,
    rows: &ArrayView2<'_, F::Stored>,
    weight: &ArrayView1<'_, f32>,
    epsilon: f32,
    round_twice: bool,
    out: &mut [F::Stored],
    team: &dyn Team,
) -> Result<()> {
    let (count, size) = rows.dim();
    if size == 0 || weight.len() != size || out.len() != count * size {
        let (weights, outputs) = (weight.len(), out.len());
        return Err(Error::InvalidArgument(format!(
            "{count} rows of {size} numbers do not fit {weights} weights and {outputs} outputs"
        )));
    }
    let mut weight_copy = Vec::new();
    let weight = contiguous(weight, &mut weight_copy);
    let groups: Vec<_> = out.chunks_mut(ROWS * size).enumerate().collect();
    for_each(groups, team, Scratch::<F>::default, |scratch, (group, out)| {
        for (index, out) in out.chunks_exact_mut(size).enumerate() {
            let row = rows.index_axis(Axis(0), group * ROWS + index);
            let row = contiguous(&row, &mut scratch.copy);
            processor.run(Norm::<F> { row, weight, epsilon, round_twice, out, wide: &mut scratch.wide });
        }
    })
}

/// Memory of one thread.
struct Scratch<F: Format> {
    copy: Vec<F::Stored>,
    wide: Vec<f32>,
}

impl<F: Format> Default for Scratch<F> {
    fn default() -> Self {
        Self { copy: Vec::new(), wide: Vec::new() }
    }
}

struct Norm<'a, F: Format> {
    row: &'a [F::Stored],
    weight: &'a [f32],
    epsilon: f32,
    round_twice: bool,
    out: &'a mut [F::Stored],
    wide: &'a mut Vec<f32>,
}

impl<F: Format> WithSimd for Norm<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.wide.resize(self.row.len(), 0.0);
        for (wide, &stored) in self.wide.iter_mut().zip(self.row) {
            *wide = F::wide(stored);
        }
        let (vectors, rest) = S::as_simd_f32s(self.wide);
        let (fours, ones) = vectors.as_chunks::<4>();
        let mut sums = [simd.splat_f32s(0.0); 4];
        for four in fours {
            for (sum, &x) in sums.iter_mut().zip(four) {
                *sum = simd.mul_add_e_f32s(x, x, *sum);
            }
        }
        for &x in ones {
            sums[0] = simd.mul_add_e_f32s(x, x, sums[0]);
        }
        let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
        // One rounding of what scales a whole row, in place of five.
        let squares =
            f64::from(simd.reduce_sum_f32s(sum)) + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        let factor = (1.0 / (squares / self.row.len() as f64 + f64::from(self.epsilon)).sqrt()) as f32;
        for ((out, &x), &weight) in self.out.iter_mut().zip(&*self.wide).zip(self.weight) {
            let scaled = x * factor;
            *out = F::narrow(if self.round_twice { F::rounded(scaled) } else { scaled } * weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;
    use crate::format::{Bfloat16, Float32};
    use crate::parallel::Threads;
    use crate::simd::Chosen;

    const EPSILON: f32 = 1e-3;

    fn slowly(rows: &Array2<f32>, weight: &Array1<f32>) -> Vec<f64> {
        let norm = |row: ndarray::ArrayView1<'_, f32>| {
            let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            let root = (squares / row.len() as f64 + f64::from(EPSILON)).sqrt();
            row.iter().zip(weight).map(|(&x, &weight)| f64::from(x) / root * f64::from(weight)).collect::<Vec<_>>()
        };
        rows.rows().into_iter().flat_map(norm).collect()
    }

    proptest! {
        #[test]
        fn every_processor_gives_what_the_definition_says(
            (rows, weight) in (1..70_usize, 1..150_usize).prop_flat_map(|(count, size)| {
                let rows = proptest::collection::vec(-3.0_f32..3.0, count * size);
                let rows = rows.prop_map(move |rows| Array2::from_shape_vec((count, size), rows).unwrap());
                (rows, proptest::collection::vec(-2.0_f32..2.0, size).prop_map(Array1::from_vec))
            })
        ) {
            let strewn = rows.t().to_owned();
            let mut ways = vec![vec![0.0; rows.len()]; 3];
            rms_norm::<Float32>(&rows.view(), &weight.view(), EPSILON, false, &mut ways[0], &Threads(2)).unwrap();
            rms_norm::<Float32>(&strewn.t(), &weight.view(), EPSILON, false, &mut ways[1], &Threads(1)).unwrap();
            rms_norm_on::<Float32>(Chosen(Scalar), &rows.view(), &weight.view(), EPSILON, false, &mut ways[2], &Threads(1)).unwrap();
            let expected = slowly(&rows, &weight);
            for way in ways {
                for (&found, &expected) in way.iter().zip(&expected) {
                    prop_assert!((f64::from(found) - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
                }
            }
        }
    }

    #[test]
    fn half_as_long_numbers_are_rounded_once_or_twice() {
        let rows = Array2::from_shape_fn((40, 50), |(row, column)| (row * 7 + column * 3) as f32 % 5.3 - 2.6);
        let stored = rows.map(|&x| Bfloat16::narrow(x));
        let wide = stored.map(|&x| Bfloat16::wide(x));
        let weight = Array1::from_shape_fn(50, |column| column as f32 / 9.0 - 2.0);
        let (mut expected, mut found) = (vec![0.0; rows.len()], vec![0; rows.len()]);
        rms_norm::<Float32>(&wide.view(), &weight.view(), EPSILON, false, &mut expected, &Threads(1)).unwrap();
        rms_norm::<Bfloat16>(&stored.view(), &weight.view(), EPSILON, false, &mut found, &Threads(2)).unwrap();
        assert_eq!(found, expected.into_iter().map(Bfloat16::narrow).collect::<Vec<_>>());
        let ones = Array1::ones(50);
        rms_norm::<Bfloat16>(&stored.view(), &ones.view(), EPSILON, false, &mut found, &Threads(1)).unwrap();
        let expected: Vec<_> = found
            .iter()
            .zip(weight.iter().cycle())
            .map(|(&scaled, &weight)| Bfloat16::narrow(Bfloat16::wide(scaled) * weight))
            .collect();
        rms_norm::<Bfloat16>(&stored.view(), &weight.view(), EPSILON, true, &mut found, &Threads(1)).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let rows = Array2::zeros((2, 3));
        for (weights, outputs) in [(2, 6), (3, 5)] {
            let (weight, mut out) = (Array1::zeros(weights), vec![0.0; outputs]);
            let error = rms_norm::<Float32>(&rows.view(), &weight.view(), 0.0, false, &mut out, &Threads(1));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("{weights} weights and {outputs} outputs")), "{error}");
        }
    }
}
