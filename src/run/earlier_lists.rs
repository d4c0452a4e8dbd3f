//! Lists of the generation before, for users about whom nothing is new.
//!
//! Where factors alone rank and neither those of the user nor those of the items are others, a list is the
//! best of what it was and of items that lists may hold since. So only these are scored. Scores and reasons
//! stay as they were told.

use std::ops::Range;

use anyhow::{Result, anyhow};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::Float32Type;

use super::Worker;
use super::als::Factors;
use super::prepare::Prepared;
use super::warm_start::{EarlierFiles, WarmStart, each_batch};
use crate::job::spec::Shape;
use crate::kernels::dictionary::Interner;
use crate::kernels::factor_scores::PackedItems;
use crate::schema::{IdColumn, Source, tables};
use crate::store::Output;
use crate::types::{Histories, IdRef, Ids, ItemIdx};

/// Where the earlier lists are, and what may stay of them.
pub(super) struct EarlierLists<'a> {
    shape: Shape,
    /// Those of the shards of this process.
    files: EarlierFiles,
    item_ids: &'a Ids,
    /// Whether the users of each shard kept their factors.
    factors: &'a Factors,
    /// Whether lists could hold an item then, and may still.
    may_stay: Vec<bool>,
    /// Items that lists may hold since.
    pub(super) since: PackedItems,
    /// Entries below which a list is made anew, as others than factors may fill it up.
    pub(super) length_min: usize,
}

/// What stays of the lists of one shard: nothing of a user whose list is made anew.
#[derive(Debug, Default)]
pub(super) struct ShardLists {
    /// End of each user's list in the others.
    ends: Vec<usize>,
    entries: Vec<(ItemIdx, f32)>,
    because: Vec<Option<ItemIdx>>,
}

/// The list of one user, with scores, and the reasons; empty where it is made anew.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EarlierList<'a> {
    pub(super) entries: &'a [(ItemIdx, f32)],
    pub(super) because: &'a [Option<ItemIdx>],
}

impl ShardLists {
    /// The list of the user in `row`.
    pub(super) fn of(&self, row: usize) -> EarlierList<'_> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        let range = start..self.ends[row];
        EarlierList { entries: &self.entries[range.clone()], because: &self.because[range] }
    }
}

impl<'a> EarlierLists<'a> {
    /// Finds them. `recommendable`: whether lists may hold an item now.
    ///
    /// # Errors
    /// The earlier table `items` cannot be read.
    pub(super) fn find(
        worker: &Worker<'_>,
        (warm, output): (&WarmStart, &Output),
        prepared: &'a Prepared,
        factors: &'a Factors,
        (recommendable, shape, length_min): (&[bool], Shape, usize),
    ) -> Result<Self> {
        let item_ids = &prepared.item_ids;
        let table = match shape {
            Shape::Rows => &tables::USER_TOP_K,
            Shape::Lists => &tables::USER_TOP_K_LISTS,
        };
        let mut then = vec![false; item_ids.len()];
        let columns = ["item_id", "eligible", "recommendable"];
        for (_, file) in warm.files(output, &tables::ITEMS) {
            each_batch(&output.location(), &file, &columns, |batch| {
                let ids = IdColumn::try_new(batch.column(0))?;
                let [eligible, recommendable] = [flags(batch, 1)?, flags(batch, 2)?];
                for row in (0..ids.len()).filter(|&row| eligible.value(row)) {
                    if let Some(item) = item_ids.find_sorted(ids.get(row)) {
                        then[item] = recommendable.value(row);
                    }
                }
                Ok(())
            })?;
        }
        let pairs = || then.iter().zip(recommendable);
        let since: Vec<bool> = pairs().map(|(&then, &now)| now && !then).collect();
        Ok(Self {
            shape,
            files: warm.files_of_shards(output, table, &prepared.shards),
            item_ids,
            factors,
            may_stay: pairs().map(|(&then, &now)| now && then).collect(),
            since: factors.packed(worker.pool, &since),
            length_min,
        })
    }

    /// The lists of a shard's users that stay.
    ///
    /// # Errors
    /// Its earlier file cannot be read, or is not what a run writes.
    pub(super) fn of_shard(&self, shard: &Histories) -> Result<ShardLists> {
        let mut reading = Reading {
            lists: ShardLists::default(),
            earlier: self,
            shard,
            kept: &self.factors.kept[self.factors.place(shard)],
            is_whole: true,
            codes: Interner::new_like(self.item_ids),
            of_code: Vec::new(),
        };
        let columns = match self.shape {
            Shape::Rows => ["user_id", "item_id", "score", "source", "because_item_id"],
            Shape::Lists => ["user_id", "item_ids", "scores", "sources", "because_item_ids"],
        };
        if let Some((location, file)) = self.files.open(shard.shard) {
            each_batch(&location, &file, &columns, |batch| reading.take(batch))?;
        }
        reading.finish(shard.n_users());
        Ok(reading.lists)
    }
}

