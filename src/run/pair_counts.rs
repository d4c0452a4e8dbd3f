//! Item neighbors from counts of pairs that are kept: what histories changed is counted.
//!
//! Kept are the counts and the histories that they are counts of. So an update asks nobody why a history
//! is another: events that came or went, a window that moved, a filter, a person who is to be forgotten.

use std::cmp::{Ordering, Reverse};

use anyhow::Result;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::Worker;
use super::memory;
use super::prepare::Prepared;
use crate::job::spec::{HistoryWeights, ItemNeighbors};
use crate::kernels::NeighborLists;
use crate::kernels::cosine::Params;
use crate::kernels::cosine::pair_counts::{
    CODES_MAX, Differences, Numbers, PairCounts, bytes_max, merged,
};
use crate::kernels::dictionary::Interner;
use crate::kernels::item_totals::sum_of;
use crate::types::{Histories, Ids, ItemIdx};

/// The counts of one process, with the histories of its shards.
pub(super) struct KeptPairs {
    /// Numbers of the items: a code is given once.
    codes: Interner,
    counts: PairCounts,
    shards: Vec<Coded>,
    /// The run that they are of.
    run: u64,
}

/// The histories of a shard in codes.
struct Coded {
    /// Ascending.
    users: Ids,
    ends: Vec<u32>,
    /// In the order of items' ids, which is that of [`Histories`] in whatever run.
    codes: Vec<u16>,
}

impl Coded {
    fn empty(like: &Ids) -> Self {
        Self { users: like.new_like(), ends: Vec::new(), codes: Vec::new() }
    }

    fn new(shard: &Histories, code_of: &[u16]) -> Self {
        let codes = shard.interactions.items.iter().map(|item| code_of[item.index()]);
        Self {
            users: shard.user_ids.clone(),
            ends: shard.interactions.ends.clone(),
            codes: codes.collect(),
        }
    }

    fn of(&self, row: usize) -> &[u16] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.codes[start as usize..self.ends[row] as usize]
    }
}

/// What became of the users of a shard.
#[derive(Default)]
struct Changes {
    differences: Differences,
    users: u64,
    /// Pairs that are counted to make up for them.
    additions: u64,
}

impl Changes {
    fn between(before: &Coded, after: &Coded) -> Self {
        let mut changes = Self::default();
        let (mut old, mut new) = (0, 0);
        let (n_old, n_new) = (before.users.len(), after.users.len());
        let mut sorted = [Vec::new(), Vec::new()];
        while old < n_old || new < n_new {
            let order = match (old < n_old, new < n_new) {
                (true, true) => before.users.get(old).cmp(&after.users.get(new)),
                (true, false) => Ordering::Less,
                _ => Ordering::Greater,
            };
            let was = if order.is_le() { before.of(old) } else { &[] };
            let is = if order.is_ge() { after.of(new) } else { &[] };
            old += usize::from(order.is_le());
            new += usize::from(order.is_ge());
            if was == is {
                continue;
            }
            for (sorted, codes) in sorted.iter_mut().zip([was, is]) {
                sorted.clear();
                sorted.extend_from_slice(codes);
                sorted.sort_unstable();
            }
            changes.additions += changes.differences.push(&sorted[0], &sorted[1]);
            changes.users += 1;
        }
        changes
    }
}

/// How the counts came about, for the report.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Counted,
    Updated,
}

