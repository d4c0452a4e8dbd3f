//! What checkpoints hold: one object per shard and per range of items, whoever writes and reads it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checkpoint::{Saving, Sealed};
use super::counts::ScanCounts;
use super::prepare::{self, Prepared};
use super::stages::calendar;
use super::tables::ITEMS_PER_PART;
use super::{Job, Worker};
use crate::kernels::NeighborLists;
use crate::kernels::als::loss::Loss;
use crate::kernels::histories::{Dropped, Filtered};
use crate::kernels::item_totals::ItemSum;
use crate::kernels::saved::{
    Damaged, Saved, put_floats, put_histories, put_i64, put_ids, put_neighbors, put_u64,
    read_histories, read_neighbors,
};
use crate::store::{CheckpointPart, StateManifest};
use crate::types::{Histories, Ids};

/// The part that every process reads.
const COMMON: &str = "common";

/// Which parts a process writes, and with how many threads.
pub(super) struct Share<'a> {
    index: usize,
    peers: usize,
    pool: &'a rayon::ThreadPool,
}

impl<'a> Share<'a> {
    pub(super) fn of(worker: &Worker<'a>) -> Self {
        let (index, peers) = (worker.shell.index, worker.shell.peers);
        Self { index, peers, pool: worker.pool }
    }

    /// Writes the common part, on the first process.
    fn common(
        &self,
        saving: &Saving<'_>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<CheckpointPart>> {
        if self.index == 0 { Ok(vec![saving.put(COMMON, fill)?]) } else { Ok(Vec::new()) }
    }

    /// Writes this process's parts of something item-sized.
    fn of_items(
        &self,
        saving: &Saving<'_>,
        n_items: usize,
        fill: impl Fn(std::ops::Range<usize>, &mut Vec<u8>) + Sync,
    ) -> Result<Vec<CheckpointPart>> {
        let mine: Vec<usize> =
            (0..n_parts(n_items)).filter(|part| part % self.peers == self.index).collect();
        let write = |part| saving.put(&of_items(part), |out| fill(items(part, n_items), out));
        self.pool.install(|| mine.into_par_iter().map(write).collect())
    }

    /// Writes a part for each shard of this process.
    fn of_shards(
        &self,
        saving: &Saving<'_>,
        shards: &[Histories],
        fill: impl Fn(usize, &mut Vec<u8>) + Sync,
    ) -> Result<Vec<CheckpointPart>> {
        let write =
            |at: usize| saving.put(&of_shard(shards[at].shard), |out: &mut Vec<u8>| fill(at, out));
        self.pool.install(|| (0..shards.len()).into_par_iter().map(write).collect())
    }
}

fn of_items(part: usize) -> String {
    format!("items-{part:05}")
}

fn of_shard(shard: u32) -> String {
    format!("shard-{shard:05}")
}

fn n_parts(n_items: usize) -> usize {
    n_items.div_ceil(ITEMS_PER_PART)
}

fn items(part: usize, n_items: usize) -> std::ops::Range<usize> {
    part * ITEMS_PER_PART..n_items.min((part + 1) * ITEMS_PER_PART)
}

/// Reads the parts of something item-sized, in order.
fn read_items<T: Send>(
    sealed: &Sealed<'_>,
    pool: &rayon::ThreadPool,
    n_items: usize,
    read: impl Fn(std::ops::Range<usize>, &[u8]) -> Result<T, Damaged> + Sync,
) -> Result<Vec<T>> {
    let read = |part| {
        let name = of_items(part);
        read(items(part, n_items), &sealed.part(&name)?).with_context(|| part_of(sealed, &name))
    };
    pool.install(|| (0..n_parts(n_items)).into_par_iter().map(read).collect())
}

fn part_of(sealed: &Sealed<'_>, name: &str) -> String {
    format!("part \"{name}\" of checkpoint \"{}\" cannot be used", sealed.stage())
}

/// Saves what the scan, the shuffle and the histories gave.
pub(super) fn save_histories(
    share: &Share<'_>,
    saving: &Saving<'_>,
    (counts, state): (&ScanCounts, &Option<StateManifest>),
    prepared: &Prepared,
) -> Result<Vec<CheckpointPart>> {
    let mut parts = share.common(saving, |out| put_common((counts, state), prepared, out))?;
    let shards = &prepared.shards;
    parts.extend(share.of_shards(saving, shards, |at, out| put_histories(&shards[at], out))?);
    Ok(parts)
}

