//! Writing the state of this generation.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat_n;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::load::{Keys, Stored};
use super::{Base, StateUse};
use crate::dataflow::consolidated;
use crate::kernels::dictionary::Interner;
use crate::kernels::event_rows::{Column, LogBlocks, Packed, PackedUsers};
use crate::kernels::histories::Block;
use crate::run::counts::ScanCounts;
use crate::run::prepare::{self, FileCounts, Shuffled};
use crate::run::{Job, Worker};
use crate::schema::state::{key_batch, key_schema, row_batch, row_schema};
use crate::store::{
    BATCH_ROWS, Output, STATE_FORMAT, StateInput, StateKind, StateManifest, StatePart, TableFile,
};
use crate::types::{IdRef, IdType, Ids, LogRow};

/// Runs of a shard are merged into one before there are more than these.
const RUNS_MAX: usize = 8;

/// Writes what the next run goes on from; returns what it is made of and what changed, the same in all
/// processes.
///
/// New rows are told to differential with weight 1, those of files that changed or are gone with -1, and
/// what remains is a new run of each shard. Where that comes to half of what a shard has, or it has many
/// runs already, the shard is written anew as one run.
pub(in crate::run) fn save(
    worker: &mut Worker<'_>,
    output: &Output,
    (base, mut stored): (Base, Stored),
    shuffled: &Shuffled,
    (dictionary, counted): (&Ids, &FileCounts),
) -> Result<(StateManifest, Map<String, Value>)> {
    let job = worker.job;
    let (n_shards, peers) = (job.plan.n_shards, worker.shell.peers);
    let mut gone = std::mem::take(&mut stored.gone);
    let n_known = base.manifest.as_ref().map_or(0, |base| base.n_items);
    let items = ItemKeys::new(&stored.items, n_known, dictionary);
    let writer = Writer { job, output, base: &base, stored: &stored, items: &items };
    let mine: Vec<_> = prepare::owned_shards(worker)
        .into_iter()
        .map(|shard| (shard, gone.remove(&shard).unwrap_or_default()))
        .collect();
    let shards = worker.pool.install(|| {
        let shards = mine.into_par_iter().with_max_len(1);
        shards.map(|(shard, gone)| writer.shard(shard, gone, shuffled)).collect()
    });
    let mut shards: Vec<OfShard> = worker.agree(shards)?;
    let changes = match base.manifest {
        None => Vec::new(),
        Some(_) => {
            let updates = shards.iter_mut().flat_map(OfShard::take_changes);
            let owner = move |(shard, _): &(u32, LogRow)| prepare::owner(*shard, n_shards, peers);
            consolidated(&mut worker.shell.worker, owner, updates)
        }
    };
    let changed = Changed::of(worker, &changes, &shards)?;
    let written = worker.pool.install(|| {
        let runs: Vec<_> = changes.chunk_by(|((a, _), _), ((b, _), _)| a == b).collect();
        let runs = runs.into_par_iter().with_max_len(1).map(|of_shard| {
            let rows = |sign: i64| {
                let rows = of_shard.iter().filter(move |(_, copies)| copies.signum() == sign);
                rows.flat_map(|((_, row), copies)| repeat_n(row, copies.unsigned_abs() as usize))
            };
            writer.put_rows(of_shard[0].0.0, rows(1), rows(-1))
        });
        runs.collect::<Result<Vec<StatePart>>>()
    });
    let written = written.and_then(|mut parts| {
        parts.extend(shards.iter_mut().flat_map(|of_shard| std::mem::take(&mut of_shard.parts)));
        if worker.shell.index == 0 {
            parts.extend(writer.put_items(dictionary)?);
        }
        Ok(parts)
    });
    let parts = worker.agree(written)?;
    let manifest = writer.manifest(worker, &parts, &shards, counted);
    let manifest = worker.agree(manifest)?;
    let told = changed.as_json(&manifest);
    Ok((manifest, told))
}

