//! Item neighbors from counts of pairs that are kept: what histories changed is counted.
//!
//! Kept are the counts and the histories that they are counts of. So an update asks nobody why a history
//! is another: events that came or went, a window that moved, a filter, a person who is to be forgotten.

mod stored;

use std::cmp::Reverse;

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::prepare::Prepared;
use super::{Job, Request, Worker, memory, one_line};
use crate::job::spec::{HistoryWeights, ItemNeighbors};
use crate::kernels::NeighborLists;
use crate::kernels::cosine::Params;
use crate::kernels::cosine::pair_counts::{
    CODES_MAX, Comparison, Differences, Numbers, PairCounts, are_dense, bytes_max, merged,
};
use crate::kernels::dictionary::Interner;
use crate::kernels::item_totals::sum_of;
use crate::store::{Output, StateManifest, StatePart};
use crate::types::{Histories, IdRef, Ids, ItemIdx};
pub(super) use stored::problem;

/// The counts of one process, with the histories of its shards.
pub(super) struct KeptPairs {
    codes: Codes,
    /// `None` until they are read.
    counts: Option<PairCounts>,
    shards: Vec<Coded>,
    /// Stands for whatever left them, in all processes the same.
    stamp: u64,
    /// The files of state that hold them, as they were before the last updates.
    stored: Vec<StatePart>,
    /// Pairs counted in these.
    lag: u64,
    /// Whether they should be written.
    is_due: bool,
}

/// Numbers of items, each given once.
struct Codes {
    items: Interner,
    /// By place in `items`.
    codes: Vec<u16>,
    /// One above the largest that was given, perhaps to an item that is gone.
    end: usize,
}

impl Codes {
    fn new(ids: &Ids, codes: Vec<u16>, end: usize) -> Self {
        let mut items = Interner::new_like(ids);
        ids.iter().for_each(|id| {
            items.intern(id);
        });
        Self { items, codes, end }
    }

    /// The code of an item, the next one at first sight; `None` where there would be too many.
    fn of(&mut self, id: IdRef<'_>) -> Option<u16> {
        let place = self.items.intern(id) as usize;
        if place == self.codes.len() {
            self.codes.push(u16::try_from(self.end).ok()?);
            self.end += 1;
        }
        Some(self.codes[place])
    }
}

/// The histories of a shard in codes.
struct Coded {
    /// Ascending.
    users: Ids,
    ends: Vec<u32>,
    /// Ascending for each user.
    codes: Vec<u16>,
}

