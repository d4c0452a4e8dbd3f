//! Rows of the logs, read by a few threads and cut into packed blocks by user shard.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Context, Result};
use arrow::array::{Array, RecordBatch};

use super::Log;
use super::counts::{Rejected, ScanCounts};
use crate::job::plan::{FilePlan, Plan, SourcePlan};
use crate::kernels::decay::ValueTransform;
use crate::kernels::dictionary::Interner;
use crate::kernels::event_rows::EventRows;
use crate::kernels::histories::EventKind;
use crate::schema::{
    EventBatch, KIND_UNLISTED, TIME_INVALID, TimeReader, read_batch, with_folder_columns,
};
use crate::store;
use crate::types::{IdRef, Ids, shard_of};

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
    /// Rows of one shard, packed; items are codes of the thread's own interner.
    Block {
        /// Which thread.
        reader: usize,
        /// The shard of all users in it.
        shard: u32,
        /// [`EventRows::pack`].
        packed: Vec<u8>,
    },
    /// The thread has read its last row.
    Finished {
        /// Which thread.
        reader: usize,
        /// Its item ids in the order of their codes.
        items: Ids,
        /// What became of its rows.
        counts: ScanCounts,
    },
}

/// What all reading threads share.
pub(super) struct ScanContext<'a> {
    /// The plan.
    pub(super) plan: &'a Plan,
    /// The opened logs.
    pub(super) logs: &'a [Log],
    /// Meaning of the plan's kinds.
    pub(super) kinds: &'a [EventKind],
    /// Users whose rows do not count, by digest.
    pub(super) denied: &'a HashSet<u128>,
    /// Splits of this process.
    pub(super) splits: &'a [Split],
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
    while let Some(&split) = context.splits.get(context.next.fetch_add(1, Relaxed)) {
        if !scanner.split(split, emit)? {
            return Ok(());
        }
    }
    scanner.finish(emit);
    Ok(())
}

struct Scanner<'a> {
    context: &'a ScanContext<'a>,
    reader: usize,
    items: Interner,
    shards: Vec<EventRows>,
    block_rows: usize,
    counts: ScanCounts,
    times: Vec<TimeReader>,
}

/// Ids longer than this are taken for garbage.
const ID_BYTES_MAX: usize = 1_024;

impl<'a> Scanner<'a> {
    fn new(context: &'a ScanContext<'a>, reader: usize) -> Self {
        let plan = context.plan;
        let users = Ids::new(plan.user_id_type);
        let zone = plan.time_zone();
        let times = plan
            .sources
            .iter()
            .map(|source| TimeReader::new(source.time_unit.as_deref(), zone.clone()))
            .collect();
        Self {
            context,
            reader,
            items: Interner::new_like(&Ids::new(plan.item_id_type)),
            shards: (0..plan.n_shards).map(|_| EventRows::new_like(&users)).collect(),
            block_rows: ((1 << 19) / plan.n_shards as usize).clamp(256, 8_192),
            counts: ScanCounts::new(),
            times,
        }
    }

    fn split(&mut self, split: Split, emit: &mut dyn FnMut(Scanned) -> bool) -> Result<bool> {
        let source = &self.context.plan.sources[split.source];
        let file = &source.files[split.file];
        let log = &self.context.logs[split.source];
        let batches = store::read_row_group(
            &log.location,
            &log.files[split.file],
            log.footer(split.file)?,
            split.row_group,
            &stored_columns(source, file),
        )?;
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
        Ok(true)
    }

    fn batch(
        &mut self,
        batch: &RecordBatch,
        split: Split,
        first_row: u64,
        emit: &mut dyn FnMut(Scanned) -> bool,
    ) -> Result<bool> {
        let context = self.context;
        let source = &context.plan.sources[split.source];
        let file = &source.files[split.file];
        let (times, counts) = (&mut self.times[split.source], &mut self.counts);
        let mut unlisted = |event: &str, count: u64| {
            *counts.unlisted_events.entry(event.to_owned()).or_default() += count;
        };
        let unusable = || format!("\"{}\" cannot be read as events", file.url);
        let batch = with_folder_columns(batch, &file.partitions, &source.columns.names())
            .with_context(unusable)?;
        let columns = read_batch(&batch, &source.columns, &source.kinds, times, &mut unlisted)
            .with_context(unusable)?;
        self.counts.rows += columns.kinds.len() as u64;
        for row in 0..columns.kinds.len() {
            match self.row(&columns, row, source.first_kind) {
                Ok(None) => {}
                Ok(Some(full)) => {
                    if !self.flush(full, emit) {
                        return Ok(false);
                    }
                }
                Err(Unused::Filtered(reason)) => self.counts.filter(reason, 1),
                Err(Unused::Rejected(reason)) => {
                    self.reject(file, split.row_group, reason, first_row + row as u64);
                }
            }
        }
        Ok(true)
    }

