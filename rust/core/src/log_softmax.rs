//! Log-probabilities of a few tokens, without writing down those of the whole vocabulary.
#![allow(clippy::inline_always)] // See `crate::simd`.

use ndarray::{ArrayView2, Axis};
use pulp::{Arch, Simd, WithSimd};

use crate::error::{Error, Result};
use crate::parallel::{Team, for_each};
use crate::rows::contiguous;
use crate::simd::{Processor, exp2};

/// A token to look up: its row of logits, and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The row.
    pub row: usize,
    /// The token, a column.
    pub token: usize,
}

/// Log-probability of a token, and whether no token is more probable and none before it as probable.
pub type Found = (f32, bool);

/// Looks up `targets` in the log-softmax of each row of `logits`, `[R, V]`; a row is read twice, the second time from the
/// cache.
///
/// Log-probabilities are rounded to float32 once, and compared as rounded.
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no such row or token.
pub fn look_up(logits: &ArrayView2<'_, f32>, targets: &[Target], team: &dyn Team) -> Result<Vec<Found>> {
    look_up_on(Arch::new(), logits, targets, team)
}

fn look_up_on(
    processor: impl Processor,
    logits: &ArrayView2<'_, f32>,
    targets: &[Target],
    team: &dyn Team,
) -> Result<Vec<Found>> {
    let (rows, tokens) = logits.dim();
    if let Some(target) = targets.iter().find(|target| target.row >= rows || target.token >= tokens) {
        return Err(Error::InvalidArgument(format!("{target:?} is not among {rows} rows of {tokens} logits")));
    }
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by_key(|&index| targets[index].row);
    let mut found = vec![(0.0, false); targets.len()];
    let groups: Vec<_> = order.chunk_by(|&a, &b| targets[a].row == targets[b].row).collect();
    let mut answers: Vec<Vec<Found>> = groups.iter().map(|_| Vec::new()).collect();
    let items: Vec<_> = groups.iter().zip(&mut answers).collect();
    for_each(items, team, Vec::new, |copy: &mut Vec<f32>, (group, answers)| {
        let row = contiguous(&logits.index_axis(Axis(0), targets[group[0]].row), copy);
        let sum = processor.run(LogSumExp(row));
        answers.extend(group.iter().map(|&index| answer(row, sum, targets[index].token)));
    })?;
    for (group, answers) in groups.iter().zip(answers) {
        for (&index, answer) in group.iter().zip(answers) {
            found[index] = answer;
        }
    }
    Ok(found)
}

/// Maximum of a row, and the logarithm of the sum of its exponentials.
#[derive(Debug, Clone, Copy)]
struct Sum {
    maximum: f32,
    log: f64,
}

impl Sum {
    fn log_probability(self, logit: f32) -> f32 {
        (f64::from(logit) - self.log) as f32
    }
}

fn answer(row: &[f32], sum: Sum, token: usize) -> Found {
    let found = sum.log_probability(row[token]);
    let highest = sum.log_probability(sum.maximum);
    // Few tokens are the most probable one, so that few rows are read again.
    let greedy = found >= highest && row[..token].iter().all(|&logit| sum.log_probability(logit) < highest);
    (found, greedy)
}

struct LogSumExp<'a>(&'a [f32]);

impl WithSimd for LogSumExp<'_> {
    type Output = Sum;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Sum {
        let (vectors, rest) = S::as_simd_f32s(self.0);
        let (fours, ones) = vectors.as_chunks::<4>();
        let mut largest = [simd.splat_f32s(f32::NEG_INFINITY); 4];
        for four in fours {
            for (largest, &logits) in largest.iter_mut().zip(four) {
                *largest = simd.max_f32s(*largest, logits);
            }
        }
        for &logits in ones {
            largest[0] = simd.max_f32s(largest[0], logits);
        }
        let largest = largest.iter().map(|&largest| simd.reduce_max_f32s(largest)).fold(f32::NEG_INFINITY, f32::max);
        let maximum = rest.iter().copied().fold(largest, f32::max);
        // Four sums side by side: shorter sums round less, and do not wait for each other.
        let mut sums = [simd.splat_f32s(0.0); 4];
        for four in fours {
            for (sum, &logits) in sums.iter_mut().zip(four) {
                *sum = simd.add_f32s(*sum, exp(simd, logits, maximum));
            }
        }
        for &logits in ones {
            sums[0] = simd.add_f32s(sums[0], exp(simd, logits, maximum));
        }
        let sum: f64 = sums.iter().map(|&sum| f64::from(simd.reduce_sum_f32s(sum))).sum();
        let sum = sum + rest.iter().map(|&logit| f64::from(logit - maximum).exp()).sum::<f64>();
        Sum { maximum, log: f64::from(maximum) + sum.ln() }
    }
}

