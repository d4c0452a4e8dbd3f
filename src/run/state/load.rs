//! Reading stored rows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::{Base, Files, LeftOut, StatePlan, marks};
use crate::kernels::event_rows::EventRows;
use crate::run::counts::ScanCounts;
use crate::run::side::Deleted;
use crate::run::{Job, Worker, prepare};
use crate::schema::state::{StoredRows, read_keys};
use crate::store::{Output, StateKind, StateManifest, StatePart};
use crate::types::{Ids, LogRow, shard_hash};

/// Rows of a full block, and rows that are read at a time: what is made of so many stays in the cache.
const BLOCK_ROWS: usize = 1 << 14;
const BATCH_ROWS: usize = 1 << 13;

/// What a process takes from the state: rows of its own shards.
pub(in crate::run) struct Stored {
    /// Packed rows of files that are as they were, by shard; items are keys.
    pub(in crate::run) blocks: Vec<(u32, Vec<u8>)>,
    /// Items.
    pub(super) items: Keys,
    /// By key: whether a row here has the item.
    used: Vec<bool>,
    /// Rows of files that changed or are gone, and how often they are there, by shard.
    pub(super) gone: BTreeMap<u32, Vec<(LogRow, i64)>>,
    /// Users by shard.
    pub(super) users: BTreeMap<u32, Keys>,
    /// Shards with rows or users that are to be gone.
    pub(super) unclean: BTreeSet<u32>,
    /// Whether an item is to be gone.
    pub(super) items_unclean: bool,
    left_out: LeftOut,
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
pub(in crate::run) fn load(
    worker: &mut Worker<'_>,
    output: &Output,
    deleted: &Deleted,
) -> Option<(Base, Stored)> {
    let StatePlan { meaning, base, from } = worker.job.state.clone()?;
    let marks = marks(&meaning, deleted);
    let files = Files::new(&worker.job.plan, base.as_ref(), &marks);
    let mine = prepare::owned_shards(worker);
    let loaded = base.as_ref().map(|base| {
        let (files, job) = (&files, worker.job);
        let reader = Reader { output, base, files, deleted, job };
        worker.pool.install(|| reader.all(&mine))
    });
    if let Some(Err(error)) = &loaded {
        let error = format!("{error:#}");
        tracing::warn!(error, "the state cannot be read; this run reads all files");
    }
    let can_all = loaded.as_ref().is_some_and(Result::is_ok);
    let can_all = worker.shell.collectives.all_reduce_min(i64::from(can_all)) == 1;
    let (manifest, files, stored) = match loaded {
        Some(Ok(stored)) if can_all => (base, files, stored),
        _ => (None, Files::new(&worker.job.plan, None, &marks), Stored::nothing(worker.job)),
    };
    let left_out = agree_on_left_out(worker, &stored.left_out);
    Some((Base { meaning, from, manifest, files, marks, left_out }, stored))
}

/// Adds up what all processes leave out.
fn agree_on_left_out(worker: &mut Worker<'_>, mine: &LeftOut) -> LeftOut {
    let mine = serde_json::to_vec(mine).expect("counts are plain data");
    let mut sum = LeftOut::new();
    for part in worker.shell.collectives.all_gather(mine.into()) {
        let part: LeftOut = serde_json::from_slice(&part).expect("a peer sends counts");
        add_left_out(&mut sum, part);
    }
    sum
}

fn add_left_out(sum: &mut LeftOut, part: LeftOut) {
    for (file, [users, items]) in part {
        let of_file = sum.entry(file).or_default();
        *of_file = [of_file[0] + users, of_file[1] + items];
    }
}

impl Stored {
    fn nothing(job: &Job<'_>) -> Self {
        Self {
            blocks: Vec::new(),
            items: Keys { keys: Vec::new(), ids: Ids::new(job.plan.item_id_type) },
            used: Vec::new(),
            gone: BTreeMap::new(),
            users: BTreeMap::new(),
            unclean: BTreeSet::new(),
            items_unclean: false,
            left_out: LeftOut::new(),
            counts: ScanCounts::new(),
        }
    }
}

impl Stored {
    /// Ids of the items that rows here have.
    pub(in crate::run) fn used_items(&self) -> Ids {
        let Keys { keys, ids } = &self.items;
        let used = (0..keys.len()).filter(|&place| self.used[keys[place] as usize]);
        ids.take(used).sorted_unique()
    }

