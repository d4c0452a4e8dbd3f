//! Published tables: rows from results, batches of a fixed size, one file after the other.

mod user_lists;

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, Int32Array};
use rayon::prelude::*;

use super::changes::{Beside, Changes};
use super::lists::ListInputs;
use super::models::{PopularityModel, SegmentPopularity};
use super::prepare::Prepared;
use super::side::{ItemFacts, Segments};
use super::{Worker, counts::ScanCounts};
use crate::kernels::debias::DebiasWeights;
use crate::kernels::item_totals::{ItemSum, sum_of};
use crate::kernels::{NeighborLists, popularity};
use crate::schema::changes::KeyRange;
use crate::schema::{
    DebiasWeightRows, DefaultTopKRows, IdRows, IdTypes, ItemNeighborRows,
    ItemPopularityBySegmentRows, ItemPopularityRows, ItemRows, RejectRows, Table, UserRows, tables,
};
use crate::store::{BATCH_ROWS, EncodedFile, Output, PublishedFile, RunPath, TableFile, put_file};
use crate::types::{AFFINITY_ONE, Histories, ItemIdx};

pub(super) use user_lists::ListCounts;

/// Items per file of a table that is cut by items.
pub(super) const ITEMS_PER_PART: usize = 65_536;

/// Where and how tables of this run are written.
pub(super) struct Tables<'a> {
    pub(super) output: &'a Output,
    pub(super) path: &'a RunPath,
    pub(super) ids: IdTypes,
    /// Whether the logs say when things happened.
    pub(super) has_times: bool,
    /// Of a run that tells its changes: the generation that they start from.
    pub(super) changes: Option<&'a Changes>,
}

