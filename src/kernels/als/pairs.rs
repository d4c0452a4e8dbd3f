//! The innermost loop of ALS: what a list of observed pairs adds to a sum.

use super::halves::{Halves, Number, Numbers};
use super::objective::pair;
use crate::kernels::simd::{LANES, Simd};
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

/// Whether a pair is plain: liked, with the weight of a pair that nobody observed. It adds to the
/// right-hand side alone, and products with A need not look at it.
#[inline(always)]
pub(super) fn is_plain(confidence: f32, base: f32) -> bool {
    confidence == base
}

/// The pairs of one row in two parts, each in their order.
#[derive(Debug, Default)]
pub(super) struct Parts<R> {
    rows: Vec<R>,
    confidences: Vec<f32>,
    plain: Vec<R>,
    ends: (usize, usize),
}

impl<R: Row + Default> Parts<R> {
    /// Takes over the pairs of another row.
    #[inline(always)]
    pub(super) fn set(&mut self, pairs: Pairs<'_, R>, base: f32) {
        let len = pairs.rows.len();
        if self.rows.len() < len {
            self.rows.resize(len, R::default());
            self.plain.resize(len, R::default());
            self.confidences.resize(len, 0.0);
        }
        let (mut weighted, mut plain) = (0, 0);
        for (&row, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
            // Both are written, since a guess would be wrong too often.
            self.plain[plain] = row;
            (self.rows[weighted], self.confidences[weighted]) = (row, confidence);
            plain += usize::from(is_plain(confidence, base));
            weighted += usize::from(!is_plain(confidence, base));
        }
        self.ends = (weighted, plain);
    }

    /// The pairs that are not plain.
    #[inline(always)]
    pub(super) fn weighted(&self) -> Pairs<'_, R> {
        let end = self.ends.0;
        Pairs { rows: &self.rows[..end], confidences: &self.confidences[..end] }
    }

    /// The rows of plain pairs.
    #[inline(always)]
    pub(super) fn plain(&self) -> &[R] {
        &self.plain[..self.ends.1]
    }
}

/// The side that is held fixed: `[n_rows, stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Fixed<'a> {
    /// Its factors.
    pub factors: &'a [f32],
    /// The same in 16 bits, where these are read for conjugate gradient and its loss.
    pub halves: Option<&'a Halves>,
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

    /// The numbers as they are in 32 bits.
    #[inline(always)]
    pub(super) fn whole(&self) -> Numbers<'a, f32> {
        Numbers { numbers: self.factors, unit: 1.0 }
    }

    /// Asks for the first so many of these rows, which are read soon.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S, rows: &[impl Row], n: usize) {
        let rows = &rows[..rows.len().min(n)];
        match self.halves {
            Some(halves) => {
                for row in rows {
                    let row = &halves.numbers[row.at() * self.stride..][..self.stride];
                    for line in row.chunks(LINE / size_of_val(&row[0])) {
                        simd.prefetch(&line[0]);
                    }
                }
            }
            None => {
                for row in rows {
                    for line in self.row(*row).chunks(LINE / size_of::<f32>()) {
                        simd.prefetch(&line[0]);
                    }
                }
            }
        }
    }

    /// Puts these rows one behind the other.
    #[inline(always)]
    pub(super) fn gather<S: Simd>(&self, simd: S, to: &mut [f32], rows: &[impl Row]) {
        let at = rows.iter().map(|row| row.at());
        match self.halves {
            Some(halves) => halves.all().write(simd, to, self.stride, at),
            None => self.whole().write(simd, to, self.stride, at),
        }
    }
}

/// Pairs that are added together.
pub(super) const BLOCK: usize = 4;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// sum (target − extra · (f · v)) f, pair after pair: the right-hand side of the normal equations
/// less what the observed pairs say at v.
#[inline(always)]
pub(super) fn residual<S: Simd, R: Row>(
    simd: S,
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    match fixed.halves {
        Some(halves) => AddPairs::new(pairs, fixed.base, halves.all()).residual(simd, sum, v),
        None => AddPairs::new(pairs, fixed.base, fixed.whole()).residual(simd, sum, v),
    }
}

/// sum extra · (f · v) f, pair after pair: the observed part of A·v.
#[inline(always)]
pub(super) fn product<S: Simd, R: Row>(
    simd: S,
    sum: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
    v: &[f32],
) {
    match fixed.halves {
        Some(halves) => AddPairs::new(pairs, fixed.base, halves.all()).product(simd, sum, v),
        None => AddPairs::new(pairs, fixed.base, fixed.whole()).product(simd, sum, v),
    }
}