/// Keys of the items of the dictionary: those known before, then new ones in the order of their ids.
struct ItemKeys {
    n_known: u32,
    of_rank: Vec<u32>,
}

impl ItemKeys {
    /// `n_known`: keys that were given before, some of them perhaps given up.
    fn new(known: &Keys, n_known: u32, dictionary: &Ids) -> Self {
        let mut interner = Interner::new_like(dictionary);
        known.ids.iter().for_each(|id| {
            interner.intern(id);
        });
        let key = |code: u32| match known.keys.get(code as usize) {
            Some(&key) => key,
            None => n_known + (code - known.keys.len() as u32),
        };
        let of_rank = dictionary.iter().map(|id| key(interner.intern(id))).collect();
        Self { n_known, of_rank }
    }

    /// One above the last key.
    fn keys_end(&self) -> u32 {
        self.of_rank.iter().map(|&key| key + 1).max().unwrap_or(0).max(self.n_known)
    }
}

/// What becomes of one shard.
struct OfShard {
    shard: u32,
    /// Rows that are new, and rows to take back.
    changes: Vec<((u32, LogRow), i64)>,
    /// Files that are written already.
    parts: Vec<StatePart>,
    /// Whether these stand for all that was there.
    is_rewritten: bool,
    /// Keys given so far.
    n_users: u32,
}

impl OfShard {
    fn take_changes(&mut self) -> Vec<((u32, LogRow), i64)> {
        std::mem::take(&mut self.changes)
    }
}

/// Keys of the users of a shard, known ones and new ones.
struct UserKeys {
    interner: Interner,
    /// By code of the interner.
    keys: Vec<u32>,
    n_known: usize,
}

impl UserKeys {
    /// `next`: the first key that was never given.
    fn new(known: &Keys, new: Ids, next: u32) -> Self {
        let mut interner = Interner::new_like(&known.ids);
        let mut keys = known.keys.clone();
        known.ids.iter().for_each(|id| {
            interner.intern(id);
        });
        let n_known = keys.len();
        for id in new.sorted_unique().iter() {
            let code = interner.intern(id) as usize;
            if code == keys.len() {
                keys.push(next + (code - n_known) as u32);
            }
        }
        Self { interner, keys, n_known }
    }

    fn key(&mut self, id: IdRef<'_>) -> u32 {
        self.keys[self.interner.intern(id) as usize]
    }
}

/// Sorted rows of a shard.
struct ByUser {
    rows: Vec<LogRow>,
    /// Where those of each user end, by key.
    ends: Vec<usize>,
}

impl ByUser {
    /// Puts the rows of each user next to each other and sorts these, which takes far less than to sort all.
    /// Keys are below `n_users`.
    fn new(rows: Vec<LogRow>, n_users: u32) -> Self {
        let mut ends = vec![0; n_users as usize];
        rows.iter().for_each(|row| ends[row.user as usize] += 1);
        let mut end = 0;
        for n_rows in &mut ends {
            // Where the next row of the user goes.
            end += std::mem::replace(n_rows, end);
        }
        let mut sorted = vec![LogRow::default(); rows.len()];
        for row in rows {
            let place = &mut ends[row.user as usize];
            sorted[*place] = row;
            *place += 1;
        }
        sorted.chunk_by_mut(|a, b| a.user == b.user).for_each(<[LogRow]>::sort_unstable);
        Self { rows: sorted, ends }
    }

    fn has_rows(&self, key: u32) -> bool {
        let start = key.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        start < self.ends[key as usize]
    }
}

struct Writer<'a> {
    job: &'a Job<'a>,
    output: &'a Output,
    base: &'a Base,
    stored: &'a Stored,
    items: &'a ItemKeys,
}

