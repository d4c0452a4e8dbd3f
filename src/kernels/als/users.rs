//! The user half: every user of a shard against all item factors, which each process holds.

use rayon::prelude::*;

use super::loss::{ShardLoss, add_user};
use super::pairs::Pairs;
use super::rows::{RowInput, Scratch, SolveError, System, check_finite, descend, solve};
use super::{Objective, Solver};
use crate::kernels::simd::{Kernel, Simd, dispatch};
use crate::types::{ItemIdx, ItemLists};

/// Users of one shard: what they did, as confidences.
#[derive(Clone, Copy, Debug)]
pub struct Users<'a> {
    /// Items of each user.
    pub interactions: &'a ItemLists,
    /// The signed confidence of each interaction.
    pub confidences: &'a [f32],
    /// Which users are solved for, `[n_users]`; the others keep their factors.
    pub solved: Option<&'a [bool]>,
}

impl<'a> Users<'a> {
    /// How many users there are.
    pub(super) fn len(&self) -> usize {
        self.interactions.ends.len()
    }

    /// The users that are solved for.
    pub(super) fn solved_rows(self) -> impl Iterator<Item = usize> + 'a {
        (0..self.len()).filter(move |&row| self.solved.is_none_or(|solved| solved[row]))
    }

    /// The pairs of one user.
    #[inline(always)]
    pub(super) fn of(&self, row: usize) -> Pairs<'a, ItemIdx> {
        let range = self.interactions.range(row);
        Pairs {
            rows: &self.interactions.items[range.clone()],
            confidences: &self.confidences[range],
        }
    }
}

/// How users are solved.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// The objective.
    pub objective: &'a Objective,
    /// Exact, or by steps.
    pub solver: Solver,
    /// Number of items of the fit.
    pub n_items: u64,
}

/// Pairs of the next user whose factors are asked for while one is solved: as many as fit the first
/// cache beside that user's own.
pub(super) const PREFETCHED: usize = 64;

/// Users handled by one task: users differ in length a hundredfold, so few.
pub(super) const USERS_PER_TASK: usize = 32;

/// Solves for the users of a shard in place: `x` is `[n_users, stride]`.
///
/// - A user without interactions gets zeros.
/// - Each row is computed by itself, so the bits do not depend on the other users.
/// - Returns the number of rows that conjugate gradient left early because A was not positive along a
///   direction; and `with_loss` the loss before, for which the factors are at hand anyway.
/// - Cost: O(pairs · n_factors · steps + users · n_factors² · steps) time for conjugate gradient,
///   O(pairs · n_factors² + users · n_factors³) for Cholesky, on all threads of the pool.
///
/// # Errors
/// A row that is not finite, or not positive definite under Cholesky: the lowest of the shard.
pub fn solve_users(
    x: &mut [f32],
    users: Users<'_>,
    system: System<'_>,
    params: Params<'_>,
    with_loss: bool,
) -> Result<(usize, ShardLoss), SolveError> {
    let stride = system.fixed.stride;
    assert_eq!(x.len(), users.len() * stride, "a row per user");
    let tasks = x.par_chunks_mut(USERS_PER_TASK * stride).enumerate();
    let solve = |(task, x)| {
        dispatch(Task { x, first: task * USERS_PER_TASK, users, system, params, with_loss })
    };
    let solved: Vec<Result<(usize, ShardLoss), SolveError>> = tasks.map(solve).collect();
    let mut sum = (0, ShardLoss::default());
    for task in solved {
        let (stopped, loss) = task?;
        sum = (sum.0 + stopped, sum.1.plus(loss));
    }
    check_finite(x, stride)?;
    Ok(sum)
}

struct Task<'a> {
    x: &'a mut [f32],
    first: usize,
    users: Users<'a>,
    system: System<'a>,
    params: Params<'a>,
    with_loss: bool,
}

impl Kernel for Task<'_> {
    type Output = Result<(usize, ShardLoss), SolveError>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let Self { x, first, users, system, params, with_loss } = self;
        let mut scratch = Scratch::new(system.fixed.n_factors, system.fixed.stride);
        let (mut stopped, mut loss) = (0, ShardLoss::default());
        let mut scores = Vec::new();
        for (at, x) in x.chunks_exact_mut(system.fixed.stride).enumerate() {
            let row = first + at;
            if users.solved.is_some_and(|solved| !solved[row]) {
                continue;
            }
            if row + 1 < users.len() {
                system.fixed.prefetch(simd, users.of(row + 1).rows, PREFETCHED);
            }
            let input = input(users.of(row), params);
            if with_loss {
                add_user(simd, &mut loss, x, &input, system, &mut scores);
            }
            match params.solver {
                Solver::ConjugateGradient { steps } => {
                    stopped += usize::from(descend(simd, x, &input, system, steps, &mut scratch));
                }
                Solver::Cholesky if !solve(simd, x, &input, system, &mut scratch) => {
                    return Err(SolveError::NotPositiveDefinite { row });
                }
                Solver::Cholesky => {}
            }
        }
        Ok((stopped, loss))
    }
}

#[inline(always)]
pub(super) fn input<'a>(pairs: Pairs<'a, ItemIdx>, params: Params<'_>) -> RowInput<'a, ItemIdx> {
    let positive = pairs.confidences.iter().filter(|&&confidence| confidence > 0.0).count();
    let n_observed = pairs.rows.len() as u64;
    let lambda = params.objective.regularization_of(n_observed, positive as u64, params.n_items);
    RowInput { pairs, lambda }
}
