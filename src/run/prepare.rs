//! From the logs to the sharded histories: scan, item dictionary, shuffle, support.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use bytes::Bytes;
use rayon::prelude::*;

use super::counts::ScanCounts;
use super::scan::{ScanContext, Scanned, Split, assigned, read_splits, row_groups, splits};
use super::side::Deleted;
use super::state::{Files, Stored, StoredUsers};
use super::{Job, Refused, Worker};
use crate::dataflow::{BLOCK_BYTES, Outgoing, windowed_source};
use crate::job::plan::Plan;
use crate::kernels::dictionary::{SortedIds, decode_ids, encode_ids, merge_sorted};
use crate::kernels::event_rows::with_items;
use crate::kernels::histories::{
    self, Block, Calendar, Draft, Dropped, EventKind, Filtered, Scratch,
};
use crate::kernels::item_totals::{ItemSum, ItemTotals, fits, sum_of};
use crate::types::{Histories, IdRef, Ids};

/// Rows as the scan leaves them: packed blocks by shard, with the codes of the reading thread.
pub(super) struct Scan {
    blocks: Vec<(usize, u32, Vec<u8>)>,
    /// Item ids of each reading thread with its codes.
    items: BTreeMap<usize, SortedIds>,
    /// Counts of this process.
    counts: ScanCounts,
    /// The same by file, where state is kept.
    by_file: FileCounts,
}

/// What became of the rows of each file, by log and file of the plan.
pub(super) type FileCounts = BTreeMap<(u32, u32), ScanCounts>;

/// Stands for the thread that read a block where it comes from stored state.
const STORED: usize = usize::MAX;

/// Reads this process's share of the logs.
///
/// Of an incremental run, what is not in the state that it goes on from.
pub(super) fn scan(
    worker: &mut Worker<'_>,
    (denied, deleted): (&HashSet<u128>, &Deleted),
    files: Option<&Files>,
) -> Result<Scan> {
    let job = worker.job;
    let kinds = job.plan.event_kinds();
    let mut all = splits(&job.plan);
    all.retain(|split| !files.is_some_and(|files| files.is_kept(split.source, split.file)));
    let mine = assigned(all, worker.shell.index, worker.shell.peers);
    let row_groups = row_groups(job.runtime, &job.plan, &job.logs, &mine);
    let next = AtomicUsize::new(0);
    let observer = job.observer;
    let advance = |rows: u64| observer.advance(rows);
    let context = ScanContext {
        plan: &job.plan,
        kinds: &kinds,
        denied,
        deleted,
        files,
        splits: &mine,
        row_groups: &row_groups,
        next: &next,
        advance: &advance,
    };
    let mut scan = Scan {
        blocks: Vec::new(),
        items: BTreeMap::new(),
        counts: ScanCounts::new(),
        by_file: FileCounts::new(),
    };
    // The threads that read are those that build histories: an allocator keeps memory by thread.
    worker.pool.in_place_scope(|scope| {
        windowed_source(
            &mut worker.shell.worker,
            "scan",
            |sender| {
                for reader in 0..job.threads.min(mine.len()).max(1) {
                    let (sender, context) = (sender.clone(), &context);
                    scope.spawn(move |_| {
                        let mut emit = |scanned| sender.blocking_send(Ok(scanned)).is_ok();
                        if let Err(error) = read_splits(context, reader, &mut emit) {
                            // A closed source has met an error already; that one is reported.
                            let _ = sender.blocking_send(Err(error));
                        }
                    });
                }
            },
            |scanned| scan.take(scanned),
        )
    })?;
    reconcile(&scan.counts, &mine, job)?;
    Ok(scan)
}

impl Scan {
    fn take(&mut self, scanned: Scanned) {
        match scanned {
            Scanned::Blocks { reader, blocks } => {
                for (shard, packed) in blocks {
                    self.counts.packed_bytes += packed.len() as u64;
                    self.blocks.push((reader, shard, packed));
                }
            }
            Scanned::Finished { reader, items, counts, by_file } => {
                self.items.insert(reader, items);
                self.counts.merge(&counts);
                add_by_file(&mut self.by_file, &by_file);
            }
        }
    }

    /// Adds the times and bytes of stored rows to the counts of this process.
    pub(super) fn count_stored(&mut self, counts: &ScanCounts) {
        self.counts.merge(counts);
    }
}

fn add_by_file(sum: &mut FileCounts, other: &FileCounts) {
    for (&file, counts) in other {
        sum.entry(file).or_default().merge(counts);
    }
}