/// sum += base · f of each row: what plain pairs add to the right-hand side.
#[inline(always)]
pub(super) fn add_plain<S: Simd, R: Row>(simd: S, sum: &mut [f32], rows: &[R], fixed: Fixed<'_>) {
    match fixed.halves {
        Some(halves) => halves.all().add_rows(simd, sum, rows, fixed.base),
        None => fixed.whole().add_rows(simd, sum, rows, fixed.base),
    }
}

/// f · v of each row, in their order.
#[inline(always)]
pub(super) fn scores<S: Simd, R: Row>(
    simd: S,
    out: &mut [f32],
    rows: &[R],
    fixed: Fixed<'_>,
    v: &[f32],
) {
    match fixed.halves {
        Some(halves) => halves.all().scores(simd, out, rows, v),
        None => fixed.whole().scores(simd, out, rows, v),
    }
}

impl<N: Number> Numbers<'_, N> {
    #[inline(always)]
    fn scores<S: Simd, R: Row>(self, simd: S, out: &mut [f32], rows: &[R], v: &[f32]) {
        match v.len() / LANES {
            1 => self.scores_of::<S, R, 1>(simd, out, rows, v),
            2 => self.scores_of::<S, R, 2>(simd, out, rows, v),
            4 => self.scores_of::<S, R, 4>(simd, out, rows, v),
            8 => self.scores_of::<S, R, 8>(simd, out, rows, v),
            _ => {
                for (out, &row) in out.iter_mut().zip(rows) {
                    *out = self.score(simd, row, v);
                }
            }
        }
    }

    #[inline(always)]
    fn scores_of<S: Simd, R: Row, const GROUPS: usize>(
        self,
        simd: S,
        out: &mut [f32],
        rows: &[R],
        v: &[f32],
    ) {
        let (v, _) = v.as_chunks::<LANES>();
        let v = scaled_row::<S, GROUPS>(simd, v.try_into().expect("a row of v"), self.unit);
        let factors = self.numbers.as_chunks::<LANES>().0.as_chunks::<GROUPS>().0;
        let (blocks, rest) = rows.as_chunks::<BLOCK>();
        let (of_blocks, of_rest) = out.as_chunks_mut::<BLOCK>();
        for (out, rows) in of_blocks.iter_mut().zip(blocks) {
            let mut lanes = [simd.splat(0.0); BLOCK];
            for at in 0..BLOCK {
                let row = load_row::<S, N, GROUPS>(simd, &factors[rows[at].at()]);
                lanes[at] = lanes_of_score(simd, &row, &v);
            }
            let mut quarters = [0.0; LANES];
            simd.store(simd.fold_four(lanes), &mut quarters);
            for at in 0..BLOCK {
                out[at] = quarters[at * (LANES / BLOCK)];
            }
        }
        for (out, row) in of_rest.iter_mut().zip(rest) {
            let row = load_row::<S, N, GROUPS>(simd, &factors[row.at()]);
            *out = simd.fold(lanes_of_score(simd, &row, &v));
        }
    }

    /// sum += weight · f of each row.
    #[inline(always)]
    fn add_rows<S: Simd, R: Row>(self, simd: S, sum: &mut [f32], rows: &[R], weight: f32) {
        let (sum, _) = sum.as_chunks_mut::<LANES>();
        let weight = weight * self.unit;
        if let Ok(sum) = <&mut [_; 4]>::try_from(&mut *sum) {
            self.add_rows_to::<S, R, 4>(simd, sum, rows, weight);
        } else if let Ok(sum) = <&mut [_; 8]>::try_from(&mut *sum) {
            self.add_rows_to::<S, R, 8>(simd, sum, rows, weight);
        } else {
            let (groups, _) = self.numbers.as_chunks::<LANES>();
            for row in rows {
                let row = &groups[row.at() * sum.len()..][..sum.len()];
                for (sum, row) in sum.iter_mut().zip(row) {
                    let added =
                        simd.mul_add(simd.splat(weight), N::load(simd, row), simd.load(sum));
                    simd.store(added, sum);
                }
            }
        }
    }

    #[inline(always)]
    fn add_rows_to<S: Simd, R: Row, const GROUPS: usize>(
        self,
        simd: S,
        sum: &mut [[f32; LANES]; GROUPS],
        rows: &[R],
        weight: f32,
    ) {
        let mut lanes = load_row::<S, f32, GROUPS>(simd, sum);
        self.add_rows_in_registers(simd, &mut lanes, rows, weight);
        store_row(simd, sum, &lanes, 1.0);
    }

    /// The same in units of the numbers.
    #[inline(always)]
    pub(super) fn add_rows_in_registers<S: Simd, R: Row, const GROUPS: usize>(
        self,
        simd: S,
        sum: &mut [S::Lanes; GROUPS],
        rows: &[R],
        weight: f32,
    ) {
        let factors = self.numbers.as_chunks::<LANES>().0.as_chunks::<GROUPS>().0;
        let weight = simd.splat(weight);
        for row in rows {
            let row = load_row::<S, N, GROUPS>(simd, &factors[row.at()]);
            for group in 0..GROUPS {
                sum[group] = simd.mul_add(weight, row[group], sum[group]);
            }
        }
    }

    /// f · v of one row.
    #[inline(always)]
    fn score<S: Simd>(self, simd: S, row: impl Row, v: &[f32]) -> f32 {
        let (row, _) = self.numbers[row.at() * v.len()..][..v.len()].as_chunks::<LANES>();
        let mut lanes = simd.splat(0.0);
        for (row, v) in row.iter().zip(v.as_chunks::<LANES>().0) {
            lanes = simd.mul_add(N::load(simd, row), simd.load(v), lanes);
        }
        simd.fold(lanes) * self.unit
    }
}