impl Tables<'_> {
    fn start(&self, table: &Table) -> Result<TableFile> {
        Ok(TableFile::new(table.name, &table.arrow_schema(self.ids), table.key)?)
    }

    pub(super) fn put(&self, file: TableFile, part: u32, n_parts: u32) -> Result<PublishedFile> {
        self.put_encoded(file.finish()?, (part, n_parts))
    }

    /// Writes a file, unless it is there as an earlier run wrote it.
    fn put_encoded(&self, file: EncodedFile, parts: (u32, u32)) -> Result<PublishedFile> {
        let path = self.path.table_part(&file.table, parts.0, parts.1);
        let same = self.changes.and_then(|of| of.same(self.output, &path, &file));
        same.map_or_else(|| Ok(put_file(self.output, &path, file)?), Ok)
    }

    /// The same with the file of its changes, where those are told.
    fn put_with_changes(
        &self,
        table: &'static Table,
        file: TableFile,
        parts: (u32, u32),
        beside: Beside<'_>,
    ) -> Result<Vec<PublishedFile>> {
        let encoded = file.finish()?;
        let changes = self.changes.and_then(|of| of.file(table, self.ids, &encoded, beside));
        let files = std::iter::once(encoded).chain(changes);
        files.map(|file| self.put_encoded(file, parts)).collect()
    }

    /// Writes one file of `n_rows` rows; `batch` gives the rows of a range.
    fn whole(
        &self,
        table: &'static Table,
        n_rows: usize,
        batch: impl Fn(std::ops::Range<usize>) -> Result<arrow::array::RecordBatch>,
    ) -> Result<Vec<PublishedFile>> {
        let mut file = self.start(table)?;
        for start in (0..n_rows).step_by(BATCH_ROWS) {
            file.write(&batch(start..n_rows.min(start + BATCH_ROWS))?)?;
        }
        self.put_with_changes(table, file, (0, 1), Beside::Range(&KeyRange::default()))
    }

    /// `items`: every id of the log.
    pub(super) fn items(
        &self,
        prepared: &Prepared,
        facts: &ItemFacts,
    ) -> Result<Vec<PublishedFile>> {
        // Items without an event have the ends of the range, logs without times have zeros.
        let time = |time: i64| (self.has_times && time.unsigned_abs() < 1 << 62).then_some(time);
        self.whole(&tables::ITEMS, prepared.dictionary.len(), |rows| {
            let idx = |rank: usize| prepared.idx_of_rank[rank];
            let sums: Vec<ItemSum> =
                rows.clone().map(|rank| sum_of(&prepared.sums, rank)).collect();
            let reason = |rank: usize, sum: &ItemSum| match (idx(rank), sum.users) {
                (u32::MAX, 0) => Some("outside_window"),
                (u32::MAX, _) => Some("too_few_users"),
                _ => None,
            };
            let rows_u32 = rows.clone().map(|rank| rank as u32).collect();
            let batch = ItemRows {
                item: IdRows { ids: &prepared.dictionary, rows: rows_u32 },
                item_idx: rows
                    .clone()
                    .map(|rank| (idx(rank) != u32::MAX).then_some(i64::from(idx(rank))))
                    .collect(),
                title: rows.clone().map(|rank| facts.titles[rank].as_deref()).collect(),
                events: sums.iter().map(|sum| sum.events).collect(),
                users: sums.iter().map(|sum| sum.users).collect(),
                first_event: rows.clone().map(|rank| time(prepared.times[2 * rank])).collect(),
                last_event: rows.clone().map(|rank| time(prepared.times[2 * rank + 1])).collect(),
                eligible: rows.clone().map(|rank| idx(rank) != u32::MAX).collect(),
                reason: rows.clone().zip(&sums).map(|(rank, sum)| reason(rank, sum)).collect(),
                recommendable: facts.recommendable[rows.clone()].to_vec(),
            };
            Ok(batch.into_batch(self.ids)?)
        })
    }

    /// `item_popularity`: the items kept.
    pub(super) fn item_popularity(
        &self,
        prepared: &Prepared,
        model: &PopularityModel,
        prior: f64,
    ) -> Result<Vec<PublishedFile>> {
        self.whole(&tables::ITEM_POPULARITY, model.sums.len(), |rows| {
            let items =
                rows.map(|item| (ItemIdx(item as u32), model.sums[item], model.ranks[item]));
            Ok(popularity_rows(prepared, items.collect(), prior).into_batch(self.ids)?)
        })
    }

    /// `item_popularity_by_segment`: items that the users of a segment have.
    pub(super) fn item_popularity_by_segment(
        &self,
        prepared: &Prepared,
        segments: &Segments,
        models: &[SegmentPopularity],
        prior: f64,
    ) -> Result<Vec<PublishedFile>> {
        let rows: Vec<(usize, usize)> = models
            .iter()
            .enumerate()
            .flat_map(|(segment, model)| (0..model.items.len()).map(move |place| (segment, place)))
            .collect();
        self.whole(&tables::ITEM_POPULARITY_BY_SEGMENT, rows.len(), |range| {
            let rows = &rows[range];
            let items = rows.iter().map(|&(segment, place)| models[segment].items[place]);
            let batch = ItemPopularityBySegmentRows {
                segment: rows
                    .iter()
                    .map(|&(segment, _)| segments.names[segment].as_str())
                    .collect(),
                popularity: popularity_rows(prepared, items.collect(), prior),
            };
            Ok(batch.into_batch(self.ids)?)
        })
    }

    /// `debias_weights`: the items kept.
    pub(super) fn debias_weights(
        &self,
        prepared: &Prepared,
        weights: &DebiasWeights,
    ) -> Result<Vec<PublishedFile>> {
        self.whole(&tables::DEBIAS_WEIGHTS, weights.discount.len(), |rows| {
            let batch = DebiasWeightRows {
                item: kept(prepared, rows.clone()),
                item_idx: rows.clone().map(|item| item as i64).collect(),
                propensity: weights.propensity[rows.clone()].to_vec(),
                ips_weight: weights.ips_weight[rows.clone()].to_vec(),
                discount: weights.discount[rows].to_vec(),
            };
            Ok(batch.into_batch(self.ids)?)
        })
    }

    /// `default_top_k`: popular items for visitors, by segment; `*` for every visitor.
    pub(super) fn default_top_k(
        &self,
        prepared: &Prepared,
        segments: &Segments,
        inputs: &ListInputs<'_>,
    ) -> Result<Vec<PublishedFile>> {
        let mut rows: Vec<(&str, i32, ItemIdx, f32)> = Vec::new();
        let mut add = |segment, popular: &[(ItemIdx, f32)]| {
            let allowed = popular.iter().filter(|(item, _)| inputs.recommendable[item.index()]);
            let ranked = (1..).zip(allowed.take(inputs.top_k.k));
            rows.extend(ranked.map(|(rank, &(item, share))| (segment, rank, item, share)));
        };
        // "*" sorts among the names like any other text.
        let mut every = Some(());
        for (name, popular) in segments.names.iter().zip(inputs.popularity_by_segment) {
            if name.as_str() > tables::EVERY_SEGMENT && every.take().is_some() {
                add(tables::EVERY_SEGMENT, inputs.popularity);
            }
            add(name, popular);
        }
        if every.is_some() {
            add(tables::EVERY_SEGMENT, inputs.popularity);
        }
        self.whole(&tables::DEFAULT_TOP_K, rows.len(), |range| {
            let rows = &rows[range];
            let batch = DefaultTopKRows {
                segment: rows.iter().map(|row| row.0).collect(),
                rank: rows.iter().map(|row| row.1).collect(),
                item: IdRows {
                    ids: &prepared.item_ids,
                    rows: rows.iter().map(|row| row.2.0).collect(),
                },
                score: rows.iter().map(|row| row.3).collect(),
            };
            Ok(batch.into_batch(self.ids)?)
        })
    }

    /// `rejects`: where rows could not be used.
    pub(super) fn rejects(&self, counts: &ScanCounts) -> Result<Vec<PublishedFile>> {
        let rows: Vec<_> = counts.rejected.iter().collect();
        self.whole(&tables::REJECTS, rows.len(), |range| {
            let mut batch = RejectRows::default();
            for ((file, row_group, reason), rejected) in &rows[range] {
                batch.file.push(file);
                batch.row_group.push(*row_group as i32);
                batch.reason.push(reason);
                batch.count.push(rejected.count as i64);
                batch.first_row.push(rejected.first_row as i64);
            }
            Ok(batch.into_batch(self.ids)?)
        })
    }

    /// `item_neighbors`: the parts that this process writes.
    pub(super) fn item_neighbors(
        &self,
        worker: &Worker<'_>,
        prepared: &Prepared,
        lists: &NeighborLists,
    ) -> Result<Vec<PublishedFile>> {
        let n_parts = prepared.item_ids.len().div_ceil(ITEMS_PER_PART).max(1);
        let mine: Vec<usize> =
            (0..n_parts).filter(|part| part % worker.shell.peers == worker.shell.index).collect();
        worker.pool.install(|| {
            let parts = mine.into_par_iter();
            let files = parts.map(|part| self.neighbor_part(prepared, lists, part, n_parts));
            Ok(files.collect::<Result<Vec<_>>>()?.concat())
        })
    }

    fn neighbor_part(
        &self,
        prepared: &Prepared,
        lists: &NeighborLists,
        part: usize,
        n_parts: usize,
    ) -> Result<Vec<PublishedFile>> {
        let items = part * ITEMS_PER_PART..lists.n_rows().min((part + 1) * ITEMS_PER_PART);
        let mut file = self.start(&tables::ITEM_NEIGHBORS)?;
        let mut batches = Batches::new(|rows: &[(u32, i32, ItemIdx, f32, u32)]| {
            let batch = ItemNeighborRows {
                item: IdRows {
                    ids: &prepared.item_ids,
                    rows: rows.iter().map(|row| row.0).collect(),
                },
                rank: rows.iter().map(|row| row.1).collect(),
                neighbor: IdRows {
                    ids: &prepared.item_ids,
                    rows: rows.iter().map(|row| row.2.0).collect(),
                },
                score: rows.iter().map(|row| row.3).collect(),
                support: rows.iter().map(|row| i64::from(row.4)).collect(),
            };
            Ok(file.write(&batch.into_batch(self.ids)?)?)
        });
        for item in items {
            let row = lists.of(item);
            for place in 0..row.items.len() {
                let (neighbor, score) = (row.items[place], row.scores[place]);
                let support = row.supports[place];
                batches.push((item as u32, place as i32 + 1, neighbor, score, support))?;
            }
        }
        batches.finish()?;
        let first = |part: usize| -> Result<Vec<ArrayRef>> {
            let item =
                IdRows { ids: &prepared.item_ids, rows: vec![(part * ITEMS_PER_PART) as u32] };
            Ok(vec![item.to_array(self.ids.item)?, Arc::new(Int32Array::from(vec![i32::MIN]))])
        };
        // Items that are no longer there lie between those that are, wherever files were cut before.
        let from = (part > 0).then(|| first(part)).transpose()?;
        let until = (part + 1 < n_parts).then(|| first(part + 1)).transpose()?;
        let range = KeyRange { from, until };
        let parts = (part as u32, n_parts as u32);
        self.put_with_changes(&tables::ITEM_NEIGHBORS, file, parts, Beside::Range(&range))
    }

    /// `users`: one file per shard, on the rayon pool of the caller.
    pub(super) fn users(
        &self,
        prepared: &Prepared,
        segments: &Segments,
        n_shards: u32,
    ) -> Result<Vec<PublishedFile>> {
        let shards = prepared.shards.par_iter();
        let files = shards.map(|shard| self.users_of(shard, segments, n_shards));
        Ok(files.collect::<Result<Vec<_>>>()?.concat())
    }

    fn users_of(
        &self,
        shard: &Histories,
        segments: &Segments,
        n_shards: u32,
    ) -> Result<Vec<PublishedFile>> {
        let mut file = self.start(&tables::USERS)?;
        for start in (0..shard.n_users()).step_by(BATCH_ROWS) {
            let rows = start..shard.n_users().min(start + BATCH_ROWS);
            let n_items = |row: usize| shard.interactions.range(row).len();
            let facts = &shard.facts[rows.clone()];
            let time = |time: i64| self.has_times.then_some(time);
            let segment = |row: usize| {
                let segment = shard.segments.get(row).copied().unwrap_or(u32::MAX);
                segments.names.get(segment as usize).map(String::as_str)
            };
            let reason = |row: usize| match (n_items(row), shard.facts[row].pairs) {
                (0, 0) => Some("outside_window"),
                (0, _) => Some("items_with_too_few_users"),
                _ => None,
            };
            let batch = UserRows {
                user: IdRows {
                    ids: &shard.user_ids,
                    rows: rows.clone().map(|row| row as u32).collect(),
                },
                user_idx: rows
                    .clone()
                    .map(|row| (n_items(row) > 0).then(|| shard.published_idx(row)))
                    .collect(),
                segment: rows.clone().map(segment).collect(),
                events: facts.iter().map(|facts| i64::from(facts.events)).collect(),
                items: rows.clone().map(|row| n_items(row) as i64).collect(),
                first_event: facts.iter().map(|facts| time(facts.first_event_us)).collect(),
                last_event: facts.iter().map(|facts| time(facts.last_event_us)).collect(),
                eligible: rows.clone().map(|row| n_items(row) > 0).collect(),
                reason: rows.clone().map(reason).collect(),
            };
            file.write(&batch.into_batch(self.ids)?)?;
        }
        self.put_of_shard(&tables::USERS, file, shard, n_shards)
    }

    fn put_of_shard(
        &self,
        table: &'static Table,
        file: TableFile,
        shard: &Histories,
        n_shards: u32,
    ) -> Result<Vec<PublishedFile>> {
        let shard = shard.shard;
        self.put_with_changes(table, file, (shard, n_shards), Beside::Shard(shard))
    }
}

