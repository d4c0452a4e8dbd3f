//! Rows of the log by key, as stored state has them, in packed blocks.

use std::iter::repeat_n;

use super::{Column, EventRows, Packed, PackedUsers};
use crate::types::{IdRef, Ids, LogRow};

/// Rows of a full block: what is made of so many stays in the cache.
const BLOCK_ROWS: usize = 1 << 14;

/// Packs rows of the log as they come: users of these blocks are keys.
pub struct LogBlocks {
    rows: EventRows,
    blocks: Vec<Vec<u8>>,
}

impl LogBlocks {
    /// No rows.
    pub fn new() -> Self {
        Self { rows: EventRows::new_like(&Ids::Int(Vec::new())), blocks: Vec::new() }
    }

    /// Appends a row.
    #[inline]
    pub fn push(&mut self, row: &LogRow) {
        let Self { rows, .. } = self;
        rows.users.push(IdRef::Int(row.user.into()), 0);
        rows.items.push(row.item);
        rows.kinds.push(row.kind);
        rows.values.push(f32::from_bits(row.value_bits));
        rows.times.push(row.time_us);
        let [low, high] = row.digest;
        rows.digests.push(u128::from(low) | u128::from(high) << 64);
        rows.files.push(row.file);
        if rows.len() == BLOCK_ROWS {
            self.close();
        }
    }

    /// Ends the block at hand.
    fn close(&mut self) {
        let rows = &mut self.rows;
        if rows.is_empty() {
            return;
        }
        if rows.digests.iter().all(|&digest| digest == 0) {
            rows.digests.clear();
        }
        self.blocks.push(rows.pack());
        rows.clear();
    }

    /// Appends a block.
    pub fn push_block(&mut self, block: &[u8]) {
        self.close();
        self.blocks.push(block.to_vec());
    }

    /// All blocks, in the order of their rows.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.close();
        self.blocks
    }
}

impl Default for LogBlocks {
    fn default() -> Self {
        Self::new()
    }
}

impl Packed<'_> {
    /// Gives the users of a block of [`LogBlocks`], by runs of their rows.
    ///
    /// # Panics
    /// If it is one whose users are texts.
    pub fn each_user_key(&self, mut give: impl FnMut(u32, usize)) {
        let PackedUsers::Int(column) = &self.users else { panic!("users are keys") };
        column.each_run(self.n_rows, |key, n_rows| give(Column::as_i64(key) as u32, n_rows));
    }

    /// Gives every row. `user_key` and `item_key` tell what users and items are.
    pub fn each_log_row(
        &self,
        mut user_key: impl FnMut(IdRef<'_>) -> u32,
        item_key: impl Fn(u32) -> u32,
        mut give: impl FnMut(LogRow),
    ) {
        let n_rows = self.n_rows;
        let mut users: Vec<u32> = Vec::with_capacity(n_rows);
        match &self.users {
            PackedUsers::Int(column) => column.each_run(n_rows, |id, length| {
                users.extend(repeat_n(user_key(IdRef::Int(Column::as_i64(id))), length));
            }),
            PackedUsers::Bytes { distinct, codes } => {
                let ids = (0..distinct.len()).map(|row| IdRef::Bytes(distinct.get(row)));
                let keys: Vec<u32> = ids.map(user_key).collect();
                codes.for_each(n_rows, |code| users.push(keys[code as usize]));
            }
        }
        let (mut items, mut kinds, mut values) = (Vec::new(), Vec::new(), Vec::new());
        self.items.decode(n_rows, &mut items, |code| item_key(code as u32));
        self.kinds.decode(n_rows, &mut kinds, |kind| kind as u8);
        self.values.decode(n_rows, &mut values, |bits| bits as u32);
        let mut times = Vec::new();
        self.times.decode(n_rows, &mut times, Column::as_i64);
        let mut files = vec![0; n_rows];
        if let Some(column) = &self.files {
            column.decode(n_rows, &mut files, |file| file as u32);
        }
        let mut digests = [Vec::new(), Vec::new()];
        for (half, out) in digests.iter_mut().enumerate() {
            match &self.digests {
                Some(halves) => halves[half].decode(n_rows, out, |digest| digest),
                None => out.resize(n_rows, 0),
            }
        }
        for row in 0..n_rows {
            give(LogRow {
                user: users[row],
                item: items[row],
                time_us: times[row],
                kind: kinds[row],
                value_bits: values[row],
                digest: [digests[0][row], digests[1][row]],
                file: files[row],
            });
        }
    }

    /// Gives every row of a block of [`LogBlocks`].
    ///
    /// # Panics
    /// As of [`Packed::each_user_key`].
    pub fn each_stored_row(&self, give: impl FnMut(LogRow)) {
        let user_key = |id: IdRef<'_>| match id {
            IdRef::Int(key) => key as u32,
            IdRef::Bytes(_) => panic!("users are keys"),
        };
        self.each_log_row(user_key, |item| item, give);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_back_in_their_order(
            raw in prop::collection::vec(any::<(u8, u32, i64, u8, u32, Option<[u64; 2]>)>(), 0..60),
            has_ids: bool,
        ) {
            let rows = raw.into_iter().map(|(user, item, time_us, kind, value_bits, digest)| LogRow {
                user: user.into(),
                item,
                time_us,
                kind,
                value_bits,
                digest: digest.filter(|_| has_ids).unwrap_or_default(),
                file: u32::from(kind) << 24,
            });
            let rows = Vec::from_iter(rows);
            let mut blocks = LogBlocks::new();
            rows.iter().take(20).for_each(|row| blocks.push(row));
            let mut rest = LogBlocks::new();
            rows.iter().skip(20).for_each(|row| rest.push(row));
            rest.finish().iter().for_each(|block| blocks.push_block(block));
            let (mut found, mut users) = (Vec::new(), Vec::new());
            for block in blocks.finish() {
                let block = Packed::new(&block);
                prop_assert!(has_ids || block.digests.is_none());
                block.each_stored_row(|row| found.push(row));
                block.each_user_key(|key, n| users.extend(repeat_n(key, n)));
            }
            prop_assert!(users.into_iter().eq(rows.iter().map(|row| row.user)));
            prop_assert_eq!(found, rows);
        }
    }

    #[test]
    fn blocks_end_when_they_are_full() {
        let mut blocks = LogBlocks::new();
        (0..BLOCK_ROWS + 1).for_each(|_| blocks.push(&LogRow::default()));
        let n_rows: Vec<usize> =
            blocks.finish().iter().map(|block| Packed::new(block).n_rows).collect();
        assert_eq!(n_rows, [BLOCK_ROWS, 1]);
    }
}