/// Adds up the counts of all processes by file.
pub(super) fn agree_on_file_counts(worker: &mut Worker<'_>, scan: &Scan) -> FileCounts {
    let pairs: Vec<_> = scan.by_file.iter().collect();
    let encoded = serde_json::to_vec(&pairs).expect("counts are plain data");
    let mut sum = FileCounts::new();
    for part in worker.shell.collectives.all_gather(encoded.into()) {
        let pairs: Vec<_> = serde_json::from_slice(&part).expect("a peer sends counts");
        add_by_file(&mut sum, &pairs.into_iter().collect());
    }
    sum
}

/// A reader that dies looks like the end of its data, so what was read is held against the plan.
fn reconcile(counts: &ScanCounts, mine: &[Split], job: &Job<'_>) -> Result<()> {
    let rows = |split: &Split| {
        job.plan.sources[split.source].files[split.file].row_groups[split.row_group].rows
    };
    let planned: u64 = mine.iter().map(rows).sum();
    if counts.row_groups != mine.len() as u64 || counts.rows != planned {
        bail!(
            "{} rows of {} row groups were read where {planned} rows of {} were planned; the \
             input is not what its footers say",
            counts.rows,
            counts.row_groups,
            mine.len()
        );
    }
    Ok(())
}

/// Adds up the counts of all processes.
pub(super) fn agree_on_counts(worker: &mut Worker<'_>, counts: &ScanCounts) -> ScanCounts {
    let encoded = serde_json::to_vec(counts).expect("counts are plain data");
    let mut sum = ScanCounts::new();
    for part in worker.shell.collectives.all_gather(encoded.into()) {
        sum.merge(&serde_json::from_slice(&part).expect("a peer sends counts"));
    }
    sum
}

/// Counts of the scan of this process.
pub(super) fn counts(scan: &Scan) -> &ScanCounts {
    &scan.counts
}

/// Agrees on the dictionary of all item ids: sorted, the same in every process.
///
/// Each id goes to the owner of its hash, which keeps it once; the owners' ids are gathered.
pub(super) fn dictionary(worker: &mut Worker<'_>, scan: &Scan, stored: Option<&Stored>) -> Ids {
    const OWNER_SEED: u64 = 1;
    let like = Ids::new(worker.job.plan.item_id_type);
    let used = stored.map(Stored::used_items);
    let readers = scan.items.values().map(|items| &items.ids);
    let columns: Vec<&Ids> = readers.chain(&used).collect();
    let local = worker.pool.install(|| merge_sorted(&columns, &like));
    let peers = worker.shell.peers;
    if peers == 1 {
        return local;
    }
    let mut parts = vec![like.clone(); peers];
    for id in local.iter() {
        parts[(id.stable_hash(OWNER_SEED) % peers as u64) as usize].push(id);
    }
    let outgoing = parts.iter().enumerate().map(|(target, ids)| Outgoing {
        target,
        tag: 0,
        payload: encode_ids(ids).into(),
    });
    let mut owned = Vec::new();
    worker.shell.collectives.all_to_all(outgoing, |incoming| {
        owned.push(decode_ids(&incoming.payload, &like));
    });
    let distinct = merge_sorted(&Vec::from_iter(&owned), &like);
    let gathered = worker.shell.collectives.all_gather(encode_ids(&distinct).into());
    let columns: Vec<Ids> = gathered.iter().map(|part| decode_ids(part, &like)).collect();
    merge_sorted(&Vec::from_iter(&columns), &like)
}

/// Packed rows of the shards that this process owns.
pub(super) struct Shuffled {
    /// By shard, blocks that this process read, with the codes of their readers.
    stayed: BTreeMap<u32, Vec<(usize, Vec<u8>)>>,
    /// By shard, blocks of other processes; items are ranks in the dictionary.
    arrived: BTreeMap<u32, Vec<Bytes>>,
    codes: Codes,
}

/// What codes of blocks stand for that this process read.
struct Codes {
    /// Ranks of items, of each reader.
    ranks: BTreeMap<usize, Vec<u32>>,
    /// By shard, the users of stored blocks.
    users: BTreeMap<u32, Arc<StoredUsers>>,
}

impl Codes {
    fn block<'a>(&'a self, shard: u32, (reader, packed): &'a (usize, Vec<u8>)) -> Block<'a> {
        let users = (*reader == STORED).then(|| self.users[&shard].keyed());
        Block { packed, ranks: Some(&self.ranks[reader]), users }
    }
}

