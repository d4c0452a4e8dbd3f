//! Reading stored rows.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::{Base, Files, StatePlan};
use crate::kernels::event_rows::EventRows;
use crate::run::counts::ScanCounts;
use crate::run::{Job, Worker, prepare};
use crate::schema::state::{StoredRows, read_keys};
use crate::store::{self, Location, Output, StateKind, StateManifest, StatePart};
use crate::types::{Ids, LogRow, shard_hash};

/// Rows of a full block.
const BLOCK_ROWS: usize = 1 << 16;

/// What a process takes from the state: rows of its own shards.
pub(in crate::run) struct Stored {
    /// Packed rows of files that are as they were, by shard; items are keys.
    pub(in crate::run) blocks: Vec<(u32, Vec<u8>)>,
    /// Item ids by key.
    pub(in crate::run) items: Ids,
    /// Whether a row here has the item of a key.
    pub(in crate::run) used: Vec<bool>,
    /// Rows of files that changed or are gone, and how often they are there, by shard.
    pub(super) gone: BTreeMap<u32, Vec<(LogRow, i64)>>,
    /// Users by shard.
    pub(super) users: BTreeMap<u32, Keys>,
    /// Oldest and newest event of the blocks, and their bytes.
    pub(in crate::run) counts: ScanCounts,
}

/// Keys and their ids, side by side.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) keys: Vec<u32>,
    pub(super) ids: Ids,
}

/// Takes what there is to go on from. `None` for a job that is not incremental.
///
/// What one process cannot read makes all of them read all files.
pub(in crate::run) fn load(worker: &mut Worker<'_>, output: &Output) -> Option<(Base, Stored)> {
    let StatePlan { meaning, base, from } = worker.job.state.clone()?;
    let files = Files::new(&worker.job.plan, base.as_ref());
    let mine = prepare::owned_shards(worker);
    let loaded = base.as_ref().map(|base| {
        let location = output.location();
        let reader = Reader { output, location: &location, base, files: &files, job: worker.job };
        worker.pool.install(|| reader.all(&mine))
    });
    if let Some(Err(error)) = &loaded {
        let error = format!("{error:#}");
        tracing::warn!(error, "the state cannot be read; this run reads all files");
    }
    let can_all = loaded.as_ref().is_some_and(Result::is_ok);
    let can_all = worker.shell.collectives.all_reduce_min(i64::from(can_all)) == 1;
    match loaded {
        Some(Ok(stored)) if can_all => {
            Some((Base { meaning, from, manifest: base, files }, stored))
        }
        _ => {
            let files = Files::new(&worker.job.plan, None);
            Some((Base { meaning, from, manifest: None, files }, Stored::nothing(worker.job)))
        }
    }
}

impl Stored {
    fn nothing(job: &Job<'_>) -> Self {
        Self {
            blocks: Vec::new(),
            items: Ids::new(job.plan.item_id_type),
            used: Vec::new(),
            gone: BTreeMap::new(),
            users: BTreeMap::new(),
            counts: ScanCounts::new(),
        }
    }
}

impl Stored {
    /// Ids of the items that rows here have.
    pub(in crate::run) fn used_items(&self) -> Ids {
        let used = (0..self.items.len()).filter(|&key| self.used[key]);
        self.items.take(used).sorted_unique()
    }

    /// By key, the rank of the item in a dictionary that holds those used.
    pub(in crate::run) fn ranks(&self, dictionary: &Ids) -> Vec<u32> {
        let rank = |key: usize| match self.used[key] {
            true => dictionary.find_sorted(self.items.get(key)).expect("it is used") as u32,
            false => u32::MAX,
        };
        (0..self.items.len()).into_par_iter().with_min_len(1 << 12).map(rank).collect()
    }
}

struct Reader<'a> {
    output: &'a Output,
    location: &'a Location,
    base: &'a StateManifest,
    files: &'a Files,
    job: &'a Job<'a>,
}

