//! Lower triangles in rows of whole groups of lanes, and their factorization.
//!
//! Row a holds (a / 16 + 1) · 16 numbers, of which the first a + 1 count: half of a square, and every
//! row starts on a whole group. What lies right of the diagonal is computed along and means nothing.
//!
//! A positive definite matrix is factored into Rᵀ·R with R lower: Cholesky from the last row to the
//! first. So what a row takes off the rows above it lies along these rows, and one loop, [`tile`],
//! adds pairs to a triangle and factors it. Every number is one chain of fused multiply-adds, by pair
//! or by pivot; how rows are cut into blocks changes no bit.

use super::objective::pair;
use super::pairs::{Fixed, Pairs, Row};
use crate::kernels::simd::{Kernel, LANES, Simd, add_scaled, dispatch, fold};

/// Where row `a` starts.
#[inline(always)]
pub(super) fn row_start(a: usize) -> usize {
    let (groups, rest) = (a / LANES, a % LANES);
    LANES * (LANES * groups * (groups + 1) / 2 + rest * (groups + 1))
}

/// Numbers of a triangle with `n_factors` rows.
pub(super) fn len(n_factors: usize) -> usize {
    row_start(n_factors)
}

#[inline(always)]
fn width(a: usize) -> usize {
    (a / LANES + 1) * LANES
}

/// Rows of a register tile of 16 columns where there are 32 registers.
const WIDE: usize = 16;

/// Rows of a register tile elsewhere.
const NARROW: usize = 4;

/// Cuts rows into blocks of `MOST`, the rest into blocks of 4 and of 1; each lies in one group.
#[inline(always)]
fn blocks<const MOST: usize>(n_factors: usize) -> impl DoubleEndedIterator<Item = (usize, usize)> {
    let whole = n_factors / MOST * MOST;
    let fours = whole + (n_factors - whole) / NARROW * NARROW;
    let large = (0..whole).step_by(MOST).map(|start| (start, MOST));
    let small = (whole..fours).step_by(NARROW).map(|start| (start, NARROW));
    large.chain(small).chain((fours..n_factors).map(|start| (start, 1)))
}

/// A row that is taken into a triangle, and how often.
type Scaled<'a> = (f32, &'a [f32]);

/// Adds Σ scale · row[start + a] · row[group] to `ROWS` rows of a triangle from `start`.
#[inline(always)]
fn tile<'a, S: Simd, const ROWS: usize>(
    simd: S,
    triangle: &mut [f32],
    start: usize,
    group: usize,
    rows: impl Iterator<Item = Scaled<'a>>,
) {
    let (first, width) = (row_start(start) + group * LANES, width(start));
    let mut sums = [simd.splat(0.0); ROWS];
    for (a, sum) in sums.iter_mut().enumerate() {
        *sum = simd.load(lanes_at(triangle, first + a * width));
    }
    for (scale, row) in rows {
        let scaled = simd.mul(simd.splat(scale), simd.load(lanes_at(row, group * LANES)));
        let factors: &[f32; ROWS] = row[start..].first_chunk().expect("a row is long enough");
        for (sum, &factor) in sums.iter_mut().zip(factors) {
            *sum = simd.mul_add(simd.splat(factor), scaled, *sum);
        }
    }
    for (a, &sum) in sums.iter().enumerate() {
        let to = triangle[first + a * width..].first_chunk_mut().expect("a row of the triangle");
        simd.store(sum, to);
    }
}

#[inline(always)]
fn lanes_at(row: &[f32], at: usize) -> &[f32; LANES] {
    row[at..].first_chunk().expect("rows are whole groups")
}

/// Adds rows to `size` rows of a triangle from `start`, all columns.
#[inline(always)]
fn add_rows<'a, S: Simd, const MOST: usize>(
    simd: S,
    triangle: &mut [f32],
    (start, size): (usize, usize),
    rows: impl Iterator<Item = Scaled<'a>> + Clone,
) {
    for group in 0..=start / LANES {
        match size {
            1 => tile::<S, 1>(simd, triangle, start, group, rows.clone()),
            NARROW => tile::<S, NARROW>(simd, triangle, start, group, rows.clone()),
            _ => tile::<S, MOST>(simd, triangle, start, group, rows.clone()),
        }
    }
}

