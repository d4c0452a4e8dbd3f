//! Rows whose sums over observed pairs are known: conjugate gradient step by step, or Cholesky.

use rayon::prelude::*;

use super::item_sums::Sums;
use super::pairs::{Fixed, Pairs, Row, add_product, add_residual};
use super::triangle;
use crate::kernels::simd::{Kernel, LANES, Simd, add_scaled, dispatch, dot};

/// What all rows of one side share: the other side, held fixed, and its Gram matrix.
#[derive(Clone, Copy, Debug)]
pub struct System<'a> {
    /// The fixed side.
    pub fixed: Fixed<'a>,
    /// Its Gram matrix, `[n_factors, stride]`.
    pub gram: &'a [f32],
    /// [`Objective::unobserved`](super::Objective::unobserved).
    pub unobserved: f32,
}

/// A row that cannot be solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum SolveError {
    /// A factor is infinite or not a number.
    #[error("the factors of row {row} are not finite")]
    NotFinite {
        /// The row.
        row: usize,
    },
    /// The normal equations have no positive pivot in f32.
    #[error("the normal equations of row {row} are not positive definite")]
    NotPositiveDefinite {
        /// The row.
        row: usize,
    },
}

/// A squared residual below this is as good as 0.
const SQUARED_MIN: f32 = 1e-20;

/// Where conjugate gradient stands on one row.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Squared length of the residual.
    squared: f32,
    /// Whether A·p was not positive along p, so that the row stays as it is.
    stopped: bool,
}

/// `out` = unobserved · G·v + λ·v.
#[inline(always)]
pub(super) fn unobserved_product<S: Simd>(
    simd: S,
    out: &mut [f32],
    system: System<'_>,
    lambda: f32,
    v: &[f32],
) {
    let stride = system.fixed.stride;
    let (columns, _) = out.as_chunks_mut::<LANES>();
    let (v_groups, _) = v.as_chunks::<LANES>();
    // Four groups of columns in registers at a time.
    for (at, columns) in columns.chunks_mut(4).enumerate() {
        let first = 4 * LANES * at;
        if let Ok(columns) = <&mut [[f32; LANES]; 4]>::try_from(&mut *columns) {
            gram_columns(simd, columns, system.gram, stride, first, v);
        } else {
            for (at, column) in columns.iter_mut().enumerate() {
                let column: &mut [[f32; LANES]; 1] =
                    std::slice::from_mut(column).try_into().expect("one");
                gram_columns(simd, column, system.gram, stride, first + at * LANES, v);
            }
        }
    }
    for (out, v) in columns_of(out).iter_mut().zip(v_groups) {
        let own = simd.mul_add(simd.splat(lambda), simd.load(v), simd.splat(0.0));
        simd.store(simd.mul_add(simd.splat(system.unobserved), simd.load(out), own), out);
    }
}

fn columns_of(row: &mut [f32]) -> &mut [[f32; LANES]] {
    row.as_chunks_mut::<LANES>().0
}

#[inline(always)]
fn add_group<S: Simd, const GROUPS: usize>(
    simd: S,
    sums: &mut [S::Lanes; GROUPS],
    scale: f32,
    row: &[f32],
) {
    let (row, _) = row[..GROUPS * LANES].as_chunks::<LANES>();
    let scale = simd.splat(scale);
    for group in 0..GROUPS {
        sums[group] = simd.mul_add(scale, simd.load(&row[group]), sums[group]);
    }
}