/// Reads it for the shards that are `mine`.
pub(super) fn read_histories_of(
    sealed: &Sealed<'_>,
    job: &Job<'_>,
    pool: &rayon::ThreadPool,
    mine: &[u32],
) -> Result<(ScanCounts, Prepared, Option<StateManifest>)> {
    let common = sealed.part(COMMON)?;
    let common = read_common(&common, job).with_context(|| part_of(sealed, COMMON));
    let (counts, mut prepared, state) = common?;
    let like = Ids::new(job.plan.user_id_type);
    let n_items = prepared.item_ids.len();
    let read = |&shard: &u32| {
        let name = of_shard(shard);
        let read = read_histories(&sealed.part(&name)?, shard, &like, n_items);
        read.with_context(|| part_of(sealed, &name))
    };
    prepared.shards = pool.install(|| mine.par_iter().map(read).collect::<Result<_>>())?;
    Ok((counts, prepared, state))
}

fn put_json(value: &impl Serialize, out: &mut Vec<u8>) {
    let json = serde_json::to_vec(value).expect("counts and files are plain data");
    put_u64(json.len() as u64, out);
    out.extend_from_slice(&json);
}

fn read_json<T: DeserializeOwned>(saved: &mut Saved<'_>) -> Result<T> {
    let n_bytes = saved.n()?;
    Ok(serde_json::from_slice(saved.bytes(n_bytes)?)?)
}

fn put_common(
    (counts, state): (&ScanCounts, &Option<StateManifest>),
    prepared: &Prepared,
    out: &mut Vec<u8>,
) {
    put_json(counts, out);
    put_json(state, out);
    put_ids(&prepared.dictionary, out);
    prepared.sums.iter().chain(&prepared.times).for_each(|&number| put_i64(number, out));
    put_u64(prepared.segment_sums.len() as u64, out);
    for (&(segment, rank), sum) in &prepared.segment_sums {
        put_u64(u64::from(segment), out);
        put_u64(u64::from(rank), out);
        let ItemSum { events, users, weight, affinity, newer } = *sum;
        [events, users, weight, affinity, newer].iter().for_each(|&number| put_i64(number, out));
    }
    let Filtered { after_as_of, duplicate, undone, undo_without_event, before_window, faded } =
        prepared.filtered;
    let Dropped { too_few_users, over_cap, users_over_cap } = prepared.dropped;
    let filtered = [after_as_of, duplicate, undone, undo_without_event, before_window, faded];
    let dropped = [too_few_users, over_cap, users_over_cap];
    put_u64(prepared.rows_used, out);
    filtered.iter().chain(&dropped).for_each(|&count| put_u64(count, out));
}

type Common = (ScanCounts, Prepared, Option<StateManifest>);

fn read_common(bytes: &[u8], job: &Job<'_>) -> Result<Common> {
    let mut saved = Saved::new(bytes);
    let counts: ScanCounts = read_json(&mut saved)?;
    let state = read_json(&mut saved)?;
    let dictionary = saved.ids(&Ids::new(job.plan.item_id_type))?;
    let sums = numbers(&mut saved, 5 * dictionary.len())?;
    let times = numbers(&mut saved, 2 * dictionary.len())?;
    let mut segment_sums = BTreeMap::new();
    for _ in 0..saved.n()? {
        let key = (saved.u32()?, saved.u32()?);
        let mut next = || saved.i64();
        let (events, users, weight) = (next()?, next()?, next()?);
        let (affinity, newer) = (next()?, next()?);
        segment_sums.insert(key, ItemSum { events, users, weight, affinity, newer });
    }
    let rows_used = saved.u64()?;
    let mut count = || saved.u64();
    let filtered = Filtered {
        after_as_of: count()?,
        duplicate: count()?,
        undone: count()?,
        undo_without_event: count()?,
        before_window: count()?,
        faded: count()?,
    };
    let (too_few_users, over_cap, users_over_cap) = (count()?, count()?, count()?);
    let dropped = Dropped { too_few_users, over_cap, users_over_cap };
    saved.finish()?;
    let (idx_of_rank, item_ids) = prepare::kept(&job.plan, &dictionary, &sums);
    if segment_sums.keys().any(|&(_, rank)| rank as usize >= dictionary.len()) {
        bail!(Damaged);
    }
    let prepared = Prepared {
        shards: Vec::new(),
        dictionary,
        sums,
        times,
        idx_of_rank,
        item_ids,
        segment_sums,
        rows_used,
        filtered,
        dropped,
        calendar: calendar(&job.plan, &counts),
    };
    Ok((counts, prepared, state))
}