/// e^(logits - maximum).
#[inline(always)]
fn exp<S: Simd>(simd: S, logits: S::f32s, maximum: f32) -> S::f32s {
    let below = simd.sub_f32s(logits, simd.splat_f32s(maximum));
    exp2(simd, simd.mul_f32s(below, simd.splat_f32s(std::f32::consts::LOG2_E)))
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;
    use crate::parallel::Threads;
    use crate::simd::Chosen;

    fn slowly(logits: &Array2<f32>, target: Target) -> Found {
        let row: Vec<f64> = logits.row(target.row).iter().map(|&logit| f64::from(logit)).collect();
        let maximum = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = maximum + row.iter().map(|logit| (logit - maximum).exp()).sum::<f64>().ln();
        let found: Vec<f32> = row.iter().map(|logit| (logit - sum) as f32).collect();
        let first = (0..found.len()).rev().max_by(|&a, &b| found[a].total_cmp(&found[b])).unwrap();
        (found[target.token], first == target.token)
    }

    /// Few values, so that several tokens are as probable, in rows that are no whole number of registers.
    fn logits() -> impl Strategy<Value = Array2<f32>> {
        let value = proptest::sample::select(vec![-80.0_f32, -3.0, 0.5, 4.0, 4.25]);
        (1..6_usize, 1..200_usize).prop_flat_map(move |(rows, tokens)| {
            let values = proptest::collection::vec(value.clone(), rows * tokens);
            values.prop_map(move |values| Array2::from_shape_vec((rows, tokens), values).unwrap())
        })
    }

    proptest! {
        #[test]
        fn every_processor_finds_what_the_definition_says(
            logits in logits(),
            wanted in proptest::collection::vec((any::<usize>(), any::<usize>()), 0..20),
        ) {
            let (rows, tokens) = logits.dim();
            let targets: Vec<_> =
                wanted.iter().map(|(row, token)| Target { row: row % rows, token: token % tokens }).collect();
            let strewn = logits.t().to_owned();
            for found in [
                look_up(&logits.view(), &targets, &Threads(2)).unwrap(),
                look_up(&strewn.t(), &targets, &Threads(1)).unwrap(),
                look_up_on(Chosen(Scalar), &logits.view(), &targets, &Threads(1)).unwrap(),
            ] {
                for (found, &target) in found.iter().zip(&targets) {
                    let expected = slowly(&logits, target);
                    prop_assert!((found.0 - expected.0).abs() <= 1e-6 * (1.0 + expected.0.abs()), "{found:?} {expected:?}");
                    prop_assert_eq!(found.1, expected.1);
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_not_lost() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = Array2::zeros((2, 70));
            logits[[1, 33]] = bad;
            let targets = [Target { row: 0, token: 0 }, Target { row: 1, token: 0 }];
            let found = look_up(&logits.view(), &targets, &Threads(1)).unwrap();
            assert!(found[0].0.is_finite() && found[0].1);
            assert!(!found[1].0.is_finite() && !found[1].1);
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_an_error() {
        let logits = Array2::zeros((2, 3));
        for target in [Target { row: 2, token: 0 }, Target { row: 0, token: 3 }] {
            let error = look_up(&logits.view(), &[target], &Threads(1)).unwrap_err().to_string();
            assert!(error.contains("is not among 2 rows of 3 logits"), "{error}");
        }
    }
}