impl Coded {
    fn empty(like: &Ids) -> Self {
        Self { users: like.new_like(), ends: Vec::new(), codes: Vec::new() }
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
    /// A shard's histories in codes, and how they differ from those before. `now`: users, ascending, and
    /// their histories, in any order.
    fn since<I: Iterator<Item = u16>>(
        before: &Coded,
        users: &Ids,
        now: impl Fn(usize) -> I,
    ) -> (Coded, Self) {
        let mut after = Coded { users: users.clone(), ends: Vec::new(), codes: Vec::new() };
        after.codes.reserve(before.codes.len());
        after.ends.reserve(users.len());
        let (mut changes, mut comparison) = (Self::default(), Comparison::default());
        let (mut gone, mut old) = (Vec::new(), 0);
        let n_old = before.users.len();
        for row in 0..=users.len() {
            let user = (row < users.len()).then(|| users.get(row));
            // Whoever is not there any more has no history.
            while old < n_old && user.is_none_or(|user| before.users.get(old) < user) {
                changes.push(&mut comparison, before.of(old), std::iter::empty(), &mut gone);
                old += 1;
            }
            let Some(user) = user else { break };
            let is_known = old < n_old && before.users.get(old) == user;
            let was = if is_known { before.of(old) } else { &[] };
            old += usize::from(is_known);
            changes.push(&mut comparison, was, now(row), &mut after.codes);
            after.ends.push(after.codes.len() as u32);
        }
        after.codes.shrink_to_fit();
        (after, changes)
    }

    fn push(
        &mut self,
        comparison: &mut Comparison,
        was: &[u16],
        now: impl Iterator<Item = u16>,
        sorted: &mut Vec<u16>,
    ) {
        if let Some(additions) = comparison.push(was, now, sorted, &mut self.differences) {
            self.additions += additions;
            self.users += 1;
        }
    }
}

/// The lists of all items, and the counts that they were made from, if these are kept.
pub(super) struct Found {
    pub(super) lists: NeighborLists,
    pub(super) kept: Option<KeptPairs>,
    /// How the counts came about, for the report.
    pub(super) told: Map<String, Value>,
}

/// Neighbors of every item, in every process, from counts that are kept for the next run; `None` where a
/// run keeps nothing, there are few pairs for so many items, or counts would not fit into
/// `limits.memory_bytes_max` beside the `bytes_bound` of the rest.
pub(super) fn neighbors(
    worker: &mut Worker<'_>,
    output: &Output,
    prepared: &Prepared,
    section: &ItemNeighbors,
    bytes_bound: u64,
) -> Result<Option<Found>> {
    let job = worker.job;
    let Request { carried, spec, .. } = job.request;
    let earlier = carried.as_ref().and_then(|carried| carried.take(worker));
    let keeps = carried.is_some() || job.state.is_some();
    let is_binary = section.weights == HistoryWeights::Binary;
    if !keeps || !is_binary || prepared.item_ids.len() > CODES_MAX {
        return Ok(None);
    }
    let n_counted = n_counted(worker, prepared)?;
    if !are_dense(prepared.item_ids.len(), n_counted) {
        return Ok(None);
    }
    let bytes = bytes_max(prepared.item_ids.len(), n_counted)
        + memory::kept_pairs_bytes(prepared, job.threads);
    let fits = bytes_bound.saturating_add(bytes) <= spec.limits.memory_bytes_max.0;
    if worker.shell.collectives.all_reduce_min(i64::from(fits)) == 0 {
        return Ok(None);
    }
    let earlier = earlier.or_else(|| stored(worker, output));
    let earlier = agreed(worker, earlier);
    let Updated { mut kept, way, users } =
        Updated::new(worker, output, prepared, earlier, n_counted)?;
    let params = Params {
        n_neighbors: section.n_neighbors,
        shrinkage: section.shrinkage,
        support_min: section.users_per_pair_min,
        affinity_unit: 1.0,
    };
    let lists = kept.lists(worker, prepared, &params)?;
    kept.is_due = kept.stored.is_empty() || LAG_SHARE * kept.lag > n_counted;
    job.observer.advance(prepared.item_ids.len() as u64);
    let mut told = Map::new();
    told.insert("pairs".to_owned(), json!(way));
    told.insert("users_counted".to_owned(), json!(users));
    Ok(Some(Found { lists, kept: Some(kept), told }))
}

/// Counts are written anew when what was counted since is more than one part in so many of all: reading that
/// up again takes about as long then as writing.
const LAG_SHARE: u64 = 32;

/// Makes the counts part of the state, and leaves them to the next run in this process.
pub(super) fn keep(
    worker: &mut Worker<'_>,
    output: &Output,
    mut kept: KeptPairs,
    dictionary: &Ids,
    state: Option<&mut StateManifest>,
) -> Result<()> {
    let job = worker.job;
    if let (Some(state), Some(plan)) = (state, &job.state) {
        let base = plan.base_with_the_same_left_out(state);
        // Others may be gone by now.
        let is_there = |part: &StatePart| base.is_some_and(|base| base.parts.contains(part));
        if kept.is_due || plan.writes_all() || !kept.stored.iter().all(is_there) {
            let written = stored::write(worker, output, &kept, dictionary);
            let written = serde_json::to_vec(&worker.agree(written)?)?;
            kept.stored.clear();
            for part in worker.shell.collectives.all_gather(written.into()) {
                kept.stored.extend(serde_json::from_slice::<Vec<StatePart>>(&part)?);
            }
            kept.stored.sort_unstable_by_key(|part| part.kind);
            kept.lag = 0;
        }
        state.parts.extend(kept.stored.iter().cloned());
    }
    if let Some(carried) = &job.request.carried {
        kept.stamp = xxh3_64(job.run_id.as_bytes());
        carried.put(worker, kept);
    }
    Ok(())
}

/// Leaves the counts of the last generation in the state, of a run that looked at none.
pub(super) fn leave(job: &Job<'_>, state: &mut StateManifest) {
    let base = job.state.as_ref().and_then(|plan| plan.base_with_the_same_left_out(state));
    let parts = base.iter().flat_map(|base| &base.parts).filter(|part| part.is_of_pairs());
    state.parts.extend(parts.cloned());
}

/// The counts of the last generation's state.
fn stored(worker: &Worker<'_>, output: &Output) -> Option<KeptPairs> {
    let base = worker.job.state.as_ref()?.base()?;
    stored::read(worker, output, base).unwrap_or_else(|error| {
        let error = one_line(error.as_ref());
        tracing::warn!(error, "the counts of pairs cannot be read; this run counts all pairs");
        None
    })
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
    let stamp = earlier.as_ref().map_or(0, |kept| kept.stamp) as i64;
    let collectives = &mut worker.shell.collectives;
    let (least, most) = (collectives.all_reduce_min(stamp), collectives.all_reduce_max(stamp));
    earlier.filter(|_| least == most)
}

/// How counts of this run's histories came about.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    /// All pairs were counted.
    Counted,
    /// Those of users with another history were.
    Updated,
}

