//! Lower triangles in rows of whole groups of lanes, and their Cholesky factorization.
//!
//! Row a holds (a / 16 + 1) · 16 numbers, of which the first a + 1 count: half of a square, and every
//! row starts on a whole group.

use super::objective::pair;
use super::pairs::{Fixed, Pairs, Row};
use crate::kernels::simd::{LANES, add_scaled, fold};

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

/// Adds sum extra · f fᵀ to the triangle and sum target · f to the right-hand side.
#[inline(always)]
pub(super) fn add_pairs<R: Row>(
    triangle: &mut [f32],
    rhs: &mut [f32],
    pairs: Pairs<'_, R>,
    fixed: Fixed<'_>,
) {
    for (&row, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
        let row = fixed.row(row);
        let coefficients = pair(confidence, fixed.base);
        add_scaled(rhs, coefficients.target, row);
        for a in 0..fixed.n_factors {
            let (start, width) = (row_start(a), width(a));
            let scale = coefficients.extra * row[a];
            add_scaled(&mut triangle[start..start + width], scale, &row[..width]);
        }
    }
}

/// Adds `scale · matrix + diagonal · I` to the triangle; `matrix` is `[n_factors, stride]`.
#[inline(always)]
pub(super) fn add_matrix(
    triangle: &mut [f32],
    matrix: &[f32],
    stride: usize,
    scale: f32,
    diagonal: f32,
) {
    for (a, row) in matrix.chunks_exact(stride).enumerate() {
        let (start, width) = (row_start(a), width(a));
        add_scaled(&mut triangle[start..start + width], scale, &row[..width]);
        triangle[start + a] += diagonal;
    }
}

/// Factors the triangle in place into L with L·Lᵀ equal to it. Returns false where a pivot is not
/// above 0, so that the matrix is not positive definite in f32.
#[inline(always)]
pub(super) fn factorize(triangle: &mut [f32], n_factors: usize) -> bool {
    for a in 0..n_factors {
        let (above, row) = triangle.split_at_mut(row_start(a));
        for b in 0..a {
            let other = &above[row_start(b)..];
            row[b] = (row[b] - dot_prefix(row, other, b)) / other[b];
        }
        let pivot = row[a] - dot_prefix(row, row, a);
        if pivot.is_nan() || pivot <= 0.0 {
            return false;
        }
        row[a] = pivot.sqrt();
    }
    true
}

/// Solves L·Lᵀ x = `x` in place.
#[inline(always)]
pub(super) fn solve(triangle: &[f32], n_factors: usize, x: &mut [f32]) {
    for a in 0..n_factors {
        let row = &triangle[row_start(a)..];
        x[a] = (x[a] - dot_prefix(row, x, a)) / row[a];
    }
    for a in (0..n_factors).rev() {
        let row = &triangle[row_start(a)..];
        x[a] /= row[a];
        let scale = -x[a];
        for b in 0..a {
            x[b] = scale.mul_add(row[b], x[b]);
        }
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