/// Some columns of G·v: the sums of even and of odd rows, added up.
#[inline(always)]
fn gram_columns<S: Simd, const GROUPS: usize>(
    simd: S,
    out: &mut [[f32; LANES]; GROUPS],
    gram: &[f32],
    stride: usize,
    first: usize,
    v: &[f32],
) {
    let mut even = [simd.splat(0.0); GROUPS];
    let mut odd = [simd.splat(0.0); GROUPS];
    let (pairs, _) = v.as_chunks::<2>();
    let twice = gram.chunks_exact(2 * stride);
    let last = twice.remainder();
    for (rows, v) in twice.zip(pairs) {
        let (row, next) = rows.split_at(stride);
        add_group(simd, &mut even, v[0], &row[first..]);
        add_group(simd, &mut odd, v[1], &next[first..]);
    }
    if !last.is_empty() {
        add_group(simd, &mut even, v[gram.len() / stride - 1], &last[first..]);
    }
    for group in 0..GROUPS {
        simd.store(simd.add(even[group], odd[group]), &mut out[group]);
    }
}

/// One row of conjugate gradient: residual and direction.
struct CgRow<'a> {
    x: &'a mut [f32],
    residual: &'a mut [f32],
    direction: &'a mut [f32],
}

impl CgRow<'_> {
    /// `residual` holds the observed part of b − A·x on entry.
    #[inline(always)]
    fn start<S: Simd>(&mut self, simd: S, system: System<'_>, lambda: f32) -> Standing {
        unobserved_product(simd, self.direction, system, lambda, self.x);
        for (residual, product) in self.residual.iter_mut().zip(self.direction.iter()) {
            *residual -= product;
        }
        self.direction.copy_from_slice(self.residual);
        Standing { squared: dot(simd, self.residual, self.residual), stopped: false }
    }

    /// `sum` is the observed part of A·p, `product` room for A·p.
    #[inline(always)]
    fn step<S: Simd>(
        &mut self,
        simd: S,
        standing: &mut Standing,
        system: System<'_>,
        lambda: f32,
        sum: &[f32],
        product: &mut [f32],
    ) {
        if standing.stopped || standing.squared < SQUARED_MIN {
            return;
        }
        unobserved_product(simd, product, system, lambda, self.direction);
        product.iter_mut().zip(sum).for_each(|(product, sum)| *product += sum);
        let curvature = dot(simd, self.direction, product);
        if curvature.is_nan() || curvature <= 0.0 {
            standing.stopped = true;
            return;
        }
        let length = standing.squared / curvature;
        add_scaled(simd, self.x, length, self.direction);
        add_scaled(simd, self.residual, -length, product);
        let squared = dot(simd, self.residual, self.residual);
        let ratio = squared / standing.squared;
        for (direction, &residual) in self.direction.iter_mut().zip(self.residual.iter()) {
            *direction = ratio.mul_add(*direction, residual);
        }
        standing.squared = squared;
    }
}

/// Scratch of one row: four rows, or a triangle and a row.
#[derive(Debug)]
pub(super) struct Scratch {
    numbers: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(n_factors: usize, stride: usize) -> Self {
        Self { numbers: vec![0.0; (4 * stride).max(triangle::len(n_factors) + stride)] }
    }
}

/// Which pairs a row has, and what is added to the diagonal.
pub(super) struct RowInput<'a, R> {
    pub(super) pairs: Pairs<'a, R>,
    pub(super) lambda: f32,
}

/// Steps of conjugate gradient on one row whose pairs are at hand. Returns whether it stopped early
/// because A was not positive along a direction. A row without pairs becomes zeros.
#[inline(always)]
pub(super) fn descend<S: Simd, R: Row>(
    simd: S,
    x: &mut [f32],
    input: &RowInput<'_, R>,
    system: System<'_>,
    steps: usize,
    scratch: &mut Scratch,
) -> bool {
    if input.pairs.rows.is_empty() {
        x.fill(0.0);
        return false;
    }
    let stride = system.fixed.stride;
    let (residual, rest) = scratch.numbers.split_at_mut(stride);
    let (direction, rest) = rest.split_at_mut(stride);
    let (sum, rest) = rest.split_at_mut(stride);
    let product = &mut rest[..stride];
    residual.fill(0.0);
    add_residual(simd, residual, input.pairs, system.fixed, x);
    let mut row = CgRow { x, residual, direction };
    let mut standing = row.start(simd, system, input.lambda);
    for _ in 0..steps {
        if standing.stopped || standing.squared < SQUARED_MIN {
            break;
        }
        sum.fill(0.0);
        add_product(simd, sum, input.pairs, system.fixed, row.direction);
        row.step(simd, &mut standing, system, input.lambda, sum, product);
    }
    standing.stopped
}