fn flags(batch: &RecordBatch, column: usize) -> Result<&BooleanArray> {
    let flags = batch.column(column).as_boolean_opt();
    flags.ok_or_else(|| anyhow!("column {column} of the items holds no flags"))
}

/// The values of a column, one per row or a list per row.
struct Values {
    values: ArrayRef,
    offsets: Option<Vec<usize>>,
}

impl Values {
    fn new(column: &ArrayRef) -> Self {
        match column.as_list_opt::<i32>() {
            None => Self { values: column.clone(), offsets: None },
            Some(lists) => {
                let offsets = lists.offsets().iter().map(|&offset| offset as usize).collect();
                Self { values: lists.values().clone(), offsets: Some(offsets) }
            }
        }
    }

    fn range(&self, row: usize) -> Range<usize> {
        self.offsets.as_ref().map_or(row..row + 1, |offsets| offsets[row]..offsets[row + 1])
    }
}

/// The lists of a shard as they are read, in the order of the users.
struct Reading<'a> {
    lists: ShardLists,
    earlier: &'a EarlierLists<'a>,
    shard: &'a Histories,
    kept: &'a [bool],
    /// Whether all entries of the list that is read may stay.
    is_whole: bool,
    /// Items that were met.
    codes: Interner,
    of_code: Vec<Option<ItemIdx>>,
}

impl Reading<'_> {
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let users = IdColumn::try_new(batch.column(0))?;
        let columns = [1, 2, 3, 4].map(|at| Values::new(batch.column(at)));
        let [items, scores, sources, because] = columns;
        let item_ids = IdColumn::try_new(&items.values)?;
        let because_ids = IdColumn::try_new(&because.values)?;
        let names: &StringArray = sources
            .values
            .as_string_opt::<i32>()
            .ok_or_else(|| anyhow!("its sources are of type {}", sources.values.data_type()))?;
        let of_items = scores
            .values
            .as_primitive_opt::<Float32Type>()
            .ok_or_else(|| anyhow!("its scores are of type {}", scores.values.data_type()))?
            .values();
        if users.null_count() + item_ids.null_count() > 0 {
            return Err(anyhow!("a user or an item is null"));
        }
        let fallback = Source::Fallback.as_str();
        let user_ids = &self.shard.user_ids;
        for at in 0..users.len() {
            let user = users.get(at);
            let mut row = self.lists.ends.len();
            while row < user_ids.len() && user_ids.get(row) < user {
                row += 1;
            }
            self.finish(row);
            if row == user_ids.len() || user_ids.get(row) != user || !self.kept[row] {
                continue;
            }
            let ranges = items.range(at).zip(scores.range(at));
            let ranges = ranges.zip(sources.range(at)).zip(because.range(at));
            for (((item, score), source), because) in ranges {
                let item = self.idx(item_ids.get(item));
                let may_stay = item.filter(|item| self.earlier.may_stay[item.index()]);
                self.is_whole &= may_stay.is_some() && names.value(source) != fallback;
                let because = because_ids.get_opt(because).and_then(|id| self.idx(id));
                self.lists.entries.push((item.unwrap_or(ItemIdx(0)), of_items[score]));
                self.lists.because.push(because);
            }
        }
        Ok(())
    }

    /// Ends the lists of the users before `row`.
    fn finish(&mut self, row: usize) {
        while self.lists.ends.len() < row {
            let start = self.lists.ends.last().copied().unwrap_or(0);
            let length = self.lists.entries.len() - start;
            if !self.is_whole || length < self.earlier.length_min {
                self.lists.entries.truncate(start);
                self.lists.because.truncate(start);
            }
            self.is_whole = true;
            self.lists.ends.push(self.lists.entries.len());
        }
    }

    /// The item of an id, if there still is one.
    fn idx(&mut self, id: IdRef<'_>) -> Option<ItemIdx> {
        let Self { codes, of_code, earlier, .. } = self;
        if matches!(id, IdRef::Int(_)) != matches!(earlier.item_ids, Ids::Int(_)) {
            return None;
        }
        let code = codes.intern(id) as usize;
        if code == of_code.len() {
            of_code.push(earlier.item_ids.find_sorted(id).map(|item| ItemIdx(item as u32)));
        }
        of_code[code]
    }
}