/// Counts of this run's histories.
struct Updated {
    kept: KeptPairs,
    way: Way,
    /// Users whose pairs were counted.
    users: i64,
}

impl Updated {
    /// Brings earlier counts up to date, or makes them anew where that takes fewer additions.
    fn new(
        worker: &mut Worker<'_>,
        output: &Output,
        prepared: &Prepared,
        earlier: Option<KeptPairs>,
        n_counted: u64,
    ) -> Result<Self> {
        if let Some(mut kept) = earlier
            && let Some(code_of) = kept.codes_of(prepared)
        {
            let (after, changes) = kept.changes(worker, prepared, &code_of);
            let (users, additions) = totals(worker, &changes)?;
            if additions < n_counted && kept.add(worker, output, after, changes) {
                kept.lag += additions;
                return Ok(Self { kept, way: Way::Updated, users });
            }
        }
        let mut kept = KeptPairs::empty(prepared);
        let code_of = kept.codes_of(prepared).expect("there is room for all items");
        let (after, changes) = kept.changes(worker, prepared, &code_of);
        let (users, _) = totals(worker, &changes)?;
        let is_added = kept.add(worker, output, after, changes);
        assert!(is_added, "nothing is read");
        Ok(Self { kept, way: Way::Counted, users })
    }
}

/// Users and additions of all processes.
fn totals(worker: &mut Worker<'_>, changes: &[Changes]) -> Result<(i64, u64)> {
    let users: u64 = changes.iter().map(|of| of.users).sum();
    let additions: u64 = changes.iter().map(|of| of.additions).sum();
    let sums = worker.shell.collectives.all_reduce_sum(vec![users as i64, additions as i64])?;
    Ok((sums[0], sums[1] as u64))
}

/// Differences together, as many as may be held at once; at least once some, or none.
fn batches(mut all: impl Iterator<Item = Differences>) -> impl Iterator<Item = Differences> {
    let mut is_first = true;
    std::iter::from_fn(move || {
        let is_first = std::mem::take(&mut is_first);
        let mut batch = all.next();
        if let Some(batch) = &mut batch {
            while !batch.is_full() {
                let Some(next) = all.next() else { break };
                batch.append_all(&next);
            }
        }
        batch.or_else(|| is_first.then(Differences::default))
    })
}

/// The differences of all processes, in their order.
fn gathered(
    worker: &mut Worker<'_>,
    mine: Vec<Changes>,
) -> impl Iterator<Item = Differences> + use<> {
    let mut coded = Vec::new();
    for Changes { differences, .. } in mine {
        let bytes = differences.encode();
        coded.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        coded.extend_from_slice(&bytes);
    }
    let parts = worker.shell.collectives.all_gather(coded.into());
    parts.into_iter().flat_map(|mut part| {
        std::iter::from_fn(move || {
            let length = (!part.is_empty()).then(|| part.split_to(8))?;
            let length = u64::from_le_bytes(length[..].try_into().expect("8 bytes"));
            Some(Differences::decode(&part.split_to(length as usize)))
        })
    })
}

/// The number of the file that holds a group of rows: files are dealt to processes.
fn file_of(group: usize, n_shards: u32) -> u32 {
    group as u32 % n_shards
}

