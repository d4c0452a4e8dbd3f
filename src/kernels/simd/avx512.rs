//! Sixteen lanes in one register of AVX-512.

use std::arch::x86_64::*;

use super::{Half, LANES, Simd};

/// Proof that AVX-512 was detected: only [`dispatch`](super::dispatch) makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(pub(super) ());

#[expect(
    unsafe_code,
    reason = "a value of this type is only made where its features were detected"
)]
impl Simd for Avx512 {
    type Lanes = __m512;

    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn load_half(self, values: &[Half; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn quarters(self, values: &[f32; 4]) -> __m512 {
        unsafe {
            let places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            _mm512_permutexvar_ps(places, _mm512_castps128_ps512(_mm_loadu_ps(values.as_ptr())))
        }
    }

    #[inline(always)]
    fn store(self, lanes: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn fold(self, lanes: __m512) -> f32 {
        unsafe {
            let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), upper);
            super::fold_8(eight)
        }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn where_greater(self, a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 {
        unsafe { _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), then) }
    }

    #[inline(always)]
    fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        let (mut twos, mut fours) = (rows, rows);
        unsafe {
            for at in (0..LANES).step_by(2) {
                twos[at] = _mm512_unpacklo_ps(rows[at], rows[at + 1]);
                twos[at + 1] = _mm512_unpackhi_ps(rows[at], rows[at + 1]);
            }
            // Four rows: four columns of each quarter.
            for at in (0..LANES).step_by(4) {
                for half in 0..2 {
                    let a = _mm512_castps_pd(twos[at + half]);
                    let b = _mm512_castps_pd(twos[at + half + 2]);
                    fours[at + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[at + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            // Quarters are 4 × 4 blocks now, to be transposed among themselves.
            for column in 0..4 {
                let [a, b, c, d] =
                    [fours[column], fours[column + 4], fours[column + 8], fours[column + 12]];
                let (ab, cd) = (
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
                );
                twos[column] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
                twos[column + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
                let (ab, cd) = (
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d),
                );
                twos[column + 4] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
                twos[column + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
            }
        }
        twos
    }

    #[inline(always)]
    fn at_least(self, a: __m512, b: __m512) -> u32 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b).into() }
    }

    #[inline(always)]
    fn bytes_with(self, bit: u32, bytes: &[u8; 64]) -> u64 {
        unsafe {
            let bytes = _mm512_loadu_si512(bytes.as_ptr().cast());
            _mm512_test_epi8_mask(bytes, _mm512_set1_epi8((1u8 << bit) as i8))
        }
    }

    #[inline(always)]
    fn fold_four(self, rows: [__m512; 4]) -> __m512 {
        let [a, b, c, d] = rows;
        unsafe {
            let lower = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
            let ab = _mm512_add_ps(lower, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
            let lower = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
            let cd = _mm512_add_ps(lower, _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d));
            let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let four = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two))
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, number: &T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(number).cast()) }
    }
}