    /// Takes one row; returns its shard if that has a block full.
    #[inline]
    fn row(
        &mut self,
        columns: &EventBatch,
        row: usize,
        first_kind: usize,
    ) -> Result<Option<u32>, Unused> {
        let plan = self.context.plan;
        let user = columns.users.get_opt(row).ok_or(Unused::Filtered("no_user"))?;
        if is_empty(user) {
            return Err(Unused::Filtered("no_user"));
        }
        if !self.context.denied.is_empty() && self.context.denied.contains(&user.digest()) {
            return Err(Unused::Filtered("denied_user"));
        }
        if plan.sample_users.is_some_and(|share| !is_sampled(user, share)) {
            return Err(Unused::Filtered("not_sampled"));
        }
        if columns.kinds[row] == KIND_UNLISTED {
            return Err(Unused::Filtered("event_without_weight"));
        }
        let kind = first_kind + usize::from(columns.kinds[row]);
        let item = columns.items.get_opt(row).ok_or(Unused::Rejected("null_item"))?;
        check_id(user, "user_id_too_long")?;
        if is_empty(item) {
            return Err(Unused::Rejected("empty_item"));
        }
        check_id(item, "item_id_too_long")?;
        let time = match &columns.times {
            Some(times) if times[row] == TIME_INVALID => {
                return Err(Unused::Rejected("time_null_or_out_of_range"));
            }
            Some(times) => times[row],
            None => 0,
        };
        let value = value(columns, row, &self.context.kinds[kind])?;
        if columns.times.is_some() {
            self.counts.oldest_us = self.counts.oldest_us.min(time);
            if plan.as_of_us.is_none_or(|as_of| time < as_of) {
                self.counts.newest_us = self.counts.newest_us.max(time);
            }
        }
        let shard = shard_of(user, plan.n_shards);
        let rows = &mut self.shards[shard as usize];
        rows.users.push(user);
        rows.items.push(self.items.intern(item));
        rows.kinds.push(kind as u8);
        rows.values.push(value);
        rows.times.push(time);
        if let Some(ids) = &columns.ids {
            rows.digests.resize(rows.items.len() - 1, 0);
            rows.digests.push(ids.get_opt(row).map_or(0, |id| id.digest() | 1 << 127));
        } else if !rows.digests.is_empty() {
            rows.digests.push(0);
        }
        Ok((rows.len() >= self.block_rows).then_some(shard))
    }

    fn reject(&mut self, file: &FilePlan, row_group: usize, reason: &str, row: u64) {
        let place = (file.url.clone(), row_group as u32, reason.to_owned());
        let rejected =
            self.counts.rejected.entry(place).or_insert(Rejected { count: 0, first_row: row });
        rejected.count += 1;
    }

    fn flush(&mut self, shard: u32, emit: &mut dyn FnMut(Scanned) -> bool) -> bool {
        let rows = &mut self.shards[shard as usize];
        let packed = rows.pack();
        rows.clear();
        emit(Scanned::Block { reader: self.reader, shard, packed })
    }

    fn finish(mut self, emit: &mut dyn FnMut(Scanned) -> bool) {
        for shard in 0..self.shards.len() as u32 {
            if !self.shards[shard as usize].is_empty() && !self.flush(shard, emit) {
                return;
            }
        }
        let items = self.items.into_ids();
        emit(Scanned::Finished { reader: self.reader, items, counts: self.counts });
    }
}

/// Why a row does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unused {
    Filtered(&'static str),
    Rejected(&'static str),
}

/// Mapped columns that are in the file itself; the others are keys of its folders.
fn stored_columns<'a>(source: &'a SourcePlan, file: &FilePlan) -> Vec<&'a str> {
    let mut names = source.columns.names();
    names.retain(|name| !file.partitions.contains_key(*name));
    names
}

fn is_empty(id: IdRef<'_>) -> bool {
    matches!(id, IdRef::Bytes(id) if id.is_empty())
}

fn check_id(id: IdRef<'_>, reason: &'static str) -> Result<(), Unused> {
    match id {
        IdRef::Bytes(id) if id.len() > ID_BYTES_MAX => Err(Unused::Rejected(reason)),
        _ => Ok(()),
    }
}

/// Whether a user belongs to the sample: the same users for every run and log.
pub(super) fn is_sampled(user: IdRef<'_>, share: f64) -> bool {
    const SAMPLE_SEED: u64 = 0x7361_6D70_6C65;
    (user.stable_hash(SAMPLE_SEED) as f64) < share * 2f64.powi(64)
}

/// The value of a row as its kind wants it: 1 where the kind does not look at it.
pub(super) fn value(columns: &EventBatch, row: usize, kind: &EventKind) -> Result<f32, Unused> {
    let looks = kind.transform != ValueTransform::None || kind.negative_undoes;
    let Some(values) = columns.values.as_ref().filter(|_| looks) else { return Ok(1.0) };
    if values.is_null(row) {
        return Err(Unused::Rejected("value_null"));
    }
    let value = values.value(row);
    if value.is_nan() {
        return Err(Unused::Rejected("value_nan"));
    }
    let value = value as f32;
    if value.is_infinite() {
        return Err(Unused::Rejected("value_infinite"));
    }
    if value == 0.0 {
        return Err(Unused::Filtered("value_zero"));
    }
    if value < 0.0 && !kind.negative_undoes {
        return Err(Unused::Rejected("value_negative"));
    }
    if value > 0.0 && kind.transform == ValueTransform::None { Ok(1.0) } else { Ok(value) }
}