impl Writer<'_> {
    fn shard(&self, shard: u32, gone: Vec<(LogRow, i64)>, shuffled: &Shuffled) -> Result<OfShard> {
        let nobody = Keys { keys: Vec::new(), ids: Ids::new(self.job.plan.user_id_type) };
        let known = self.stored.users.get(&shard).map_or(&nobody, |users| &users.keys);
        let next = self.base.manifest.as_ref().map_or(0, |base| base.n_users[shard as usize]);
        let new: Vec<_> = shuffled.blocks(shard, false).collect();
        let mut users = known.ids.new_like();
        let packed: Vec<_> = new.iter().map(|block| Packed::new(block.packed)).collect();
        packed.iter().for_each(|block| distinct_users(block, &mut users));
        let mut users = UserKeys::new(known, users, next);
        let n_new: usize = packed.iter().map(|block| block.n_rows).sum();
        let is_rewritten = self.is_rewritten(shard, n_new + gone.len());
        let mut rows = Vec::with_capacity(n_new);
        new.iter().for_each(|block| self.each_row(block, &mut users, |row| rows.push(row)));
        let mut of_shard = OfShard {
            shard,
            changes: Vec::new(),
            parts: Vec::new(),
            is_rewritten,
            n_users: next + (users.keys.len() - users.n_known) as u32,
        };
        if !is_rewritten {
            let new = rows.into_iter().map(|row| ((shard, row), 1));
            let gone = gone.into_iter().map(|(row, copies)| ((shard, row), -copies));
            of_shard.changes = new.chain(gone).collect();
            let new = (users.n_known..users.keys.len()).collect();
            of_shard.parts.extend(self.put_users(shard, users, new)?);
            return Ok(of_shard);
        }
        let stored: Vec<_> =
            shuffled.blocks(shard, true).map(|block| Packed::new(block.packed)).collect();
        rows.reserve_exact(stored.iter().map(|block| block.n_rows).sum());
        stored.iter().for_each(|block| block.each_stored_row(|row| rows.push(row)));
        let by_user = ByUser::new(rows, of_shard.n_users);
        // Those without a row are given up, with their keys.
        let has_rows = |code: &usize| by_user.has_rows(users.keys[*code]);
        let codes = (0..users.keys.len()).filter(has_rows).collect();
        of_shard.parts.extend(self.put_users(shard, users, codes)?);
        if !by_user.rows.is_empty() {
            let rows = by_user.rows.iter();
            of_shard.parts.push(self.put_rows(shard, rows, std::iter::empty())?);
        }
        Ok(of_shard)
    }

    fn each_row(&self, block: &Block<'_>, users: &mut UserKeys, give: impl FnMut(LogRow)) {
        let key = |code: u32| {
            let rank = block.ranks.map_or(code, |ranks| ranks[code as usize]);
            self.items.of_rank[rank as usize]
        };
        Packed::new(block.packed).each_log_row(|id| users.key(id), key, give);
    }

    /// Whether a shard is written anew, as so many changes and the runs that are there ask for it.
    fn is_rewritten(&self, shard: u32, n_changes: usize) -> bool {
        let Some(base) = &self.base.manifest else { return true };
        if self.base.from == StateUse::Compact || self.stored.unclean.contains(&shard) {
            return true;
        }
        let runs: Vec<u64> = base
            .parts
            .iter()
            .filter(|part| part.is_rows_of(shard))
            .map(StatePart::log_rows)
            .collect();
        let later: u64 = runs.iter().skip(1).sum();
        let first = runs.first().copied().unwrap_or(0);
        n_changes > 0 && (runs.len() >= RUNS_MAX || 2 * (later + n_changes as u64) > first)
    }

    /// Writes a run of sorted rows, each as often as it comes, and of such that it takes back.
    fn put_rows<'r>(
        &self,
        shard: u32,
        rows: impl Iterator<Item = &'r LogRow>,
        taken_back: impl Iterator<Item = &'r LogRow>,
    ) -> Result<StatePart> {
        let mut log_rows = 0;
        let mut packed = |copies: i32, rows: &mut dyn Iterator<Item = &'r LogRow>| {
            let mut blocks = LogBlocks::new();
            for row in rows {
                blocks.push(row);
                log_rows += 1;
            }
            blocks.finish().into_iter().map(move |block| (copies, block)).collect::<Vec<_>>()
        };
        let [mut rows, taken_back] = [packed(1, &mut { rows }), packed(-1, &mut { taken_back })];
        let kind = StateKind::Rows { shard, log_rows, takes_back: !taken_back.is_empty() };
        rows.extend(taken_back);
        let mut file = TableFile::of_state(&row_schema(), &[], &["rows"])?;
        file.write(&row_batch(&rows)?)?;
        self.put(kind, file)
    }

    fn put_users(
        &self,
        shard: u32,
        mut users: UserKeys,
        codes: Vec<usize>,
    ) -> Result<Option<StatePart>> {
        if codes.is_empty() {
            return Ok(None);
        }
        let keys: Vec<u32> = codes.iter().map(|&code| users.keys[code]).collect();
        let ids = users.interner.take_ids().take(codes);
        let id_type = self.job.plan.user_id_type;
        self.put_keys(StateKind::Users { shard }, &keys, &ids, id_type).map(Some)
    }

    /// The items that this generation adds, or all that it has where some are to be gone.
    fn put_items(&self, dictionary: &Ids) -> Result<Option<StatePart>> {
        let of_rank = &self.items.of_rank;
        let first = if self.stored.items_unclean { 0 } else { self.items.n_known };
        let mut new: Vec<usize> =
            (0..of_rank.len()).filter(|&rank| of_rank[rank] >= first).collect();
        if new.is_empty() {
            return Ok(None);
        }
        new.sort_unstable_by_key(|&rank| of_rank[rank]);
        let keys: Vec<u32> = new.iter().map(|&rank| of_rank[rank]).collect();
        let ids = dictionary.take(new);
        self.put_keys(StateKind::Items, &keys, &ids, self.job.plan.item_id_type).map(Some)
    }

    fn put_keys(
        &self,
        kind: StateKind,
        keys: &[u32],
        ids: &Ids,
        id_type: IdType,
    ) -> Result<StatePart> {
        let schema = key_schema(id_type);
        let mut file = TableFile::of_state(&schema, &["key"], &["key"])?;
        for start in (0..keys.len()).step_by(BATCH_ROWS) {
            let rows = start..keys.len().min(start + BATCH_ROWS);
            let ids = ids.take(rows.clone());
            file.write(&key_batch(&keys[rows], &ids, id_type)?)?;
        }
        self.put(kind, file)
    }

    fn put(&self, kind: StateKind, file: TableFile) -> Result<StatePart> {
        Ok(self.output.put_state_part(kind, self.job.run_id, file)?)
    }

    /// The state as all processes have written it.
    fn manifest(
        &self,
        worker: &mut Worker<'_>,
        parts: &[StatePart],
        shards: &[OfShard],
        counted: &FileCounts,
    ) -> Result<StateManifest> {
        let of_shards: Vec<_> =
            shards.iter().map(|of| (of.shard, of.is_rewritten, of.n_users)).collect();
        let told = serde_json::to_vec(&(parts, of_shards)).context("parts are plain data")?;
        let (mut new, mut rewritten) = (Vec::new(), BTreeSet::new());
        let plan = &self.job.plan;
        let mut n_users = vec![0; plan.n_shards as usize];
        for told in worker.shell.collectives.all_gather(told.into()) {
            let (parts, of_shards): (Vec<StatePart>, Vec<(u32, bool, u32)>) =
                serde_json::from_slice(&told).context("parts of a peer cannot be read")?;
            new.extend(parts);
            for (shard, is_rewritten, n) in of_shards {
                n_users[shard as usize] = n;
                rewritten.extend(is_rewritten.then_some(shard));
            }
        }
        new.sort_unstable_by_key(|part| part.kind);
        let stays = |part: &&StatePart| match part.kind {
            StateKind::Items => !self.stored.items_unclean,
            StateKind::Users { shard } | StateKind::Rows { shard, .. } => {
                !rewritten.contains(&shard)
            }
            // It is seen once the histories are known.
            StateKind::PairItems { .. }
            | StateKind::PairUsers { .. }
            | StateKind::PairCounts { .. } => false,
        };
        let before = self.base.manifest.iter().flat_map(|base| &base.parts).filter(stays);
        Ok(StateManifest {
            format: STATE_FORMAT,
            meaning: self.base.meaning.clone(),
            shards: plan.n_shards,
            user_id_type: plan.user_id_type,
            item_id_type: plan.item_id_type,
            n_items: self.items.keys_end(),
            n_users,
            left_out: self.base.marks.clone(),
            inputs: self.inputs(counted)?,
            parts: before.cloned().chain(new).collect(),
        })
    }

    /// The files of the plan with their counts, as they were kept or as they are new.
    fn inputs(&self, counted: &FileCounts) -> Result<Vec<StateInput>> {
        let known = self.base.manifest.iter().flat_map(|base| &base.inputs);
        let known: BTreeMap<u32, &StateInput> = known.map(|input| (input.number, input)).collect();
        let mut inputs = Vec::new();
        for (log, source) in self.job.plan.sources.iter().enumerate() {
            for (at, file) in source.files.iter().enumerate() {
                let number = self.base.files.number(log, at);
                if self.base.files.is_kept(log, at) {
                    let counts = serde_json::to_value(self.base.counts_of(known[&number])?)?;
                    inputs.push(StateInput { counts, ..known[&number].clone() });
                    continue;
                }
                let none = ScanCounts::new();
                let counts = counted.get(&(log as u32, at as u32)).unwrap_or(&none);
                // Times are those of rows that are there.
                let counts = ScanCounts {
                    oldest_us: none.oldest_us,
                    newest_us: none.newest_us,
                    packed_bytes: 0,
                    ..counts.clone()
                };
                inputs.push(StateInput {
                    number,
                    log: log as u32,
                    url: file.url.clone(),
                    bytes: file.bytes,
                    etag: file.etag.clone(),
                    counts: serde_json::to_value(counts)?,
                });
            }
        }
        inputs.sort_unstable_by_key(|input| input.number);
        Ok(inputs)
    }
}