/// Pairs that pass over a triangle together: their rows stay in a core's first cache.
const PAIRS_AT_ONCE: usize = 32;

/// Adds sum extra · f fᵀ to the triangle and sum target · f to the right-hand side.
pub(super) fn add_pairs<R: Row>(
    triangle: &mut [f32],
    rhs: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
) {
    dispatch(AddPairs { triangle, rhs, pairs, fixed });
}

struct AddPairs<'a, R> {
    triangle: &'a mut [f32],
    rhs: &'a mut [f32],
    pairs: Pairs<'a, R>,
    fixed: Fixed<'a>,
}

impl<R: Row> Kernel for AddPairs<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if S::REGISTERS >= 32 {
            self.in_blocks::<S, WIDE>(simd);
        } else {
            self.in_blocks::<S, NARROW>(simd);
        }
    }
}

impl<R: Row> AddPairs<'_, R> {
    #[inline(always)]
    fn in_blocks<S: Simd, const MOST: usize>(self, simd: S) {
        let Self { triangle, rhs, pairs, fixed } = self;
        let at_once = pairs.rows.chunks(PAIRS_AT_ONCE);
        for (rows, confidences) in at_once.zip(pairs.confidences.chunks(PAIRS_AT_ONCE)) {
            let mut kept: [Scaled<'_>; PAIRS_AT_ONCE] = [(0.0, &[]); PAIRS_AT_ONCE];
            let mut n = 0;
            for (&row, &confidence) in rows.iter().zip(confidences) {
                let (row, pair) = (fixed.row(row), pair(confidence, fixed.base));
                add_scaled(simd, rhs, pair.target, row);
                kept[n] = (pair.extra, row);
                // A pair that weighs as much as an unobserved one adds zeros.
                n += usize::from(pair.extra != 0.0);
            }
            for block in blocks::<MOST>(fixed.n_factors) {
                add_rows::<S, MOST>(simd, triangle, block, kept[..n].iter().copied());
            }
        }
    }
}

/// Adds `scale · matrix + diagonal · I` to the triangle; `matrix` is `[n_factors, stride]`.
#[inline(always)]
pub(super) fn add_matrix<S: Simd>(
    simd: S,
    triangle: &mut [f32],
    matrix: &[f32],
    stride: usize,
    scale: f32,
    diagonal: f32,
) {
    for (a, row) in matrix.chunks_exact(stride).enumerate() {
        let (start, width) = (row_start(a), width(a));
        add_scaled(simd, &mut triangle[start..start + width], scale, &row[..width]);
        triangle[start + a] += diagonal;
    }
}

/// Factors the triangle in place into R with Rᵀ·R equal to it; the diagonal holds 1 / R. Returns false
/// where a pivot is not above 0, so that the matrix is not positive definite in f32.
pub(super) fn factorize(triangle: &mut [f32], n_factors: usize) -> bool {
    dispatch(Factorize { triangle, n_factors })
}

struct Factorize<'a> {
    triangle: &'a mut [f32],
    n_factors: usize,
}

impl Kernel for Factorize<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        if S::REGISTERS >= 32 {
            self.in_blocks::<S, WIDE>(simd)
        } else {
            self.in_blocks::<S, NARROW>(simd)
        }
    }
}

impl Factorize<'_> {
    #[inline(always)]
    fn in_blocks<S: Simd, const MOST: usize>(self, simd: S) -> bool {
        let Self { triangle, n_factors } = self;
        for (start, size) in blocks::<MOST>(n_factors).rev() {
            let end = start + size;
            let (triangle, below) = triangle.split_at_mut(row_start(end));
            let pivots = Upwards { rows: below, end: n_factors }.map(taken_off);
            add_rows::<S, MOST>(simd, triangle, (start, size), pivots);
            if !factorize_rows(simd, &mut triangle[row_start(start)..], start, size) {
                return false;
            }
        }
        true
    }
}

#[inline(always)]
fn taken_off(row: &[f32]) -> Scaled<'_> {
    (-1.0, row)
}

/// The last rows of a triangle, from the last one upwards.
#[derive(Clone)]
struct Upwards<'a> {
    rows: &'a [f32],
    /// One more than the number of the last of them.
    end: usize,
}

