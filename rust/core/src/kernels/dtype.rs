//! How a model's numbers lie in memory.
#![allow(clippy::inline_always)] // See `crate::kernels::simd`.

/// A format of numbers. Arithmetic is in float32 whatever it is; what is written is rounded to it.
pub trait Format {
    /// A number in memory.
    type Stored: Copy + Send + Sync;

    /// Reads a number; exact.
    #[must_use]
    fn wide(stored: Self::Stored) -> f32;

    /// Writes the nearest number, of two equally near ones that with an even last bit. NaN stays NaN.
    fn narrow(number: f32) -> Self::Stored;

    /// Rounds.
    #[inline(always)]
    #[must_use]
    fn rounded(number: f32) -> f32 {
        Self::wide(Self::narrow(number))
    }
}

/// IEEE 754 single precision.
#[derive(Debug, Clone, Copy)]
pub struct Float32;

/// The upper half of a float32, as torch's `bfloat16`.
#[derive(Debug, Clone, Copy)]
pub struct Bfloat16;

impl Format for Float32 {
    type Stored = f32;

    #[inline(always)]
    fn wide(stored: f32) -> f32 {
        stored
    }

    #[inline(always)]
    fn narrow(number: f32) -> f32 {
        number
    }
}

impl Format for Bfloat16 {
    type Stored = u16;

    #[inline(always)]
    fn wide(stored: u16) -> f32 {
        f32::from_bits(u32::from(stored) << 16)
    }

    #[inline(always)]
    fn narrow(number: f32) -> u16 {
        const QUIET: u32 = 0x40;
        let bits = number.to_bits();
        // Half of the last place that is kept, less one unless that place is odd: what is then cut off has been rounded.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        (if number.is_nan() { bits >> 16 | QUIET } else { rounded }) as u16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bfloat16_comes_back() {
        for stored in 0..=u16::MAX {
            let wide = Bfloat16::wide(stored);
            let again = Bfloat16::narrow(wide);
            assert!(again == stored || wide.is_nan() && Bfloat16::wide(again).is_nan());
        }
    }

    proptest! {
        #[test]
        fn the_nearest_is_written(bits in any::<u32>()) {
            let number = f32::from_bits(bits);
            prop_assume!(number.is_finite() && number.abs() < 3.3e38);
            let written = Bfloat16::narrow(number);
            let distance = |stored: u16| (f64::from(Bfloat16::wide(stored)) - f64::from(number)).abs();
            for other in [written.wrapping_sub(1), written.wrapping_add(1)] {
                if Bfloat16::wide(other).is_finite() {
                    // Distances are exact: both numbers have few digits.
                    let (here, there) = (distance(written), distance(other));
                    prop_assert!(here < there || here <= there && written % 2 == 0);
                }
            }
        }
    }
}