fn numbers(saved: &mut Saved<'_>, n: usize) -> Result<Vec<i64>, Damaged> {
    (0..n).map(|_| saved.i64()).collect()
}

/// Saves the neighbors of all items.
pub(super) fn save_neighbors(
    share: &Share<'_>,
    saving: &Saving<'_>,
    lists: &NeighborLists,
) -> Result<Vec<CheckpointPart>> {
    share.of_items(saving, lists.n_rows(), |rows, out| put_neighbors(lists, rows, out))
}

/// Reads them.
pub(super) fn read_all_neighbors(
    sealed: &Sealed<'_>,
    pool: &rayon::ThreadPool,
    n_items: usize,
) -> Result<NeighborLists> {
    let read =
        |rows: std::ops::Range<usize>, bytes: &[u8]| read_neighbors(bytes, rows.len(), n_items);
    let mut lists = NeighborLists::default();
    read_items(sealed, pool, n_items, read)?.into_iter().for_each(|part| lists.append(part));
    Ok(lists)
}

/// A fit between two iterations: what the next one needs of this one.
#[derive(Clone, Copy)]
pub(super) struct FitState<'a> {
    /// The users of this process.
    pub(super) shards: &'a [Histories],
    /// Numbers from one row of factors to the next.
    pub(super) stride: usize,
    /// Item factors, whole.
    pub(super) items: &'a [f32],
    /// User factors, shard after shard.
    pub(super) users: &'a [f32],
    /// Of each iteration so far.
    pub(super) losses: &'a [Loss],
}

impl FitState<'_> {
    /// Where the factors of the users of each shard end.
    fn ends(&self) -> Vec<usize> {
        let ends = self.shards.iter().scan(0, |end, shard| {
            *end += shard.n_users() * self.stride;
            Some(*end)
        });
        ends.collect()
    }
}

/// Saves a fit under way.
pub(super) fn save_fit(
    share: &Share<'_>,
    saving: &Saving<'_>,
    state: FitState<'_>,
) -> Result<Vec<CheckpointPart>> {
    let FitState { shards, stride, items, users, losses } = state;
    let mut parts = share.common(saving, |out| {
        put_u64(losses.len() as u64, out);
        let numbers = losses.iter().flat_map(|loss| [loss.observed, loss.full]);
        numbers.for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    })?;
    parts.extend(share.of_items(saving, items.len() / stride, |rows, out| {
        put_floats(&items[rows.start * stride..rows.end * stride], out);
    })?);
    let ends = state.ends();
    parts.extend(share.of_shards(saving, shards, |at, out| {
        let start = if at == 0 { 0 } else { ends[at - 1] };
        put_floats(&users[start..ends[at]], out);
    })?);
    Ok(parts)
}

/// Item factors, user factors and losses of a fit that was saved.
pub(super) struct SavedFit {
    pub(super) items: Vec<f32>,
    pub(super) users: Vec<f32>,
    pub(super) losses: Vec<Loss>,
}

/// Reads a fit; `state` is one of the same shapes.
pub(super) fn read_fit(
    sealed: &Sealed<'_>,
    pool: &rayon::ThreadPool,
    state: FitState<'_>,
) -> Result<SavedFit> {
    let losses = read_losses(&sealed.part(COMMON)?).with_context(|| part_of(sealed, COMMON))?;
    let stride = state.stride;
    let floats =
        |rows: std::ops::Range<usize>, bytes: &[u8]| Saved::new(bytes).floats(rows.len() * stride);
    let items = read_items(sealed, pool, state.items.len() / stride, floats)?.concat();
    let of_users = |shard: &Histories| {
        let name = of_shard(shard.shard);
        let read = floats(0..shard.n_users(), &sealed.part(&name)?);
        read.with_context(|| part_of(sealed, &name))
    };
    let users = pool.install(|| state.shards.par_iter().map(of_users).collect::<Result<Vec<_>>>());
    Ok(SavedFit { items, users: users?.concat(), losses })
}

fn read_losses(bytes: &[u8]) -> Result<Vec<Loss>, Damaged> {
    let mut saved = Saved::new(bytes);
    let n = saved.n()?;
    let mut number = || {
        let bytes = saved.bytes(8)?.try_into().expect("8 bytes");
        Ok(f64::from_le_bytes(bytes))
    };
    let losses: Result<Vec<Loss>, Damaged> =
        (0..n).map(|_| Ok(Loss { observed: number()?, full: number()? })).collect();
    saved.finish()?;
    losses
}
