//! Reading stored rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::{Base, Files, LeftOut, StatePlan, StateUse, marks};
use crate::kernels::event_rows::{Column, LogBlocks, Packed};
use crate::kernels::histories::KeyedUsers;
use crate::run::counts::ScanCounts;
use crate::run::side::Deleted;
use crate::run::{Job, Worker, one_line, prepare};
use crate::schema::state::{read_keys, read_rows};
use crate::store::{Output, StateKind, StateManifest, StatePart, StateParts};
use crate::types::{Ids, LogRow};

/// Rows of a file of keys, and blocks of rows, that are read at a time.
const BATCH_ROWS: usize = 1 << 13;
const BATCH_BLOCKS: usize = 8;

/// What a process takes from the state: rows of its own shards.
pub(in crate::run) struct Stored {
    /// Packed rows of files that are as they were, by shard; users and items are keys.
    pub(in crate::run) blocks: Vec<(u32, Vec<u8>)>,
    /// Items.
    pub(super) items: Keys,
    /// By key: whether a row here has the item.
    used: Vec<bool>,
    /// Rows of files that changed or are gone, and how often they are there, by shard.
    pub(super) gone: BTreeMap<u32, Vec<(LogRow, i64)>>,
    /// Users by shard.
    pub(in crate::run) users: BTreeMap<u32, Arc<StoredUsers>>,
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

/// The users of a shard.
#[derive(Debug)]
pub(in crate::run) struct StoredUsers {
    pub(super) keys: Keys,
    /// By key, where it is among these; [`NOBODY`] where it was never given or is given up.
    places: Vec<u32>,
}

impl StoredUsers {
    fn new(keys: Keys, n_keys: u32) -> Result<Self> {
        let mut places = vec![NOBODY; n_keys as usize];
        for (place, &key) in (0..).zip(&keys.keys) {
            let Some(of_key) = places.get_mut(key as usize) else {
                bail!("user key {key} is none")
            };
            *of_key = place;
        }
        Ok(Self { keys, places })
    }

    /// Who the users of blocks are.
    pub(in crate::run) fn keyed(&self) -> KeyedUsers<'_> {
        KeyedUsers { ids: &self.keys.ids, places: &self.places }
    }
}

