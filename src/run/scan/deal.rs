//! Rows dealt to the shards of their users, column by column.

use crate::job::plan::Plan;
use crate::kernels::dictionary::{Interner, SortedIds};
use crate::kernels::event_rows::{EventRows, RowUsers};
use crate::schema::{EventBatch, IdColumn};
use crate::types::{IdRef, IdType, Ids, shard_hash, shard_of_hash};

/// Takes a packed block of a shard; false to stop.
pub(super) type Emit<'a> = dyn FnMut(u32, Vec<u8>) -> bool + 'a;

/// A batch as it was read.
pub(super) struct Batch<'a> {
    pub(super) columns: &'a EventBatch,
    /// Values of all rows; empty in a log without.
    pub(super) values: &'a [f32],
    /// Whether rows may be of another kind than 0.
    pub(super) has_kinds: bool,
    /// What is added to kinds.
    pub(super) first_kind: usize,
    /// Number of the file, where rows carry it.
    pub(super) file: Option<u32>,
}

/// Keeps rows by shard until a block of them is full.
pub(super) struct Dealer {
    n_shards: u32,
    block_rows: usize,
    shards: Vec<EventRows>,
    items: Interner,
    users: UserHashes,
    item_codes: ItemCodes,
    /// The rows of the batch at hand in the order of their shards, and the shard of each.
    order: Vec<u32>,
    shard_of: Vec<u32>,
    /// The block at hand.
    packed: Vec<u8>,
}

/// The shard hash of the user of each row that counts; of integers none, as it takes less to make it again.
#[derive(Default)]
struct UserHashes {
    of_row: Vec<u64>,
    /// Of a dictionary: the column and the hashes of its values.
    of_values: Option<(IdColumn, Vec<u64>)>,
}

/// The code of the item of each row that counts.
#[derive(Default)]
struct ItemCodes {
    of_row: Vec<u32>,
    /// Of a dictionary: the column and the codes of its values, [`UNSEEN`] before it is seen.
    of_values: Option<(IdColumn, Vec<u32>)>,
}

const UNSEEN: u32 = u32::MAX;

/// So many rows ahead the codes of items are asked for.
const AHEAD: usize = 24;

/// Rows of a full block: of so many shards, a reader has 2¹⁸ rows at hand, about what its core's cache
/// holds; twice as many of users whose ids are texts, as each block has these once.
pub(in crate::run) fn block_rows(n_shards: u32, users: IdType) -> usize {
    let rows = if users.is_int() { 1 << 18 } else { 1 << 19 };
    (rows / n_shards as usize).clamp(256, 8_192)
}