/// What is there of one shard.
struct OfShard {
    blocks: Vec<Vec<u8>>,
    used: Vec<bool>,
    gone: Vec<(LogRow, i64)>,
    users: Keys,
    counts: ScanCounts,
}

impl Reader<'_> {
    fn all(&self, mine: &[u32]) -> Result<Stored> {
        let parts = self.base.parts.iter().filter(|part| part.kind == StateKind::Items);
        let items = self.keys(parts, Ids::new(self.job.plan.item_id_type))?;
        if !items.keys.iter().copied().eq(0..self.base.n_items) {
            bail!("the keys of items are not 0 to {}", self.base.n_items);
        }
        let mut stored = Stored::nothing(self.job);
        (stored.items, stored.used) = (items.ids, vec![false; items.keys.len()]);
        let of_shards = mine.par_iter().with_max_len(1).map(|&shard| self.shard(shard));
        let of_shards: Vec<OfShard> = of_shards.collect::<Result<_>>()?;
        for (&shard, of_shard) in mine.iter().zip(of_shards) {
            stored.blocks.extend(of_shard.blocks.into_iter().map(|block| (shard, block)));
            stored.used.iter_mut().zip(of_shard.used).for_each(|(all, one)| *all |= one);
            stored.gone.insert(shard, of_shard.gone);
            stored.users.insert(shard, of_shard.users);
            stored.counts.merge(&of_shard.counts);
        }
        Ok(stored)
    }

    /// The keys and ids in `parts`.
    fn keys<'p>(&self, parts: impl Iterator<Item = &'p StatePart>, ids: Ids) -> Result<Keys> {
        let mut keys = Keys { keys: Vec::new(), ids };
        for part in parts {
            for batch in store::read_all(self.location, &self.output.state_file(part), None)? {
                read_keys(&batch, &mut keys.keys, &mut keys.ids)
                    .with_context(|| format!("\"{}\" cannot be used", part.file.path))?;
            }
        }
        Ok(keys)
    }

    fn shard(&self, shard: u32) -> Result<OfShard> {
        let parts = self.base.parts.iter().filter(|part| part.is_users_of(shard));
        let users = self.keys(parts, Ids::new(self.job.plan.user_id_type))?;
        let mut rows = Taken::new(self, &users, self.base.n_users[shard as usize])?;
        let parts: Vec<_> = self.base.parts.iter().filter(|part| part.is_rows_of(shard)).collect();
        let takes_back =
            |part: &&StatePart| matches!(part.kind, StateKind::Rows { takes_back: true, .. });
        if parts.iter().any(takes_back) {
            let mut all = Vec::new();
            for part in &parts {
                self.each_row(part, |row, copies| {
                    all.push((row, copies));
                    Ok(())
                })?;
            }
            for (row, copies) in summed(all) {
                rows.take(row, copies)?;
            }
        } else {
            for part in &parts {
                self.each_row(part, |row, copies| rows.take(row, copies))?;
            }
        }
        let (blocks, used, gone, counts) = rows.finish();
        Ok(OfShard { blocks, used, gone, users, counts })
    }

    fn each_row(
        &self,
        part: &StatePart,
        mut take: impl FnMut(LogRow, i64) -> Result<()>,
    ) -> Result<()> {
        let StateKind::Rows { tick_us, .. } = part.kind else { unreachable!("a run of rows") };
        for batch in store::read_all(self.location, &self.output.state_file(part), None)? {
            let unusable = || format!("\"{}\" cannot be used", part.file.path);
            let rows = StoredRows::try_new(&batch, tick_us).with_context(unusable)?;
            for at in 0..rows.len() {
                let (row, copies) = rows.get(at);
                take(row, copies).with_context(unusable)?;
            }
        }
        Ok(())
    }
}