fn column<R, T>(rows: &[R], field: impl Fn(&R) -> T) -> Vec<T> {
    rows.iter().map(field).collect()
}

fn kept(prepared: &Prepared, items: std::ops::Range<usize>) -> IdRows<'_> {
    IdRows { ids: &prepared.item_ids, rows: items.map(|item| item as u32).collect() }
}

fn popularity_rows(
    prepared: &Prepared,
    items: Vec<(ItemIdx, ItemSum, u32)>,
    prior: f64,
) -> ItemPopularityRows<'_> {
    let unit = prepared.calendar.decay.unit();
    let weight = |units: i64| units as f64 / AFFINITY_ONE as f64;
    ItemPopularityRows {
        item: IdRows { ids: &prepared.item_ids, rows: column(&items, |row| row.0.0) },
        item_idx: column(&items, |row| i64::from(row.0.0)),
        events: column(&items, |row| row.1.events),
        users: column(&items, |row| row.1.users),
        weight: column(&items, |row| weight(row.1.weight)),
        weight_decayed: column(&items, |row| row.1.affinity as f64 * unit),
        trend: column(&items, |(_, sum, _)| {
            popularity::trend(sum.newer, sum.weight - sum.newer, prior) as f32
        }),
        rank: column(&items, |row| row.2 as i32),
    }
}

/// Cuts rows into batches of [`BATCH_ROWS`] from the start of the file.
struct Batches<R, W> {
    rows: Vec<R>,
    write: W,
}

impl<R, W: FnMut(&[R]) -> Result<()>> Batches<R, W> {
    fn new(write: W) -> Self {
        Self { rows: Vec::new(), write }
    }

    fn push(&mut self, row: R) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() == BATCH_ROWS {
            (self.write)(&self.rows)?;
            self.rows.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if self.rows.is_empty() { Ok(()) } else { (self.write)(&self.rows) }
    }
}
