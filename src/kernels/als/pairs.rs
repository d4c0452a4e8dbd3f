//! The innermost loop of ALS: what a list of observed pairs adds to a sum.

use super::objective::pair;
use crate::kernels::simd::{LANES, Simd, add_scaled, dot};
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

    /// Asks for the first so many of these rows, which are read soon.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S, rows: &[impl Row], n: usize) {
        for &row in &rows[..rows.len().min(n)] {
            let (groups, _) = self.row(row).as_chunks::<LANES>();
            for group in groups {
                simd.prefetch(group);
            }
        }
    }
}

/// Adds sum (target − extra · (f · v)) f, pair after pair: the right-hand side of the normal
/// equations less what the observed pairs say at v.
#[inline(always)]
pub(super) fn add_residual<S: Simd, R: Row>(
    simd: S,
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    AddPairs::<R, true> { pairs, fixed }.run(simd, sum, v);
}

/// Adds sum extra · (f · v) f, pair after pair: the observed part of A·v.
#[inline(always)]
pub(super) fn add_product<S: Simd, R: Row>(
    simd: S,
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    AddPairs::<R, false> { pairs, fixed }.run(simd, sum, v);
}

/// f · v of each row, in their order.
#[inline(always)]
pub(super) fn products<S: Simd, R: Row>(
    simd: S,
    out: &mut [f32],
    rows: &[R],
    fixed: Fixed<'_>,
    v: &[f32],
) {
    match fixed.stride / LANES {
        1 => products_of::<S, R, 1>(simd, out, rows, fixed, v),
        2 => products_of::<S, R, 2>(simd, out, rows, fixed, v),
        4 => products_of::<S, R, 4>(simd, out, rows, fixed, v),
        8 => products_of::<S, R, 8>(simd, out, rows, fixed, v),
        _ => {
            for (out, &row) in out.iter_mut().zip(rows) {
                *out = dot(simd, fixed.row(row), v);
            }
        }
    }
}

#[inline(always)]
fn products_of<S: Simd, R: Row, const GROUPS: usize>(
    simd: S,
    out: &mut [f32],
    rows: &[R],
    fixed: Fixed<'_>,
    v: &[f32],
) {
    let (v, _) = v.as_chunks::<LANES>();
    let v = load_row::<S, GROUPS>(simd, v.try_into().expect("a row of v"));
    let factors = fixed.factors.as_chunks::<LANES>().0.as_chunks::<GROUPS>().0;
    let (blocks, rest) = rows.as_chunks::<LANES>();
    let (of_blocks, of_rest) = out.as_chunks_mut::<LANES>();
    for (out, rows) in of_blocks.iter_mut().zip(blocks) {
        let mut lanes = [simd.splat(0.0); LANES];
        for lane in 0..LANES {
            lanes[lane] = product(simd, &factors[rows[lane].at()], &v);
        }
        simd.store(simd.fold_each(lanes), out);
    }
    for (out, row) in of_rest.iter_mut().zip(rest) {
        *out = simd.fold(product(simd, &factors[row.at()], &v));
    }
}

/// Either sum.
pub(super) struct AddPairs<'a, R, const RESIDUAL: bool> {
    pub(super) pairs: Pairs<'a, R>,
    pub(super) fixed: Fixed<'a>,
}