/// Equal rows as one, sorted; those that cancel out are gone.
pub(super) fn summed(mut rows: Vec<(LogRow, i64)>) -> Vec<(LogRow, i64)> {
    rows.sort_unstable();
    let mut sums: Vec<(LogRow, i64)> = Vec::with_capacity(rows.len());
    for (row, copies) in rows {
        match sums.last_mut() {
            Some((last, sum)) if *last == row => *sum += copies,
            _ => sums.push((row, copies)),
        }
    }
    sums.retain(|(_, copies)| *copies != 0);
    sums
}

/// Rows of a shard on their way into blocks.
struct Taken<'a> {
    files: &'a Files,
    users: &'a Keys,
    /// By key: the place of the user, and the hash that decides the shard.
    of_key: Vec<(u32, u64)>,
    has_digests: bool,
    as_of_us: i64,
    /// By kind: whether its log says when things happened.
    has_times: Vec<bool>,
    rows: EventRows,
    blocks: Vec<Vec<u8>>,
    used: Vec<bool>,
    gone: Vec<(LogRow, i64)>,
    counts: ScanCounts,
}

/// No user.
const NOBODY: u32 = u32::MAX;

impl<'a> Taken<'a> {
    fn new(reader: &Reader<'a>, users: &'a Keys, n_keys: u32) -> Result<Self> {
        let plan = &reader.job.plan;
        let mut of_key = vec![(NOBODY, 0); n_keys as usize];
        for (place, &key) in users.keys.iter().enumerate() {
            let Some(of_key) = of_key.get_mut(key as usize) else {
                bail!("user key {key} is none")
            };
            *of_key = (place as u32, shard_hash(users.ids.get(place)));
        }
        Ok(Self {
            files: reader.files,
            users,
            of_key,
            has_digests: plan.sources.iter().any(|source| source.columns.id.is_some()),
            as_of_us: plan.as_of_us.unwrap_or(i64::MAX),
            has_times: plan.kinds_with_times(),
            rows: EventRows::new_like(&users.ids),
            blocks: Vec::new(),
            used: vec![false; reader.base.n_items as usize],
            gone: Vec::new(),
            counts: ScanCounts::new(),
        })
    }

    #[inline]
    fn take(&mut self, row: LogRow, copies: i64) -> Result<()> {
        if self.files.gone.contains(&row.file) {
            self.gone.push((row, copies));
            return Ok(());
        }
        if usize::from(row.kind) >= self.has_times.len() {
            bail!("row {row:?} is of a kind that is none");
        }
        let user = self.of_key.get(row.user as usize).filter(|(place, _)| *place != NOBODY);
        let used = self.used.get_mut(row.item as usize);
        let (Some(&(place, hash)), Some(used), 1..) = (user, used, copies) else {
            bail!("row {row:?} has {copies} copies, or keys that are none");
        };
        *used = true;
        let id = self.users.ids.get(place as usize);
        for _ in 0..copies {
            let rows = &mut self.rows;
            rows.users.push(id, hash);
            rows.items.push(row.item);
            rows.kinds.push(row.kind);
            rows.values.push(f32::from_bits(row.value_bits));
            rows.times.push(row.time_us);
            rows.files.push(row.file);
            if self.has_digests {
                let [low, high] = row.digest;
                rows.digests.push(u128::from(low) | u128::from(high) << 64);
            }
            if rows.len() == BLOCK_ROWS {
                self.flush();
            }
        }
        if !self.has_times[usize::from(row.kind)] {
            return Ok(());
        }
        self.counts.oldest_us = self.counts.oldest_us.min(row.time_us);
        if row.time_us < self.as_of_us {
            self.counts.newest_us = self.counts.newest_us.max(row.time_us);
        }
        Ok(())
    }

    fn flush(&mut self) {
        let packed = self.rows.pack();
        self.rows.clear();
        self.counts.packed_bytes += packed.len() as u64;
        self.blocks.push(packed);
    }

    fn finish(mut self) -> (Vec<Vec<u8>>, Vec<bool>, Vec<(LogRow, i64)>, ScanCounts) {
        if !self.rows.is_empty() {
            self.flush();
        }
        (self.blocks, self.used, self.gone, self.counts)
    }
}