/// Either sum.
pub(super) struct AddPairs<'a, R, N> {
    pairs: Pairs<'a, R>,
    base: f32,
    rows: Numbers<'a, N>,
}

impl<'a, R: Row, N: Number> AddPairs<'a, R, N> {
    #[inline(always)]
    pub(super) fn new(pairs: Pairs<'a, R>, base: f32, rows: Numbers<'a, N>) -> Self {
        Self { pairs, base, rows }
    }

    #[inline(always)]
    pub(super) fn residual<S: Simd>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        self.run::<S, true>(simd, sum, v);
    }

    #[inline(always)]
    pub(super) fn product<S: Simd>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        self.run::<S, false>(simd, sum, v);
    }

    /// The common widths have code of their own, in which sums stay in registers; the bits are the
    /// same.
    #[inline(always)]
    fn run<S: Simd, const RESIDUAL: bool>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        match v.len() / LANES {
            1 => self.in_registers::<S, RESIDUAL, 1>(simd, sum, v),
            2 => self.in_registers::<S, RESIDUAL, 2>(simd, sum, v),
            4 => self.in_registers::<S, RESIDUAL, 4>(simd, sum, v),
            8 => self.in_registers::<S, RESIDUAL, 8>(simd, sum, v),
            _ => self.in_memory::<S, RESIDUAL>(simd, sum, v),
        }
    }

    #[inline(always)]
    fn in_memory<S: Simd, const RESIDUAL: bool>(self, simd: S, sum: &mut [f32], v: &[f32]) {
        sum.fill(0.0);
        let (sum, _) = sum.as_chunks_mut::<LANES>();
        for (&row, &confidence) in self.pairs.rows.iter().zip(self.pairs.confidences) {
            let score = self.rows.score(simd, row, v);
            let weight = simd.splat(weight::<RESIDUAL>(confidence, self.base, score));
            let (row, _) = self.rows.numbers[row.at() * v.len()..][..v.len()].as_chunks::<LANES>();
            for (sum, row) in sum.iter_mut().zip(row) {
                simd.store(simd.mul_add(weight, N::load(simd, row), simd.load(sum)), sum);
            }
        }
        let unit = simd.splat(self.rows.unit);
        for sum in sum {
            simd.store(simd.mul(simd.load(sum), unit), sum);
        }
    }

    #[inline(always)]
    fn in_registers<S: Simd, const RESIDUAL: bool, const GROUPS: usize>(
        self,
        simd: S,
        sum: &mut [f32],
        v: &[f32],
    ) {
        let (v, _) = v.as_chunks::<LANES>();
        let v = scaled_row::<S, GROUPS>(simd, v.try_into().expect("a row of v"), self.rows.unit);
        let mut lanes = [simd.splat(0.0); GROUPS];
        self.add::<S, RESIDUAL, GROUPS>(simd, &mut lanes, &v);
        let (sum, _) = sum.as_chunks_mut::<LANES>();
        store_row(simd, sum.try_into().expect("a row of the sum"), &lanes, self.rows.unit);
    }

    /// Adds all pairs, four at a time, whose products are folded together. What is missing in the last
    /// four is filled up by pairs that add nothing: with the confidence −`base`. `v` is scaled by the
    /// unit of the rows, and the sum is to be.
    #[inline(always)]
    pub(super) fn add<S: Simd, const RESIDUAL: bool, const GROUPS: usize>(
        &self,
        simd: S,
        sum: &mut [S::Lanes; GROUPS],
        v: &[S::Lanes; GROUPS],
    ) {
        let (rows, last_rows) = self.pairs.rows.as_chunks::<BLOCK>();
        let (confidences, last_confidences) = self.pairs.confidences.as_chunks::<BLOCK>();
        for (rows, confidences) in rows.iter().zip(confidences) {
            self.add_block::<S, RESIDUAL, GROUPS>(simd, rows, confidences, sum, v);
        }
        if let Some(&row) = last_rows.first() {
            let (mut rows, mut confidences) = ([row; BLOCK], [-self.base; BLOCK]);
            rows[..last_rows.len()].copy_from_slice(last_rows);
            confidences[..last_rows.len()].copy_from_slice(last_confidences);
            self.add_block::<S, RESIDUAL, GROUPS>(simd, &rows, &confidences, sum, v);
        }
    }

    #[inline(always)]
    fn add_block<S: Simd, const RESIDUAL: bool, const GROUPS: usize>(
        &self,
        simd: S,
        rows: &[R; BLOCK],
        confidences: &[f32; BLOCK],
        sum: &mut [S::Lanes; GROUPS],
        v: &[S::Lanes; GROUPS],
    ) {
        let factors = self.rows.numbers.as_chunks::<LANES>().0.as_chunks::<GROUPS>().0;
        let mut scores = [simd.splat(0.0); BLOCK];
        for at in 0..BLOCK {
            let row = load_row::<S, N, GROUPS>(simd, &factors[rows[at].at()]);
            scores[at] = lanes_of_score(simd, &row, v);
        }
        let (scores, confidences) = (simd.fold_four(scores), simd.quarters(confidences));
        let mut weights = [0.0; LANES];
        let lanes = lanes_of_weight::<S, RESIDUAL>(simd, confidences, self.base, scores);
        simd.store(lanes, &mut weights);
        for at in 0..BLOCK {
            let row = load_row::<S, N, GROUPS>(simd, &factors[rows[at].at()]);
            let weight = simd.splat(weights[at * (LANES / BLOCK)]);
            for group in 0..GROUPS {
                sum[group] = simd.mul_add(weight, row[group], sum[group]);
            }
        }
    }
}

