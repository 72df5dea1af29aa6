//! Rotary position embedding on the processor, a row read and written once.
#![allow(clippy::inline_always)] // See `crate::kernels::simd`.

use ndarray::{ArrayView2, ArrayView3, Axis};
use pulp::{Arch, Simd, WithSimd};

use crate::error::{Error, Result};
use crate::kernels::dtype::Format;
use crate::kernels::rows::contiguous;
use crate::kernels::simd::Processor;
use crate::runtime::parallel::{Team, for_each};

/// Tokens that a thread takes at a time.
const TOKENS: usize = 16;

/// Turns each pair of numbers that lie half a row apart by its token's angle (`RoFormer`, arXiv 2104.09864, in the order of
/// GPT-NeoX).
///
/// # Arguments
/// - `rows`: Queries or keys, `[heads, T, size]`; `size` is even.
/// - `cosines`: `[T, size]`.
/// - `sines`: `[T, size]`.
/// - `out`: `[T, heads, size]`, written. Its last bit is that of two rounded products, rounded once more when added.
/// - `team`: The threads to work on.
///
/// # Errors
/// [`Error::InvalidArgument`] if shapes do not fit together.
pub fn rotate<F: Format>(
    rows: &ArrayView3<'_, F::Stored>,
    cosines: &ArrayView2<'_, F::Stored>,
    sines: &ArrayView2<'_, F::Stored>,
    out: &mut [F::Stored],
    team: &dyn Team,
) -> Result<()> {
    rotate_on::<F>(Arch::new(), rows, cosines, sines, out, team)
}

fn rotate_on<F: Format>(
    processor: impl Processor,
    rows: &ArrayView3<'_, F::Stored>,
    cosines: &ArrayView2<'_, F::Stored>,
    sines: &ArrayView2<'_, F::Stored>,
    out: &mut [F::Stored],
    team: &dyn Team,
) -> Result<()> {
    let (heads, tokens, size) = rows.dim();
    let fit = size % 2 == 0 && cosines.dim() == (tokens, size) && sines.dim() == (tokens, size);
    if !fit || out.len() != rows.len() {
        return Err(Error::InvalidArgument(format!(
            "rows {:?} do not fit angles {:?} and {:?} and {} outputs",
            rows.dim(),
            cosines.dim(),
            sines.dim(),
            out.len()
        )));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let groups: Vec<_> = out.chunks_mut(TOKENS * heads * size).enumerate().collect();
    for_each(groups, team, Default::default, |copies: &mut [Vec<F::Stored>; 3], (group, out)| {
        for (index, out) in out.chunks_exact_mut(heads * size).enumerate() {
            let token = group * TOKENS + index;
            let [copy, cosines_copy, sines_copy] = copies;
            let (cosines, sines) = (cosines.index_axis(Axis(0), token), sines.index_axis(Axis(0), token));
            let (cosines, sines) = (contiguous(&cosines, cosines_copy), contiguous(&sines, sines_copy));
            processor.run(Turn::<F> { rows: rows.index_axis(Axis(1), token), cosines, sines, out, copy });
        }
    })
}

/// All heads of a token.
struct Turn<'a, F: Format> {
    rows: ArrayView2<'a, F::Stored>,
    cosines: &'a [F::Stored],
    sines: &'a [F::Stored],
    out: &'a mut [F::Stored],
    copy: &'a mut Vec<F::Stored>,
}

impl<F: Format> WithSimd for Turn<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let size = self.cosines.len();
        let (cosines, more_cosines) = self.cosines.split_at(size / 2);
        let (sines, more_sines) = self.sines.split_at(size / 2);
        for (row, out) in self.rows.rows().into_iter().zip(self.out.chunks_exact_mut(size)) {
            let (left, right) = contiguous(&row, self.copy).split_at(size / 2);
            let (out_left, out_right) = out.split_at_mut(size / 2);
            for ((((out, &x), &y), &cosine), &sine) in out_left.iter_mut().zip(left).zip(right).zip(cosines).zip(sines)
            {
                *out = turned::<F>(x, cosine, y, sine, -1.0);
            }
            let pairs = out_right.iter_mut().zip(left).zip(right).zip(more_cosines).zip(more_sines);
            for ((((out, &x), &y), &cosine), &sine) in pairs {
                *out = turned::<F>(y, cosine, x, sine, 1.0);
            }
        }
    }
}

