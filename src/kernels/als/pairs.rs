//! The innermost loop of ALS: what a list of observed pairs adds to a sum.

use super::objective::pair;
use crate::kernels::simd::{Kernel, LANES, add_scaled, dispatch, dot, fold, scaled_sum};
use crate::types::ItemIdx;

/// A row of the fixed side: an item, or a user of this process.
pub trait Row: Copy + Send + Sync {
    /// Its place among the factors.
    fn at(self) -> usize;
}

impl Row for ItemIdx {
    #[inline(always)]
    fn at(self) -> usize {
        self.index()
    }
}

impl Row for u32 {
    #[inline(always)]
    fn at(self) -> usize {
        self as usize
    }
}

/// One list of observed pairs: rows of the fixed side and signed confidences.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a, R> {
    /// The rows, ascending.
    pub rows: &'a [R],
    /// The signed confidence of each, see [`Objective`](super::Objective).
    pub confidences: &'a [f32],
}

/// The side that is held fixed: `[n_rows, stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Fixed<'a> {
    /// Its factors.
    pub factors: &'a [f32],
    /// How many of them count in each row.
    pub n_factors: usize,
    /// Numbers from one row to the next.
    pub stride: usize,
    /// [`Objective::base`](super::Objective::base).
    pub base: f32,
}

impl<'a> Fixed<'a> {
    #[inline(always)]
    pub(super) fn row(&self, row: impl Row) -> &'a [f32] {
        &self.factors[row.at() * self.stride..][..self.stride]
    }
}

/// Adds sum (target − extra · (f · v)) f, pair after pair: the right-hand side of the normal
/// equations less what the observed pairs say at v.
pub(super) fn add_residual<R: Row>(
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    dispatch(AddPairs::<R, true> { sum, pairs, fixed, v });
}

/// Adds sum extra · (f · v) f, pair after pair: the observed part of A·v.
pub(super) fn add_product<R: Row>(
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    dispatch(AddPairs::<R, false> { sum, pairs, fixed, v });
}

/// A kernel of its own, so that it is compiled once for all its callers.
struct AddPairs<'a, R, const RESIDUAL: bool> {
    sum: &'a mut [f32],
    pairs: Pairs<'a, R>,
    fixed: Fixed<'a>,
    v: &'a [f32],
}

impl<R: Row, const RESIDUAL: bool> Kernel for AddPairs<'_, R, RESIDUAL> {
    type Output = ();

    /// The common widths have code of their own, in which the sum stays in registers; the bits are
    /// the same.
    #[inline(always)]
    fn run(self) {
        match self.fixed.stride / LANES {
            1 => self.in_registers::<1>(),
            2 => self.in_registers::<2>(),
            4 => self.in_registers::<4>(),
            8 => self.in_registers::<8>(),
            _ => self.in_memory(),
        }
    }
}

impl<R: Row, const RESIDUAL: bool> AddPairs<'_, R, RESIDUAL> {
    #[inline(always)]
    fn weight(&self, confidence: f32, score: f32) -> f32 {
        let pair = pair(confidence, self.fixed.base);
        if RESIDUAL { (-pair.extra).mul_add(score, pair.target) } else { pair.extra * score }
    }

    #[inline(always)]
    fn in_memory(self) {
        for (&row, &confidence) in self.pairs.rows.iter().zip(self.pairs.confidences) {
            let row = self.fixed.row(row);
            let weight = self.weight(confidence, dot(row, self.v));
            add_scaled(self.sum, weight, row);
        }
    }

    #[inline(always)]
    fn in_registers<const GROUPS: usize>(self) {
        let (v, _) = self.v.as_chunks::<LANES>();
        let v: [[f32; LANES]; GROUPS] = v.try_into().expect("a row of v");
        let (factors, _) = self.fixed.factors.as_chunks::<LANES>();
        let (factors, _) = factors.as_chunks::<GROUPS>();
        let (sum, _) = self.sum.as_chunks::<LANES>();
        let mut sum: [[f32; LANES]; GROUPS] = sum.try_into().expect("a row of the sum");
        for (&row, &confidence) in self.pairs.rows.iter().zip(self.pairs.confidences) {
            let row = &factors[row.at()];
            let mut lanes = [0.0f32; LANES];
            for group in 0..GROUPS {
                for lane in 0..LANES {
                    lanes[lane] = row[group][lane].mul_add(v[group][lane], lanes[lane]);
                }
            }
            let weight = self.weight(confidence, fold(lanes));
            for group in 0..GROUPS {
                sum[group] = scaled_sum(sum[group], weight, &row[group]);
            }
        }
        self.sum.copy_from_slice(sum.as_flattened());
    }
}