/// Sends every block to the owner of its shard; those of this process's own shards stay as they are.
///
/// Stored rows are those of this process's own shards.
pub(super) fn shuffle(
    worker: &mut Worker<'_>,
    scan: Scan,
    dictionary: &Ids,
    stored: Option<&mut Stored>,
) -> Shuffled {
    let (n_shards, peers) = (worker.job.plan.n_shards, worker.shell.peers);
    let ranks_of = |(&reader, items): (&usize, &SortedIds)| (reader, items.ranks(dictionary));
    let mut ranks: BTreeMap<usize, Vec<u32>> =
        worker.pool.install(|| scan.items.par_iter().map(ranks_of).collect());
    let mut stayed: BTreeMap<u32, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
    let mut arrived = BTreeMap::new();
    let mut users = BTreeMap::new();
    if let Some(stored) = stored {
        ranks.insert(STORED, stored.ranks(dictionary));
        users.clone_from(&stored.users);
        for (shard, packed) in std::mem::take(&mut stored.blocks) {
            stayed.entry(shard).or_default().push((STORED, packed));
        }
    }
    let mut leaving = Vec::new();
    for (reader, shard, packed) in scan.blocks {
        if owner(shard, n_shards, peers) == worker.shell.index {
            stayed.entry(shard).or_default().push((reader, packed));
        } else {
            leaving.push((reader, shard, packed));
        }
    }
    let outgoing = leaving.into_iter().map(|(reader, shard, packed)| Outgoing {
        target: owner(shard, n_shards, peers),
        tag: u64::from(shard),
        payload: with_items(&packed, &ranks[&reader]).into(),
    });
    worker.shell.collectives.all_to_all(outgoing, |incoming| {
        arrived.entry(incoming.tag as u32).or_insert_with(Vec::new).push(incoming.payload);
    });
    Shuffled { stayed, arrived, codes: Codes { ranks, users } }
}

impl Shuffled {
    /// The blocks of a shard that were read from the logs, or from stored state.
    pub(super) fn blocks(&self, shard: u32, are_stored: bool) -> impl Iterator<Item = Block<'_>> {
        let stayed = self.stayed.get(&shard).into_iter().flatten();
        let stayed = stayed.filter(move |(reader, _)| (*reader == STORED) == are_stored);
        let ours = stayed.map(move |block| self.codes.block(shard, block));
        let others = self.arrived.get(&shard).into_iter().flatten().filter(move |_| !are_stored);
        ours.chain(others.map(|packed| Block { packed, ranks: None, users: None }))
    }
}

/// The process that owns a shard: contiguous ranges, as equal as they can be.
pub(super) fn owner(shard: u32, n_shards: u32, peers: usize) -> usize {
    (shard as usize * peers) / n_shards as usize
}

/// Number of shards of each process, in order.
pub(super) fn shards_of(n_shards: u32, peers: usize) -> impl Iterator<Item = u32> {
    // The first shard that is not below `process * n_shards / peers`.
    let first = move |process: usize| (process * n_shards as usize).div_ceil(peers) as u32;
    (0..peers).map(move |process| first(process + 1) - first(process))
}

/// The shards of one process.
pub(super) fn owned_shards(worker: &Worker<'_>) -> Vec<u32> {
    let (n_shards, peers) = (worker.job.plan.n_shards, worker.shell.peers);
    (0..n_shards).filter(|&shard| owner(shard, n_shards, peers) == worker.shell.index).collect()
}

/// What the histories stage gives.
pub(super) struct Prepared {
    /// The shards of this process, in order.
    pub(super) shards: Vec<Histories>,
    /// Every item id of the log, sorted, with its sums over all processes.
    pub(super) dictionary: Ids,
    /// Five sums per id of the dictionary.
    pub(super) sums: Vec<i64>,
    /// First and last event per id of the dictionary.
    pub(super) times: Vec<i64>,
    /// Index per id of the dictionary, `u32::MAX` for items not kept.
    pub(super) idx_of_rank: Vec<u32>,
    /// Ids of the items kept; the index is the position.
    pub(super) item_ids: Ids,
    /// Sums by (segment, rank), over all processes.
    pub(super) segment_sums: BTreeMap<(u32, u32), ItemSum>,
    /// Events that counted, over all processes.
    pub(super) rows_used: u64,
    /// Events that did not count, over all processes.
    pub(super) filtered: Filtered,
    /// Pairs that did not enter the histories, over all processes.
    pub(super) dropped: Dropped,
    /// When events count.
    pub(super) calendar: Calendar,
}

