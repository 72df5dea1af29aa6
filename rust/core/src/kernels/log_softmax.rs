//! Log-probabilities of a few tokens, without writing down those of the whole vocabulary.
#![allow(clippy::inline_always)] // See `crate::kernels::simd`.

use ndarray::{ArrayView2, Axis};
use pulp::{Arch, Simd, WithSimd};

use crate::error::{Error, Result};
use crate::kernels::rows::contiguous;
use crate::kernels::simd::{Processor, exp2};
use crate::runtime::parallel::{Team, for_each};

/// Rows that a thread takes at a time.
const ROWS: usize = 16;

/// Most numbers that a register holds.
const LANES: usize = 16;

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

/// Looks up tokens in the log-softmax of each row of logits, of which it is given some columns at a time.
#[derive(Debug)]
pub struct LookUp {
    targets: Vec<Target>,
    rows: Vec<Row>,
    /// Columns seen so far.
    columns: usize,
}

/// What is known of a row so far.
#[derive(Debug, Clone)]
struct Row {
    maximum: f32,
    /// The first column with the maximum.
    best: usize,
    /// Sums of `exp(logit - maximum)`, one for each lane of a register.
    sums: [f32; LANES],
    /// Indices of its targets.
    targets: Vec<usize>,
    /// Their logits; NaN until they are seen.
    logits: Vec<f32>,
}

impl LookUp {
    /// Nothing is seen yet of `rows` rows.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a target is in another row.
    pub fn new(targets: Vec<Target>, rows: usize) -> Result<Self> {
        let empty =
            Row { maximum: f32::NEG_INFINITY, best: 0, sums: [0.0; LANES], targets: Vec::new(), logits: Vec::new() };
        let mut rows = vec![empty; rows];
        for (index, target) in targets.iter().enumerate() {
            let of = rows.len();
            let row = rows
                .get_mut(target.row)
                .ok_or_else(|| Error::InvalidArgument(format!("{target:?} is not in one of {of} rows")))?;
            row.targets.push(index);
            row.logits.push(f32::NAN);
        }
        Ok(Self { targets, rows, columns: 0 })
    }

    /// The next columns, `[rows, _]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is another number of rows.
    pub fn add(&mut self, logits: &ArrayView2<'_, f32>, team: &dyn Team) -> Result<()> {
        self.add_on(Arch::new(), logits, team)
    }

    fn add_on(&mut self, processor: impl Processor, logits: &ArrayView2<'_, f32>, team: &dyn Team) -> Result<()> {
        let (rows, columns) = logits.dim();
        if rows != self.rows.len() {
            let wanted = self.rows.len();
            return Err(Error::InvalidArgument(format!("there are logits of {rows} rows, not of {wanted}")));
        }
        if columns == 0 {
            return Ok(());
        }
        let (first, targets) = (self.columns, &self.targets);
        let groups: Vec<_> = self.rows.chunks_mut(ROWS).enumerate().collect();
        for_each(groups, team, Vec::new, |copy: &mut Vec<f32>, (group, rows)| {
            for (index, row) in rows.iter_mut().enumerate() {
                let logits = logits.index_axis(Axis(0), group * ROWS + index);
                let logits = contiguous(&logits, copy);
                let maximum = processor.run(Add { logits, maximum: row.maximum, sums: &mut row.sums });
                if maximum > row.maximum {
                    row.maximum = maximum;
                    // Most columns do not hold a larger one, so that few are read again.
                    row.best = first + logits.iter().position(|&logit| logit >= maximum).unwrap_or(0);
                }
                for (logit, &target) in row.logits.iter_mut().zip(&row.targets) {
                    let seen = targets[target].token.checked_sub(first).and_then(|column| logits.get(column));
                    *logit = seen.copied().unwrap_or(*logit);
                }
            }
        })?;
        self.columns += columns;
        Ok(())
    }

    /// What the columns up to now say of each target.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a target is not among the columns.
    pub fn found(&self) -> Result<Vec<Found>> {
        if let Some(target) = self.targets.iter().find(|target| target.token >= self.columns) {
            let columns = self.columns;
            return Err(Error::InvalidArgument(format!("{target:?} is not among {columns} logits")));
        }
        let mut found = vec![(f32::NAN, false); self.targets.len()];
        for row in &self.rows {
            let log_sum = f64::from(row.maximum) + f64::from(row.sums.iter().sum::<f32>()).ln();
            for (&index, &logit) in row.targets.iter().zip(&row.logits) {
                let log_probability = (f64::from(logit) - log_sum) as f32;
                found[index] = (log_probability, self.targets[index].token == row.best && !log_probability.is_nan());
            }
        }
        Ok(found)
    }
}

/// Adds the exponentials of some logits to the sums of a row; returns the maximum, which they then have subtracted.
///
/// A lane's numbers are added up in float32 from end to end, as in torch's log-softmax and so in lm-eval's numbers. What is small
/// gets lost beside what is large: with 49,152 tokens, log-probabilities come out 7e-6 too high. Sums of several parts are five
/// times as exact, but then choices of thirty tokens are 2e-4 from lm-eval's.
struct Add<'a> {
    logits: &'a [f32],
    maximum: f32,
    sums: &'a mut [f32; LANES],
}

