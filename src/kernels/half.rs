//! Numbers in 16 bits: 11 of them significant, for rows that are read from far away.

/// An IEEE binary16 number that is finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Half(u16);

/// Bits of the significand that an f32 has and a half has not.
const CUT: u32 = 13;

/// The exponent of f32 is biased by so much more.
const BIAS: u32 = 127 - 15;

impl Half {
    /// The nearest half, ties to even. Means nothing for NaN and from 65,520 on.
    ///
    /// Without a branch, so that a loop over it takes whole vectors; the bits are those of the
    /// instruction that there is for it.
    #[inline(always)]
    pub fn nearest(value: f32) -> Self {
        let sign = value.to_bits() >> 16 & 0x8000;
        let size = value.to_bits() & 0x7fff_ffff;
        // Below 2⁻¹⁴ halves are 2⁻²⁴ apart, as f32 are from 0.5 to 1.
        let small = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let up = (1 << (CUT - 1)) - 1 + (size >> CUT & 1);
        let large = size.wrapping_add(up).wrapping_sub(BIAS << 23) >> CUT;
        let half = if size < (BIAS + 1) << 23 { small } else { large };
        Self((sign | half) as u16)
    }

    /// The same number.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        let bits = u32::from(self.0);
        let size = f32::from_bits((bits & 0x7fff) << CUT) * f32::from_bits((127 + BIAS) << 23);
        f32::from_bits((bits & 0x8000) << 16 | size.to_bits())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::simd::{Kernel, LANES, Simd, at_each_level, dispatch};

    /// All halves that are finite, lowest bits first.
    fn all() -> impl Iterator<Item = Half> {
        (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).map(Half)
    }

    /// By the definition: sign, exponent and significand.
    fn value(Half(bits): Half) -> f64 {
        let (exponent, significand) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
        let size = match exponent {
            0 => significand * 2f64.powi(-24),
            _ => (1024.0 + significand) * 2f64.powi(exponent - 25),
        };
        if bits >> 15 == 1 { -size } else { size }
    }

    #[test]
    fn every_half_is_its_own_number_and_its_own_nearest() {
        for half in all() {
            let number = half.to_f32();
            assert_eq!(f64::from(number).to_bits(), value(half).to_bits());
            assert_eq!(Half::nearest(number), half);
        }
    }

    #[test]
    fn between_two_halves_the_nearer_one_is_taken_and_the_even_one_in_the_middle() {
        for bits in 0..0x7bffu16 {
            let (low, high) = (Half(bits), Half(bits + 1));
            let middle = (low.to_f32() + high.to_f32()) / 2.0;
            let even = if bits % 2 == 0 { low } else { high };
            for (number, nearest) in
                [(middle.next_down(), low), (middle, even), (middle.next_up(), high)]
            {
                assert_eq!(Half::nearest(number), nearest, "{number}");
                assert_eq!(Half::nearest(-number), Half(nearest.0 | 0x8000), "-{number}");
            }
        }
    }

    struct Load<'a>(&'a [Half]);

    impl Kernel for Load<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let mut numbers = vec![0.0; self.0.len()];
            let (groups, rest) = numbers.as_chunks_mut::<LANES>();
            assert!(rest.is_empty());
            for (to, from) in groups.iter_mut().zip(self.0.as_chunks::<LANES>().0) {
                simd.store(simd.load_half(from), to);
            }
            numbers
        }
    }

    #[test]
    fn instructions_read_the_same_numbers() {
        let halves: Vec<Half> = all().collect();
        for numbers in at_each_level(|| dispatch(Load(&halves))) {
            for (half, number) in halves.iter().zip(numbers) {
                assert_eq!(number.to_bits(), half.to_f32().to_bits());
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_nearer(bits in 0u32..0x477f_f000) {
            let number = f32::from_bits(bits);
            let found = Half::nearest(number);
            let off = |half: Half| (value(half) - f64::from(number)).abs();
            for other in [found.0.wrapping_sub(1), found.0 + 1].map(Half) {
                prop_assert!(other.0 >= 0x7c00 || off(found) <= off(other));
            }
        }
    }
}
