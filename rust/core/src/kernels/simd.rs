//! Code for whichever vector instructions the processor has.
//!
//! A processor's instructions are used by what is inlined into the function for which `pulp` turns them on, and by no other:
//! hence `inline(always)` on all of it.
#![allow(clippy::inline_always)]

use pulp::{Arch, Simd, WithSimd};

/// A kind of processor: which instructions code is made of.
pub(crate) trait Processor: Copy + Sync {
    fn run<W: WithSimd>(self, work: W) -> W::Output;
}

impl Processor for Arch {
    fn run<W: WithSimd>(self, work: W) -> W::Output {
        self.dispatch(work)
    }
}

/// Instructions that this processor may have, but would not choose.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) struct Chosen<S>(pub(crate) S);

#[cfg(test)]
impl<S: Simd + Sync> Processor for Chosen<S> {
    fn run<W: WithSimd>(self, work: W) -> W::Output {
        self.0.vectorize(work)
    }
}

/// 2^x for x <= 127 to one unit in the last place; 2^-126 for all x below -126. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let least = simd.splat_f32s(-126.0);
    power(simd, simd.select_f32s(simd.less_than_f32s(x, least), least, x))
}

/// The same, and 0 for x < -100, where what is multiplied by it would be nothing beside a 1.
///
/// Products of the least powers are subnormal, and each of these takes most processors a hundred times as long.
#[inline(always)]
pub(crate) fn exp2_or_zero<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let least = simd.splat_f32s(-100.0);
    let is_less = simd.less_than_f32s(x, least);
    simd.select_f32s(is_less, simd.splat_f32s(0.0), power(simd, simd.select_f32s(is_less, least, x)))
}

/// 2^x for -126 <= x <= 127, or NaN.
#[inline(always)]
fn power<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 2^f for |f| <= 1/2, by least largest relative error (1.6e-8), highest power first.
    const POLYNOMIAL: [f32; 6] =
        [1.534_581_2e-4, 1.339_993_1e-3, 9.618_489e-3, 5.550_328_6e-2, 2.402_264_6e-1, std::f32::consts::LN_2];
    // Adding it leaves the nearest integer in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let rounded = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let fraction = simd.sub_f32s(x, simd.sub_f32s(rounded, simd.splat_f32s(ROUND)));
    let mut power = simd.splat_f32s(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        power = simd.mul_add_e_f32s(power, fraction, simd.splat_f32s(coefficient));
    }
    power = simd.mul_add_e_f32s(power, fraction, simd.splat_f32s(1.0));
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), exponent))
}