/// Neighbors of every item, in every process, from the counts that the last run left or that the next is to
/// find; `None` where a run leaves nothing, or counts would not fit into `limits.memory_bytes_max` beside
/// the `bytes_bound` of the rest.
pub(super) fn neighbors(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    section: &ItemNeighbors,
    bytes_bound: u64,
) -> Result<Option<(NeighborLists, Map<String, Value>)>> {
    let Some(carried) = worker.job.request.carried.clone() else { return Ok(None) };
    let (index, peers) = (worker.shell.index, worker.shell.peers);
    let earlier = carried.take(index, peers);
    if section.weights != HistoryWeights::Binary || prepared.item_ids.len() > CODES_MAX {
        return Ok(None);
    }
    let n_counted = n_counted(worker, prepared)?;
    let bytes = bytes_max(prepared.item_ids.len(), n_counted)
        + memory::kept_pairs_bytes(prepared, worker.job.threads);
    if bytes_bound.saturating_add(bytes) > worker.job.plan.spec.limits.memory_bytes_max.0 {
        return Ok(None);
    }
    let earlier = agreed(worker, earlier);
    let (mut kept, way, users) = updated(worker, prepared, earlier, n_counted)?;
    let params = Params {
        n_neighbors: section.n_neighbors,
        shrinkage: section.shrinkage,
        support_min: section.users_per_pair_min,
        affinity_unit: 1.0,
    };
    let lists = kept.lists(worker, prepared, &params)?;
    kept.run = run_hash(worker);
    carried.put(index, peers, kept);
    worker.job.observer.advance(prepared.item_ids.len() as u64);
    let told = json!({
        "pairs": match way {
            Way::Counted => "counted",
            Way::Updated => "updated",
        },
        "users_counted": users,
    });
    let Value::Object(told) = told else { unreachable!("it is an object") };
    Ok(Some((lists, told)))
}

/// Pairs of all histories, each with itself as well.
fn n_counted(worker: &mut Worker<'_>, prepared: &Prepared) -> Result<u64> {
    let of_shard = |shard: &Histories| -> u64 {
        let lengths = (0..shard.n_users()).map(|row| shard.interactions.range(row).len() as u64);
        lengths.map(|length| length * (length + 1) / 2).sum()
    };
    let own: u64 = prepared.shards.iter().map(of_shard).sum();
    Ok(worker.shell.collectives.all_reduce_sum(vec![own as i64])?[0] as u64)
}

/// What the last run left, if it left it to all processes.
fn agreed(worker: &mut Worker<'_>, earlier: Option<KeptPairs>) -> Option<KeptPairs> {
    let run = earlier.as_ref().map_or(0, |kept| kept.run) as i64;
    let collectives = &mut worker.shell.collectives;
    let (least, most) = (collectives.all_reduce_min(run), collectives.all_reduce_max(run));
    earlier.filter(|_| least == most)
}

/// Stands for the run.
fn run_hash(worker: &Worker<'_>) -> u64 {
    xxh3_64(worker.job.run_id.as_bytes())
}

/// Counts of this run's histories: those of earlier ones brought up to date, or made anew where that
/// takes fewer additions. With the number of users whose pairs were counted.
fn updated(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    earlier: Option<KeptPairs>,
    n_counted: u64,
) -> Result<(KeptPairs, Way, i64)> {
    if let Some(mut kept) = earlier
        && let Some(code_of) = kept.codes_of(prepared)
    {
        let (after, changes) = kept.changes(worker, prepared, &code_of);
        let (users, additions) = totals(worker, &changes)?;
        if additions < n_counted {
            kept.add(worker, after, changes);
            return Ok((kept, Way::Updated, users));
        }
    }
    let mut kept = KeptPairs::empty(prepared);
    let code_of = kept.codes_of(prepared).expect("there is room for all items");
    let (after, changes) = kept.changes(worker, prepared, &code_of);
    let (users, _) = totals(worker, &changes)?;
    kept.add(worker, after, changes);
    Ok((kept, Way::Counted, users))
}

/// Users and additions of all processes.
fn totals(worker: &mut Worker<'_>, changes: &[Changes]) -> Result<(i64, u64)> {
    let users: u64 = changes.iter().map(|of| of.users).sum();
    let additions: u64 = changes.iter().map(|of| of.additions).sum();
    let sums = worker.shell.collectives.all_reduce_sum(vec![users as i64, additions as i64])?;
    Ok((sums[0], sums[1] as u64))
}

impl KeptPairs {
    fn empty(prepared: &Prepared) -> Self {
        let shards = prepared.shards.iter().map(|shard| Coded::empty(&shard.user_ids));
        Self {
            codes: Interner::new_like(&prepared.item_ids),
            counts: PairCounts::new(),
            shards: shards.collect(),
            run: 0,
        }
    }

