//! Which rows of a batch count: one check after the other, over all rows.

use arrow::array::Array;

use super::ScanContext;
use crate::job::plan::FilePlan;
use crate::kernels::decay::ValueTransform;
use crate::kernels::histories::EventKind;
use crate::run::counts::ScanCounts;
use crate::run::side::Deleted;
use crate::schema::{EventBatch, IdColumn, KIND_UNLISTED, TIME_INVALID};
use crate::types::IdRef;

/// Ids longer than this are taken for garbage.
const ID_BYTES_MAX: usize = 1_024;

/// Why rows of `[delete] users` and of `[delete] items` do not count.
pub(in crate::run) const DELETED_USER: &str = "deleted_user";
pub(in crate::run) const DELETED_ITEM: &str = "deleted_item";

/// Why a row does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) enum Unused {
    Filtered(&'static str),
    Rejected(&'static str),
}

/// Where a batch comes from.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) file: &'a FilePlan,
    pub(super) row_group: usize,
    /// Row number in the file of its first row.
    pub(super) first_row: u64,
}

/// Drops rows from `rows` and counts why.
///
/// A row has the reason of the first check that it fails. Checks that every row of the batch passes
/// by the types or the counts of its columns are not made row by row.
pub(super) struct Sieve<'a> {
    pub(super) context: &'a ScanContext<'a>,
    pub(super) columns: &'a EventBatch,
    pub(super) place: Place<'a>,
    pub(super) counts: &'a mut ScanCounts,
    /// The rows that count, ascending.
    pub(super) rows: &'a mut Vec<u32>,
}

impl Sieve<'_> {
    /// Makes all checks, of all rows; `values` become those of all rows, none in a log without.
    pub(super) fn sift(&mut self, first_kind: usize, values: &mut Vec<f32>) {
        self.rows.clear();
        self.rows.extend(0..self.columns.kinds.len() as u32);
        let EventBatch { users, items, kinds, .. } = self.columns;
        let odd_users = is_odd_text(users);
        self.users(users, odd_users);
        if kinds.contains(&KIND_UNLISTED) {
            let is_listed = |row: usize| kinds[row] != KIND_UNLISTED;
            self.keep(Unused::Filtered("event_without_weight"), is_listed);
        }
        if items.null_count() > 0 {
            self.keep(Unused::Rejected("null_item"), |row| !items.is_null(row));
        }
        if odd_users {
            self.keep(Unused::Rejected("user_id_too_long"), |row| is_short(users, row));
        }
        if is_odd_text(items) {
            self.keep(Unused::Rejected("empty_item"), |row| !is_empty(items, row));
            self.keep(Unused::Rejected("item_id_too_long"), |row| is_short(items, row));
        }
        if let Some(times) = &self.columns.times
            && times.contains(&TIME_INVALID)
        {
            let is_valid = |row: usize| times[row] != TIME_INVALID;
            self.keep(Unused::Rejected("time_null_or_out_of_range"), is_valid);
        }
        self.values(first_kind, values);
        self.deleted(users, items);
        self.note_times();
    }

    fn users(&mut self, users: &IdColumn, are_odd: bool) {
        let (denied, share) = (self.context.denied, self.context.plan.sample_users);
        if users.null_count() > 0 {
            self.keep(Unused::Filtered("no_user"), |row| !users.is_null(row));
        }
        if are_odd {
            self.keep(Unused::Filtered("no_user"), |row| !is_empty(users, row));
        }
        if !denied.is_empty() {
            let is_allowed = |row| !denied.contains(&users.get(row).digest());
            self.keep(Unused::Filtered("denied_user"), is_allowed);
        }
        if let Some(share) = share {
            self.keep(Unused::Filtered("not_sampled"), |row| is_sampled(users.get(row), share));
        }
    }

    /// The last of the checks, so that rows of stored state that are to be gone count as those read.
    fn deleted(&mut self, users: &IdColumn, items: &IdColumn) {
        let Deleted { users: gone_users, items: gone_items } = self.context.deleted;
        if !gone_users.is_empty() {
            let stays = |row| !gone_users.contains(&users.get(row).digest());
            self.keep(Unused::Filtered(DELETED_USER), stays);
        }
        if !gone_items.is_empty() {
            let stays = |row| !gone_items.contains(&items.get(row).digest());
            self.keep(Unused::Filtered(DELETED_ITEM), stays);
        }
    }

    /// Drops the rows that fail a check.
    fn keep(&mut self, why: Unused, passes: impl Fn(usize) -> bool) {
        let n_before = self.rows.len();
        let mut first = None;
        self.rows.retain(|&row| {
            let passes = passes(row as usize);
            if !passes && first.is_none() {
                first = Some(row);
            }
            passes
        });
        if let Some(first) = first {
            self.count(why, (n_before - self.rows.len()) as u64, first);
        }
    }

    fn count(&mut self, why: Unused, count: u64, first: u32) {
        match why {
            Unused::Filtered(reason) => self.counts.filter(reason, count),
            Unused::Rejected(reason) => {
                let Place { file, row_group, first_row } = self.place;
                let place = (file.url.clone(), row_group as u32, reason.to_owned());
                self.counts.reject(place, count, first_row + u64::from(first));
            }
        }
    }

    fn values(&mut self, first_kind: usize, values: &mut Vec<f32>) {
        values.clear();
        let columns = self.columns;
        if columns.values.is_none() {
            return;
        }
        values.resize(columns.kinds.len(), 1.0);
        let kinds = &self.context.kinds[first_kind..];
        let mut unused = Vec::new();
        self.rows.retain(|&row| {
            let place = row as usize;
            match value(columns, place, &kinds[usize::from(columns.kinds[place])]) {
                Ok(value) => values[place] = value,
                Err(why) => unused.push((why, row)),
            }
            unused.last().is_none_or(|&(_, last)| last != row)
        });
        unused.into_iter().for_each(|(why, row)| self.count(why, 1, row));
    }

    /// Oldest and newest time of the rows that count.
    fn note_times(&mut self) {
        let Some(times) = &self.columns.times else { return };
        let as_of_us = self.context.plan.as_of_us.unwrap_or(i64::MAX);
        let (mut oldest, mut newest) = (self.counts.oldest_us, self.counts.newest_us);
        for time in self.rows.iter().map(|&row| times[row as usize]) {
            oldest = oldest.min(time);
            newest = newest.max(if time < as_of_us { time } else { i64::MIN });
        }
        (self.counts.oldest_us, self.counts.newest_us) = (oldest, newest);
    }
}

/// Whether some ids may be texts that are empty or too long.
fn is_odd_text(ids: &IdColumn) -> bool {
    !ids.id_type().is_int() && !ids.are_texts_of(1..=ID_BYTES_MAX)
}

fn is_empty(ids: &IdColumn, row: usize) -> bool {
    matches!(ids.get(row), IdRef::Bytes(id) if id.is_empty())
}

fn is_short(ids: &IdColumn, row: usize) -> bool {
    matches!(ids.get(row), IdRef::Bytes(id) if id.len() <= ID_BYTES_MAX)
}

/// Whether a user belongs to the sample: the same users for every run and log.
pub(in crate::run) fn is_sampled(user: IdRef<'_>, share: f64) -> bool {
    const SAMPLE_SEED: u64 = 0x7361_6D70_6C65;
    (user.stable_hash(SAMPLE_SEED) as f64) < share * 2f64.powi(64)
}

/// The value of a row as its kind wants it: 1 where the kind does not look at it.
pub(in crate::run) fn value(
    columns: &EventBatch,
    row: usize,
    kind: &EventKind,
) -> Result<f32, Unused> {
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
