//! Sixteen lanes in two registers of AVX2.

use std::arch::x86_64::*;

use super::{Half, LANES, Simd};

/// Proof that AVX2, FMA and F16C were detected: only [`dispatch`](super::dispatch) makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(pub(super) ());

#[expect(
    unsafe_code,
    reason = "a value of this type is only made where its features were detected"
)]
impl Simd for Avx2 {
    type Lanes = [__m256; 2];

    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Lanes {
        let (lower, upper) = values.split_at(8);
        unsafe { [_mm256_loadu_ps(lower.as_ptr()), _mm256_loadu_ps(upper.as_ptr())] }
    }

    #[inline(always)]
    fn load_half(self, values: &[Half; LANES]) -> Self::Lanes {
        let (lower, upper) = values.split_at(8);
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(lower.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(upper.as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn quarters(self, values: &[f32; 4]) -> Self::Lanes {
        unsafe {
            let four = _mm256_castps128_ps256(_mm_loadu_ps(values.as_ptr()));
            let (lower, upper) = (
                _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0),
                _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2),
            );
            [_mm256_permutevar8x32_ps(four, lower), _mm256_permutevar8x32_ps(four, upper)]
        }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Lanes, to: &mut [f32; LANES]) {
        let (lower, upper) = to.split_at_mut(8);
        unsafe {
            _mm256_storeu_ps(lower.as_mut_ptr(), lanes[0]);
            _mm256_storeu_ps(upper.as_mut_ptr(), lanes[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn fold(self, lanes: Self::Lanes) -> f32 {
        unsafe { super::fold_8(_mm256_add_ps(lanes[0], lanes[1])) }
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn where_greater(
        self,
        a: Self::Lanes,
        b: Self::Lanes,
        then: Self::Lanes,
        otherwise: Self::Lanes,
    ) -> Self::Lanes {
        let mut lanes = otherwise;
        for half in 0..2 {
            unsafe {
                let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(a[half], b[half]);
                lanes[half] = _mm256_blendv_ps(otherwise[half], then[half], greater);
            }
        }
        lanes
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::Lanes; LANES]) -> [Self::Lanes; LANES] {
        let mut columns = rows;
        for block in 0..4 {
            let (down, right) = (block / 2, block % 2);
            unsafe {
                let mut eight = [_mm256_setzero_ps(); 8];
                for at in 0..8 {
                    eight[at] = rows[8 * down + at][right];
                }
                let eight = transpose_8(eight);
                for at in 0..8 {
                    columns[8 * right + at][down] = eight[at];
                }
            }
        }
        columns
    }

    #[inline(always)]
    fn at_least(self, a: Self::Lanes, b: Self::Lanes) -> u32 {
        let mut bits = 0;
        for half in 0..2 {
            unsafe {
                let at_least = _mm256_cmp_ps::<_CMP_GE_OQ>(a[half], b[half]);
                bits |= (_mm256_movemask_ps(at_least) as u32) << (8 * half);
            }
        }
        bits
    }

    #[inline(always)]
    fn bytes_with(self, bit: u32, bytes: &[u8; 64]) -> u64 {
        let mut bits = 0;
        for half in 0..2 {
            unsafe {
                // The bit becomes the highest of its byte; what else moves does not reach that place.
                let bytes = _mm256_loadu_si256(bytes.as_ptr().add(32 * half).cast());
                let moved = _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(7 - bit as i32));
                bits |= u64::from(_mm256_movemask_epi8(moved) as u32) << (32 * half);
            }
        }
        bits
    }

    #[inline(always)]
    fn fold_four(self, rows: [Self::Lanes; 4]) -> Self::Lanes {
        let mut folded = self.splat(0.0);
        for half in 0..2 {
            let [a, b] = [rows[2 * half], rows[2 * half + 1]];
            unsafe {
                let (a, b) = (_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]));
                let even = _mm256_permute2f128_ps::<0x20>(a, b);
                let four = _mm256_add_ps(even, _mm256_permute2f128_ps::<0x31>(a, b));
                let two = _mm256_add_ps(four, _mm256_permute_ps::<0b01_00_11_10>(four));
                folded[half] = _mm256_add_ps(two, _mm256_permute_ps::<0b10_11_00_01>(two));
            }
        }
        folded
    }

    #[inline(always)]
    fn prefetch<T>(self, number: &T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(number).cast()) }
    }
}

/// Lane i of row j for lane j of row i.
#[inline(always)]
#[expect(unsafe_code, reason = "only called where AVX2 was detected")]
unsafe fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
    let (mut twos, mut fours) = (rows, rows);
    unsafe {
        for at in (0..8).step_by(2) {
            twos[at] = _mm256_unpacklo_ps(rows[at], rows[at + 1]);
            twos[at + 1] = _mm256_unpackhi_ps(rows[at], rows[at + 1]);
        }
        for at in (0..8).step_by(4) {
            for half in 0..2 {
                let a = _mm256_castps_pd(twos[at + half]);
                let b = _mm256_castps_pd(twos[at + half + 2]);
                fours[at + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                fours[at + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
        }
        for column in 0..4 {
            let (a, b) = (fours[column], fours[column + 4]);
            twos[column] = _mm256_permute2f128_ps::<0x20>(a, b);
            twos[column + 4] = _mm256_permute2f128_ps::<0x31>(a, b);
        }
    }
    twos
}
