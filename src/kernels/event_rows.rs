//! Rows of the log on their way to the shard that owns their user, packed small.

use crate::types::{ByteIds, Ids};

/// Events as columns of equal length, in no particular order.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRows {
    /// Who.
    pub users: Ids,
    /// What: an item code whose meaning the stage knows (a reader's own code, later the rank of the
    /// id among all ids of the log).
    pub items: Vec<u32>,
    /// Which kind of event: an index into the plan's kinds.
    pub kinds: Vec<u8>,
    /// The mapped value, 1 where none is mapped. Finite.
    pub values: Vec<f32>,
    /// When, in microseconds since 1970; 0 in a log without times.
    pub times: Vec<i64>,
    /// What makes two rows the same event; 0 for a row without event id. Empty if no row has one.
    pub digests: Vec<u128>,
}

impl EventRows {
    /// No rows, for users of the kind of `users`.
    pub fn new_like(users: &Ids) -> Self {
        Self {
            users: users.new_like(),
            items: Vec::new(),
            kinds: Vec::new(),
            values: Vec::new(),
            times: Vec::new(),
            digests: Vec::new(),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Makes room for exactly the rows of packed blocks, their event ids aside.
    pub fn reserve_for<'a>(&mut self, blocks: impl Iterator<Item = &'a [u8]>) {
        let n_rows = blocks.map(|packed| Reader { bytes: packed }.n_rows()).sum();
        if let Ids::Int(ids) = &mut self.users {
            ids.reserve_exact(n_rows);
        }
        self.items.reserve_exact(n_rows);
        self.kinds.reserve_exact(n_rows);
        self.values.reserve_exact(n_rows);
        self.times.reserve_exact(n_rows);
    }

    /// Removes all rows and keeps the room.
    pub fn clear(&mut self) {
        self.users = self.users.new_like();
        self.items.clear();
        self.kinds.clear();
        self.values.clear();
        self.times.clear();
        self.digests.clear();
    }

    /// Packs the rows: each column as its minimum and, per row, the difference in as few whole
    /// bytes as the block's largest difference needs. A constant column costs nothing per row.
    ///
    /// A log of 10⁵ users and 10⁴ items over half a year takes 12 bytes a row.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * self.len() + 128);
        out.extend_from_slice(&(self.len() as u32).to_le_bytes());
        match &self.users {
            Ids::Int(ids) => {
                out.push(0);
                pack_column(ids.iter().map(|&id| order_preserving(id)), &mut out);
            }
            Ids::Bytes(ids) => {
                let (bytes, ends) = ids.parts();
                out.push(1);
                pack_column(ends.iter().map(|&end| end as u64), &mut out);
                out.extend_from_slice(bytes);
            }
        }
        pack_column(self.items.iter().map(|&item| u64::from(item)), &mut out);
        pack_column(self.kinds.iter().map(|&kind| u64::from(kind)), &mut out);
        pack_column(self.values.iter().map(|value| u64::from(value.to_bits())), &mut out);
        pack_column(self.times.iter().map(|&time| order_preserving(time)), &mut out);
        let has_digests = !self.digests.is_empty();
        out.push(u8::from(has_digests));
        if has_digests {
            pack_column(self.digests.iter().map(|&digest| digest as u64), &mut out);
            pack_column(self.digests.iter().map(|&digest| (digest >> 64) as u64), &mut out);
        }
        out
    }

    /// Appends the rows of a packed block.
    ///
    /// # Panics
    /// If `packed` is not what [`EventRows::pack`] wrote, or its users are of the other kind.
    pub fn unpack_into(packed: &[u8], rows: &mut Self) {
        let mut reader = Reader { bytes: packed };
        let n_rows = reader.n_rows();
        let is_bytes = reader.take(1)[0] == 1;
        match (&mut rows.users, is_bytes) {
            (Ids::Int(ids), false) => {
                reader.column(n_rows, |value| ids.push(from_order_preserving(value)));
            }
            (Ids::Bytes(ids), true) => unpack_bytes(&mut reader, n_rows, ids),
            _ => panic!("users of a block are all integers or all bytes"),
        }
        reader.column(n_rows, |value| rows.items.push(value as u32));
        reader.column(n_rows, |value| rows.kinds.push(value as u8));
        reader.column(n_rows, |value| rows.values.push(f32::from_bits(value as u32)));
        reader.column(n_rows, |value| rows.times.push(from_order_preserving(value)));
        if reader.take(1)[0] == 1 {
            rows.unpack_digests(&mut reader, n_rows);
        } else if !rows.digests.is_empty() {
            rows.digests.resize(rows.items.len(), 0);
        }
    }

