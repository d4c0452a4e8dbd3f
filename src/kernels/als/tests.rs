//! The kernels against dense normal equations in f64, and against themselves cut differently.

use proptest::prelude::*;

use super::gram::{gram, of_halves, rounded};
use super::halves::{Halves, largest};
use super::item_sums::{ByItem, Request, Sums, Term, Walk, sums, width};
use super::loss::{Rest, ShardLoss, loss, of_users};
use super::pairs::{product, residual, scores};
use super::rows::{CgRows, System, solve_normal};
use super::start::start;
use super::tree::{TreeSum, aligned_subtrees};
use super::users::{Params, Users, solve_users};
use super::*;
use crate::kernels::simd::{Kernel, Simd, at_each_level, dispatch};
use crate::types::{ItemIdx, ItemLists};

/// A log of a few shards.
#[derive(Clone, Debug)]
pub(super) struct Log {
    pub(super) n_items: usize,
    pub(super) n_factors: usize,
    pub(super) objective: Objective,
    pub(super) shards: Vec<Shard>,
}

#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) interactions: ItemLists,
    pub(super) confidences: Vec<f32>,
}

impl Shard {
    pub(super) fn users(&self) -> Users<'_> {
        Users { interactions: &self.interactions, confidences: &self.confidences, solved: None }
    }

    pub(super) fn n_users(&self) -> usize {
        self.interactions.ends.len()
    }
}

fn objectives() -> impl Strategy<Value = Objective> {
    let dialect = prop_oneof![
        Just(Dialect::Implicit),
        Just(Dialect::HuKoren),
        Just(Dialect::Spark),
        Just(Dialect::IalsPlusPlus { unobserved: 0.1, exponent: 1.0 }),
        Just(Dialect::IalsPlusPlus { unobserved: 0.3, exponent: 0.5 }),
    ];
    let confidence = prop_oneof![
        Just(Confidence::Linear { alpha: 2.0 }),
        Just(Confidence::Log { alpha: 1.5, epsilon: 0.5 }),
    ];
    (dialect, confidence).prop_map(|(dialect, confidence)| Objective {
        dialect,
        confidence,
        regularization: 0.1,
    })
}

fn logs() -> impl Strategy<Value = Log> {
    let user = prop::collection::btree_map(
        0u32..12,
        // With α = 2 a half is a plain pair of `Implicit`.
        prop_oneof![4 => 0.2f64..5.0, 3 => Just(0.5), 1 => -3f64..-0.5, 1 => Just(-0.5)],
        0..8,
    );
    let shards = (0u32..4).prop_flat_map(move |log2| {
        prop::collection::vec(prop::collection::vec(user.clone(), 0..6), 1usize << log2)
    });
    (shards, objectives(), 1usize..20).prop_map(|(shards, objective, n_factors)| {
        let shard = |users: Vec<std::collections::BTreeMap<u32, f64>>| {
            let mut shard = Shard { interactions: ItemLists::default(), confidences: Vec::new() };
            for user in users {
                for (item, weight) in user {
                    shard.interactions.items.push(ItemIdx(item));
                    shard.confidences.push(objective.confidence(weight));
                }
                shard.interactions.ends.push(shard.interactions.items.len() as u32);
            }
            shard
        };
        Log { n_items: 13, n_factors, objective, shards: shards.into_iter().map(shard).collect() }
    })
}

impl Log {
    fn factors(&self, n_rows: usize, seed: u64) -> Vec<f32> {
        let stride = stride(self.n_factors);
        let mut factors = vec![0.0; n_rows * stride];
        for (row, values) in factors.chunks_exact_mut(stride).enumerate() {
            start(seed + row as u64, self.n_factors, values);
            values.iter_mut().for_each(|value| *value *= 10.0);
        }
        factors
    }

    pub(super) fn system<'a>(&self, factors: &'a [f32], gram: &'a [f32]) -> System<'a> {
        System { fixed: self.fixed(factors), gram, unobserved: self.objective.unobserved() }
    }