impl<'a> Iterator for Upwards<'a> {
    type Item = &'a [f32];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [f32]> {
        if self.rows.is_empty() {
            return None;
        }
        self.end -= 1;
        let (rows, row) = self.rows.split_at(self.rows.len() - width(self.end));
        self.rows = rows;
        Some(row)
    }
}

/// Factors the last rows of a triangle, from which all rows below are taken off already.
#[inline(always)]
fn factorize_rows<S: Simd>(simd: S, rows: &mut [f32], start: usize, size: usize) -> bool {
    let width = width(start);
    for last in (0..size).rev() {
        let (above, row) = rows.split_at_mut(last * width);
        let row = &mut row[..width];
        let pivot = row[start + last];
        if pivot.is_nan() || pivot <= 0.0 {
            return false;
        }
        let inverse = 1.0 / pivot.sqrt();
        for group in row.as_chunks_mut::<LANES>().0 {
            simd.store(simd.mul(simd.splat(inverse), simd.load(group)), group);
        }
        row[start + last] = inverse;
        for (at, above) in above.chunks_exact_mut(width).enumerate() {
            add_scaled(simd, above, -row[start + at], row);
        }
    }
    true
}

/// Solves Rᵀ·R x = `x` in place.
#[inline(always)]
pub(super) fn solve(triangle: &[f32], n_factors: usize, x: &mut [f32]) {
    for a in (0..n_factors).rev() {
        let row = &triangle[row_start(a)..];
        x[a] *= row[a];
        let scale = -x[a];
        for b in 0..a {
            x[b] = scale.mul_add(row[b], x[b]);
        }
    }
    for a in 0..n_factors {
        let row = &triangle[row_start(a)..];
        x[a] = (x[a] - dot_prefix(row, x, a)) * row[a];
    }
}

/// The product of the first `n` numbers: whole groups in lanes, the rest in order.
#[inline(always)]
fn dot_prefix(a: &[f32], b: &[f32], n: usize) -> f32 {
    let (a_groups, a_rest) = a[..n].as_chunks::<LANES>();
    let (b_groups, b_rest) = b[..n].as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a_groups.iter().zip(b_groups) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    let sum = if a_groups.is_empty() { 0.0 } else { fold(lanes) };
    a_rest.iter().zip(b_rest).fold(sum, |sum, (&a, &b)| a.mul_add(b, sum))
}

/// One number of `GROUPS` · 16 right-hand sides.
pub(super) type Sides<const GROUPS: usize> = [[f32; LANES]; GROUPS];

/// Solves Rᵀ·R x = `x` in place for `GROUPS` · 16 right-hand sides: `x` holds the first number of
/// each, then the second. Each is two chains per unknown, from the last unknown and from the first.
#[inline(always)]
pub(super) fn solve_many<S: Simd, const GROUPS: usize, const MOST: usize>(
    simd: S,
    triangle: &[f32],
    x: &mut [Sides<GROUPS>],
) {
    for (start, size) in blocks::<MOST>(x.len()).rev() {
        match size {
            1 => from_below::<S, GROUPS, 1>(simd, triangle, x, start),
            NARROW => from_below::<S, GROUPS, NARROW>(simd, triangle, x, start),
            _ => from_below::<S, GROUPS, MOST>(simd, triangle, x, start),
        }
    }
    for (start, size) in blocks::<MOST>(x.len()) {
        match size {
            1 => from_above::<S, GROUPS, 1>(simd, triangle, x, start),
            NARROW => from_above::<S, GROUPS, NARROW>(simd, triangle, x, start),
            _ => from_above::<S, GROUPS, MOST>(simd, triangle, x, start),
        }
    }
}

/// `sums` + `scale` · `sides`.
#[inline(always)]
pub(super) fn add_sides<S: Simd, const GROUPS: usize>(
    simd: S,
    sums: &mut [S::Lanes; GROUPS],
    scale: f32,
    sides: &[S::Lanes; GROUPS],
) {
    let scale = simd.splat(scale);
    for group in 0..GROUPS {
        sums[group] = simd.mul_add(scale, sides[group], sums[group]);
    }
}

