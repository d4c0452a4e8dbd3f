//! The user half: every user of a shard against all item factors, which each process holds.

use rayon::prelude::*;

use super::loss::{ShardLoss, add_user};
use super::pairs::{Fixed, Pairs};
use super::rows::{RowInput, Scratch, SolveError, System, TOGETHER, check_finite, descend, solve};
use super::{Objective, Solver};
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch};
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
                let (input, fixed) =
                    side_by_side(simd, near, input(users.of(row), params), system.fixed);
                if with_loss {
                    add_user(simd, &mut loss, x, &input, System { fixed, ..system }, scores);
                }
                inputs[at] = Some((input, fixed));
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
    inputs: &[Option<(RowInput<'_, ItemIdx>, Fixed<'_>)>; TOGETHER],
    system: System<'_>,
    scratch: &mut Scratch,
) -> Result<(), usize> {
    for ((at, x), input) in x.chunks_exact_mut(system.fixed.stride).enumerate().zip(inputs) {
        if let Some((input, fixed)) = input
            && !solve(simd, x, input, System { fixed: *fixed, ..system }, scratch)
        {
            return Err(at);
        }
    }
    Ok(())
}

/// What is kept from user to user.
struct Room {
    scratch: Scratch,
    /// Rows of the items of each user.
    near: [Vec<f32>; TOGETHER],
    scores: Vec<f32>,
}

impl Room {
    fn new(fixed: Fixed<'_>) -> Self {
        let scratch = Scratch::new(fixed.n_factors, fixed.stride);
        Self { scratch, near: Default::default(), scores: Vec::new() }
    }
}

/// Bytes of a user's rows that are copied beside each other: a quarter of a core's second cache, as few
/// of the users that are solved together have so many.
const NEAR_BYTES: usize = 1 << 19;

/// Places of rows that lie one behind the other.
static IN_ORDER: [ItemIdx; NEAR_BYTES / (4 * LANES)] = {
    let mut places = [ItemIdx(0); NEAR_BYTES / (4 * LANES)];
    let mut at = 0;
    while at < places.len() {
        places[at] = ItemIdx(at as u32);
        at += 1;
    }
    places
};

/// The same equations with the user's rows copied one behind the other, where they are not too many:
/// all passes but this one find them near.
#[inline(always)]
fn side_by_side<'a, S: Simd>(
    simd: S,
    near: &'a mut Vec<f32>,
    input: RowInput<'a, ItemIdx>,
    fixed: Fixed<'a>,
) -> (RowInput<'a, ItemIdx>, Fixed<'a>) {
    let RowInput { pairs: Pairs { rows, confidences }, lambda } = input;
    let len = rows.len() * fixed.stride;
    if 4 * len > NEAR_BYTES {
        return (input, fixed);
    }
    near.resize(near.len().max(len), 0.0);
    let near = &mut near[..len];
    fixed.gather(simd, near, rows);
    let fixed = Fixed { factors: near, halves: None, ..fixed };
    let pairs = Pairs { rows: &IN_ORDER[..rows.len()], confidences };
    (RowInput { pairs, lambda }, fixed)
}

#[inline(always)]
pub(super) fn input<'a>(pairs: Pairs<'a, ItemIdx>, params: Params<'_>) -> RowInput<'a, ItemIdx> {
    let positive = pairs.confidences.iter().filter(|&&confidence| confidence > 0.0).count();
    let n_observed = pairs.rows.len() as u64;
    let lambda = params.objective.regularization_of(n_observed, positive as u64, params.n_items);
    RowInput { pairs, lambda }
}
