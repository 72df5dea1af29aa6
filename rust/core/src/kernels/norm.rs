//! Root-mean-square norms on the processor, a row read and written once.
#![allow(clippy::inline_always)] // See `crate::kernels::simd`.

use ndarray::{ArrayView1, ArrayView2, Axis};
use pulp::{Arch, Simd, WithSimd};

use crate::error::{Error, Result};
use crate::kernels::rows::contiguous;
use crate::kernels::simd::Processor;
use crate::runtime::parallel::{Team, for_each};

/// Rows that a thread takes at a time.
const ROWS: usize = 32;

/// `out = x / sqrt(mean(x^2) + epsilon) * weight`, row by row (Root Mean Square Layer Normalization, arXiv 1910.07467).
///
/// # Arguments
/// - `rows`: `[N, d]`.
/// - `weight`: `[d]`.
/// - `out`: `[N, d]`, written.
/// - `team`: The threads to work on.
///
/// # Errors
/// [`Error::InvalidArgument`] if shapes do not fit together.
pub fn rms_norm(
    rows: &ArrayView2<'_, f32>,
    weight: &ArrayView1<'_, f32>,
    epsilon: f32,
    out: &mut [f32],
    team: &dyn Team,
) -> Result<()> {
    rms_norm_on(Arch::new(), rows, weight, epsilon, out, team)
}

fn rms_norm_on(
    processor: impl Processor,
    rows: &ArrayView2<'_, f32>,
    weight: &ArrayView1<'_, f32>,
    epsilon: f32,
    out: &mut [f32],
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
    for_each(groups, team, Vec::new, |copy: &mut Vec<f32>, (group, out)| {
        for (index, out) in out.chunks_exact_mut(size).enumerate() {
            let row = rows.index_axis(Axis(0), group * ROWS + index);
            processor.run(Norm { row: contiguous(&row, copy), weight, epsilon, out });
        }
    })
}

struct Norm<'a> {
    row: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl WithSimd for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (vectors, rest) = S::as_simd_f32s(self.row);
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
        for ((out, &x), &weight) in self.out.iter_mut().zip(self.row).zip(self.weight) {
            *out = x * factor * weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;
    use crate::kernels::simd::Chosen;
    use crate::runtime::parallel::Threads;

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
            rms_norm(&rows.view(), &weight.view(), EPSILON, &mut ways[0], &Threads(2)).unwrap();
            rms_norm(&strewn.t(), &weight.view(), EPSILON, &mut ways[1], &Threads(1)).unwrap();
            rms_norm_on(Chosen(Scalar), &rows.view(), &weight.view(), EPSILON, &mut ways[2], &Threads(1)).unwrap();
            let expected = slowly(&rows, &weight);
            for way in ways {
                for (&found, &expected) in way.iter().zip(&expected) {
                    prop_assert!((f64::from(found) - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let rows = Array2::zeros((2, 3));
        for (weights, outputs) in [(2, 6), (3, 5)] {
            let (weight, mut out) = (Array1::zeros(weights), vec![0.0; outputs]);
            let error = rms_norm(&rows.view(), &weight.view(), 0.0, &mut out, &Threads(1));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("{weights} weights and {outputs} outputs")), "{error}");
        }
    }
}
