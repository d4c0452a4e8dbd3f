//! Factors between two fits: those of items stay, users with a new history are solved from them, then items
//! that are new from all users.
//!
//! Nobody else changes: a user whose digest is that of the generation before keeps the factors of then, so
//! the same runs in the same order give the same bytes.

use anyhow::{Result, anyhow};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use rayon::prelude::*;
use serde_json::json;

use super::fit::Fit;
use super::observed::{Observed, observed};
use super::{Factors, report};
use crate::job::spec::{Als, AlsSolver};
use crate::kernels::als::gram::{gram, rounded};
use crate::kernels::als::stride;
use crate::run::Worker;
use crate::run::prepare::Prepared;
use crate::run::warm_start::{DIGEST, WarmStart, each_vector};
use crate::schema::tables::{self, EMBEDDING};
use crate::store::{InputFile, Location, Output};
use crate::types::{Histories, ItemIdx};

/// Takes the item factors of the generation before and folds in what is new.
pub(super) fn factors(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    section: &Als,
    (warm, output): (&WarmStart, &Output),
) -> Result<Factors> {
    let (objective, n_factors) = (section.objective(), section.n_factors);
    let observed = worker.agree(observed(prepared, &objective))?;
    let mut items = vec![0.0; prepared.item_ids.len() * stride(n_factors)];
    let filled = warm.fill_items(output, prepared, n_factors, &mut items);
    let is_known = worker.agree(filled)?;
    let of = (objective, n_factors);
    let mut factors = Factors::of_item_factors(worker, prepared, of, items, observed);
    let observer = worker.job.observer;
    let files = warm.files_of_shards(output, &tables::USER_FACTORS, &prepared.shards);
    let solve = |(at, shard): (usize, &Histories)| {
        let mut x = vec![0.0; shard.n_users() * factors.stride];
        let kept = match files.open(shard.shard) {
            Some(earlier) => kept_users(earlier, (shard, &factors), &mut x)?,
            None => vec![false; shard.n_users()],
        };
        let others: Vec<bool> = kept.iter().map(|kept| !kept).collect();
        factors.fold_in(at, shard, &others, &mut x)?;
        observer.advance(shard.n_users() as u64);
        Ok((x, kept))
    };
    let solved: Result<Vec<(Vec<f32>, Vec<bool>)>> =
        worker.pool.install(|| prepared.shards.par_iter().enumerate().map(solve).collect());
    (factors.users, factors.kept) = worker.agree(solved)?.into_iter().unzip();
    let n_new = fold_in_items(worker, prepared, section, &mut factors, &is_known)?;
    let n_users = factors.kept.iter().map(|of| of.len() as i64).sum();
    let n_kept = factors.kept.iter().flatten().filter(|kept| **kept).count() as i64;
    let sums = worker.shell.collectives.all_reduce_sum(vec![n_users, n_kept])?;
    let (n_kept, n_folded_in) = (sums[1], sums[0] - sums[1]);
    let folded_in = format!(
        "{n_folded_in} users and {n_new} new items are folded in, {n_kept} users are as before"
    );
    observer.note("als", &folded_in);
    factors.report = report([
        ("iterations", json!(0)),
        ("users_kept", json!(n_kept)),
        ("users_folded_in", json!(n_folded_in)),
        ("items_folded_in", json!(n_new)),
    ]);
    Ok(factors)
}

/// Puts the earlier factors of users whose history is as it was into `x`, `[n_users, stride]`; returns whose
/// these are.
fn kept_users(
    (location, file): (Location, InputFile),
    (shard, factors): (&Histories, &Factors),
    x: &mut [f32],
) -> Result<Vec<bool>> {
    let mut kept = vec![false; shard.n_users()];
    let (n_factors, stride, digests) = (factors.n_factors, factors.stride, factors.digests(shard));
    let columns = ["user_id", EMBEDDING, DIGEST];
    each_vector(&location, &file, n_factors, &columns, |batch, ids, vectors| {
        let no_digest = || anyhow!("its {DIGEST} holds no 64-bit integers");
        let of_batch = batch.column(2).as_primitive_opt::<Int64Type>().ok_or_else(no_digest)?;
        for (at, vector) in vectors.chunks_exact(n_factors).enumerate() {
            let row = shard.user_ids.find_sorted(ids.get(at));
            if let Some(row) = row.filter(|&row| digests[row] == of_batch.value(at)) {
                kept[row] = true;
                x[row * stride..][..n_factors].copy_from_slice(vector);
            }
        }
        Ok(())
    })?;
    Ok(kept)
}

/// Solves for the items without earlier factors, from the users of the fit; returns how many there are.
fn fold_in_items(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    section: &Als,
    factors: &mut Factors,
    is_known: &[bool],
) -> Result<usize> {
    let new: Vec<usize> = (0..is_known.len()).filter(|&item| !is_known[item]).collect();
    if new.is_empty() {
        return Ok(0);
    }
    let ids = prepared.item_ids.take(new.iter().copied());
    let mut numbers = vec![None; is_known.len()];
    (0..).zip(&new).for_each(|(number, &item)| numbers[item] = Some(ItemIdx(number)));
    let shards = prepared.shards.iter().zip(&factors.observed);
    let observed: Vec<Observed> =
        shards.map(|(shard, observed)| observed.of_items(shard, &numbers)).collect();
    let exact = Als { solver: AlsSolver::Cholesky, cg_steps: None, ..section.clone() };
    let mut fit = Fit::new(worker, (prepared, &ids), &exact, observed)?;
    fit.set_users(&factors.users);
    let gram_of_users = rounded(&fit.gram_of_users(worker));
    fit.item_half(worker, &gram_of_users, "the fold-in")?;
    let stride = factors.stride;
    for (&item, row) in new.iter().zip(fit.items.chunks_exact(stride)) {
        factors.items[item * stride..][..stride].copy_from_slice(row);
    }
    let all = || rounded(&gram(&factors.items, factors.n_factors));
    factors.gram = worker.pool.install(all);
    Ok(new.len())
}
