//! Rows of the logs, read by a few threads and cut into packed blocks by user shard.

mod deal;
mod sift;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result};
use arrow::array::RecordBatch;

use super::counts::ScanCounts;
use super::prepare::FileCounts;
use super::side::Deleted;
use super::state::Files;
use crate::job::plan::Plan;
use crate::kernels::dictionary::SortedIds;
use crate::kernels::histories::EventKind;
use crate::schema::{TimeReader, read_batch, with_folder_columns};
use crate::store::{IoRuntime, OpenFile, RowGroupReader, RowGroupRequest, RowGroups};
use deal::Dealer;
pub(super) use deal::block_rows;
pub(super) use sift::{DELETED_ITEM, DELETED_USER};
use sift::{Place, Sieve};
#[cfg(test)]
pub(super) use sift::{Unused, is_sampled, value};

/// A row group to be read by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Position of the log in the plan.
    pub(super) source: usize,
    /// Position of the file in the log.
    pub(super) file: usize,
    /// Row group of the file.
    pub(super) row_group: usize,
    /// Row number in the file of its first row.
    pub(super) first_row: u64,
    /// Size by which processes share the work.
    pub(super) bytes: u64,
}

/// All row groups of the plan, in order.
pub(super) fn splits(plan: &Plan) -> Vec<Split> {
    let mut splits = Vec::new();
    for (source, source_plan) in plan.sources.iter().enumerate() {
        for (file, file_plan) in source_plan.files.iter().enumerate() {
            let mut first_row = 0;
            for (row_group, group) in file_plan.row_groups.iter().enumerate() {
                splits.push(Split { source, file, row_group, first_row, bytes: group.bytes });
                first_row += group.rows;
            }
        }
    }
    splits
}

/// Sorts splits by size, and deals them: largest first, each to the process with the least so far.
///
/// Every process computes the same from the same plan.
fn dealt(splits: &mut [Split], peers: usize) -> impl Iterator<Item = usize> {
    splits.sort_by_key(|split| std::cmp::Reverse(split.bytes));
    let mut load = vec![0u64; peers];
    splits.iter().map(move |split| {
        let least = (0..peers).min_by_key(|&process| (load[process], process)).unwrap_or(0);
        load[least] += split.bytes.max(1);
        least
    })
}

/// The splits of one process.
pub(super) fn assigned(mut splits: Vec<Split>, index: usize, peers: usize) -> Vec<Split> {
    let owners: Vec<usize> = dealt(&mut splits, peers).collect();
    let owned = splits.into_iter().zip(owners).filter(|(_, owner)| *owner == index);
    owned.map(|(split, _)| split).collect()
}

/// Rows of the row groups that each process is assigned.
pub(super) fn rows_by_process(plan: &Plan, peers: usize) -> Vec<u64> {
    let mut splits = splits(plan);
    let owners: Vec<usize> = dealt(&mut splits, peers).collect();
    let mut rows = vec![0; peers];
    for (Split { source, file, row_group, .. }, owner) in splits.into_iter().zip(owners) {
        rows[owner] += plan.sources[source].files[file].row_groups[row_group].rows;
    }
    rows
}

/// What a reading thread sends to the dataflow.
pub(super) enum Scanned {
    /// Rows, packed; items are codes of the thread's own interner.
    Blocks {
        /// Which thread.
        reader: usize,
        /// The shard of all users of a block, and [`EventRows::pack`].
        blocks: Vec<(u32, Vec<u8>)>,
    },
    /// The thread has read its last row.
    Finished {
        /// Which thread.
        reader: usize,
        /// Its item ids with their codes.
        items: SortedIds,
        /// What became of its rows.
        counts: ScanCounts,
        /// The same by file, where state is kept.
        by_file: FileCounts,
    },
}

/// What all reading threads share.
pub(super) struct ScanContext<'a> {
    /// The plan.
    pub(super) plan: &'a Plan,
    /// Meaning of the plan's kinds.
    pub(super) kinds: &'a [EventKind],
    /// Users whose rows do not count, by digest.
    pub(super) denied: &'a HashSet<u128>,
    /// Users and items that are to be gone.
    pub(super) deleted: &'a Deleted,
    /// Numbers of the files, where state is kept.
    pub(super) files: Option<&'a Files>,
    /// Splits of this process.
    pub(super) splits: &'a [Split],
    /// Their row groups, from [`row_groups`].
    pub(super) row_groups: &'a RowGroups,
    /// The next split that nobody has taken.
    pub(super) next: &'a AtomicUsize,
    /// Called after every batch with its rows.
    pub(super) advance: &'a (dyn Fn(u64) + Sync),
}

/// Reads splits until none is left, giving blocks to `emit`, which returns false to stop.
///
/// # Errors
/// A row group cannot be read, or a mapped column cannot be used.
pub(super) fn read_splits(
    context: &ScanContext<'_>,
    reader: usize,
    emit: &mut dyn FnMut(Scanned) -> bool,
) -> Result<()> {
    let mut scanner = Scanner::new(context, reader);
    loop {
        let place = context.next.fetch_add(1, Relaxed);
        let Some(&split) = context.splits.get(place) else { break };
        if !scanner.split(split, context.row_groups.take(place)?, emit)? {
            return Ok(());
        }
    }
    scanner.finish(emit);
    Ok(())
}

struct Scanner<'a> {
    context: &'a ScanContext<'a>,
    dealer: Dealer,
    outbox: Outbox,
    /// Of the splits that are done.
    total: ScanCounts,
    by_file: FileCounts,
    /// Of the split at hand.
    counts: ScanCounts,
    times: Vec<TimeReader>,
    /// Rows of the batch at hand that count.
    rows: Vec<u32>,
    /// Values of all rows of the batch at hand; empty in a log without.
    values: Vec<f32>,
}