impl WithSimd for Add<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (vectors, rest) = S::as_simd_f32s(self.logits);
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
        let mut maximum = self.maximum;
        for &largest in &largest {
            maximum = maximum.max(simd.reduce_max_f32s(largest));
        }
        maximum = rest.iter().copied().fold(maximum, f32::max);
        if maximum == f32::NEG_INFINITY && !self.logits.iter().any(|logit| logit.is_nan()) {
            // All exponentials are 0; subtracting -infinity would make them NaN.
            return maximum;
        }
        if maximum > self.maximum {
            // The sums are 0 as long as nothing was larger than -infinity.
            let factor = (self.maximum - maximum).exp();
            self.sums.iter_mut().for_each(|sum| *sum *= factor);
        }
        let sum = &mut S::as_mut_simd_f32s(self.sums).0[0];
        for &logits in vectors {
            *sum = simd.add_f32s(*sum, exp(simd, logits, maximum));
        }
        for (sum, logit) in self.sums.iter_mut().zip(rest) {
            *sum += (logit - maximum).exp();
        }
        maximum
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
    use crate::kernels::simd::Chosen;
    use crate::runtime::parallel::Threads;

    fn slowly(logits: &Array2<f32>, target: Target) -> Found {
        let row: Vec<f64> = logits.row(target.row).iter().map(|&logit| f64::from(logit)).collect();
        let maximum = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = maximum + row.iter().map(|logit| (logit - maximum).exp()).sum::<f64>().ln();
        let first = row.iter().position(|&logit| logit >= maximum).unwrap();
        ((row[target.token] - sum) as f32, first == target.token)
    }

    /// Few values, so that several tokens are as probable, in rows that are no whole number of registers.
    fn logits() -> impl Strategy<Value = Array2<f32>> {
        let value = proptest::sample::select(vec![f32::NEG_INFINITY, -80.0, -3.0, 0.5, 4.0, 4.25]);
        (1..40_usize, 1..200_usize).prop_flat_map(move |(rows, tokens)| {
            let values = proptest::collection::vec(value.clone(), rows * tokens);
            values.prop_map(move |values| {
                let mut logits = Array2::from_shape_vec((rows, tokens), values).unwrap();
                logits.column_mut(tokens / 2).fill(-1.0); // a row of -infinity only has no softmax
                logits
            })
        })
    }

    proptest! {
        #[test]
        fn every_processor_finds_what_the_definition_says(
            logits in logits(),
            wanted in proptest::collection::vec((any::<usize>(), any::<usize>()), 0..20),
            cut in any::<usize>(),
        ) {
            let (rows, tokens) = logits.dim();
            let targets: Vec<_> =
                wanted.iter().map(|(row, token)| Target { row: row % rows, token: token % tokens }).collect();
            let (left, right) = logits.view().split_at(Axis(1), cut % (tokens + 1));
            let strewn = logits.t().to_owned();
            let mut ways: Vec<_> = (0..3).map(|_| LookUp::new(targets.clone(), rows).unwrap()).collect();
            ways[0].add(&left, &Threads(2)).unwrap();
            ways[0].add(&right, &Threads(2)).unwrap();
            ways[1].add(&strewn.t(), &Threads(1)).unwrap();
            ways[2].add_on(Chosen(Scalar), &logits.view(), &Threads(1)).unwrap();
            for way in ways {
                for (found, &target) in way.found().unwrap().iter().zip(&targets) {
                    let expected = slowly(&logits, target);
                    let both_infinite = found.0.is_infinite() && expected.0.is_infinite();
                    let close = (found.0 - expected.0).abs() <= 1e-6 * (1.0 + expected.0.abs());
                    prop_assert!(close || both_infinite, "{found:?} {expected:?}");
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
            let targets = vec![Target { row: 0, token: 0 }, Target { row: 1, token: 0 }];
            let mut look_up = LookUp::new(targets, 2).unwrap();
            look_up.add(&logits.view(), &Threads(1)).unwrap();
            look_up.add(&logits.view(), &Threads(1)).unwrap();
            let found = look_up.found().unwrap();
            assert!(found[0].0.is_finite() && found[0].1);
            assert!(!found[1].0.is_finite() && !found[1].1);
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_an_error() {
        let error = LookUp::new(vec![Target { row: 2, token: 0 }], 2).unwrap_err().to_string();
        assert!(error.contains("not in one of 2 rows"), "{error}");
        let mut look_up = LookUp::new(vec![Target { row: 0, token: 3 }], 2).unwrap();
        look_up.add(&Array2::zeros((2, 3)).view(), &Threads(1)).unwrap();
        let error = look_up.found().unwrap_err().to_string();
        assert!(error.contains("not among 3 logits"), "{error}");
        let error = look_up.add(&Array2::zeros((3, 3)).view(), &Threads(1)).unwrap_err().to_string();
        assert!(error.contains("logits of 3 rows, not of 2"), "{error}");
    }
}