    pub(super) fn fixed<'a>(&self, factors: &'a [f32]) -> Fixed<'a> {
        let (n_factors, base) = (self.n_factors, self.objective.base());
        Fixed { factors, halves: None, n_factors, stride: stride(n_factors), base }
    }

    pub(super) fn params(&self, solver: Solver) -> Params<'_> {
        Params { objective: &self.objective, solver, n_items: self.n_items as u64 }
    }

    pub(super) fn n_users(&self) -> usize {
        self.shards.iter().map(Shard::n_users).sum()
    }

    pub(super) fn by_item(&self, walk: Walk) -> ByItem {
        let shards = self.shards.iter().enumerate().map(|(at, shard)| (at as u32, shard.users()));
        ByItem::new(&shards.collect::<Vec<_>>(), self.n_items, walk, self.objective.base())
    }

    /// The pairs of one item: users counted through the shards.
    fn of_item(&self, item: usize) -> Vec<(usize, f32)> {
        let mut pairs = Vec::new();
        let mut first = 0;
        for shard in &self.shards {
            for user in 0..shard.n_users() {
                let of_user = shard.users().of(user);
                let pairs_of_user = of_user.rows.iter().zip(of_user.confidences);
                let found = pairs_of_user.filter(|(row, _)| row.index() == item);
                pairs.extend(found.map(|(_, &confidence)| (first + user, confidence)));
            }
            first += shard.n_users();
        }
        pairs
    }

    pub(super) fn lambdas_of_items(&self) -> Vec<f32> {
        let lambda = |item| {
            let pairs = self.of_item(item);
            let positive = pairs.iter().filter(|(_, confidence)| *confidence > 0.0).count() as u64;
            let n_users = self.n_users() as u64;
            self.objective.regularization_of(pairs.len() as u64, positive, n_users)
        };
        (0..self.n_items).map(lambda).collect()
    }

    /// The definition: all pairs weigh `unobserved`, observed ones more; Gaussian elimination.
    fn dense(
        &self,
        pairs: &[(usize, f32)],
        factors: &[f32],
        n_rows: usize,
        lambda: f32,
    ) -> Vec<f64> {
        if pairs.is_empty() {
            return vec![0.0; self.n_factors];
        }
        eliminate(self.equations(pairs, factors, n_rows, lambda))
    }

    fn equations(
        &self,
        pairs: &[(usize, f32)],
        factors: &[f32],
        n_rows: usize,
        lambda: f32,
    ) -> Vec<Vec<f64>> {
        let (n, stride) = (self.n_factors, stride(self.n_factors));
        let mut a = vec![vec![0.0f64; n + 1]; n];
        for row in 0..n_rows {
            let y = &factors[row * stride..][..n];
            let confidence = pairs.iter().find(|(other, _)| *other == row).map(|pair| pair.1);
            let unobserved = f64::from(self.objective.unobserved());
            let (weight, target) = match confidence {
                None => (unobserved, 0.0),
                Some(c) => (
                    unobserved + f64::from(c.abs()) - f64::from(self.objective.base()),
                    f64::from(c.max(0.0)),
                ),
            };
            for i in 0..n {
                for j in 0..n {
                    a[i][j] += weight * f64::from(y[i]) * f64::from(y[j]);
                }
                a[i][n] += target * f64::from(y[i]);
            }
        }
        (0..n).for_each(|i| a[i][i] += f64::from(lambda));
        a
    }
}

fn eliminate(mut a: Vec<Vec<f64>>) -> Vec<f64> {
    let n = a.len();
    for i in 0..n {
        let pivot = a[i].clone();
        for row in a.iter_mut().enumerate().filter(|(at, _)| *at != i).map(|(_, row)| row) {
            let scale = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(value, pivot)| *value -= scale * pivot);
        }
    }
    (0..n).map(|i| a[i][n] / a[i][i]).collect()
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    let size = expected.iter().fold(1.0f64, |size, value| size.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() <= tolerance * size, "{found} {expected}");
    }
}

/// Factors in 16 bits, and the numbers that these are.
fn halves(factors: &[f32]) -> (Halves, Vec<f32>) {
    let mut halves = Halves::default();
    halves.set(factors, largest(factors));
    let numbers = halves.numbers.iter().map(|half| half.to_f32() * halves.unit).collect();
    (halves, numbers)
}

/// Both sums over pairs of one row, and their scores.
struct OfPairs<'a> {
    pairs: Pairs<'a, u32>,
    fixed: Fixed<'a>,
    v: &'a [f32],
}