impl Dealer {
    pub(super) fn new(plan: &Plan) -> Self {
        let users = Ids::new(plan.user_id_type);
        Self {
            n_shards: plan.n_shards,
            block_rows: block_rows(plan.n_shards, plan.user_id_type),
            shards: (0..plan.n_shards).map(|_| EventRows::new_like(&users)).collect(),
            items: Interner::new_like(&Ids::new(plan.item_id_type)),
            users: UserHashes::default(),
            item_codes: ItemCodes::default(),
            order: Vec::new(),
            shard_of: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// Takes the `rows` of a batch; false as soon as `emit` says so.
    pub(super) fn deal(&mut self, batch: &Batch<'_>, rows: &[u32], emit: &mut Emit<'_>) -> bool {
        self.users.find(&batch.columns.users, rows);
        self.item_codes.find(&batch.columns.items, rows, &mut self.items);
        let starts = self.sort_by_shard(&batch.columns.users, rows);
        for shard in 0..self.n_shards {
            let (start, end) = (starts[shard as usize], starts[shard as usize + 1]);
            if !self.append(batch, shard, start as usize..end as usize, emit) {
                return false;
            }
        }
        true
    }

    /// Fills `order`; returns where the rows of each shard begin.
    fn sort_by_shard(&mut self, ids: &IdColumn, rows: &[u32]) -> Vec<u32> {
        let Self { order, shard_of, n_shards, users, .. } = self;
        let mut starts = vec![0u32; *n_shards as usize + 1];
        shard_of.clear();
        let mut counted = |hash| {
            let shard = shard_of_hash(hash, *n_shards);
            starts[shard as usize + 1] += 1;
            shard
        };
        let rows_of = rows.iter().map(|&row| row as usize);
        match ids.ints() {
            Some(ids) => {
                shard_of.extend(rows_of.map(|row| counted(shard_hash(IdRef::Int(ids[row])))))
            }
            None => shard_of.extend(rows_of.map(|row| counted(users.of_row[row]))),
        }
        for shard in 0..*n_shards as usize {
            starts[shard + 1] += starts[shard];
        }
        let mut next = starts.clone();
        order.resize(rows.len(), 0);
        for (&row, &shard) in rows.iter().zip(&*shard_of) {
            let place = &mut next[shard as usize];
            order[*place as usize] = row;
            *place += 1;
        }
        starts
    }

    /// Appends the rows at `places` of `order` to their shard, and emits the blocks that are full.
    fn append(
        &mut self,
        batch: &Batch<'_>,
        shard: u32,
        mut places: std::ops::Range<usize>,
        emit: &mut Emit<'_>,
    ) -> bool {
        while !places.is_empty() {
            let of_shard = &mut self.shards[shard as usize];
            let n_taken = places.len().min(self.block_rows - of_shard.len());
            let rows = &self.order[places.start..places.start + n_taken];
            append(of_shard, batch, rows, &self.users.of_row, &self.item_codes.of_row);
            places.start += n_taken;
            if of_shard.len() == self.block_rows && !self.flush(shard, emit) {
                return false;
            }
        }
        true
    }

    fn flush(&mut self, shard: u32, emit: &mut Emit<'_>) -> bool {
        let Self { shards, packed, .. } = self;
        let rows = &mut shards[shard as usize];
        packed.clear();
        rows.pack_into(packed);
        rows.clear();
        // As large as it is: most of the memory of a scan are its blocks.
        emit(shard, packed.as_slice().to_vec())
    }

    /// Emits all rows that are left; false as soon as `emit` says so.
    pub(super) fn flush_all(&mut self, emit: &mut Emit<'_>) -> bool {
        (0..self.n_shards)
            .all(|shard| self.shards[shard as usize].is_empty() || self.flush(shard, emit))
    }

    /// Item ids with their codes.
    pub(super) fn into_items(self) -> SortedIds {
        self.items.into_sorted()
    }
}

/// Appends `rows` of a batch to those of a shard.
fn append(to: &mut EventRows, batch: &Batch<'_>, rows: &[u32], hashes: &[u64], codes: &[u32]) {
    let EventBatch { users, kinds, times, ids, .. } = batch.columns;
    let rows_of = || rows.iter().map(|&row| row as usize);
    match (&mut to.users, users.ints()) {
        (RowUsers::Int(to), Some(ids)) => to.extend(rows_of().map(|row| ids[row])),
        (RowUsers::Bytes(to), _) => to.extend(rows, |row| users.bytes(row), hashes),
        _ => panic!("a column of ids is all integers or all bytes"),
    }
    let n_before = to.items.len();
    let n_rows = n_before + rows.len();
    to.items.extend(rows_of().map(|row| codes[row]));
    match batch.has_kinds {
        false if to.kinds.is_empty() => {}
        false => to.kinds.resize(n_rows, 0),
        true => {
            let first_kind = batch.first_kind as u8;
            to.kinds.resize(n_before, 0);
            to.kinds.extend(rows_of().map(|row| first_kind + kinds[row]));
        }
    }
    match batch.values {
        [] if to.values.is_empty() => {}
        [] => to.values.resize(n_rows, 1.0),
        values => {
            to.values.resize(n_before, 1.0);
            to.values.extend(rows_of().map(|row| values[row]));
        }
    }
    match times {
        None if to.times.is_empty() => {}
        None => to.times.resize(n_rows, 0),
        Some(times) => {
            to.times.resize(n_before, 0);
            to.times.extend(rows_of().map(|row| times[row]));
        }
    }
    if let Some(file) = batch.file {
        to.files.resize(n_rows, file);
    }
    match ids {
        None if to.digests.is_empty() => {}
        None => to.digests.resize(n_rows, 0),
        Some(ids) => {
            to.digests.resize(n_before, 0);
            let digest = |row| ids.get_opt(row).map_or(0, |id| id.digest() | 1 << 127);
            to.digests.extend(rows_of().map(digest));
        }
    }
}

impl UserHashes {
    fn find(&mut self, users: &IdColumn, rows: &[u32]) {
        let Self { of_row, of_values } = self;
        if users.ints().is_some() {
            return;
        }
        of_row.resize(users.len(), 0);
        let rows = rows.iter().map(|&row| row as usize);
        let Some(keys) = users.keys() else {
            rows.for_each(|row| of_row[row] = shard_hash(users.get(row)));
            return;
        };
        if !of_values.as_ref().is_some_and(|(known, _)| known.shares_values(users)) {
            let hashes = (0..users.n_values()).map(|place| shard_hash(users.value(place)));
            *of_values = Some((users.clone(), hashes.collect()));
        }
        let (_, hashes) = of_values.as_ref().expect("set above");
        rows.for_each(|row| of_row[row] = hashes[keys[row] as usize]);
    }
}

impl ItemCodes {
    fn find(&mut self, items: &IdColumn, rows: &[u32], interner: &mut Interner) {
        let Self { of_row, of_values } = self;
        of_row.resize(items.len(), 0);
        if let Some(ids) = items.ints() {
            for (n, &row) in rows.iter().enumerate() {
                if let Some(&later) = rows.get(n + AHEAD) {
                    interner.prefetch_int(ids[later as usize]);
                }
                of_row[row as usize] = interner.intern_int(ids[row as usize]);
            }
            return;
        }
        let rows = rows.iter().map(|&row| row as usize);
        let Some(keys) = items.keys() else {
            rows.for_each(|row| of_row[row] = interner.intern(items.get(row)));
            return;
        };
        if !of_values.as_ref().is_some_and(|(known, _)| known.shares_values(items)) {
            *of_values = Some((items.clone(), vec![UNSEEN; items.n_values()]));
        }
        let (_, codes) = of_values.as_mut().expect("set above");
        for row in rows {
            let code = &mut codes[keys[row] as usize];
            if *code == UNSEEN {
                *code = interner.intern(items.get(row));
            }
            of_row[row] = *code;
        }
    }
}