impl<R: Row, const RESIDUAL: bool> AddPairs<'_, R, RESIDUAL> {
    /// The common widths have code of their own, in which sums stay in registers; the bits are the
    /// same.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        match self.fixed.stride / LANES {
            1 => self.in_registers::<S, 1>(simd, sum, v),
            2 => self.in_registers::<S, 2>(simd, sum, v),
            4 => self.in_registers::<S, 4>(simd, sum, v),
            8 => self.in_registers::<S, 8>(simd, sum, v),
            _ => self.in_memory(simd, sum, v),
        }
    }

    #[inline(always)]
    fn in_memory<S: Simd>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        for (&row, &confidence) in self.pairs.rows.iter().zip(self.pairs.confidences) {
            let row = self.fixed.row(row);
            let weight = weight::<RESIDUAL>(confidence, self.fixed.base, dot(simd, row, v));
            add_scaled(simd, sum, weight, row);
        }
    }

    #[inline(always)]
    fn in_registers<S: Simd, const GROUPS: usize>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        let (v, _) = v.as_chunks::<LANES>();
        let v = load_row::<S, GROUPS>(simd, v.try_into().expect("a row of v"));
        let (to, _) = sum.as_chunks_mut::<LANES>();
        let to: &mut [[f32; LANES]; GROUPS] = to.try_into().expect("a row of the sum");
        let mut sum = load_row::<S, GROUPS>(simd, to);
        let rest = self.blocks::<S, GROUPS, LANES>(simd, self.pairs, &mut sum, &v);
        let rest = self.blocks::<S, GROUPS, 4>(simd, rest, &mut sum, &v);
        self.blocks::<S, GROUPS, 1>(simd, rest, &mut sum, &v);
        store_row(simd, to, &sum);
    }

    /// Adds pairs N at a time, whose products are folded together, and returns what is left over.
    #[inline(always)]
    pub(super) fn blocks<'p, S: Simd, const GROUPS: usize, const N: usize>(
        &self,
        simd: S,
        pairs: Pairs<'p, R>,
        sum: &mut [S::Lanes; GROUPS],
        v: &[S::Lanes; GROUPS],
    ) -> Pairs<'p, R> {
        let (factors, _) = self.fixed.factors.as_chunks::<LANES>();
        let (factors, _) = factors.as_chunks::<GROUPS>();
        let (rows, rest) = pairs.rows.as_chunks::<N>();
        let (confidences, confidences_rest) = pairs.confidences.as_chunks::<N>();
        for (rows, confidences) in rows.iter().zip(confidences) {
            let mut products = [simd.splat(0.0); LANES];
            for lane in 0..N {
                products[lane] = product(simd, &factors[rows[lane].at()], v);
            }
            let [a, b, c, d, ..] = products;
            let (mut scores, apart) = ([0.0; LANES], if N == 4 { 4 } else { 1 });
            match N {
                1 => scores[0] = simd.fold(a),
                4 => simd.store(simd.fold_four([a, b, c, d]), &mut scores),
                _ => simd.store(simd.fold_each(products), &mut scores),
            }
            for lane in 0..N {
                let score = scores[lane * apart];
                let weight = weight::<RESIDUAL>(confidences[lane], self.fixed.base, score);
                add_row(simd, sum, weight, &factors[rows[lane].at()]);
            }
        }
        Pairs { rows: rest, confidences: confidences_rest }
    }
}

/// What a pair's row is multiplied with, when its product with v is `score`.
#[inline(always)]
fn weight<const RESIDUAL: bool>(confidence: f32, base: f32, score: f32) -> f32 {
    let pair = pair(confidence, base);
    if RESIDUAL { (-pair.extra).mul_add(score, pair.target) } else { pair.extra * score }
}

#[inline(always)]
pub(super) fn load_row<S: Simd, const GROUPS: usize>(
    simd: S,
    row: &[[f32; LANES]; GROUPS],
) -> [S::Lanes; GROUPS] {
    let mut lanes = [simd.splat(0.0); GROUPS];
    for group in 0..GROUPS {
        lanes[group] = simd.load(&row[group]);
    }
    lanes
}

#[inline(always)]
pub(super) fn store_row<S: Simd, const GROUPS: usize>(
    simd: S,
    row: &mut [[f32; LANES]; GROUPS],
    lanes: &[S::Lanes; GROUPS],
) {
    for group in 0..GROUPS {
        simd.store(lanes[group], &mut row[group]);
    }
}

/// The lanes of a product, not yet folded.
#[inline(always)]
fn product<S: Simd, const GROUPS: usize>(
    simd: S,
    row: &[[f32; LANES]; GROUPS],
    v: &[S::Lanes; GROUPS],
) -> S::Lanes {
    let mut lanes = simd.splat(0.0);
    for group in 0..GROUPS {
        lanes = simd.mul_add(simd.load(&row[group]), v[group], lanes);
    }
    lanes
}

#[inline(always)]
fn add_row<S: Simd, const GROUPS: usize>(
    simd: S,
    sum: &mut [S::Lanes; GROUPS],
    weight: f32,
    row: &[[f32; LANES]; GROUPS],
) {
    let weight = simd.splat(weight);
    for group in 0..GROUPS {
        sum[group] = simd.mul_add(weight, simd.load(&row[group]), sum[group]);
    }
}
