//! The users of a block of rows.

use std::iter::repeat_n;

use crate::kernels::code_table::CodeTable;
use crate::kernels::simd::prefetch;
use crate::types::{ByteIds, IdRef, Ids};

/// The user of each row.
#[derive(Clone, Debug)]
pub enum RowUsers {
    /// Integer ids.
    Int(Vec<i64>),
    /// String and binary ids.
    Bytes(BlockIds),
}

impl RowUsers {
    /// No rows, for ids of the kind of `ids`.
    pub fn new_like(ids: &Ids) -> Self {
        match ids {
            Ids::Int(_) => Self::Int(Vec::new()),
            Ids::Bytes(_) => Self::Bytes(BlockIds::default()),
        }
    }

    /// Appends a row. `hash`: the same for the same id; not looked at for an integer.
    ///
    /// # Panics
    /// If the id is of the other kind.
    #[inline]
    pub fn push(&mut self, id: IdRef<'_>, hash: u64) {
        match (self, id) {
            (Self::Int(ids), IdRef::Int(id)) => ids.push(id),
            (Self::Bytes(ids), IdRef::Bytes(id)) => ids.push(id, hash),
            _ => panic!("a column of ids is all integers or all bytes"),
        }
    }

    /// Appends so many rows of one user.
    ///
    /// # Panics
    /// If the id is of the other kind.
    pub fn push_times(&mut self, id: IdRef<'_>, hash: u64, n_rows: usize) {
        let Some(others) = n_rows.checked_sub(1) else { return };
        self.push(id, hash);
        match self {
            Self::Int(ids) => ids.extend(repeat_n(ids[ids.len() - 1], others)),
            Self::Bytes(BlockIds { codes, .. }) => {
                codes.extend(repeat_n(codes[codes.len() - 1], others));
            }
        }
    }

    /// Removes all rows and keeps the room.
    pub fn clear(&mut self) {
        match self {
            Self::Int(ids) => ids.clear(),
            Self::Bytes(ids) => ids.clear(),
        }
    }
}

/// So many rows is one step of asking for memory ahead of the next.
const STEP: usize = 6;

/// Byte strings, each held once, and for every row which of them it has.
#[derive(Clone, Debug, Default)]
pub struct BlockIds {
    distinct: ByteIds,
    hashes: Vec<u64>,
    codes: Vec<u32>,
    table: CodeTable,
}

impl BlockIds {
    /// The distinct ids in the order of their codes.
    pub fn distinct(&self) -> &ByteIds {
        &self.distinct
    }

    /// The code of each row.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Appends the ids of `rows`. `hashes`, by row: the same for the same id.
    ///
    /// Most of the time would go by waiting for ids that are far away, so they are asked for in steps: a
    /// slot of the table, what stands at its code, and the bytes there.
    pub fn extend<'a>(&mut self, rows: &[u32], id_of: impl Fn(usize) -> &'a [u8], hashes: &[u64]) {
        let hash_of = |n: usize| rows.get(n).map(|&row| hashes[row as usize]);
        for (n, &row) in rows.iter().enumerate() {
            if let Some(hash) = hash_of(n + 3 * STEP) {
                self.table.prefetch(hash);
            }
            if let Some(code) = hash_of(n + 2 * STEP).and_then(|hash| self.table.first(hash)) {
                prefetch(&self.hashes, code as usize);
                prefetch(self.distinct.parts().1, code as usize);
            }
            if let Some(code) = hash_of(n + STEP).and_then(|hash| self.table.first(hash)) {
                let (bytes, ends) = self.distinct.parts();
                prefetch(bytes, ends[code as usize].wrapping_sub(1));
            }
            self.push(id_of(row as usize), hashes[row as usize]);
        }
    }

    #[inline]
    fn push(&mut self, id: &[u8], hash: u64) {
        let Self { distinct, hashes, codes, table } = self;
        let is_same =
            |code: u32| hashes[code as usize] == hash && distinct.get(code as usize) == id;
        let next = hashes.len() as u32;
        let code = table.find_or_add(hash, next, is_same, |code| hashes[code as usize]);
        if code == next {
            hashes.push(hash);
            distinct.push(id);
        }
        codes.push(code);
    }

    fn clear(&mut self) {
        self.distinct.clear();
        self.hashes.clear();
        self.codes.clear();
        self.table.clear();
    }
}