impl<'a> Scanner<'a> {
    fn new(context: &'a ScanContext<'a>, reader: usize) -> Self {
        let plan = context.plan;
        let zone = plan.time_zone();
        let times = plan
            .sources
            .iter()
            .map(|source| TimeReader::new(source.time_unit.as_deref(), zone.clone()))
            .collect();
        Self {
            context,
            dealer: Dealer::new(plan),
            outbox: Outbox { reader, blocks: Vec::new(), bytes: 0 },
            total: ScanCounts::new(),
            by_file: FileCounts::new(),
            counts: ScanCounts::new(),
            times,
            rows: Vec::new(),
            values: Vec::new(),
        }
    }

    fn split(
        &mut self,
        split: Split,
        batches: RowGroupReader,
        emit: &mut dyn FnMut(Scanned) -> bool,
    ) -> Result<bool> {
        let mut row = split.first_row;
        for batch in batches {
            let batch = batch?;
            let n_rows = batch.num_rows() as u64;
            if !self.batch(&batch, split, row, emit)? {
                return Ok(false);
            }
            row += n_rows;
            (self.context.advance)(n_rows);
        }
        self.counts.row_groups += 1;
        let counts = std::mem::take(&mut self.counts);
        self.total.merge(&counts);
        if self.context.files.is_some() {
            let of_file = self.by_file.entry((split.source as u32, split.file as u32));
            of_file.or_default().merge(&counts);
        }
        Ok(true)
    }

    fn batch(
        &mut self,
        batch: &RecordBatch,
        split: Split,
        first_row: u64,
        emit: &mut dyn FnMut(Scanned) -> bool,
    ) -> Result<bool> {
        let Self { context, dealer, outbox, counts, rows, values, .. } = self;
        let source = &context.plan.sources[split.source];
        let file = &source.files[split.file];
        let times = &mut self.times[split.source];
        let mut unlisted = |event: &str, count: u64| {
            *counts.unlisted_events.entry(event.to_owned()).or_default() += count;
        };
        let unusable = || format!("\"{}\" cannot be read as events", file.url);
        let batch = with_folder_columns(batch, &file.partitions, &source.columns.names())
            .with_context(unusable)?;
        let columns = read_batch(&batch, &source.columns, &source.kinds, times, &mut unlisted)
            .with_context(unusable)?;
        counts.rows += columns.kinds.len() as u64;
        let place = Place { file, row_group: split.row_group, first_row };
        let mut sieve = Sieve { context, columns: &columns, place, counts, rows };
        sieve.sift(source.first_kind, values);
        let mut post = |shard, packed| outbox.post(shard, packed, emit);
        let number = context.files.map(|files| files.number(split.source, split.file));
        let first_kind = source.first_kind;
        let has_kinds = first_kind > 0 || source.columns.event.is_some();
        let of_rows =
            deal::Batch { columns: &columns, values, has_kinds, first_kind, file: number };
        Ok(dealer.deal(&of_rows, rows, &mut post))
    }

    fn finish(mut self, emit: &mut dyn FnMut(Scanned) -> bool) {
        let Self { dealer, outbox, .. } = &mut self;
        if !dealer.flush_all(&mut |shard, packed| outbox.post(shard, packed, emit))
            || !outbox.send(emit)
        {
            return;
        }
        let reader = outbox.reader;
        let items = self.dealer.into_items();
        emit(Scanned::Finished { reader, items, counts: self.total, by_file: self.by_file });
    }
}

/// Blocks that are sent together: a word to the dataflow costs as much as some thousand rows.
struct Outbox {
    reader: usize,
    blocks: Vec<(u32, Vec<u8>)>,
    bytes: usize,
}

impl Outbox {
    /// Takes a block; false as soon as `emit` says so.
    fn post(&mut self, shard: u32, packed: Vec<u8>, emit: &mut dyn FnMut(Scanned) -> bool) -> bool {
        self.bytes += packed.len();
        self.blocks.push((shard, packed));
        self.bytes < SENT_BYTES || self.send(emit)
    }

    /// Sends what is there.
    fn send(&mut self, emit: &mut dyn FnMut(Scanned) -> bool) -> bool {
        self.bytes = 0;
        emit(Scanned::Blocks { reader: self.reader, blocks: std::mem::take(&mut self.blocks) })
    }
}

/// Blocks of so many bytes are sent together.
const SENT_BYTES: usize = 1 << 20;

/// Rows that are read at a time: of so many, what a reader makes of them is in its core's cache; more where
/// each of many shards would have next to none.
fn batch_rows(n_shards: u32) -> usize {
    (128 * n_shards as usize).clamp(16_384, 65_536)
}

/// Mapped columns that are in the file itself; the others are keys of its folders.
/// What is read of splits; `logs` are the files of the plan's logs.
pub(super) fn row_groups(
    runtime: &IoRuntime,
    plan: &Plan,
    logs: &[Vec<OpenFile>],
    splits: &[Split],
) -> RowGroups {
    let request = |split: &Split| {
        let source = &plan.sources[split.source];
        let file = &source.files[split.file];
        let mut columns = source.columns.names();
        columns.retain(|name| !file.partitions.contains_key(*name));
        let rows = u128::from(file.row_groups[split.row_group].rows);
        let bytes = u128::from(file.bytes) * rows / u128::from(file.rows().max(1));
        RowGroupRequest {
            file: logs[split.source][split.file].clone(),
            row_group: split.row_group,
            columns: columns.into_iter().map(str::to_owned).collect(),
            bytes: bytes as u64,
        }
    };
    RowGroups::new(runtime, splits.iter().map(request).collect(), batch_rows(plan.n_shards))
}