/// `of * cosine + sign * other * sine`.
#[inline(always)]
fn turned<F: Format>(of: F::Stored, cosine: F::Stored, other: F::Stored, sine: F::Stored, sign: f32) -> F::Stored {
    let along = F::rounded(F::wide(of) * F::wide(cosine));
    F::narrow(along + sign * F::rounded(F::wide(other) * F::wide(sine)))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3};
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;
    use crate::kernels::dtype::{Bfloat16, Float32};
    use crate::kernels::simd::Chosen;
    use crate::runtime::parallel::Threads;

    /// Number by number.
    fn slowly(rows: &Array3<f32>, cosines: &Array2<f32>, sines: &Array2<f32>) -> Vec<f32> {
        let (heads, tokens, size) = rows.dim();
        let mut out = Vec::new();
        for token in 0..tokens {
            for head in 0..heads {
                for column in 0..size {
                    let other = rows[[head, token, (column + size / 2) % size]];
                    let other = if column < size / 2 { -other } else { other };
                    out.push(rows[[head, token, column]] * cosines[[token, column]] + other * sines[[token, column]]);
                }
            }
        }
        out
    }

    fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(-3.0_f32..3.0, count)
    }

    proptest! {
        #[test]
        fn every_processor_gives_what_the_definition_says(
            (rows, cosines, sines) in (1..5_usize, 0..40_usize, 1..40_usize).prop_flat_map(|(heads, tokens, half)| {
                let size = 2 * half;
                let angles = move || numbers(tokens * size)
                    .prop_map(move |angles| Array2::from_shape_vec((tokens, size), angles).unwrap());
                let rows = numbers(heads * tokens * size)
                    .prop_map(move |rows| Array3::from_shape_vec((heads, tokens, size), rows).unwrap());
                (rows, angles(), angles())
            })
        ) {
            let expected = slowly(&rows, &cosines, &sines);
            let (row_by_row, strewn) = (cosines.view(), cosines.t().to_owned());
            let by_token = rows.view().permuted_axes([2, 1, 0]).as_standard_layout().into_owned();
            let (rows, strewn_rows, sines) = (rows.view(), by_token.view().permuted_axes([2, 1, 0]), sines.view());
            let mut ways = vec![vec![f32::NAN; expected.len()]; 3];
            rotate::<Float32>(&rows, &row_by_row, &sines, &mut ways[0], &Threads(2)).unwrap();
            rotate::<Float32>(&strewn_rows, &strewn.t(), &sines, &mut ways[1], &Threads(1)).unwrap();
            rotate_on::<Float32>(Chosen(Scalar), &rows, &row_by_row, &sines, &mut ways[2], &Threads(1)).unwrap();
            for way in ways {
                prop_assert_eq!(&way, &expected);
            }
        }
    }

    #[test]
    fn half_as_long_numbers_are_rounded_after_each_operation() {
        let stored = |at: usize| Bfloat16::narrow((at * 37 % 101) as f32 / 23.0 - 2.1);
        let rows = Array3::from_shape_fn((2, 20, 6), |(head, token, column)| stored(head * 120 + token * 6 + column));
        let [cosines, sines] = [1, 7].map(|step| Array2::from_shape_fn((20, 6), |(t, c)| stored(t * step + c)));
        let mut found = vec![0; rows.len()];
        rotate::<Bfloat16>(&rows.view(), &cosines.view(), &sines.view(), &mut found, &Threads(2)).unwrap();
        let product = |a: u16, b: u16| Bfloat16::rounded(Bfloat16::wide(a) * Bfloat16::wide(b));
        for (at, &found) in found.iter().enumerate() {
            let (token, head, column) = (at / 12, at / 6 % 2, at % 6);
            let along = product(rows[[head, token, column]], cosines[[token, column]]);
            let across = product(rows[[head, token, (column + 3) % 6]], sines[[token, column]]);
            let expected = if column < 3 { along - across } else { along + across };
            assert_eq!(found, Bfloat16::narrow(expected));
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        for (size, tokens, outputs) in [(3, 2, 6), (4, 3, 8), (4, 2, 7)] {
            let (rows, angles) = (Array3::zeros((1, 2, size)), Array2::zeros((tokens, size)));
            let mut out = vec![0.0; outputs];
            let error =
                rotate::<Float32>(&rows.view(), &angles.view(), &angles.view(), &mut out, &Threads(1)).unwrap_err();
            assert!(error.to_string().contains(&format!("and {outputs} outputs")), "{error}");
        }
    }
}
