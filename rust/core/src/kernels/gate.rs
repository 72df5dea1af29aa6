//! What is between the products of a gated feed-forward block, in one pass over memory.
#![allow(clippy::inline_always)] // See `crate::kernels::simd`.

use pulp::{Arch, Simd, WithSimd};

use crate::error::{Error, Result};
use crate::kernels::simd::{Processor, exp2};
use crate::runtime::parallel::{Team, for_each};

/// Numbers that a thread takes at a time.
const NUMBERS: usize = 1 << 15;

/// Beyond it a sigmoid is 0 or 1 to the last place, with or without the cubic term.
const LARGEST_SQUARE: f32 = 1e8;

/// An activation `x * sigmoid(scale * (x + cubic * x^3))`.
///
/// With scale 1 and no cubic term it is `SiLU` (arXiv 1702.03118), with 1.702 the sigmoid's approximation of GELU, with
/// `2 sqrt(2 / pi)` and 0.044715 that by the hyperbolic tangent, as `(1 + tanh(y)) / 2 = sigmoid(2 y)` (arXiv 1606.08415).
#[derive(Debug, Clone, Copy)]
pub struct Activation {
    /// Positive.
    pub scale: f32,
    /// Not negative.
    pub cubic: f32,
}

/// `opened = activation(opened) * inner`, number by number.
///
/// # Arguments
/// - `opened`: What comes out of the gate's product; overwritten.
/// - `inner`: What it lets through, as long.
/// - `team`: The threads to work on.
///
/// # Errors
/// [`Error::InvalidArgument`] if lengths differ, or the activation's numbers are out of range.
pub fn gate(opened: &mut [f32], inner: &[f32], activation: Activation, team: &dyn Team) -> Result<()> {
    gate_on(Arch::new(), opened, inner, activation, team)
}

fn gate_on(
    processor: impl Processor,
    opened: &mut [f32],
    inner: &[f32],
    activation: Activation,
    team: &dyn Team,
) -> Result<()> {
    let (gates, inners) = (opened.len(), inner.len());
    if gates != inners {
        return Err(Error::InvalidArgument(format!("{gates} gates do not fit {inners} numbers")));
    }
    let Activation { scale, cubic } = activation;
    if !(scale.is_finite() && scale > 0.0 && cubic.is_finite() && cubic >= 0.0) {
        return Err(Error::InvalidArgument(format!(
            "an activation needs a positive scale and no negative cubic term, not {scale} and {cubic}"
        )));
    }
    let groups: Vec<_> = opened.chunks_mut(NUMBERS).zip(inner.chunks(NUMBERS)).collect();
    for_each(
        groups,
        team,
        || (),
        |(), (opened, inner)| {
            processor.run(Gate { opened, inner, activation });
        },
    )
}

struct Gate<'a> {
    opened: &'a mut [f32],
    inner: &'a [f32],
    activation: Activation,
}

impl WithSimd for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (opened, last) = S::as_mut_simd_f32s(self.opened);
        let (inner, last_inner) = S::as_simd_f32s(self.inner);
        for (x, &inner) in opened.iter_mut().zip(inner) {
            *x = gated(simd, *x, inner, self.activation);
        }
        if !last.is_empty() {
            let (x, inner) = (simd.partial_load_f32s(last), simd.partial_load_f32s(last_inner));
            simd.partial_store_f32s(last, gated(simd, x, inner, self.activation));
        }
    }
}

