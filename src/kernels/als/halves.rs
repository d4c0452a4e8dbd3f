//! Factors in 16 bits, for the side that is fetched pair by pair.

use rayon::prelude::*;

use crate::kernels::half::Half;
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch};

/// Factors rounded to 11 significant bits: half of the bytes.
///
/// One power of two scales all of them, so that the largest lies in 2¹⁴..2¹⁵. A factor smaller than
/// the largest by more than 2²⁸ is rounded to a step of 2⁻³⁹ of it.
#[derive(Clone, Debug, Default)]
pub struct Halves {
    /// `[n_rows, stride]`, in units of `unit`.
    pub(super) numbers: Vec<Half>,
    /// A power of two.
    pub(super) unit: f32,
}

/// Numbers handled by one task.
const PER_TASK: usize = 1 << 16;

/// The largest absolute value.
pub fn largest(factors: &[f32]) -> f32 {
    let of_chunk = |factors: &[f32]| dispatch(Largest(factors));
    factors.par_chunks(PER_TASK).map(of_chunk).reduce(|| 0.0, f32::max)
}

impl Halves {
    /// Takes over factors, whole groups of lanes, of which `largest` is the largest: of these, or of
    /// those of all processes, so that nobody's bits depend on how rows are dealt.
    ///
    /// Cost: O(n) time on all threads of the pool.
    pub fn set(&mut self, factors: &[f32], largest: f32) {
        self.unit = unit(largest);
        self.numbers.resize(factors.len(), Half::default());
        let tasks = self.numbers.par_chunks_mut(PER_TASK).zip(factors.par_chunks(PER_TASK));
        let scale = self.unit.recip();
        tasks.for_each(|(to, from)| dispatch(Round { to, from, scale }));
    }

    #[inline(always)]
    pub(super) fn all(&self) -> Numbers<'_, Half> {
        Numbers { numbers: &self.numbers, unit: self.unit }
    }
}

/// What a half counts when the largest factor is `largest`: a power of two.
fn unit(largest: f32) -> f32 {
    // A smaller largest factor is as good as zero, and its unit's products would be.
    const EXPONENT_MIN: u32 = 127 - 46;
    let exponent = (largest.to_bits() >> 23).max(EXPONENT_MIN);
    f32::from_bits((exponent - 14) << 23)
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (groups, rest) = self.0.as_chunks::<LANES>();
        assert!(rest.is_empty(), "padded rows");
        let (minus, zero) = (simd.splat(-1.0), simd.splat(0.0));
        let mut largest = zero;
        for group in groups {
            let values = simd.load(group);
            let size = simd.where_greater(zero, values, simd.mul(values, minus), values);
            largest = simd.where_greater(size, largest, size, largest);
        }
        simd.store(largest, &mut lanes);
        lanes.into_iter().fold(0.0, f32::max)
    }
}

struct Round<'a> {
    to: &'a mut [Half],
    from: &'a [f32],
    scale: f32,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to = Half::nearest(from * self.scale);
        }
    }
}

/// A number of a row that is fetched.
pub(super) trait Number: Copy + Send + Sync {
    /// A group of a row, in units of its matrix.
    fn load<S: Simd>(simd: S, group: &[Self; LANES]) -> S::Lanes;
}

impl Number for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, group: &[Self; LANES]) -> S::Lanes {
        simd.load(group)
    }
}

impl Number for Half {
    #[inline(always)]
    fn load<S: Simd>(simd: S, group: &[Self; LANES]) -> S::Lanes {
        simd.load_half(group)
    }
}

/// Rows of numbers that count `unit` each, a power of two.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'a, N> {
    pub(super) numbers: &'a [N],
    pub(super) unit: f32,
}

impl<'a, N: Number> Numbers<'a, N> {
    /// Row after row into `to`.
    #[inline(always)]
    pub(super) fn write<S: Simd>(
        self,
        simd: S,
        to: &mut [f32],
        stride: usize,
        rows: impl Iterator<Item = usize>,
    ) {
        let unit = simd.splat(self.unit);
        for (to, row) in to.chunks_exact_mut(stride).zip(rows) {
            let from = &self.numbers[row * stride..][..stride];
            let (to, from) = (to.as_chunks_mut::<LANES>().0, from.as_chunks::<LANES>().0);
            for (to, from) in to.iter_mut().zip(from) {
                simd.store(simd.mul(N::load(simd, from), unit), to);
            }
        }
    }
}
