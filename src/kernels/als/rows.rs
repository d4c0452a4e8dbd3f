//! Rows whose sums over observed pairs are known: conjugate gradient step by step, or Cholesky.

use rayon::prelude::*;

use super::halves::Numbers;
use super::item_sums::Sums;
use super::pairs::{AddPairs, Fixed, Pairs, Row};
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

/// Rows of one side that are multiplied with the Gram matrix together, which is fetched once for them.
pub(super) const TOGETHER: usize = 4;

/// `out` = unobserved · G·v + λ·v for rows v, of which each has its λ.
#[inline(always)]
fn unobserved_products<S: Simd>(
    simd: S,
    out: &mut [f32],
    system: System<'_>,
    lambdas: &[f32],
    v: &[f32],
) {
    let stride = system.fixed.stride;
    let size = TOGETHER * stride;
    let (outs, vs) = (out.chunks_mut(size), v.chunks(size));
    for ((out, v), lambdas) in outs.zip(vs).zip(lambdas.chunks(TOGETHER)) {
        if out.len() == size {
            gram_products::<S, 2, TOGETHER>(simd, out, system, v);
        } else {
            for (out, v) in out.chunks_exact_mut(stride).zip(v.chunks_exact(stride)) {
                gram_products::<S, 4, 1>(simd, out, system, v);
            }
        }
        let rows = out.chunks_exact_mut(stride).zip(v.chunks_exact(stride));
        for ((out, v), &lambda) in rows.zip(lambdas) {
            for (out, v) in columns_of(out).iter_mut().zip(v.as_chunks::<LANES>().0) {
                let own = simd.mul_add(simd.splat(lambda), simd.load(v), simd.splat(0.0));
                simd.store(simd.mul_add(simd.splat(system.unobserved), simd.load(out), own), out);
            }
        }
    }
}

fn columns_of(row: &mut [f32]) -> &mut [[f32; LANES]] {
    row.as_chunks_mut::<LANES>().0
}

/// G·v of `ROWS` rows v, so many groups of columns in registers at a time.
#[inline(always)]
fn gram_products<S: Simd, const GROUPS: usize, const ROWS: usize>(
    simd: S,
    out: &mut [f32],
    system: System<'_>,
    v: &[f32],
) {
    let n_groups = system.fixed.stride / LANES;
    let whole = n_groups / GROUPS * GROUPS;
    for first in (0..whole).step_by(GROUPS) {
        gram_columns::<S, GROUPS, ROWS>(simd, out, system, first, v);
    }
    for first in whole..n_groups {
        gram_columns::<S, 1, ROWS>(simd, out, system, first, v);
    }
}

/// Some groups of columns of G·v: the sums of even and of odd rows of G, added up.
#[inline(always)]
fn gram_columns<S: Simd, const GROUPS: usize, const ROWS: usize>(
    simd: S,
    out: &mut [f32],
    system: System<'_>,
    first: usize,
    v: &[f32],
) {
    let (gram, stride) = (system.gram, system.fixed.stride);
    let mut even = [[simd.splat(0.0); GROUPS]; ROWS];
    let mut odd = [[simd.splat(0.0); GROUPS]; ROWS];
    let n_rows = gram.len() / stride;
    for at in (0..n_rows / 2 * 2).step_by(2) {
        let (row, next) = gram[at * stride..][..2 * stride].split_at(stride);
        add_group(simd, &mut even, &v[at..], stride, &row[first * LANES..]);
        add_group(simd, &mut odd, &v[at + 1..], stride, &next[first * LANES..]);
    }
    if n_rows % 2 == 1 {
        let at = n_rows - 1;
        add_group(simd, &mut even, &v[at..], stride, &gram[at * stride + first * LANES..]);
    }
    for row in 0..ROWS {
        let out = &mut columns_of(&mut out[row * stride..][..stride])[first..][..GROUPS];
        for group in 0..GROUPS {
            simd.store(simd.add(even[row][group], odd[row][group]), &mut out[group]);
        }
    }
}

/// Adds some columns of a row of G to the sum of each row v, times that row's number.
#[inline(always)]
fn add_group<S: Simd, const GROUPS: usize, const ROWS: usize>(
    simd: S,
    sums: &mut [[S::Lanes; GROUPS]; ROWS],
    v: &[f32],
    stride: usize,
    row: &[f32],
) {
    let (row, _) = row[..GROUPS * LANES].as_chunks::<LANES>();
    let mut columns = [simd.splat(0.0); GROUPS];
    for group in 0..GROUPS {
        columns[group] = simd.load(&row[group]);
    }
    for at in 0..ROWS {
        let scale = simd.splat(v[at * stride]);
        for group in 0..GROUPS {
            sums[at][group] = simd.mul_add(scale, columns[group], sums[at][group]);
        }
    }
}

impl Standing {
    /// Whether no step is left to be taken.
    #[inline(always)]
    fn is_done(&self) -> bool {
        self.stopped || self.squared < SQUARED_MIN
    }
}

/// One row of conjugate gradient: residual and direction.
struct CgRow<'a> {
    x: &'a mut [f32],
    residual: &'a mut [f32],
    direction: &'a mut [f32],
}

impl<'a> CgRow<'a> {
    /// One of several rows.
    #[inline(always)]
    fn of(
        at: usize,
        stride: usize,
        x: &'a mut [f32],
        residuals: &'a mut [f32],
        directions: &'a mut [f32],
    ) -> Self {
        Self {
            x: &mut x[at * stride..][..stride],
            residual: &mut residuals[at * stride..][..stride],
            direction: &mut directions[at * stride..][..stride],
        }
    }