/// The exact solution of one row whose pairs are at hand; false where A is not positive definite.
#[inline(always)]
pub(super) fn solve<S: Simd, R: Row>(
    simd: S,
    x: &mut [f32],
    input: &RowInput<'_, R>,
    system: System<'_>,
    scratch: &mut Scratch,
) -> bool {
    x.fill(0.0);
    if input.pairs.rows.is_empty() {
        return true;
    }
    let triangle = factor(simd, input, system, scratch, x);
    if let Some(triangle) = triangle {
        triangle::solve(triangle, system.fixed.n_factors, x);
    }
    triangle.is_some()
}

/// The Cholesky factor of one row's normal equations; the right-hand side is added to `rhs`.
#[inline(always)]
pub(super) fn factor<'s, S: Simd, R: Row>(
    simd: S,
    input: &RowInput<'_, R>,
    system: System<'_>,
    scratch: &'s mut Scratch,
    rhs: &mut [f32],
) -> Option<&'s [f32]> {
    let Fixed { n_factors, stride, .. } = system.fixed;
    let matrix = &mut scratch.numbers[..triangle::len(n_factors)];
    matrix.fill(0.0);
    triangle::add_pairs(matrix, rhs, input.pairs, system.fixed);
    triangle::add_matrix(simd, matrix, system.gram, stride, system.unobserved, input.lambda);
    triangle::factorize(matrix, n_factors).then_some(matrix)
}

/// Conjugate gradient on many rows at once, whose sums come from elsewhere.
#[derive(Debug)]
pub struct CgRows {
    residuals: Vec<f32>,
    directions: Vec<f32>,
    standings: Vec<Standing>,
}

/// Rows handled by one task.
const ROWS_PER_TASK: usize = 256;

impl CgRows {
    /// Starts at `x`, `[n_rows, stride]`, from the sums of [`Term::Residual`](super::item_sums::Term)
    /// at x. Rows without a user become zeros and stay so.
    pub fn start(x: &mut [f32], sums: Sums, system: System<'_>, lambdas: &[f32]) -> Self {
        let stride = system.fixed.stride;
        let n_rows = lambdas.len();
        let Sums { values, present } = sums;
        assert!(x.len() == n_rows * stride && values.len() == x.len(), "a row of each per row");
        let rows = x.chunks_exact_mut(stride).zip(&present);
        rows.filter(|(_, present)| !**present).for_each(|(row, _)| row.fill(0.0));
        let mut rows = Self {
            residuals: values,
            directions: vec![0.0; n_rows * stride],
            standings: vec![Standing::default(); n_rows],
        };
        rows.each(x, None, system, lambdas);
        rows
    }

    /// The directions at which the next sums are wanted, `[n_rows, stride]`.
    pub fn directions(&self) -> &[f32] {
        &self.directions
    }

    /// One step, from the sums of [`Term::Product`](super::item_sums::Term) at the directions.
    pub fn step(&mut self, x: &mut [f32], sums: &[f32], system: System<'_>, lambdas: &[f32]) {
        assert_eq!(sums.len(), x.len(), "a sum per row");
        self.each(x, Some(sums), system, lambdas);
    }

    /// Number of rows that were left as they are because A was not positive along a direction.
    pub fn n_stopped(&self) -> usize {
        self.standings.iter().filter(|standing| standing.stopped).count()
    }