#[inline(always)]
pub(super) fn load_sides<S: Simd, const GROUPS: usize>(
    simd: S,
    from: &Sides<GROUPS>,
) -> [S::Lanes; GROUPS] {
    let mut sides = [simd.splat(0.0); GROUPS];
    for group in 0..GROUPS {
        sides[group] = simd.load(&from[group]);
    }
    sides
}

#[inline(always)]
fn store_sides<S: Simd, const GROUPS: usize>(
    simd: S,
    sides: &[S::Lanes; GROUPS],
    to: &mut Sides<GROUPS>,
) {
    for group in 0..GROUPS {
        simd.store(sides[group], &mut to[group]);
    }
}

#[inline(always)]
fn scale_sides<S: Simd, const GROUPS: usize>(simd: S, sides: &mut [S::Lanes; GROUPS], scale: f32) {
    for side in sides {
        *side = simd.mul(simd.splat(scale), *side);
    }
}

/// Solves Rᵀ z = x for `ROWS` unknowns from `start`; those below are solved.
#[inline(always)]
fn from_below<S: Simd, const GROUPS: usize, const ROWS: usize>(
    simd: S,
    triangle: &[f32],
    x: &mut [Sides<GROUPS>],
    start: usize,
) {
    let end = x.len();
    let (above, below) = x.split_at_mut(start + ROWS);
    let block: &mut [Sides<GROUPS>; ROWS] = above.last_chunk_mut().expect("a block of unknowns");
    let rows = Upwards { rows: &triangle[row_start(start + ROWS)..], end };
    let mut sums = [[simd.splat(0.0); GROUPS]; ROWS];
    for row in 0..ROWS {
        sums[row] = load_sides(simd, &block[row]);
    }
    for (solved, row) in below.iter().rev().zip(rows) {
        let solved = load_sides(simd, solved);
        let factors: &[f32; ROWS] = row[start..].first_chunk().expect("a row is long enough");
        for row in 0..ROWS {
            add_sides(simd, &mut sums[row], -factors[row], &solved);
        }
    }
    for row in 0..ROWS {
        store_sides(simd, &sums[row], &mut block[row]);
    }
    for last in (0..ROWS).rev() {
        let factors = &triangle[row_start(start + last) + start..][..last + 1];
        let mut solved = load_sides(simd, &block[last]);
        scale_sides(simd, &mut solved, factors[last]);
        store_sides(simd, &solved, &mut block[last]);
        for (sides, &factor) in block[..last].iter_mut().zip(factors) {
            let mut sums = load_sides(simd, sides);
            add_sides(simd, &mut sums, -factor, &solved);
            store_sides(simd, &sums, sides);
        }
    }
}