    /// The code of each item kept, new ones by their users; `None` where there would be too many codes,
    /// or most would be of items that are gone.
    fn codes_of(&mut self, prepared: &Prepared) -> Option<Vec<u16>> {
        let n_items = prepared.item_ids.len();
        let kept = (0..prepared.dictionary.len())
            .filter(|&rank| prepared.idx_of_rank[rank] != u32::MAX)
            .map(|rank| sum_of(&prepared.sums, rank).users);
        let mut popular: Vec<(Reverse<i64>, usize)> = kept.map(Reverse).zip(0..).collect();
        popular.sort_unstable();
        let mut code_of = vec![0; n_items];
        for (_, item) in popular {
            let code = self.codes.intern(prepared.item_ids.get(item));
            code_of[item] = u16::try_from(code).ok()?;
        }
        (self.codes.len() <= 2 * n_items).then_some(code_of)
    }

    /// This run's histories in codes, and how they differ from those that were counted.
    fn changes(
        &self,
        worker: &Worker<'_>,
        prepared: &Prepared,
        code_of: &[u16],
    ) -> (Vec<Coded>, Vec<Changes>) {
        worker.pool.install(|| {
            let shards = self.shards.par_iter().zip(&prepared.shards).map(|(before, shard)| {
                let after = Coded::new(shard, code_of);
                let changes = Changes::between(before, &after);
                (after, changes)
            });
            shards.unzip()
        })
    }

    /// Makes these histories those that were counted.
    fn add(&mut self, worker: &mut Worker<'_>, after: Vec<Coded>, changes: Vec<Changes>) {
        let (index, peers) = (worker.shell.index, worker.shell.peers);
        self.shards = after;
        self.counts.grow(self.codes.len(), |group| group % peers == index);
        let differences = changes.into_iter().map(|of| of.differences);
        if peers == 1 {
            return self.add_all(worker, differences);
        }
        let mut coded = Vec::new();
        for differences in differences {
            let bytes = differences.encode();
            coded.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            coded.extend_from_slice(&bytes);
        }
        let parts = worker.shell.collectives.all_gather(coded.into());
        let of_part = |mut part: bytes::Bytes| {
            std::iter::from_fn(move || {
                let length = (!part.is_empty()).then(|| part.split_to(8))?;
                let length = u64::from_le_bytes(length[..].try_into().expect("8 bytes"));
                Some(Differences::decode(&part.split_to(length as usize)))
            })
        };
        self.add_all(worker, parts.into_iter().flat_map(of_part));
    }

    fn add_all(&mut self, worker: &Worker<'_>, all: impl Iterator<Item = Differences>) {
        let mut batch = Differences::default();
        for differences in all {
            batch.append_all(&differences);
            if batch.is_full() {
                worker.pool.install(|| self.counts.add(&batch));
                batch = Differences::default();
            }
        }
        worker.pool.install(|| self.counts.add(&batch));
    }

    /// The lists of all items.
    fn lists(
        &mut self,
        worker: &mut Worker<'_>,
        prepared: &Prepared,
        params: &Params,
    ) -> Result<NeighborLists> {
        let supports = self.counts.supports().into_iter().map(i64::from).collect();
        let supports = worker.shell.collectives.all_reduce_sum(supports)?;
        let supports: Vec<u32> = supports.into_iter().map(|users| users as u32).collect();
        let mut items = vec![ItemIdx(0); supports.len()];
        for item in 0..prepared.item_ids.len() {
            let code = self.codes.intern(prepared.item_ids.get(item));
            items[code as usize] = ItemIdx(item as u32);
        }
        let numbers =
            Numbers { items: &items, supports: &supports, n_items: prepared.item_ids.len() };
        let mine = worker.pool.install(|| self.counts.neighbors(&numbers, params));
        if worker.shell.peers == 1 {
            return Ok(mine);
        }
        let parts = worker.shell.collectives.all_gather(mine.encode().into());
        let parts: Vec<_> = parts.iter().map(|part| NeighborLists::decode(part)).collect();
        Ok(merged(&parts, params.n_neighbors))
    }
}