impl Kernel for OfPairs<'_> {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [Vec<f32>; 3] {
        let Self { pairs, fixed, v } = self;
        let mut sums = [vec![0.0; v.len()], vec![0.0; v.len()], vec![0.0; pairs.rows.len()]];
        residual(simd, &mut sums[0], pairs, fixed, v);
        product(simd, &mut sums[1], pairs, fixed, v);
        scores(simd, &mut sums[2], pairs.rows, fixed, v);
        sums
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn the_unit_brings_the_largest_factor_to_fourteen_bits_and_spares_its_sign() {
    for (factor, unit) in [
        (1.0, 2f32.powi(-14)),
        (-1.99, 2f32.powi(-14)),
        (3e-7, 2f32.powi(-36)),
        (0.0, 2f32.powi(-60)),
    ] {
        let mut row = [0.0; 16];
        row[3] = factor;
        let (halves, numbers) = halves(&row);
        assert_eq!(halves.unit, unit);
        assert!((numbers[3] - factor).abs() <= factor.abs() / 2048.0, "{factor}");
    }
}

const MANY_STEPS: Solver = Solver::ConjugateGradient { steps: 60 };

proptest! {
    #[test]
    fn users_solve_their_dense_equations(log in logs()) {
        let stride = stride(log.n_factors);
        let items = log.factors(log.n_items, 1);
        let gram = rounded(&gram(&items, log.n_factors));
        for solver in [MANY_STEPS, Solver::Cholesky] {
            let params = log.params(solver);
            for shard in &log.shards {
                let (mut x, system) = (log.factors(shard.n_users(), 9), log.system(&items, &gram));
                let loss = of_users(&x, shard.users(), system, params);
                let solved = solve_users(&mut x, shard.users(), system, params, true);
                prop_assert_eq!(solved, Ok((0, loss)));
                for user in 0..shard.n_users() {
                    let of_user = shard.users().of(user);
                    let rows = of_user.rows.iter().map(|row| row.index());
                    let pairs: Vec<_> = rows.zip(of_user.confidences.iter().copied()).collect();
                    let lambda = users::lambda_of(of_user, params);
                    let expected = log.dense(&pairs, &items, log.n_items, lambda);
                    let row = &x[user * stride..][..stride];
                    assert_close(row, &expected, 2e-3);
                    prop_assert!(row[log.n_factors..].iter().all(|&padding| padding == 0.0));
                }
            }
        }
    }

    #[test]
    fn items_solve_their_dense_equations(log in logs()) {
        let stride = stride(log.n_factors);
        let users = log.factors(log.n_users(), 5);
        let gram = rounded(&gram(&users, log.n_factors));
        let (system, by_item) = (log.system(&users, &gram), log.by_item(Walk::Tiles));
        let lambdas = log.lambdas_of_items();
        let (all, shards) = (0..log.n_items, 0..log.shards.len() as u32);
        let request = |term| Request { by_item: &by_item, users: log.fixed(&users), term };
        let mut y = log.factors(log.n_items, 1);
        let first = sums(request(Term::Residual), all.clone(), shards.clone(), &y);
        let mut cg = CgRows::start(&mut y, first, system, &lambdas);
        for _ in 0..60 {
            let next = sums(request(Term::Product), all.clone(), shards.clone(), cg.directions());
            cg.step(&mut y, &next.values, system, &lambdas);
        }
        prop_assert_eq!(cg.n_stopped(), 0);
        let mut exact = log.factors(log.n_items, 2);
        let mut normal = sums(request(Term::Normal), all, shards, &[]);
        prop_assert_eq!(solve_normal(&mut exact, &mut normal, system, &lambdas), Ok(()));
        for item in 0..log.n_items {
            let pairs = log.of_item(item);
            let expected = log.dense(&pairs, &users, log.n_users(), lambdas[item]);
            assert_close(&y[item * stride..][..stride], &expected, 2e-3);
            assert_close(&exact[item * stride..][..stride], &expected, 2e-3);
        }
    }

    #[test]
    fn walks_and_processes_sum_to_the_same_bits(
        mut log in logs(),
        wide in prop::option::of(prop::sample::select(vec![16, 32, 50, 64, 128])),
        cut in 0u32..9,
    ) {
        log.n_factors = wide.unwrap_or(log.n_factors);
        let users = log.factors(log.n_users(), 5);
        let v = log.factors(log.n_items, 3);
        let (tiles, lists) = (log.by_item(Walk::Tiles), log.by_item(Walk::ItemByItem));
        let (items, all) = (0..log.n_items, 0..log.shards.len() as u32);
        for term in [Term::Residual, Term::Product, Term::Normal] {
            let width = width(term, log.n_factors);
            let of = |by_item, shards| {
                let request = Request { by_item, users: log.fixed(&users), term };
                sums(request, items.clone(), shards, &v)
            };
            let (tiled, whole) = (of(&tiles, all.clone()), of(&lists, all.clone()));
            prop_assert_eq!(&tiled.present, &whole.present);
            let bits = |sums: &Sums| sums.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&tiled), bits(&whole));

            let n_shards = log.shards.len() as u32;
            let cut = cut.min(n_shards);
            let subtrees = [aligned_subtrees(0, cut), aligned_subtrees(cut, n_shards)].concat();
            let walks = [&tiles, &lists].into_iter().cycle();
            let parts: Vec<(u32, Sums)> = subtrees
                .into_iter()
                .zip(walks)
                .map(|(shards, by_item)| (shards.start, of(by_item, shards)))
                .collect();
            for item in items.clone() {
                let mut tree = TreeSum::new(width);
                for (shard, part) in parts.iter().filter(|(_, part)| part.present[item]) {
                    tree.leaf(*shard).copy_from_slice(&part.values[item * width..][..width]);
                }
                let mut sum = vec![0.0; width];
                prop_assert_eq!(tree.finish(&mut sum), whole.present[item]);
                prop_assert_eq!(&sum, &whole.values[item * width..][..width].to_vec());
            }
        }
    }

    #[test]
    fn pairs_of_halves_sum_like_the_numbers_these_are(
        n_groups in 1usize..9,
        scale in -20i32..20,
        pairs in prop::collection::vec((0u32..9, -3f32..9.0), 0..40),
    ) {
        let stride = 16 * n_groups;
        let mut factors = vec![0.0; 10 * stride];
        for (row, values) in factors.chunks_exact_mut(stride).enumerate() {
            start(row as u64, stride, values);
            values.iter_mut().for_each(|value| *value *= 2f32.powi(scale));
        }
        let v = factors.split_off(9 * stride);
        let (halves, numbers) = halves(&factors);
        let (rows, confidences): (Vec<u32>, Vec<f32>) = pairs.into_iter().unzip();
        let pairs = Pairs { rows: &rows, confidences: &confidences };
        let of = |halves| {
            let fixed = Fixed { factors: &numbers, halves, n_factors: stride, stride, base: 1.0 };
            at_each_level(|| dispatch(OfPairs { pairs, fixed, v: &v }).map(|sums| bits(&sums)))
        };
        let expected = of(None);
        for found in expected.iter().chain(&of(Some(&halves))) {
            prop_assert_eq!(found, &expected[0]);
        }
    }

    #[test]
    fn halves_are_solved_like_the_numbers_these_are(log in logs()) {
        let (items, v) = (log.factors(log.n_items, 1), log.factors(log.n_items, 3));
        let (of_items, items) = halves(&items);
        let gram = gram(&items, log.n_factors);
        prop_assert_eq!(&gram, &of_halves(&of_items, 0..log.n_items, log.n_factors));
        let rounded = rounded(&gram);
        let (steps, system) = (log.params(MANY_STEPS), log.system(&items, &rounded));
        let mut of_halves = system;
        of_halves.fixed.halves = Some(&of_items);
        for shard in &log.shards {
            let mut x = [log.factors(shard.n_users(), 9), log.factors(shard.n_users(), 9)];
            let [a, b] = &mut x;
            let found = solve_users(a, shard.users(), of_halves, steps, true);
            prop_assert_eq!(found, solve_users(b, shard.users(), system, steps, true));
            prop_assert_eq!(bits(a), bits(b));
            prop_assert_eq!(
                of_users(a, shard.users(), of_halves, steps),
                of_users(b, shard.users(), system, steps)
            );
        }
        let (of_users, users) = halves(&log.factors(log.n_users(), 5));
        let (items, all) = (0..log.n_items, 0..log.shards.len() as u32);
        for walk in [Walk::Tiles, Walk::ItemByItem] {
            let by_item = log.by_item(walk);
            for term in [Term::Residual, Term::Product] {
                let of = |halves| {
                    let users = Fixed { halves, ..log.fixed(&users) };
                    let request = Request { by_item: &by_item, users, term };
                    bits(&sums(request, items.clone(), all.clone(), &v).values)
                };
                prop_assert_eq!(of(None), of(Some(&of_users)));
            }
        }
    }

    #[test]
    fn the_loss_is_the_sum_over_all_pairs(log in logs()) {
        let stride = stride(log.n_factors);
        let (x, y) = (log.factors(log.n_users(), 5), log.factors(log.n_items, 1));
        let params = log.params(MANY_STEPS);
        let gram_items = gram(&y, log.n_factors);
        let rounded = rounded(&gram_items);
        let system = log.system(&y, &rounded);
        let lambdas = log.lambdas_of_items();
        let (mut first, mut of_shards) = (0, ShardLoss::default());
        for shard in &log.shards {
            let rows = &x[first * stride..][..shard.n_users() * stride];
            of_shards = of_shards.plus(of_users(rows, shard.users(), system, params));
            first += shard.n_users();
        }
        let norm = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        let items = y.chunks_exact(stride).zip(&lambdas);
        let regularization_items = items.map(|(row, &lambda)| f64::from(lambda) * norm(row)).sum();
        let n_observed: usize = log.shards.iter().map(|shard| shard.confidences.len()).sum();
        let found = loss(of_shards, Rest {
            gram_users: &gram(&x, log.n_factors),
            gram_items: &gram_items,
            unobserved: f64::from(log.objective.unobserved()),
            regularization_items,
            n_pairs: (log.n_users() * log.n_items) as f64,
            n_observed: n_observed as f64,
        });
        let (mut error, mut weights) = (of_shards.regularization + regularization_items, 0.0);
        for item in 0..log.n_items {
            let pairs = log.of_item(item);
            for user in 0..log.n_users() {
                let rows = x[user * stride..].iter().zip(&y[item * stride..]).take(log.n_factors);
                let score: f64 = rows.map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                let unobserved = f64::from(log.objective.unobserved());
                let observed = pairs.iter().find(|(other, _)| *other == user);
                let (weight, target) = observed.map_or((unobserved, 0.0), |&(_, c)| {
                    let extra = f64::from(c.abs()) - f64::from(log.objective.base());
                    (unobserved + extra, f64::from(c.max(0.0)))
                });
                error += weight * score * score - 2.0 * target * score + target;
                weights += weight;
            }
        }
        if weights > 0.0 {
            prop_assert!((found.full - error / weights).abs() <= 1e-4 * (error / weights).abs().max(1.0));
        }
    }

    #[test]
    fn the_largest_contribution_explains(log in logs()) {
        let stride = stride(log.n_factors);
        let items = log.factors(log.n_items, 1);
        let gram = rounded(&gram(&items, log.n_factors));
        let (system, params) = (log.system(&items, &gram), log.params(Solver::Cholesky));
        let shard = &log.shards[0];
        for user in 0..shard.n_users() {
            let of_user = shard.users().of(user);
            let rows = of_user.rows.iter().map(|row| row.index());
            let pairs: Vec<_> = rows.zip(of_user.confidences.iter().copied()).collect();
            let lambda = users::lambda_of(of_user, params);
            let recommended: Vec<ItemIdx> = (0..log.n_items as u32).map(ItemIdx).collect();
            let found = explain(user, &recommended, shard.users(), system, params);
            for (item, found) in recommended.iter().zip(found) {
                let y = |item: usize| &items[item * stride..][..log.n_factors];
                let mut equations = log.equations(&pairs, &items, log.n_items, lambda);
                let of_item = y(item.index()).iter();
                equations.iter_mut().zip(of_item).for_each(|(row, &y)| row[log.n_factors] = f64::from(y));
                let solved = eliminate(equations);
                let product = |row| y(row).iter().zip(&solved).map(|(&y, z)| f64::from(y) * z).sum::<f64>();
                let contributions: Vec<(usize, f64)> = pairs
                    .iter()
                    .map(|&(row, c)| (row, f64::from(c.max(0.0)) * product(row)))
                    .collect();
                let largest = contributions.iter().fold(0.0f64, |largest, one| largest.max(one.1));
                prop_assert!(found.is_some() || largest < 1e-3, "{largest}");
                for (_, contribution) in contributions.iter().filter(|one| Some(one.0) == found.map(ItemIdx::index)) {
                    prop_assert!(largest - contribution < 1e-3, "{largest} {contribution} {contributions:?} {found:?}");
                }
                let x = log.dense(&pairs, &items, log.n_items, lambda);
                let score: f64 = x.iter().zip(y(item.index())).map(|(x, &y)| x * f64::from(y)).sum();
                let sum: f64 = contributions.iter().map(|one| one.1).sum();
                prop_assert!((sum - score).abs() < 1e-6);
            }
        }
    }
}