/// Takes what there is to go on from. `None` for a job that is not incremental.
///
/// What one process cannot read makes all of them read all files. So does a state most of whose rows are of
/// files that are gone or changed: to take each of these back takes longer than to read what is there, and
/// memory for all of them.
pub(in crate::run) fn load(
    worker: &mut Worker<'_>,
    output: &Output,
    deleted: &Deleted,
) -> Option<(Base, Stored)> {
    let StatePlan { meaning, base, from } = worker.job.state.clone()?;
    let marks = marks(&meaning, deleted);
    let files = Files::new(&worker.job.plan, base.as_ref(), &marks);
    let mine = prepare::owned_shards(worker);
    let usable = base.as_ref().filter(|base| files.keep_most(base));
    if usable.is_none() && from == StateUse::Add {
        let why = match &base {
            Some(_) => "most rows of the state are of files that are gone or changed",
            None => "there is no state of the same meaning and format",
        };
        worker.job.observer.note("load state", &format!("{why}: all files are read"));
    }
    let loaded = usable.map(|base| {
        let (files, job) = (&files, worker.job);
        let is_mine = |part: &&StatePart| part.shard().is_none_or(|shard| mine.contains(&shard));
        let of_rows = base.parts.iter().filter(|part| !part.is_of_pairs());
        let parts = output.read_state_parts(of_rows.filter(is_mine));
        let reader = Reader { parts, base, files, deleted, job };
        worker.pool.install(|| reader.all(&mine))
    });
    if let Some(Err(error)) = &loaded {
        let error = one_line(error.as_ref());
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
    parts: StateParts,
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
    users: StoredUsers,
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
            *of_key = if is_gone { Item::Gone } else { Item::Known };
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
            stored.users.insert(shard, Arc::new(of_shard.users));
            stored.counts.merge(&of_shard.counts);
        }
        Ok(stored)
    }

    /// The keys and ids in `parts`.
    fn keys<'p>(&self, parts: impl Iterator<Item = &'p StatePart>, ids: Ids) -> Result<Keys> {
        let mut keys = Keys { keys: Vec::new(), ids };
        for part in parts {
            for batch in self.parts.batches(part, BATCH_ROWS)? {
                read_keys(&batch?, &mut keys.keys, &mut keys.ids)
                    .with_context(|| format!("\"{}\" cannot be used", part.file.path))?;
            }
        }
        Ok(keys)
    }

    fn shard(&self, shard: u32, items: &[Item]) -> Result<OfShard> {
        let parts = self.base.parts.iter().filter(|part| part.is_users_of(shard));
        let users = self.keys(parts, Ids::new(self.job.plan.user_id_type))?;
        let users = StoredUsers::new(users, self.base.n_users[shard as usize])?;
        let mut rows = Taken::new(self, &users, items);
        let parts = self.base.parts.iter().filter(|part| part.is_rows_of(shard));
        let takes_back =
            |part: &StatePart| matches!(part.kind, StateKind::Rows { takes_back: true, .. });
        if parts.clone().any(takes_back) {
            let mut all = Vec::new();
            for part in parts {
                self.each_block(part, |copies, block| {
                    block.each_stored_row(|row| all.push((row, i64::from(copies))));
                    Ok(())
                })?;
            }
            for (row, copies) in summed(all) {
                rows.take(row, copies)?;
            }
        } else {
            for part in parts {
                self.each_block(part, |_, block| rows.take_block(block))?;
            }
        }
        let Finished { blocks, used, gone, is_unclean, left_out, counts } = rows.finish()?;
        Ok(OfShard { blocks, used, gone, users, is_unclean, left_out, counts })
    }

    fn each_block(
        &self,
        part: &StatePart,
        mut take: impl FnMut(i32, &Packed<'_>) -> Result<()>,
    ) -> Result<()> {
        let unusable = || format!("\"{}\" cannot be used", part.file.path);
        for batch in self.parts.batches(part, BATCH_BLOCKS)? {
            let batch = batch?;
            for (copies, block) in read_rows(&batch).with_context(unusable)? {
                take(copies, &Packed::new(block)).with_context(unusable)?;
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

/// What is known of an item key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    /// Never given, or given up.
    None,
    /// It is to be gone.
    Gone,
    /// It stays.
    Known,
}

/// Rows of a shard on their way into blocks.
struct Taken<'a> {
    files: &'a Files,
    users: &'a StoredUsers,
    /// By key: whether the user is to be gone.
    is_gone: Vec<bool>,
    items: &'a [Item],
    /// By key: whether a row has the item.
    used: Vec<bool>,
    as_of_us: i64,
    /// By kind: whether its log says when things happened.
    has_times: Vec<bool>,
    blocks: LogBlocks,
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
    fn new(reader: &Reader<'a>, users: &'a StoredUsers, items: &'a [Item]) -> Self {
        let plan = &reader.job.plan;
        let mut is_gone = vec![false; users.places.len()];
        let all = users.keys.keys.iter().zip(users.keys.ids.iter());
        for (&key, id) in all.filter(|_| !reader.deleted.users.is_empty()) {
            is_gone[key as usize] = reader.deleted.users.contains(&id.digest());
        }
        Self {
            files: reader.files,
            users,
            is_unclean: is_gone.contains(&true),
            is_gone,
            items_leave: items.contains(&Item::Gone),
            items,
            used: vec![false; items.len()],
            as_of_us: plan.as_of_us.unwrap_or(i64::MAX),
            has_times: plan.kinds_with_times(),
            blocks: LogBlocks::new(),
            gone: Vec::new(),
            left_out: LeftOut::new(),
            counts: ScanCounts::new(),
        }
    }

    /// Takes the rows of a block, as it is where they all stay.
    fn take_block(&mut self, block: &Packed<'_>) -> Result<()> {
        let Self { users, is_gone, items, has_times, .. } = self;
        let (mut are_known, mut users_leave) = (true, false);
        block.each_user_key(|key, _| match users.places.get(key as usize) {
            Some(&place) if place != NOBODY => users_leave |= is_gone[key as usize],
            _ => are_known = false,
        });
        are_known &= block.items.high() < items.len() as u64;
        are_known &= block.kinds.high() < has_times.len() as u64;
        if !are_known {
            bail!("a row has a key or a kind that is none");
        }
        let files = block.files.map_or(0..=0, |files| files.low() as u32..=files.high() as u32);
        let files_leave = self.files.gone.range(files).next().is_some();
        if users_leave || files_leave || self.items_leave {
            let mut rows = Vec::with_capacity(block.n_rows);
            block.each_stored_row(|row| rows.push(row));
            return rows.into_iter().try_for_each(|row| self.take(row, 1));
        }
        let used = &mut self.used;
        block.items.for_each(block.n_rows, |item| used[item as usize] = true);
        let [oldest_us, newest_us] = [block.times.low(), block.times.high()].map(Column::as_i64);
        if self.has_times.iter().all(|&has_times| has_times) && newest_us < self.as_of_us {
            self.count_times(oldest_us, newest_us);
        } else {
            let mut kinds = Vec::new();
            block.kinds.decode(block.n_rows, &mut kinds, |kind| kind as usize);
            let mut kinds = kinds.into_iter();
            block.times.for_each(block.n_rows, |time| {
                let kind = kinds.next().expect("a kind of each row");
                if self.has_times[kind] {
                    let time_us = Column::as_i64(time);
                    self.count_times(time_us, time_us);
                }
            });
        }
        self.blocks.push_block(block.bytes);
        Ok(())
    }

    #[inline]
    fn count_times(&mut self, oldest_us: i64, newest_us: i64) {
        self.counts.oldest_us = self.counts.oldest_us.min(oldest_us);
        if newest_us < self.as_of_us {
            self.counts.newest_us = self.counts.newest_us.max(newest_us);
        }
    }

    #[inline]
    fn take(&mut self, row: LogRow, copies: i64) -> Result<()> {
        let place = self.users.places.get(row.user as usize).filter(|&&place| place != NOBODY);
        let item = self.items.get(row.item as usize).filter(|item| **item != Item::None);
        let has_times = self.has_times.get(usize::from(row.kind));
        let (Some(_), Some(&item), Some(&has_times)) = (place, item, has_times) else {
            bail!("row {row:?} has a key or a kind that is none");
        };
        let is_gone = self.is_gone[row.user as usize];
        let is_file_gone = self.files.gone.contains(&row.file);
        if is_gone || item == Item::Gone {
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
        self.used[row.item as usize] = true;
        (0..copies).for_each(|_| self.blocks.push(&row));
        if has_times {
            self.count_times(row.time_us, row.time_us);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Finished> {
        let blocks = self.blocks.finish();
        self.counts.packed_bytes = blocks.iter().map(|block| block.len() as u64).sum();
        let Self { used, items, gone, is_unclean, left_out, counts, .. } = self;
        let is_none = |(&used, &item): (&bool, &Item)| used && item == Item::None;
        if used.iter().zip(items).any(is_none) {
            bail!("a row has an item key that is none");
        }
        Ok(Finished { blocks, used, gone, is_unclean, left_out, counts })
    }
}
