//! Sixteen lanes as the compiler likes them: what every machine runs, and what the tests hold the
//! others against.

use super::{Half, LANES, Simd};

/// No instructions beyond those of the target.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Simd for Plain {
    type Lanes = [f32; LANES];

    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Lanes {
        *values
    }

    #[inline(always)]
    fn load_half(self, values: &[Half; LANES]) -> Self::Lanes {
        values.map(Half::to_f32)
    }

    #[inline(always)]
    fn quarters(self, values: &[f32; 4]) -> Self::Lanes {
        std::array::from_fn(|lane| values[lane / 4])
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        *to = lanes;
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn fold(self, lanes: Self::Lanes) -> f32 {
        super::fold(lanes)
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn where_greater(
        self,
        a: Self::Lanes,
        b: Self::Lanes,
        then: Self::Lanes,
        otherwise: Self::Lanes,
    ) -> Self::Lanes {
        std::array::from_fn(|lane| if a[lane] > b[lane] { then[lane] } else { otherwise[lane] })
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::Lanes; LANES]) -> [Self::Lanes; LANES] {
        std::array::from_fn(|lane| std::array::from_fn(|row| rows[row][lane]))
    }

    #[inline(always)]
    fn at_least(self, a: Self::Lanes, b: Self::Lanes) -> u32 {
        (0..LANES).fold(0, |bits, lane| bits | u32::from(a[lane] >= b[lane]) << lane)
    }

    #[inline(always)]
    fn bytes_with(self, bit: u32, bytes: &[u8; 64]) -> u64 {
        bytes.iter().rev().fold(0, |bits, byte| bits << 1 | u64::from(byte >> bit & 1))
    }

    #[inline(always)]
    fn fold_four(self, rows: [Self::Lanes; 4]) -> Self::Lanes {
        std::array::from_fn(|lane| self.fold(rows[lane / 4]))
    }

    #[inline(always)]
    fn prefetch<T>(self, _number: &T) {}
}