    /// By key, the rank of the item in a dictionary that holds those used.
    pub(in crate::run) fn ranks(&self, dictionary: &Ids) -> Vec<u32> {
        let mut ranks = vec![u32::MAX; self.used.len()];
        for (&key, id) in self.items.keys.iter().zip(self.items.ids.iter()) {
            if self.used[key as usize] {
                let rank = dictionary.find_sorted(id).expect("the dictionary holds what is used");
                ranks[key as usize] = rank as u32;
            }
        }
        ranks
    }
}

struct Reader<'a> {
    output: &'a Output,
    base: &'a StateManifest,
    files: &'a Files,
    deleted: &'a Deleted,
    job: &'a Job<'a>,
}

/// What is there of one shard.
struct OfShard {
    blocks: Vec<Vec<u8>>,
    used: Vec<bool>,
    gone: Vec<(LogRow, i64)>,
    users: Keys,
    is_unclean: bool,
    left_out: LeftOut,
    counts: ScanCounts,
}

impl Reader<'_> {
    fn all(&self, mine: &[u32]) -> Result<Stored> {
        let parts = self.base.parts.iter().filter(|part| part.kind == StateKind::Items);
        let items = self.keys(parts, Ids::new(self.job.plan.item_id_type))?;
        let mut of_key = vec![Item::None; self.base.n_items as usize];
        for (&key, id) in items.keys.iter().zip(items.ids.iter()) {
            let Some(of_key) = of_key.get_mut(key as usize) else {
                bail!("item key {key} is none")
            };
            let is_gone = self.deleted.items.contains(&id.digest());
            *of_key = if is_gone { Item::Gone } else { Item::Unused };
        }
        let mut stored = Stored::nothing(self.job);
        (stored.items, stored.used) = (items, vec![false; of_key.len()]);
        stored.items_unclean = of_key.contains(&Item::Gone);
        let of_shards = mine.par_iter().with_max_len(1).map(|&shard| self.shard(shard, &of_key));
        let of_shards: Vec<OfShard> = of_shards.collect::<Result<_>>()?;
        for (&shard, of_shard) in mine.iter().zip(of_shards) {
            stored.blocks.extend(of_shard.blocks.into_iter().map(|block| (shard, block)));
            stored.used.iter_mut().zip(of_shard.used).for_each(|(all, one)| *all |= one);
            stored.gone.insert(shard, of_shard.gone);
            stored.unclean.extend(of_shard.is_unclean.then_some(shard));
            add_left_out(&mut stored.left_out, of_shard.left_out);
            stored.users.insert(shard, of_shard.users);
            stored.counts.merge(&of_shard.counts);
        }
        Ok(stored)
    }

    /// The keys and ids in `parts`.
    fn keys<'p>(&self, parts: impl Iterator<Item = &'p StatePart>, ids: Ids) -> Result<Keys> {
        let mut keys = Keys { keys: Vec::new(), ids };
        for part in parts {
            for batch in self.output.read_state_part(part, BATCH_ROWS)? {
                read_keys(&batch?, &mut keys.keys, &mut keys.ids)
                    .with_context(|| format!("\"{}\" cannot be used", part.file.path))?;
            }
        }
        Ok(keys)
    }

    fn shard(&self, shard: u32, items: &[Item]) -> Result<OfShard> {
        let parts = self.base.parts.iter().filter(|part| part.is_users_of(shard));
        let users = self.keys(parts, Ids::new(self.job.plan.user_id_type))?;
        let n_users = self.base.n_users[shard as usize];
        let mut rows = Taken::new(self, &users, n_users, items)?;
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
                self.each_batch(part, |batch| rows.take_batch(batch))?;
            }
        }
        let Finished { blocks, used, gone, is_unclean, left_out, counts } = rows.finish();
        Ok(OfShard { blocks, used, gone, users, is_unclean, left_out, counts })
    }

    fn each_row(
        &self,
        part: &StatePart,
        mut take: impl FnMut(LogRow, i64) -> Result<()>,
    ) -> Result<()> {
        self.each_batch(part, |rows| {
            (0..rows.len()).map(|at| rows.get(at)).try_for_each(|(row, copies)| take(row, copies))
        })
    }

    fn each_batch(
        &self,
        part: &StatePart,
        mut take: impl FnMut(&StoredRows<'_>) -> Result<()>,
    ) -> Result<()> {
        let StateKind::Rows { tick_us, .. } = part.kind else { unreachable!("a run of rows") };
        let unusable = || format!("\"{}\" cannot be used", part.file.path);
        for batch in self.output.read_state_part(part, BATCH_ROWS)? {
            let batch = batch?;
            let rows = StoredRows::try_new(&batch, tick_us).with_context(unusable)?;
            take(&rows).with_context(unusable)?;
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

/// What is known of an item key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    /// Never given, or given up.
    None,
    /// It is to be gone.
    Gone,
    /// No row has been seen yet.
    Unused,
    Used,
}

/// What is known of a user key.
#[derive(Clone, Copy)]
struct User {
    /// Where the id is, [`NOBODY`] for a key never given or given up.
    place: u32,
    /// Whether the user is to be gone.
    is_gone: bool,
    /// The hash that decides the shard.
    hash: u64,
}

/// Rows of a shard on their way into blocks.
struct Taken<'a> {
    files: &'a Files,
    users: &'a Keys,
    /// By key.
    of_user: Vec<User>,
    of_item: Vec<Item>,
    has_digests: bool,
    as_of_us: i64,
    /// By kind: whether its log says when things happened.
    has_times: Vec<bool>,
    rows: EventRows,
    blocks: Vec<Vec<u8>>,
    gone: Vec<(LogRow, i64)>,
    /// Whether some item is to be gone.
    items_leave: bool,
    is_unclean: bool,
    left_out: LeftOut,
    counts: ScanCounts,
}

/// What has become of the rows of a shard.
struct Finished {
    blocks: Vec<Vec<u8>>,
    used: Vec<bool>,
    gone: Vec<(LogRow, i64)>,
    is_unclean: bool,
    left_out: LeftOut,
    counts: ScanCounts,
}

/// No user.
const NOBODY: u32 = u32::MAX;

impl<'a> Taken<'a> {
    fn new(reader: &Reader<'a>, users: &'a Keys, n_keys: u32, items: &[Item]) -> Result<Self> {
        let plan = &reader.job.plan;
        let nobody = User { place: NOBODY, is_gone: false, hash: 0 };
        let mut of_user = vec![nobody; n_keys as usize];
        for (place, &key) in users.keys.iter().enumerate() {
            let Some(user) = of_user.get_mut(key as usize) else { bail!("user key {key} is none") };
            let id = users.ids.get(place);
            let is_gone = reader.deleted.users.contains(&id.digest());
            *user = User { place: place as u32, is_gone, hash: shard_hash(id) };
        }
        Ok(Self {
            files: reader.files,
            users,
            items_leave: items.contains(&Item::Gone),
            is_unclean: of_user.iter().any(|user| user.is_gone),
            of_user,
            of_item: items.to_vec(),
            has_digests: plan.sources.iter().any(|source| source.columns.id.is_some()),
            as_of_us: plan.as_of_us.unwrap_or(i64::MAX),
            has_times: plan.kinds_with_times(),
            rows: EventRows::new_like(&users.ids),
            blocks: Vec::new(),
            gone: Vec::new(),
            left_out: LeftOut::new(),
            counts: ScanCounts::new(),
        })
    }

    /// Takes rows column by column, where they stay.
    fn take_batch(&mut self, batch: &StoredRows<'_>) -> Result<()> {
        let [users, _, _, files] = batch.numbers();
        let is_gone = |file: &i32| self.files.gone.contains(&(*file as u32));
        let first = files.first();
        let one_file = files.iter().all(|file| Some(file) == first);
        let stays = match one_file {
            true => !first.is_some_and(is_gone),
            false => self.files.gone.is_empty(),
        };
        if !stays || self.items_leave || !batch.are_single() {
            let mut rows = (0..batch.len()).map(|at| batch.get(at));
            return rows.try_for_each(|(row, copies)| self.take(row, copies));
        }
        let (mut start, mut end) = (0, 0);
        for of_user in users.chunk_by(|a, b| a == b) {
            let rows = end..end + of_user.len();
            end = rows.end;
            if self.of_user.get(of_user[0] as usize).is_some_and(|user| user.is_gone) {
                self.take_columns(batch, start..rows.start)?;
                start = rows.end;
                rows.map(|at| batch.get(at))
                    .try_for_each(|(row, copies)| self.take(row, copies))?;
            }
        }
        self.take_columns(batch, start..end)
    }

    /// Takes rows that all stay and are there once.
    fn take_columns(&mut self, batch: &StoredRows<'_>, among: Range<usize>) -> Result<()> {
        let [users, items, kinds, files] = batch.numbers().map(|column| &column[among.clone()]);
        let n_kinds = self.has_times.len();
        if kinds.iter().any(|&kind| kind as usize >= n_kinds) {
            bail!("a row has a kind that is none");
        }
        for &item in items {
            match self.of_item.get_mut(item as usize) {
                Some(item @ (Item::Unused | Item::Used)) => *item = Item::Used,
                _ => bail!("item key {item} is none"),
            }
        }
        let rows = &mut self.rows;
        for of_user in users.chunk_by(|a, b| a == b) {
            match self.of_user.get(of_user[0] as usize) {
                Some(&User { place, hash, .. }) if place != NOBODY => {
                    rows.users.push_times(self.users.ids.get(place as usize), hash, of_user.len());
                }
                _ => bail!("user key {} is none", of_user[0]),
            }
        }
        rows.items.extend(items.iter().map(|&item| item as u32));
        rows.kinds.extend(kinds.iter().map(|&kind| kind as u8));
        rows.values.extend_from_slice(&batch.values()[among.clone()]);
        rows.times.extend(batch.times(among.clone()));
        rows.files.extend(files.iter().map(|&file| file as u32));
        if self.has_digests {
            rows.digests.extend(batch.digests(among.clone()));
        }
        let counts = &mut self.counts;
        for (time, &kind) in batch.times(among).zip(kinds) {
            if self.has_times[kind as usize] {
                counts.oldest_us = counts.oldest_us.min(time);
                let newest = if time < self.as_of_us { time } else { i64::MIN };
                counts.newest_us = counts.newest_us.max(newest);
            }
        }
        if self.rows.len() >= BLOCK_ROWS {
            self.flush();
        }
        Ok(())
    }

    #[inline]
    fn take(&mut self, row: LogRow, copies: i64) -> Result<()> {
        let user = self.of_user.get(row.user as usize).filter(|user| user.place != NOBODY);
        let item = self.of_item.get_mut(row.item as usize).filter(|item| **item != Item::None);
        let is_kind = usize::from(row.kind) < self.has_times.len();
        let (Some(&User { place, is_gone, hash }), Some(item), true) = (user, item, is_kind) else {
            bail!("row {row:?} has a key or a kind that is none");
        };
        let is_file_gone = self.files.gone.contains(&row.file);
        if is_gone || *item == Item::Gone {
            self.is_unclean = true;
            if !is_file_gone {
                let of_file = self.left_out.entry(row.file).or_default();
                of_file[usize::from(!is_gone)] += copies.unsigned_abs();
            }
            return Ok(());
        }
        if is_file_gone {
            self.gone.push((row, copies));
            return Ok(());
        }
        if copies < 1 {
            bail!("row {row:?} is there {copies} times");
        }
        *item = Item::Used;
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
            if rows.len() >= BLOCK_ROWS {
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

    fn finish(mut self) -> Finished {
        if !self.rows.is_empty() {
            self.flush();
        }
        let used = self.of_item.iter().map(|item| *item == Item::Used).collect();
        let Self { blocks, gone, is_unclean, left_out, counts, .. } = self;
        Finished { blocks, used, gone, is_unclean, left_out, counts }
    }
}
