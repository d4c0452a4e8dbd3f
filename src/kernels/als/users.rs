//! The user half: every user of a shard against all item factors, which each process holds.

use rayon::prelude::*;

use super::halves::Numbers;
use super::loss::{ShardLoss, add_user};
use super::pairs::{Fixed, Pairs, Parts, add_plain};
use super::rows::{RowInput, Scratch, SolveError, System, TOGETHER, check_finite, descend, solve};
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
///   O(pairs · n_factors² + users · n_factors³) for Cholesky, on all threads of the pool. Each thread
///   holds the items' factors of four users at a time, of the pairs that are not plain.
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
    let room = || Room::new(system.fixed);
    let solve = |room: &mut Room, (task, x)| {
        let first = task * USERS_PER_TASK;
        dispatch(Task { x, first, users, system, params, with_loss, room })
    };
    let solved: Vec<Result<(usize, ShardLoss), SolveError>> = tasks.map_init(room, solve).collect();
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
    room: &'a mut Room,
}

impl Kernel for Task<'_> {
    type Output = Result<(usize, ShardLoss), SolveError>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let Self { x, first, users, system, params, with_loss, room } = self;
        let Room { scratch, near, scores } = room;
        let stride = system.fixed.stride;
        let (mut stopped, mut loss) = (0, ShardLoss::default());
        for (at, x) in x.chunks_mut(TOGETHER * stride).enumerate() {
            let first = first + at * TOGETHER;
            let mut inputs = [None; TOGETHER];
            for ((at, x), near) in x.chunks_exact(stride).enumerate().zip(near.iter_mut()) {
                let row = first + at;
                if users.solved.is_some_and(|solved| !solved[row]) {
                    continue;
                }
                if row + TOGETHER < users.len() {
                    let next = users.of(row + TOGETHER).rows;
                    system.fixed.prefetch(simd, next, PREFETCHED);
                }
                let lambda = lambda_of(users.of(row), params);
                near.set(simd, users.of(row), system.fixed);
                if with_loss {
                    add_user(simd, &mut loss, x, &near.parts, lambda, system, scores);
                }
                inputs[at] = Some(near.input(lambda));
            }
            match params.solver {
                Solver::ConjugateGradient { steps } => {
                    stopped += descend(simd, x, &inputs, system, steps, scratch);
                }
                Solver::Cholesky => {
                    let solved = solve_each(simd, x, &inputs, system, scratch);
                    solved.map_err(|at| SolveError::NotPositiveDefinite { row: first + at })?;
                }
            }
        }
        Ok((stopped, loss))
    }
}

/// The exact solutions of some rows; an error is the place of the first that has none.
#[inline(always)]
fn solve_each<S: Simd>(
    simd: S,
    x: &mut [f32],
    inputs: &[Option<(RowInput<'_, u32>, Numbers<'_, f32>)>; TOGETHER],
    system: System<'_>,
    scratch: &mut Scratch,
) -> Result<(), usize> {
    for ((at, x), input) in x.chunks_exact_mut(system.fixed.stride).enumerate().zip(inputs) {
        let Some((input, numbers)) = input else { continue };
        let fixed = Fixed { factors: numbers.numbers, halves: None, ..system.fixed };
        if !solve(simd, x, input, System { fixed, ..system }, scratch) {
            return Err(at);
        }
    }
    Ok(())
}

/// What is kept from user to user.
struct Room {
    scratch: Scratch,
    near: [Near; TOGETHER],
    scores: Vec<f32>,
}

impl Room {
    fn new(fixed: Fixed<'_>) -> Self {
        let scratch = Scratch::new(fixed.n_factors, fixed.stride);
        Self { scratch, near: Default::default(), scores: Vec::new() }
    }
}

/// What one user is solved from: all passes but one find it near.
#[derive(Default)]
struct Near {
    parts: Parts<ItemIdx>,
    /// Rows of the pairs that are not plain, one behind the other, and their places.
    factors: Vec<f32>,
    places: Vec<u32>,
    /// What plain pairs add to the right-hand side.
    plain: Vec<f32>,
}

impl Near {
    /// Fetches what belongs to the pairs of another user.
    #[inline(always)]
    fn set<S: Simd>(&mut self, simd: S, pairs: Pairs<'_, ItemIdx>, fixed: Fixed<'_>) {
        self.parts.set(pairs, fixed.base);
        let rows = self.parts.weighted().rows;
        if self.places.len() < rows.len() {
            self.places = (0..rows.len() as u32).collect();
            self.factors.resize(rows.len() * fixed.stride, 0.0);
        }
        fixed.gather(simd, &mut self.factors[..rows.len() * fixed.stride], rows);
        self.plain.clear();
        self.plain.resize(fixed.stride, 0.0);
        add_plain(simd, &mut self.plain, self.parts.plain(), fixed);
    }

    #[inline(always)]
    fn input(&self, lambda: f32) -> (RowInput<'_, u32>, Numbers<'_, f32>) {
        let Pairs { rows, confidences } = self.parts.weighted();
        let plain = (!self.parts.plain().is_empty()).then_some(&self.plain[..]);
        let pairs = Pairs { rows: &self.places[..rows.len()], confidences };
        (RowInput { pairs, plain, lambda }, Numbers { numbers: &self.factors, unit: 1.0 })
    }
}

/// λ of a user.
pub(super) fn lambda_of(pairs: Pairs<'_, ItemIdx>, params: Params<'_>) -> f32 {
    let positive = pairs.confidences.iter().filter(|&&confidence| confidence > 0.0).count();
    let n_observed = pairs.rows.len() as u64;
    params.objective.regularization_of(n_observed, positive as u64, params.n_items)
}