    fn unpack_digests(&mut self, reader: &mut Reader<'_>, n_rows: usize) {
        let mut row = self.items.len() - n_rows;
        self.digests.resize(self.items.len(), 0);
        let first = row;
        reader.column(n_rows, |value| {
            self.digests[row] = u128::from(value);
            row += 1;
        });
        row = first;
        reader.column(n_rows, |value| {
            self.digests[row] |= u128::from(value) << 64;
            row += 1;
        });
    }
}

/// Maps i64 to u64 so that a small range of values stays a small range.
fn order_preserving(value: i64) -> u64 {
    (value as u64) ^ (1 << 63)
}

fn from_order_preserving(value: u64) -> i64 {
    (value ^ (1 << 63)) as i64
}

fn unpack_bytes(reader: &mut Reader<'_>, n_rows: usize, ids: &mut ByteIds) {
    let mut ends = Vec::with_capacity(n_rows);
    reader.column(n_rows, |value| ends.push(value as usize));
    let bytes = reader.take(ends.last().copied().unwrap_or(0));
    let mut start = 0;
    for end in ends {
        ids.push(&bytes[start..end]);
        start = end;
    }
}

fn pack_column(values: impl Iterator<Item = u64> + Clone, out: &mut Vec<u8>) {
    let (mut low, mut high) = (u64::MAX, 0);
    for value in values.clone() {
        low = low.min(value);
        high = high.max(value);
    }
    let low = low.min(high);
    let width = (64 - (high - low).leading_zeros()).div_ceil(8) as usize;
    out.extend_from_slice(&low.to_le_bytes());
    out.push(width as u8);
    for value in values {
        out.extend_from_slice(&(value - low).to_le_bytes()[..width]);
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.bytes.split_at(n);
        self.bytes = tail;
        head
    }

    fn n_rows(&mut self) -> usize {
        u32::from_le_bytes(self.take(4).try_into().expect("4 bytes")) as usize
    }

    fn column(&mut self, n_rows: usize, mut give: impl FnMut(u64)) {
        let low = u64::from_le_bytes(self.take(8).try_into().expect("8 bytes"));
        let width = usize::from(self.take(1)[0]);
        if width == 0 {
            (0..n_rows).for_each(|_| give(low));
            return;
        }
        let packed = self.take(n_rows * width);
        for value in packed.chunks_exact(width) {
            let mut bytes = [0; 8];
            bytes[..width].copy_from_slice(value);
            give(low + u64::from_le_bytes(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(raw: Vec<(i64, u32, u8, f32, i64, u128)>) -> EventRows {
        let mut rows = EventRows::new_like(&Ids::Int(Vec::new()));
        for (user, item, kind, value, time, digest) in raw {
            rows.users.push(crate::types::IdRef::Int(user));
            rows.items.push(item);
            rows.kinds.push(kind);
            rows.values.push(value);
            rows.times.push(time);
            rows.digests.push(digest);
        }
        rows
    }

    proptest! {
        #[test]
        fn unpacking_gives_back_what_was_packed(
            raw in prop::collection::vec(any::<(i64, u32, u8, f32, i64, u128)>(), 0..50)
        ) {
            let packed = rows(raw.clone());
            let mut unpacked = EventRows::new_like(&packed.users);
            EventRows::unpack_into(&packed.pack(), &mut unpacked);
            prop_assert_eq!(format!("{packed:?}"), format!("{unpacked:?}"));
        }

        #[test]
        fn blocks_with_and_without_event_ids_mix(with in any::<[bool; 4]>()) {
            let mut all = EventRows::new_like(&Ids::Int(Vec::new()));
            for (user, with) in with.into_iter().enumerate() {
                let mut block = rows(vec![(user as i64, 0, 0, 1.0, 0, 7)]);
                if !with {
                    block.digests.clear();
                }
                EventRows::unpack_into(&block.pack(), &mut all);
            }
            for (row, with) in with.into_iter().enumerate() {
                let digest = all.digests.get(row).copied().unwrap_or(0);
                prop_assert_eq!(digest, if with { 7 } else { 0 });
            }
        }

        #[test]
        fn string_users_come_back(ids in prop::collection::vec("[a-z]{0,9}", 0..30)) {
            let mut packed = EventRows::new_like(&Ids::Bytes(ByteIds::default()));
            for id in &ids {
                packed.users.push(crate::types::IdRef::Bytes(id.as_bytes()));
                packed.items.push(1);
                packed.kinds.push(0);
                packed.values.push(1.0);
                packed.times.push(-5);
            }
            let mut unpacked = EventRows::new_like(&packed.users);
            EventRows::unpack_into(&packed.pack(), &mut unpacked);
            prop_assert_eq!(packed, unpacked);
        }
    }

    #[test]
    fn a_constant_column_costs_nothing_per_row() {
        let one = rows(vec![(7, 3, 1, 1.0, 99, 0)]).pack().len();
        let many = rows(vec![(7, 3, 1, 1.0, 99, 0); 1000]).pack().len();
        assert_eq!(one, many);
    }
}
