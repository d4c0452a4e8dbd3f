//! Sixteen lanes in two registers of AVX2.

use std::arch::x86_64::*;

use super::{LANES, Simd, TRANSPOSED};

/// Proof that AVX2 and FMA were detected: only [`dispatch`](super::dispatch) makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(pub(super) ());

#[expect(
    unsafe_code,
    reason = "a value of this type is only made where its features were detected"
)]
impl Simd for Avx2 {
    type Lanes = [__m256; 2];

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
    fn fold_each(self, rows: [Self::Lanes; LANES]) -> Self::Lanes {
        // Loops and no closures: a closure is compiled without the instructions of its caller.
        let mut sums = self.splat(0.0);
        for half in 0..2 {
            unsafe {
                let mut fours = [_mm256_setzero_ps(); 4];
                for place in 0..4 {
                    let a = rows[TRANSPOSED[place + 4 * half]];
                    let b = rows[TRANSPOSED[place + 8 + 4 * half]];
                    let (a, b) = (_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]));
                    let even = _mm256_permute2f128_ps::<0x20>(a, b);
                    fours[place] = _mm256_add_ps(even, _mm256_permute2f128_ps::<0x31>(a, b));
                }
                for place in 0..2 {
                    let (a, b) =
                        (_mm256_castps_pd(fours[place]), _mm256_castps_pd(fours[place + 2]));
                    let lower = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    fours[place] = _mm256_add_ps(lower, _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
                }
                let (a, b) = (fours[0], fours[1]);
                let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
                sums[half] = _mm256_add_ps(even, _mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            }
        }
        sums
    }

    #[inline(always)]
    fn prefetch(self, row: &[f32; LANES]) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(row.as_ptr().cast()) }
    }
}