    /// `residual` holds the observed part of b − A·x on entry, `direction` the rest of A·x.
    #[inline(always)]
    fn start<S: Simd>(&mut self, simd: S) -> Standing {
        for (residual, product) in self.residual.iter_mut().zip(self.direction.iter()) {
            *residual -= product;
        }
        self.direction.copy_from_slice(self.residual);
        Standing { squared: dot(simd, self.residual, self.residual), stopped: false }
    }

    /// `sum` is the observed part of A·p, `product` the rest of it.
    #[inline(always)]
    fn step<S: Simd>(
        &mut self,
        simd: S,
        standing: &mut Standing,
        sum: &[f32],
        product: &mut [f32],
    ) {
        if standing.is_done() {
            return;
        }
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

/// Scratch of rows that are solved together: four rows for each, or a triangle and a row.
#[derive(Debug)]
pub(super) struct Scratch {
    numbers: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(n_factors: usize, stride: usize) -> Self {
        let len = (4 * TOGETHER * stride).max(triangle::len(n_factors) + stride);
        Self { numbers: vec![0.0; len] }
    }
}

/// Which pairs a row has, and what is added to the diagonal.
#[derive(Clone, Copy)]
pub(super) struct RowInput<'a, R> {
    pub(super) pairs: Pairs<'a, R>,
    /// What plain pairs beside these add to the right-hand side, if there are any.
    pub(super) plain: Option<&'a [f32]>,
    pub(super) lambda: f32,
}

impl<R> RowInput<'_, R> {
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.pairs.rows.is_empty() && self.plain.is_none()
    }

    #[inline(always)]
    fn add_plain_to<S: Simd>(&self, simd: S, rhs: &mut [f32]) {
        if let Some(plain) = self.plain {
            add_scaled(simd, rhs, 1.0, plain);
        }
    }
}

/// Steps of conjugate gradient on up to [`TOGETHER`] rows `x`, whose pairs are at hand, each with its
/// fixed side; a row without an input stays as it is. Returns how many stopped early because A was not
/// positive along a direction. A row without pairs becomes zeros.
#[inline(always)]
pub(super) fn descend<S: Simd, R: Row>(
    simd: S,
    x: &mut [f32],
    inputs: &[Option<(RowInput<'_, R>, Numbers<'_, f32>)>; TOGETHER],
    system: System<'_>,
    steps: usize,
    scratch: &mut Scratch,
) -> usize {
    let Fixed { stride, base, .. } = system.fixed;
    let (n_rows, size) = (x.len() / stride, x.len());
    let (residuals, rest) = scratch.numbers.split_at_mut(size);
    let (directions, rest) = rest.split_at_mut(size);
    let (products, rest) = rest.split_at_mut(size);
    let sum = &mut rest[..stride];
    let (mut lambdas, mut standings) = ([0.0; TOGETHER], [Standing::default(); TOGETHER]);
    unobserved_lambdas(inputs, &mut lambdas);
    unobserved_products(simd, directions, system, &lambdas[..n_rows], x);
    for (at, input) in inputs.iter().enumerate().take(n_rows) {
        let Some((input, numbers)) = input else { continue };
        let mut row = CgRow::of(at, stride, x, residuals, directions);
        if input.is_empty() {
            row.x.fill(0.0);
            continue;
        }
        AddPairs::new(input.pairs, base, *numbers).residual(simd, row.residual, row.x);
        input.add_plain_to(simd, row.residual);
        standings[at] = row.start(simd);
    }
    for _ in 0..steps {
        if standings.iter().all(Standing::is_done) {
            break;
        }
        unobserved_products(simd, products, system, &lambdas[..n_rows], directions);
        for (at, input) in inputs.iter().enumerate().take(n_rows) {
            let Some((input, numbers)) = input else { continue };
            if standings[at].is_done() {
                continue;
            }
            let mut row = CgRow::of(at, stride, x, residuals, directions);
            AddPairs::new(input.pairs, base, *numbers).product(simd, sum, row.direction);
            let rest = &mut products[at * stride..][..stride];
            row.step(simd, &mut standings[at], sum, rest);
        }
    }
    standings.iter().filter(|standing| standing.stopped).count()
}

#[inline(always)]
fn unobserved_lambdas<R>(
    inputs: &[Option<(RowInput<'_, R>, Numbers<'_, f32>)>; TOGETHER],
    lambdas: &mut [f32; TOGETHER],
) {
    for (lambda, input) in lambdas.iter_mut().zip(inputs) {
        if let Some((input, _)) = input {
            *lambda = input.lambda;
        }
    }
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
    if input.is_empty() {
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
    input.add_plain_to(simd, rhs);
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
        let lambdas = &lambdas[..standings.len()];
        let Some(sums) = sums else {
            unobserved_products(simd, directions, system, lambdas, x);
            for (at, standing) in standings.iter_mut().enumerate() {
                *standing = CgRow::of(at, stride, x, residuals, directions).start(simd);
            }
            return;
        };
        let mut products = vec![0.0; directions.len()];
        unobserved_products(simd, &mut products, system, lambdas, directions);
        let of_rows = products.chunks_exact_mut(stride).zip(sums.chunks_exact(stride));
        for ((at, standing), (product, sum)) in standings.iter_mut().enumerate().zip(of_rows) {
            CgRow::of(at, stride, x, residuals, directions).step(simd, standing, sum, product);
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