/// Builds the histories of the shards of this process.
pub(super) fn histories(
    worker: &mut Worker<'_>,
    shuffled: Shuffled,
    dictionary: Ids,
    calendar: Calendar,
    segment_of: Option<&(dyn Fn(IdRef<'_>) -> u32 + Sync)>,
) -> Result<Prepared> {
    let totals = ItemTotals::new(dictionary.len());
    let kinds = worker.job.plan.event_kinds();
    let drafts = drafts(worker, shuffled, &kinds, &calendar, &totals, segment_of);
    let sums = worker.shell.collectives.all_reduce_sum(totals.sums());
    let sums = sums.map_err(|_| Refused::too_heavy())?;
    let times = reduce_times(worker, totals.times());
    let heaviest = worker.shell.collectives.all_reduce_max(totals.heaviest());
    drop(totals);
    if heaviest >= histories::MAX || !fits(&sums, heaviest) {
        return Err(Refused::too_heavy());
    }
    let (idx_of_rank, item_ids) = kept(&worker.job.plan, &dictionary, &sums);
    let segment_sums = gather_segment_sums(worker, &drafts);
    let (rows_used, filtered) = sum_filtered(worker, &drafts)?;
    let cap = worker.job.plan.spec.history.interactions_per_user_max;
    let finished: Vec<(Histories, Dropped)> = worker.pool.install(|| {
        drafts
            .into_par_iter()
            .map(|(shard, draft)| histories::finish(draft, shard, &idx_of_rank, cap))
            .collect()
    });
    let dropped = sum_dropped(worker, finished.iter().map(|(_, dropped)| dropped))?;
    let shards = finished.into_iter().map(|(histories, _)| histories).collect();
    Ok(Prepared {
        shards,
        dictionary,
        sums,
        times,
        idx_of_rank,
        item_ids,
        segment_sums,
        rows_used,
        filtered,
        dropped,
        calendar,
    })
}

/// The index of each id of the dictionary, `u32::MAX` where too few users have it, and the ids of
/// the items kept.
pub(super) fn kept(plan: &Plan, dictionary: &Ids, sums: &[i64]) -> (Vec<u32>, Ids) {
    let support_min = i64::from(plan.spec.history.users_per_item_min).max(1);
    let mut kept = Vec::new();
    let idx_of_rank: Vec<u32> = (0..dictionary.len())
        .map(|rank| {
            if sum_of(sums, rank).users < support_min {
                return u32::MAX;
            }
            kept.push(rank);
            kept.len() as u32 - 1
        })
        .collect();
    (idx_of_rank, dictionary.take(kept))
}

fn drafts(
    worker: &Worker<'_>,
    shuffled: Shuffled,
    kinds: &[EventKind],
    calendar: &Calendar,
    totals: &ItemTotals,
    segment_of: Option<&(dyn Fn(IdRef<'_>) -> u32 + Sync)>,
) -> Vec<(u32, Draft)> {
    let plan = &worker.job.plan;
    let params = histories::Params {
        kinds,
        calendar,
        interactions_per_user_max: plan.spec.history.interactions_per_user_max,
        segment_of,
    };
    let like = Ids::new(plan.user_id_type);
    let Shuffled { mut stayed, mut arrived, codes } = shuffled;
    let shards: Vec<_> = owned_shards(worker)
        .into_iter()
        .map(|shard| (shard, stayed.remove(&shard), arrived.remove(&shard)))
        .collect();
    let (observer, n_threads) = (worker.job.observer, worker.job.threads);
    // One for each thread that is at work.
    let scratches: Mutex<Vec<Scratch<'_>>> = Mutex::default();
    let held = || scratches.lock().unwrap_or_else(PoisonError::into_inner);
    worker.pool.install(|| {
        let shards = shards.into_par_iter().with_max_len(1);
        let drafts = shards.map(|(shard, stayed, arrived)| {
            let (stayed, arrived) = (stayed.unwrap_or_default(), arrived.unwrap_or_default());
            let ours = stayed.iter().map(|block| codes.block(shard, block));
            let others = arrived.iter().map(|packed| Block { packed, ranks: None, users: None });
            let blocks: Vec<Block<'_>> = ours.chain(others).collect();
            let scratch = held().pop();
            let mut scratch = scratch.unwrap_or_else(|| Scratch::new(totals, n_threads));
            let draft = histories::draft(&blocks, &like, params, &mut scratch);
            held().push(scratch);
            observer.advance(draft.rows_read);
            (shard, draft)
        });
        drafts.collect()
    })
}

/// First events by minimum, last events by maximum.
///
/// Each process reduces a range of items, then the ranges are gathered: what a process sends and holds
/// does not grow with their number.
fn reduce_times(worker: &mut Worker<'_>, times: Vec<i64>) -> Vec<i64> {
    const PLACES_PER_BLOCK: usize = BLOCK_BYTES / 8;
    let (index, peers) = (worker.shell.index, worker.shell.peers);
    if peers == 1 {
        return times;
    }
    let n_items = times.len() / 2;
    let first = |process: usize| 2 * (n_items * process / peers);
    let encode = |times: &[i64]| -> Bytes { times.iter().flat_map(|t| t.to_le_bytes()).collect() };
    let outgoing = (0..peers).flat_map(|target| {
        let (start, end) = (first(target), first(target + 1));
        (start..end).step_by(PLACES_PER_BLOCK).map(move |start| (target, start, end))
    });
    let outgoing = outgoing.map(|(target, start, end)| {
        let payload = encode(&times[start..end.min(start + PLACES_PER_BLOCK)]);
        Outgoing { target, tag: start as u64, payload }
    });
    let own = first(index)..first(index + 1);
    let mut reduced = times[own.clone()].to_vec();
    worker.shell.collectives.all_to_all(outgoing, |incoming| {
        for (place, other) in (incoming.tag as usize..).zip(decode_times(&incoming.payload)) {
            let reduced = &mut reduced[place - own.start];
            *reduced = if place % 2 == 0 { other.min(*reduced) } else { other.max(*reduced) };
        }
    });
    let parts = worker.shell.collectives.all_gather(encode(&reduced));
    parts.iter().flat_map(|part| decode_times(part)).collect()
}

fn decode_times(bytes: &[u8]) -> impl Iterator<Item = i64> {
    let words = bytes.chunks_exact(8);
    words.map(|word| i64::from_le_bytes(word.try_into().expect("8 bytes")))
}

fn gather_segment_sums(
    worker: &mut Worker<'_>,
    drafts: &[(u32, Draft)],
) -> BTreeMap<(u32, u32), ItemSum> {
    let mut local: BTreeMap<(u32, u32), ItemSum> = BTreeMap::new();
    for (_, draft) in drafts {
        for (&key, sum) in &draft.segment_sums {
            local.entry(key).or_default().merge(sum);
        }
    }
    if worker.shell.peers == 1 {
        return local;
    }
    let mut encoded = Vec::with_capacity(48 * local.len());
    for ((segment, rank), sum) in &local {
        encoded.extend_from_slice(&segment.to_le_bytes());
        encoded.extend_from_slice(&rank.to_le_bytes());
        for value in [sum.events, sum.users, sum.weight, sum.affinity, sum.newer] {
            encoded.extend_from_slice(&value.to_le_bytes());
        }
    }
    let mut gathered: BTreeMap<(u32, u32), ItemSum> = BTreeMap::new();
    for part in worker.shell.collectives.all_gather(encoded.into()) {
        for row in part.chunks_exact(48) {
            let word = |at: usize| i64::from_le_bytes(row[at..at + 8].try_into().expect("8 bytes"));
            let key = word(0) as u64;
            let sum = ItemSum {
                events: word(8),
                users: word(16),
                weight: word(24),
                affinity: word(32),
                newer: word(40),
            };
            gathered.entry((key as u32, (key >> 32) as u32)).or_default().merge(&sum);
        }
    }
    gathered
}

/// Events used, and events that did not count.
fn sum_filtered(worker: &mut Worker<'_>, drafts: &[(u32, Draft)]) -> Result<(u64, Filtered)> {
    let mut counts = vec![0i64; 7];
    for (_, draft) in drafts {
        for (sum, (_, count)) in counts.iter_mut().zip(draft.filtered.by_reason()) {
            *sum += count as i64;
        }
        counts[6] += draft.rows_used as i64;
    }
    let sums = worker.shell.collectives.all_reduce_sum(counts)?;
    let filtered = Filtered {
        after_as_of: sums[0] as u64,
        duplicate: sums[1] as u64,
        undone: sums[2] as u64,
        undo_without_event: sums[3] as u64,
        before_window: sums[4] as u64,
        faded: sums[5] as u64,
    };
    Ok((sums[6] as u64, filtered))
}

fn sum_dropped<'a>(
    worker: &mut Worker<'_>,
    dropped: impl Iterator<Item = &'a Dropped>,
) -> Result<Dropped> {
    let mut counts = vec![0i64; 3];
    for dropped in dropped {
        counts[0] += dropped.too_few_users as i64;
        counts[1] += dropped.over_cap as i64;
        counts[2] += dropped.users_over_cap as i64;
    }
    let sums = worker.shell.collectives.all_reduce_sum(counts)?;
    Ok(Dropped {
        too_few_users: sums[0] as u64,
        over_cap: sums[1] as u64,
        users_over_cap: sums[2] as u64,
    })
}
