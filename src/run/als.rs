//! Factors: alternating least squares over all processes.
//!
//! User factors never move: users are solved where their shards are, with all item factors at hand.
//! For the items, each process sums up what its users say, an owner adds the sums up in the shape of
//! the tree over shards, and the new item factors are gathered.
//!
//! | part | what it does |
//! |---|---|
//! | `observed` | what users say of items |
//! | `fit` | iterations, losses, checkpoints |
//! | `exchange` | what goes from process to process |
//! | `fold_in` | runs between fits |

mod exchange;
mod fit;
mod fold_in;
mod observed;

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use serde_json::{Map, Value};

use self::observed::Observed;
use super::prepare::Prepared;
use super::vectors::{Owners, UsersOf, VectorRows};
use super::warm_start::WarmStart;
use super::{Refused, Worker};
use crate::job::spec::Als;
use crate::kernels::als::gram::{gram, rounded};
use crate::kernels::als::rows::{SolveError, System};
use crate::kernels::als::users::{Params, Users, solve_users};
use crate::kernels::als::{Fixed, Objective, Solver, stride};
use crate::kernels::factor_scores::PackedItems;
use crate::store::Output;
use crate::types::{Histories, Ids};

/// Bytes of the sums of items that are held at once, of one kind.
pub(super) const ITEM_SUMS_BYTES: u64 = 64 << 20;

/// Factors of all items, and of the users of this process.
pub(super) struct Factors {
    /// First shard of this process.
    first_shard: u32,
    /// Numbers that count in a row.
    pub(super) n_factors: usize,
    /// Numbers from one row to the next.
    pub(super) stride: usize,
    /// `[n_items, stride]`.
    pub(super) items: Vec<f32>,
    /// `[n_users, stride]` of each shard of this process.
    pub(super) users: Vec<Vec<f32>>,
    /// Gram matrix of the items.
    gram: Vec<f32>,
    /// What each shard's users say of items.
    observed: Vec<Observed>,
    /// What was minimized.
    pub(super) objective: Objective,
    /// Digests of the histories of each shard of this process.
    digests: Vec<Vec<i64>>,
    /// Whether the users of each shard of this process kept the factors of an earlier generation.
    pub(super) kept: Vec<Vec<bool>>,
    /// What the manifest says of the fit.
    pub(super) report: Map<String, Value>,
}

impl Factors {
    /// Item factors, with users that have none yet.
    fn of_item_factors(
        worker: &Worker<'_>,
        prepared: &Prepared,
        (objective, n_factors): (Objective, usize),
        items: Vec<f32>,
        observed: Vec<Observed>,
    ) -> Self {
        let hashes: Vec<u64> = prepared.item_ids.iter().map(|id| id.stable_hash(0)).collect();
        let (gram, digests) = worker.pool.install(|| {
            let shards = prepared.shards.par_iter();
            let digests = shards.map(|shard| shard.digests(&hashes)).collect();
            (rounded(&gram(&items, n_factors)), digests)
        });
        Self {
            first_shard: prepared.shards.first().map_or(0, |shard| shard.shard),
            n_factors,
            stride: stride(n_factors),
            items,
            users: Vec::with_capacity(prepared.shards.len()),
            gram,
            observed,
            objective,
            digests,
            kept: prepared.shards.iter().map(|shard| vec![false; shard.n_users()]).collect(),
            report: Map::new(),
        }
    }

    /// The equations of the users.
    pub(super) fn system(&self) -> System<'_> {
        system(&self.objective, &self.items, self.n_factors, &self.gram)
    }

    /// How the users of this fit are solved.
    pub(super) fn params(&self) -> Params<'_> {
        let n_items = (self.items.len() / self.stride) as u64;
        Params { objective: &self.objective, solver: Solver::Cholesky, n_items }
    }

    /// Place of a shard among those of this process.
    pub(super) fn place(&self, shard: &Histories) -> usize {
        (shard.shard - self.first_shard) as usize
    }

    /// The users of a shard of this process, and their factors.
    pub(super) fn of_shard<'a>(&'a self, shard: &'a Histories) -> (Users<'a>, &'a [f32]) {
        let at = self.place(shard);
        (self.observed[at].users(shard, None), &self.users[at])
    }

    /// Digests of the histories of a shard of this process.
    pub(super) fn digests(&self, shard: &Histories) -> &[i64] {
        &self.digests[self.place(shard)]
    }

    /// Solves for some users of a shard, `[n_users]`, from the item factors as they are; `at` is its place.
    fn fold_in(&self, at: usize, shard: &Histories, solved: &[bool], x: &mut [f32]) -> Result<()> {
        let users = self.observed[at].users(shard, Some(solved));
        let failed = |error| unsolved("the fold-in", "user", &shard.user_ids, 0, error);
        solve_users(x, users, self.system(), self.params(), false).map(drop).map_err(failed)
    }

    /// The factors of items, to be multiplied.
    pub(super) fn packed(&self, pool: &rayon::ThreadPool, recommendable: &[bool]) -> PackedItems {
        let Self { n_factors, stride, items, .. } = self;
        pool.install(|| PackedItems::new(items, *n_factors, *stride, recommendable))
    }

    /// The factors of items, to be written.
    pub(super) fn of_items<'a>(&'a self, ids: &'a Ids, kept: &'a [u32]) -> VectorRows<'a> {
        let Self { n_factors, stride, ref items, .. } = *self;
        VectorRows { n_factors, stride, rows: items, owners: Owners::Items(ids), kept }
    }

    /// The factors of a shard's users, to be written.
    pub(super) fn of_users<'a>(
        &'a self,
        shard: &'a Histories,
        n_shards: u32,
        kept: &'a [u32],
    ) -> VectorRows<'a> {
        let Self { n_factors, stride, .. } = *self;
        let (_, rows) = self.of_shard(shard);
        let users = UsersOf { shard, n_shards, digests: self.digests(shard) };
        VectorRows { n_factors, stride, rows, owners: Owners::Users(users), kept }
    }
}

fn system<'a>(
    objective: &Objective,
    factors: &'a [f32],
    n_factors: usize,
    gram: &'a [f32],
) -> System<'a> {
    let (stride, base) = (stride(n_factors), objective.base());
    let fixed = Fixed { factors, halves: None, n_factors, stride, base };
    System { fixed, gram, unobserved: objective.unobserved() }
}

/// The factors of a run: fitted, with `warm` from where it says; or those of the run before, with what is new
/// folded in.
pub(super) fn factors(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    section: &Als,
    warm: Option<(&WarmStart, &Output)>,
) -> Result<Factors> {
    match warm {
        Some(warm) if warm.0.folds_in() => fold_in::factors(worker, prepared, section, warm),
        warm => fit::factors(worker, prepared, section, warm),
    }
}

/// What the manifest says, key by key.
fn report<const N: usize>(told: [(&str, Value); N]) -> Map<String, Value> {
    told.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// The refusal of a row that cannot be solved.
fn unsolved(when: &str, what: &str, ids: &Ids, first: usize, error: SolveError) -> anyhow::Error {
    let (row, problem) = match error {
        SolveError::NotFinite { row } => (row, "its factors are not finite"),
        SolveError::NotPositiveDefinite { row } => {
            (row, "its equations are not positive definite in 32-bit floats")
        }
    };
    let id = ids.get(first + row).to_string();
    Refused::config(anyhow!(
        "als stopped in {when} at {what} \"{id}\": {problem}; raise als.regularization, or lower \
         als.alpha or the weights in events.weights"
    ))
}