/// Adds the users of a block, perhaps more than once.
fn distinct_users(block: &Packed<'_>, users: &mut Ids) {
    match (&block.users, users) {
        (PackedUsers::Int(column), Ids::Int(users)) => {
            let mut last = None;
            column.for_each(block.n_rows, |id| {
                if last.replace(id) != Some(id) {
                    users.push(Column::as_i64(id));
                }
            });
        }
        (PackedUsers::Bytes { distinct, .. }, users) => {
            (0..distinct.len()).for_each(|row| users.push(IdRef::Bytes(distinct.get(row))));
        }
        _ => panic!("users of a shard are all integers or all bytes"),
    }
}

/// What this generation changes, over all processes.
struct Changed {
    rows: i64,
    users: i64,
    shards_rewritten: i64,
}

impl Changed {
    fn of(
        worker: &mut Worker<'_>,
        changes: &[((u32, LogRow), i64)],
        shards: &[OfShard],
    ) -> Result<Self> {
        let users = changes.chunk_by(|((shard, row), _), ((other_shard, other), _)| {
            (shard, row.user) == (other_shard, other.user)
        });
        let rewritten = shards.iter().filter(|shard| shard.is_rewritten).count();
        let sums = [changes.len(), users.count(), rewritten].map(|n| n as i64);
        let sums = worker.shell.collectives.all_reduce_sum(sums.to_vec())?;
        Ok(Self { rows: sums[0], users: sums[1], shards_rewritten: sums[2] })
    }

    fn as_json(&self, state: &StateManifest) -> Map<String, Value> {
        let Self { rows, users, shards_rewritten } = self;
        let told = json!({
            "rows_changed": rows,
            "users_changed": users,
            "shards_rewritten": shards_rewritten,
            "state_rows": state.stored_rows(),
            "state_bytes": state.bytes(),
        });
        match told {
            Value::Object(told) => told,
            _ => unreachable!("it is an object"),
        }
    }
}