    /// Starts all rows, or takes a step with the sums at hand.
    fn each(&mut self, x: &mut [f32], sums: Option<&[f32]>, system: System<'_>, lambdas: &[f32]) {
        let stride = system.fixed.stride;
        let size = ROWS_PER_TASK * stride;
        let tasks = x
            .par_chunks_mut(size)
            .zip(self.residuals.par_chunks_mut(size))
            .zip(self.directions.par_chunks_mut(size))
            .zip(self.standings.par_chunks_mut(ROWS_PER_TASK));
        tasks.enumerate().for_each(|(task, (((x, residuals), directions), standings))| {
            let first = task * ROWS_PER_TASK;
            let lambdas = &lambdas[first..];
            let sums = sums.map(|sums| &sums[first * stride..]);
            dispatch(EachRow { x, residuals, directions, standings, sums, system, lambdas });
        });
    }
}

struct EachRow<'a> {
    x: &'a mut [f32],
    residuals: &'a mut [f32],
    directions: &'a mut [f32],
    standings: &'a mut [Standing],
    sums: Option<&'a [f32]>,
    system: System<'a>,
    lambdas: &'a [f32],
}

impl Kernel for EachRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, residuals, directions, standings, sums, system, lambdas } = self;
        let stride = system.fixed.stride;
        let mut product = vec![0.0; stride];
        let rows = x
            .chunks_exact_mut(stride)
            .zip(residuals.chunks_exact_mut(stride))
            .zip(directions.chunks_exact_mut(stride));
        for (at, ((x, residual), direction)) in rows.enumerate() {
            let mut row = CgRow { x, residual, direction };
            let standing = &mut standings[at];
            match sums {
                None => *standing = row.start(simd, system, lambdas[at]),
                Some(sums) => {
                    let sum = &sums[at * stride..][..stride];
                    row.step(simd, standing, system, lambdas[at], sum, &mut product);
                }
            }
        }
    }
}

/// Solves rows exactly from the sums of [`Term::Normal`](super::item_sums::Term), a triangle and a
/// right-hand side per row. Rows that are not `present` become zeros.
///
/// # Errors
/// [`SolveError::NotPositiveDefinite`], of the lowest such row.
pub fn solve_normal(
    x: &mut [f32],
    sums: &mut Sums,
    system: System<'_>,
    lambdas: &[f32],
) -> Result<(), SolveError> {
    let Fixed { n_factors, stride, .. } = system.fixed;
    let width = triangle::len(n_factors) + stride;
    let Sums { values, present } = sums;
    let solved = x.par_chunks_mut(stride).zip(values.par_chunks_mut(width)).enumerate().map(
        |(row, (x, sum))| {
            let lambda = present[row].then_some(lambdas[row]);
            let solved = dispatch(SolveNormal { x, sum, system, lambda });
            if solved { Ok(()) } else { Err(SolveError::NotPositiveDefinite { row }) }
        },
    );
    solved.filter_map(Result::err).min().map_or(Ok(()), Err)
}

struct SolveNormal<'a> {
    x: &'a mut [f32],
    sum: &'a mut [f32],
    system: System<'a>,
    lambda: Option<f32>,
}

impl Kernel for SolveNormal<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let Fixed { n_factors, stride, .. } = self.system.fixed;
        let Some(lambda) = self.lambda else {
            self.x.fill(0.0);
            return true;
        };
        let (matrix, rhs) = self.sum.split_at_mut(triangle::len(n_factors));
        self.x.copy_from_slice(rhs);
        triangle::add_matrix(
            simd,
            matrix,
            self.system.gram,
            stride,
            self.system.unobserved,
            lambda,
        );
        let solvable = triangle::factorize(matrix, n_factors);
        if solvable {
            triangle::solve(matrix, n_factors, self.x);
        }
        solvable
    }
}

/// Refuses factors that are not finite.
///
/// # Errors
/// [`SolveError::NotFinite`], of the lowest such row.
pub fn check_finite(factors: &[f32], stride: usize) -> Result<(), SolveError> {
    let rows = factors.par_chunks(stride);
    match rows.position_first(|row| row.iter().any(|value| !value.is_finite())) {
        Some(row) => Err(SolveError::NotFinite { row }),
        None => Ok(()),
    }
}