/// Solves R x = z for `ROWS` unknowns from `start`; those above are solved.
#[inline(always)]
fn from_above<S: Simd, const GROUPS: usize, const ROWS: usize>(
    simd: S,
    triangle: &[f32],
    x: &mut [Sides<GROUPS>],
    start: usize,
) {
    let (above, below) = x.split_at_mut(start);
    let block: &mut [Sides<GROUPS>; ROWS] = below.first_chunk_mut().expect("a block of unknowns");
    let mut rows: [&[f32]; ROWS] = [&[]; ROWS];
    let mut sums = [[simd.splat(0.0); GROUPS]; ROWS];
    for row in 0..ROWS {
        rows[row] = &triangle[row_start(start + row)..][..above.len()];
        sums[row] = load_sides(simd, &block[row]);
    }
    for (at, solved) in above.iter().enumerate() {
        let solved = load_sides(simd, solved);
        for row in 0..ROWS {
            add_sides(simd, &mut sums[row], -rows[row][at], &solved);
        }
    }
    for row in 0..ROWS {
        store_sides(simd, &sums[row], &mut block[row]);
    }
    for row in 0..ROWS {
        let factors = &triangle[row_start(start + row) + start..][..row + 1];
        let (solved, block) = block.split_at_mut(row);
        let mut sums = load_sides(simd, &block[0]);
        for (solved, &factor) in solved.iter().zip(factors) {
            add_sides(simd, &mut sums, -factor, &load_sides(simd, solved));
        }
        scale_sides(simd, &mut sums, factors[row]);
        store_sides(simd, &sums, &mut block[0]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::simd::at_each_level;

    /// Rows of factors, and confidences of which some are 1 and so weigh nothing.
    fn rows() -> impl Strategy<Value = (usize, Vec<f32>, Vec<f32>)> {
        (1usize..140, 0usize..70).prop_flat_map(|(n_factors, n_rows)| {
            let stride = n_factors.next_multiple_of(LANES);
            let values = prop::collection::vec(-1f32..1.0, n_rows * stride);
            let confidences = prop::collection::vec(prop_oneof![Just(1.0f32), 1f32..4.0], n_rows);
            (Just(n_factors), values, confidences).prop_map(move |(n_factors, mut values, c)| {
                for row in values.chunks_exact_mut(stride) {
                    row[n_factors..].fill(0.0);
                }
                (n_factors, values, c)
            })
        })
    }

    /// What the rows make of a triangle and a right-hand side, that factored, and 16 solutions.
    fn all(n_factors: usize, factors: &[f32], confidences: &[f32]) -> [Vec<f32>; 4] {
        let stride = n_factors.next_multiple_of(LANES);
        let rows: Vec<u32> = (0..confidences.len() as u32).collect();
        let fixed = Fixed { factors, halves: None, n_factors, stride, base: 1.0 };
        let mut rhs = vec![0.0; stride];
        let mut matrix = vec![0.0; len(n_factors)];
        add_pairs(&mut matrix, &mut rhs, Pairs { rows: &rows, confidences }, fixed);
        for a in 0..n_factors {
            matrix[row_start(a) + a] += 1.0;
        }
        let mut factored = matrix.clone();
        assert!(factorize(&mut factored, n_factors));
        let mut x: Vec<Sides<1>> = vec![[[0.0; LANES]]; n_factors];
        for (a, x) in x.iter_mut().enumerate() {
            x[0] = std::array::from_fn(|side| ((a * 7 + side * 3) % 5) as f32 - 2.0);
        }
        dispatch(Solve { triangle: &factored, x: &mut x });
        let meaningful = |triangle: &[f32]| -> Vec<f32> {
            (0..n_factors).flat_map(|a| triangle[row_start(a)..][..a + 1].to_vec()).collect()
        };
        let x = x.as_flattened().as_flattened().to_vec();
        [meaningful(&matrix), rhs, meaningful(&factored), x]
    }

    struct Solve<'a> {
        triangle: &'a [f32],
        x: &'a mut [Sides<1>],
    }

    impl Kernel for Solve<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            if S::REGISTERS >= 32 {
                solve_many::<S, 1, 8>(simd, self.triangle, self.x);
            } else {
                solve_many::<S, 1, 4>(simd, self.triangle, self.x);
            }
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn factors_and_solutions_are_right_and_the_same_at_each_level((n, factors, confidences) in rows()) {
            let found = at_each_level(|| all(n, &factors, &confidences));
            for other in &found[1..] {
                for (a, b) in found[0].iter().zip(other) {
                    prop_assert_eq!(bits(a), bits(b));
                }
            }
            let [matrix, _, _, x] = &found[0];
            let entry = |a: usize, b: usize| f64::from(matrix[a.max(b) * (a.max(b) + 1) / 2 + a.min(b)]);
            let stride = n.next_multiple_of(LANES);
            for a in 0..n {
                for b in 0..=a {
                    let pairs = factors.chunks_exact(stride).zip(&confidences);
                    let sum: f64 = pairs
                        .map(|(row, &c)| f64::from(c - 1.0) * f64::from(row[a]) * f64::from(row[b]))
                        .sum();
                    let exact = sum + f64::from(u8::from(a == b));
                    prop_assert!((entry(a, b) - exact).abs() < 1e-3, "{a} {b}");
                }
                for side in 0..LANES {
                    let product: f64 = (0..n).map(|b| entry(a, b) * f64::from(x[b * LANES + side])).sum();
                    let wanted = ((a * 7 + side * 3) % 5) as f64 - 2.0;
                    prop_assert!((product - wanted).abs() < 1e-2, "{product} {wanted}");
                }
            }
        }
    }
}
