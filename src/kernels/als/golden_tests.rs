//! Whole fits against the committed predictions of `tests/golden/als.py`, which shares no code with
//! these kernels: a dense float64 solver, and the library `implicit`.

use serde_json::Value;

use super::gram::{gram, rounded};
use super::item_sums::{Request, Term, Walk, sums};
use super::rows::{CgRows, solve_normal};
use super::tests::{Log, Shard};
use super::users::solve_users;
use super::*;
use crate::types::{ItemIdx, ItemLists};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/golden/als.json")).unwrap()
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn objective(case: &Value) -> Objective {
    let number = |key: &str| case[key].as_f64().unwrap_or(1.0);
    let dialect = match case["dialect"].as_str().unwrap() {
        "implicit" => Dialect::Implicit,
        "hu-koren" => Dialect::HuKoren,
        "spark" => Dialect::Spark,
        "ials++" => {
            Dialect::IalsPlusPlus { unobserved: number("unobserved"), exponent: number("exponent") }
        }
        other => panic!("no dialect {other}"),
    };
    let alpha = number("alpha");
    let confidence = match case["confidence"].as_str().unwrap() {
        "linear" => Confidence::Linear { alpha },
        _ => Confidence::Log { alpha, epsilon: number("epsilon") },
    };
    Objective { dialect, confidence, regularization: number("regularization") }
}

/// The log of a case, its users dealt to four shards of unequal size.
fn log(golden: &Value, case: &Value) -> Log {
    let key = if case["negative"] == true { "negative_weights" } else { "weights" };
    let weights = matrix(&golden[key]);
    let objective = objective(case);
    let shard = |users: &[Vec<f64>]| {
        let mut shard = Shard { interactions: ItemLists::default(), confidences: Vec::new() };
        for user in users {
            let observed = (0u32..).zip(user).filter(|(_, weight)| **weight != 0.0);
            for (item, weight) in observed {
                shard.interactions.items.push(ItemIdx(item));
                shard.confidences.push(objective.confidence(*weight));
            }
            shard.interactions.ends.push(shard.interactions.items.len() as u32);
        }
        shard
    };
    let cuts = [0..3, 3..11, 11..12, 12..weights.len()];
    let shards = cuts.map(|users| shard(&weights[users])).into();
    let n_factors = golden["n_factors"].as_u64().unwrap() as usize;
    Log { n_items: weights[0].len(), n_factors, objective, shards }
}

/// `iterations` of a user half and an item half from these item factors: users and items.
fn fit(log: &Log, mut y: Vec<f32>, solver: Solver, iterations: u64) -> (Vec<f32>, Vec<f32>) {
    let (stride, by_item) = (stride(log.n_factors), log.by_item(Walk::ItemByItem));
    let (items, shards) = (0..log.n_items, 0..log.shards.len() as u32);
    let lambdas = log.lambdas_of_items();
    let mut x = vec![0.0; log.n_users() * stride];
    for _ in 0..iterations {
        let gram_items = rounded(&gram(&y, log.n_factors));
        let mut rest = x.as_mut_slice();
        for shard in &log.shards {
            let (of_shard, after) = rest.split_at_mut(shard.n_users() * stride);
            rest = after;
            let system = log.system(&y, &gram_items);
            solve_users(of_shard, shard.users(), system, log.params(solver), false).unwrap();
        }
        let gram_users = rounded(&gram(&x, log.n_factors));
        let system = log.system(&x, &gram_users);
        let sums_of = |term, v: &[f32]| {
            let users_factors = log.fixed(&x);
            let request = Request { by_item: &by_item, users: users_factors, term };
            sums(request, items.clone(), shards.clone(), v)
        };
        match solver {
            Solver::ConjugateGradient { steps } => {
                let first = sums_of(Term::Residual, &y);
                let mut cg = CgRows::start(&mut y, first, system, &lambdas);
                for _ in 0..steps {
                    let next = sums_of(Term::Product, cg.directions());
                    cg.step(&mut y, &next.values, system, &lambdas);
                }
            }
            Solver::Cholesky => {
                let mut normal = sums_of(Term::Normal, &[]);
                solve_normal(&mut y, &mut normal, system, &lambdas).unwrap();
            }
        }
    }
    (x, y)
}

/// The largest difference of a prediction x·y from `expected`, `[n_users, n_items]`.
fn largest_difference(log: &Log, x: &[f32], y: &[f32], expected: &[Vec<f64>]) -> f64 {
    let stride = stride(log.n_factors);
    let score = |user: usize, item: usize| -> f64 {
        let (x, y) = (&x[user * stride..][..stride], &y[item * stride..][..stride]);
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    let of_user = |(user, row): (usize, &Vec<f64>)| -> f64 {
        let differences = row.iter().enumerate().map(|(item, value)| score(user, item) - value);
        differences.fold(0.0, |largest, difference| largest.max(difference.abs()))
    };
    expected.iter().enumerate().map(of_user).fold(0.0, f64::max)
}

#[test]
fn predictions_are_those_of_the_dense_solver_and_of_implicit() {
    let golden = golden();
    let iterations = golden["iterations"].as_u64().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let log = log(&golden, case);
        let mut y = vec![0.0; log.n_items * stride(log.n_factors)];
        for (row, start) in y.chunks_exact_mut(stride(log.n_factors)).zip(matrix(&golden["start"]))
        {
            row.iter_mut().zip(start).for_each(|(value, start)| *value = start as f32);
        }
        for solver in [Solver::ConjugateGradient { steps: 3 }, Solver::Cholesky] {
            let (x, y) = fit(&log, y.clone(), solver, iterations);
            for predictions in ["predictions", "implicit"] {
                let Some(expected) = case.get(predictions) else { continue };
                let off = largest_difference(&log, &x, &y, &matrix(expected));
                assert!(off <= 1e-4, "{} {solver:?} {predictions}: off by {off}", case["name"]);
            }
        }
    }
}