/// What a pair's row is multiplied with, when its product with v is `score`.
#[inline(always)]
fn weight<const RESIDUAL: bool>(confidence: f32, base: f32, score: f32) -> f32 {
    let pair = pair(confidence, base);
    if RESIDUAL { (-pair.extra).mul_add(score, pair.target) } else { pair.extra * score }
}

/// [`weight`] of sixteen pairs.
#[inline(always)]
fn lanes_of_weight<S: Simd, const RESIDUAL: bool>(
    simd: S,
    confidences: S::Lanes,
    base: f32,
    scores: S::Lanes,
) -> S::Lanes {
    let (zero, one, minus_one) = (simd.splat(0.0), simd.splat(1.0), simd.splat(-1.0));
    if RESIDUAL {
        let minus_sign = simd.where_greater(confidences, zero, minus_one, one);
        let minus_extra = simd.mul_add(confidences, minus_sign, simd.splat(base));
        let target = simd.where_greater(confidences, zero, confidences, zero);
        simd.mul_add(minus_extra, scores, target)
    } else {
        let sign = simd.where_greater(confidences, zero, one, minus_one);
        simd.mul(simd.mul_add(confidences, sign, simd.splat(-base)), scores)
    }
}

#[inline(always)]
fn load_row<S: Simd, N: Number, const GROUPS: usize>(
    simd: S,
    row: &[[N; LANES]; GROUPS],
) -> [S::Lanes; GROUPS] {
    let mut lanes = [simd.splat(0.0); GROUPS];
    for group in 0..GROUPS {
        lanes[group] = N::load(simd, &row[group]);
    }
    lanes
}

#[inline(always)]
pub(super) fn scaled_row<S: Simd, const GROUPS: usize>(
    simd: S,
    row: &[[f32; LANES]; GROUPS],
    unit: f32,
) -> [S::Lanes; GROUPS] {
    let mut lanes = [simd.splat(unit); GROUPS];
    for group in 0..GROUPS {
        lanes[group] = simd.mul(simd.load(&row[group]), lanes[group]);
    }
    lanes
}

#[inline(always)]
pub(super) fn store_row<S: Simd, const GROUPS: usize>(
    simd: S,
    row: &mut [[f32; LANES]; GROUPS],
    lanes: &[S::Lanes; GROUPS],
    unit: f32,
) {
    let unit = simd.splat(unit);
    for group in 0..GROUPS {
        simd.store(simd.mul(lanes[group], unit), &mut row[group]);
    }
}

/// The lanes of a score, not yet folded.
#[inline(always)]
fn lanes_of_score<S: Simd, const GROUPS: usize>(
    simd: S,
    row: &[S::Lanes; GROUPS],
    v: &[S::Lanes; GROUPS],
) -> S::Lanes {
    let mut lanes = simd.splat(0.0);
    for group in 0..GROUPS {
        lanes = simd.mul_add(row[group], v[group], lanes);
    }
    lanes
}