impl KeptPairs {
    fn empty(prepared: &Prepared) -> Self {
        let shards = prepared.shards.iter().map(|shard| Coded::empty(&shard.user_ids));
        Self {
            codes: Codes::new(&prepared.item_ids.new_like(), Vec::new(), 0),
            counts: Some(PairCounts::new()),
            shards: shards.collect(),
            stamp: 0,
            stored: Vec::new(),
            lag: 0,
            is_due: true,
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
            code_of[item] = self.codes.of(prepared.item_ids.get(item))?;
        }
        (self.codes.end <= 2 * n_items).then_some(code_of)
    }

    /// This run's histories in codes, and how they differ from those that were counted, which are given up.
    fn changes(
        &mut self,
        worker: &Worker<'_>,
        prepared: &Prepared,
        code_of: &[u16],
    ) -> (Vec<Coded>, Vec<Changes>) {
        worker.pool.install(|| {
            let before = std::mem::take(&mut self.shards).into_par_iter();
            let shards = before.zip(&prepared.shards).map(|(before, shard)| {
                let items = |row| shard.interactions.of(row).iter();
                let codes = |row| items(row).map(|item| code_of[item.index()]);
                Changes::since(&before, &shard.user_ids, codes)
            });
            shards.unzip()
        })
    }

    fn counts(&self) -> &PairCounts {
        self.counts.as_ref().expect("counts are read before they are looked at")
    }

    /// Makes these histories those that were counted. False where counts cannot be read.
    fn add(
        &mut self,
        worker: &mut Worker<'_>,
        output: &Output,
        after: Vec<Coded>,
        changes: Vec<Changes>,
    ) -> bool {
        self.shards = after;
        let added = if worker.shell.peers == 1 {
            self.add_all(worker, output, changes.into_iter().map(|of| of.differences))
        } else {
            let all = gathered(worker, changes);
            self.add_all(worker, output, all)
        };
        if let Err(error) = &added {
            let error = one_line(error.as_ref());
            tracing::warn!(error, "the counts of pairs cannot be read; this run counts all pairs");
        }
        worker.shell.collectives.all_reduce_min(i64::from(added.is_ok())) == 1
    }

    fn add_all(
        &mut self,
        worker: &Worker<'_>,
        output: &Output,
        differences: impl Iterator<Item = Differences> + Send,
    ) -> Result<()> {
        let (index, peers) = (worker.shell.index, worker.shell.peers);
        let n_shards = worker.job.plan.n_shards;
        let is_mine = |group| file_of(group, n_shards) as usize % peers == index;
        let n_codes = self.codes.end;
        worker.pool.install(|| {
            for batch in batches(differences) {
                match &mut self.counts {
                    Some(counts) => {
                        counts.grow(n_codes, is_mine);
                        counts.add(&batch);
                    }
                    None => {
                        let read = stored::counts(output, &self.stored, n_codes, is_mine, &batch);
                        self.counts = Some(read?);
                    }
                }
            }
            Ok(())
        })
    }

    /// The lists of all items.
    fn lists(
        &mut self,
        worker: &mut Worker<'_>,
        prepared: &Prepared,
        params: &Params,
    ) -> Result<NeighborLists> {
        let supports = self.counts().supports().into_iter().map(i64::from).collect();
        let supports = worker.shell.collectives.all_reduce_sum(supports)?;
        let supports: Vec<u32> = supports.into_iter().map(|users| users as u32).collect();
        let mut items = vec![ItemIdx(0); supports.len()];
        for (item, id) in (0..).zip(prepared.item_ids.iter()) {
            let code = self.codes.of(id).expect("every item has a code");
            items[usize::from(code)] = ItemIdx(item);
        }
        let numbers =
            Numbers { items: &items, supports: &supports, n_items: prepared.item_ids.len() };
        let mine = worker.pool.install(|| self.counts().neighbors(&numbers, params));
        if worker.shell.peers == 1 {
            return Ok(mine);
        }
        let parts = worker.shell.collectives.all_gather(mine.encode().into());
        let parts: Vec<_> = parts.iter().map(|part| NeighborLists::decode(part)).collect();
        Ok(merged(&parts, params.n_neighbors))
    }
}
