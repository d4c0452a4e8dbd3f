//! The objective's value.

use rayon::prelude::*;

use super::objective::pair;
use super::pairs::{self, Pairs, Parts};
use super::rows::System;
use super::users::{PREFETCHED, Params, USERS_PER_TASK, Users, lambda_of};
use crate::kernels::simd::{Kernel, Simd, dispatch, dot};
use crate::types::ItemIdx;

/// What the users of one shard add to the loss, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShardLoss {
    /// Σ over observed pairs of (unobserved + extra) · s² − 2 · target · s + target.
    pub observed: f64,
    /// Σ over observed pairs of s², which the sum over all pairs counts as well.
    pub squares: f64,
    /// Σ over observed pairs of unobserved + extra.
    pub weight: f64,
    /// Σ over users of λ_u ‖x_u‖².
    pub regularization: f64,
}

impl ShardLoss {
    /// The sum of two.
    pub fn plus(self, other: Self) -> Self {
        Self {
            observed: self.observed + other.observed,
            squares: self.squares + other.squares,
            weight: self.weight + other.weight,
            regularization: self.regularization + other.regularization,
        }
    }
}

/// The loss of a shard's users at `x`, `[n_users, stride]`.
///
/// Summed pair after pair within a task of users, then task after task: the same for any number of
/// threads, and as [`solve_users`](super::users::solve_users) tells it on its way.
pub fn of_users(x: &[f32], users: Users<'_>, system: System<'_>, params: Params<'_>) -> ShardLoss {
    let tasks: Vec<ShardLoss> = x
        .par_chunks(USERS_PER_TASK * system.fixed.stride)
        .enumerate()
        .map(|(task, x)| dispatch(Task { x, first: task * USERS_PER_TASK, users, system, params }))
        .collect();
    tasks.into_iter().fold(ShardLoss::default(), ShardLoss::plus)
}

struct Task<'a> {
    x: &'a [f32],
    first: usize,
    users: Users<'a>,
    system: System<'a>,
    params: Params<'a>,
}

impl Kernel for Task<'_> {
    type Output = ShardLoss;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> ShardLoss {
        let Self { x, first, users, system, params } = self;
        let (mut loss, mut scores) = (ShardLoss::default(), Vec::new());
        let mut parts = Parts::default();
        for (at, x) in x.chunks_exact(system.fixed.stride).enumerate() {
            if users.solved.is_some_and(|solved| !solved[first + at]) {
                continue;
            }
            if first + at + 1 < users.len() {
                system.fixed.prefetch(simd, users.of(first + at + 1).rows, PREFETCHED);
            }
            let pairs = users.of(first + at);
            parts.set(pairs, system.fixed.base);
            let lambda = lambda_of(pairs, params);
            add_user(simd, &mut loss, x, &parts, lambda, system, &mut scores);
        }
        loss
    }
}

/// Adds what one user adds, plain pairs last; `scores` is scratch.
#[inline(always)]
pub(super) fn add_user<S: Simd>(
    simd: S,
    loss: &mut ShardLoss,
    x: &[f32],
    parts: &Parts<ItemIdx>,
    lambda: f32,
    system: System<'_>,
    scores: &mut Vec<f32>,
) {
    let (Pairs { rows, confidences }, plain) = (parts.weighted(), parts.plain());
    scores.resize(rows.len().max(plain.len()), 0.0);
    let of_rows = &mut scores[..rows.len()];
    pairs::scores(simd, of_rows, rows, system.fixed, x);
    add_pairs(loss, of_rows, confidences.iter().copied(), system);
    let of_plain = &mut scores[..plain.len()];
    pairs::scores(simd, of_plain, plain, system.fixed, x);
    add_pairs(loss, of_plain, std::iter::repeat(system.fixed.base), system);
    loss.regularization += f64::from(lambda) * f64::from(dot(simd, x, x));
}

#[inline(always)]
fn add_pairs(
    loss: &mut ShardLoss,
    scores: &[f32],
    confidences: impl Iterator<Item = f32>,
    system: System<'_>,
) {
    let unobserved = f64::from(system.unobserved);
    for (&score, confidence) in scores.iter().zip(confidences) {
        let pair = pair(confidence, system.fixed.base);
        let score = f64::from(score);
        let weight = unobserved + f64::from(pair.extra);
        let target = f64::from(pair.target);
        loss.observed += (weight * score - 2.0 * target) * score + target;
        loss.squares += score * score;
        loss.weight += weight;
    }
}

/// The value of the objective, from the sums over all shards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Mean weighted squared error of the observed pairs alone.
    pub observed: f64,
    /// The whole objective over the summed weight of all pairs, as `implicit` reports it.
    pub full: f64,
}

/// What the loss is made of beside the sums over users.
#[derive(Clone, Copy, Debug)]
pub struct Rest<'a> {
    /// XᵀX, `[n_factors, stride]`.
    pub gram_users: &'a [f64],
    /// YᵀY of the same shape.
    pub gram_items: &'a [f64],
    /// Weight of every pair, observed or not.
    pub unobserved: f64,
    /// Σ over items of λ_i ‖y_i‖².
    pub regularization_items: f64,
    /// Users times items of the fit.
    pub n_pairs: f64,
    /// Observed pairs.
    pub n_observed: f64,
}

/// The loss, with the sum over all pairs from the Gram matrices: Σ s² = ⟨XᵀX, YᵀY⟩.
pub fn loss(users: ShardLoss, rest: Rest<'_>) -> Loss {
    let products = rest.gram_users.iter().zip(rest.gram_items).map(|(a, b)| a * b);
    let squares: f64 = products.sum();
    let unobserved = rest.unobserved * (squares - users.squares);
    let weight = users.weight + rest.unobserved * (rest.n_pairs - rest.n_observed);
    let regularization = users.regularization + rest.regularization_items;
    Loss {
        observed: users.observed / users.weight.max(f64::MIN_POSITIVE),
        full: (users.observed + unobserved + regularization) / weight.max(f64::MIN_POSITIVE),
    }
}