// A closure in its place would not be inlined, and be without the processor's instructions: 30 times as slow.
#[inline(always)]
fn gated<S: Simd>(simd: S, x: S::f32s, inner: S::f32s, activation: Activation) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let scale = -activation.scale * std::f32::consts::LOG2_E;
    let largest = simd.splat_f32s(LARGEST_SQUARE);
    let square = simd.mul_f32s(x, x);
    let square = simd.select_f32s(simd.less_than_f32s(square, largest), square, largest);
    let factor = simd.mul_add_e_f32s(simd.splat_f32s(scale * activation.cubic), square, simd.splat_f32s(scale));
    let power = exp2(simd, simd.mul_f32s(simd.abs_f32s(x), factor));
    // sigmoid(y) is 1 / (1 + e^-y), and e^y / (1 + e^y): either way of e^-|y|.
    let above = simd.select_f32s(simd.less_than_f32s(x, simd.splat_f32s(0.0)), power, one);
    let activated = simd.div_f32s(simd.mul_f32s(x, above), simd.add_f32s(one, power));
    simd.mul_f32s(activated, inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;
    use crate::kernels::simd::Chosen;
    use crate::runtime::parallel::Threads;

    const SILU: Activation = Activation { scale: 1.0, cubic: 0.0 };
    const GELU: Activation = Activation { scale: 1.595_769, cubic: 0.044_715 };

    /// What the sigmoid is of.
    fn argument(x: f32, activation: Activation) -> f64 {
        let x = f64::from(x);
        f64::from(activation.scale) * (x + f64::from(activation.cubic) * x.powi(3))
    }

    fn slowly(x: f32, inner: f32, activation: Activation) -> f64 {
        f64::from(x) / (1.0 + (-argument(x, activation)).exp()) * f64::from(inner)
    }

    proptest! {
        #[test]
        fn every_processor_gives_what_the_definition_says(
            numbers in proptest::collection::vec((-90.0_f32..90.0, -2.0_f32..2.0), 0..700),
            near in any::<bool>(),
            activation in prop_oneof![Just(SILU), Just(GELU), Just(Activation { scale: 1.702, cubic: 0.0 })],
        ) {
            let factor = if near { 0.05 } else { 1.0 };
            let opened: Vec<f32> = numbers.iter().map(|number| number.0 * factor).collect();
            let inner: Vec<f32> = numbers.iter().map(|number| number.1).collect();
            let mut ways = vec![opened.clone(); 2];
            gate(&mut ways[0], &inner, activation, &Threads(2)).unwrap();
            gate_on(Chosen(Scalar), &mut ways[1], &inner, activation, &Threads(1)).unwrap();
            for way in ways {
                for ((&found, &x), &inner) in way.iter().zip(&opened).zip(&inner) {
                    let expected = slowly(x, inner, activation);
                    // Where the sigmoid is small, what is rounded before its power is that of a large number.
                    let allowed = 1e-6 * expected.abs() * (1.0 + argument(x, activation).abs()) + 1e-30;
                    prop_assert!((f64::from(found) - expected).abs() <= allowed, "{x}: {found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn long_rows_are_shared_by_threads() {
        let opened: Vec<f32> = (0..3 * NUMBERS + 5).map(|index| (index % 701) as f32 / 70.0 - 5.0).collect();
        let inner = vec![1.5; opened.len()];
        let mut ways = vec![opened.clone(); 2];
        gate(&mut ways[0], &inner, SILU, &Threads(1)).unwrap();
        gate(&mut ways[1], &inner, SILU, &Threads(3)).unwrap();
        assert_eq!(ways[0], ways[1]);
        assert!(ways[0].iter().zip(&opened).all(|(&found, &x)| (f64::from(found) - slowly(x, 1.5, SILU)).abs() < 1e-5));
    }

    #[test]
    fn what_is_no_number_or_very_large_stays_so() {
        for activation in [SILU, GELU] {
            let mut opened = [f32::NAN, f32::INFINITY, 1e30, -1e30, -1e5, 0.0, 2.0];
            gate(&mut opened, &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN], activation, &Threads(1)).unwrap();
            assert!(opened[0].is_nan() && opened[6].is_nan());
            assert_eq!(&opened[1..3], &[f32::INFINITY, 1e30]);
            assert!((-1e-7..=0.0).contains(&opened[3]) && (-1e-30..=0.0).contains(&opened[4]));
            assert_eq!(opened[5].to_bits(), 0);
        }
    }

    #[test]
    fn lengths_that_differ_and_a_scale_that_is_none_are_an_error() {
        let error = gate(&mut [0.0; 3], &[0.0; 2], SILU, &Threads(1)).unwrap_err().to_string();
        assert!(error.contains("3 gates do not fit 2 numbers"), "{error}");
        for (scale, cubic) in [(0.0, 0.0), (f32::NAN, 0.0), (1.0, -1.0), (1.0, f32::INFINITY)] {
            let error = gate(&mut [0.0], &[0.0], Activation { scale, cubic }, &Threads(1)).unwrap_err().to_string();
            assert!(error.contains("a positive scale"), "{error}");
        }
    }
}
