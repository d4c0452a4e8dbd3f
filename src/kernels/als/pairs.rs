//! The innermost loop of ALS: what a list of observed pairs adds to a sum.

use super::objective::pair;
use crate::kernels::simd::{add_scaled, dot};
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
#[inline(always)]
pub(super) fn add_residual<R: Row>(
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    for (&row, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
        let row = fixed.row(row);
        let pair = pair(confidence, fixed.base);
        add_scaled(sum, (-pair.extra).mul_add(dot(row, v), pair.target), row);
    }
}

/// Adds sum extra · (f · v) f, pair after pair: the observed part of A·v.
#[inline(always)]
pub(super) fn add_product<R: Row>(
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    for (&row, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
        let row = fixed.row(row);
        add_scaled(sum, pair(confidence, fixed.base).extra * dot(row, v), row);
    }
}
