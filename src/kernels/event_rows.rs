//! Rows of the log on their way to the shard that owns their user, packed small.

mod log_rows;
mod packed;
mod users;

use crate::kernels::simd::{Kernel, Simd, dispatch};
use crate::types::Ids;
pub use log_rows::LogBlocks;
pub use packed::{Column, Packed, PackedUsers, with_items};
pub use users::{BlockIds, RowUsers};

/// Events as columns of equal length, in no particular order.
#[derive(Clone, Debug)]
pub struct EventRows {
    /// Who.
    pub users: RowUsers,
    /// What: an item code whose meaning the stage knows (a reader's own code, later the rank of the
    /// id among all ids of the log).
    pub items: Vec<u32>,
    /// Which kind of event: an index into the plan's kinds. Empty if all are of kind 0.
    pub kinds: Vec<u8>,
    /// The mapped value, 1 where none is mapped. Finite. Empty if no row has one.
    pub values: Vec<f32>,
    /// When, in microseconds since 1970; 0 in a log without times. Empty if no row has one.
    pub times: Vec<i64>,
    /// What makes two rows the same event; 0 for a row without event id. Empty if no row has one.
    pub digests: Vec<u128>,
    /// Number of the file that each row comes from; empty where nobody asks for it.
    pub files: Vec<u32>,
}

impl EventRows {
    /// No rows, for users of the kind of `users`.
    pub fn new_like(users: &Ids) -> Self {
        Self {
            users: RowUsers::new_like(users),
            items: Vec::new(),
            kinds: Vec::new(),
            values: Vec::new(),
            times: Vec::new(),
            digests: Vec::new(),
            files: Vec::new(),
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

    /// Removes all rows and keeps the room.
    pub fn clear(&mut self) {
        self.users.clear();
        self.items.clear();
        self.kinds.clear();
        self.values.clear();
        self.times.clear();
        self.digests.clear();
        self.files.clear();
    }

    /// Packs the rows: each column as its minimum and, per row, the difference in as few whole
    /// bytes as the block's largest difference needs. A constant column costs nothing per row,
    /// times count in the coarsest of µs, ms and s that is exact for the block, a user whose id is
    /// text has it there once, and users of several rows on end are there by run.
    ///
    /// A log of 10⁵ users and 10⁴ items over half a year, by the second, takes 10 bytes a row.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * self.len() + 128);
        self.pack_into(&mut out);
        out
    }

    /// The same at the end of `out`.
    pub fn pack_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u32).to_le_bytes());
        match &self.users {
            RowUsers::Int(ids) => pack_users(ids, INTS, |_| {}, out),
            RowUsers::Bytes(ids) => {
                let (bytes, ends) = ids.distinct().parts();
                let distinct = |out: &mut Vec<u8>| {
                    out.extend_from_slice(&(ends.len() as u32).to_le_bytes());
                    pack_column(ends, out);
                    out.extend_from_slice(bytes);
                };
                pack_users(ids.codes(), TEXTS, distinct, out);
            }
        }
        pack_column(&self.items, out);
        pack_column(of_all(&self.kinds, &[0]), out);
        pack_column(of_all(&self.values, &[1.0]), out);
        pack_times(of_all(&self.times, &[0]), out);
        let has_digests = !self.digests.is_empty();
        out.push(u8::from(has_digests));
        if has_digests {
            for shift in [0, 64] {
                let half = self.digests.iter().map(|&digest| (digest >> shift) as u64);
                pack_column(&half.collect::<Vec<_>>(), out);
            }
        }
        out.push(u8::from(!self.files.is_empty()));
        if !self.files.is_empty() {
            pack_column(&self.files, out);
        }
    }
}

/// The values of a column, or what stands for all of them: a constant takes no byte per row.
fn of_all<'a, T>(values: &'a [T], constant: &'a [T; 1]) -> &'a [T] {
    if values.is_empty() { constant } else { values }
}

/// A number of a column.
trait Number: Copy {
    /// As a number without a sign, so that a small range of values stays a small range.
    fn as_u64(self) -> u64;
}

impl Number for u8 {
    #[inline(always)]
    fn as_u64(self) -> u64 {
        self.into()
    }
}

impl Number for u32 {
    #[inline(always)]
    fn as_u64(self) -> u64 {
        self.into()
    }
}

impl Number for u64 {
    #[inline(always)]
    fn as_u64(self) -> u64 {
        self
    }
}

impl Number for usize {
    #[inline(always)]
    fn as_u64(self) -> u64 {
        self as u64
    }
}

/// In the same order.
impl Number for i64 {
    #[inline(always)]
    fn as_u64(self) -> u64 {
        (self as u64) ^ (1 << 63)
    }
}

/// Its bits, in any order.
impl Number for f32 {
    #[inline(always)]
    fn as_u64(self) -> u64 {
        self.to_bits().into()
    }
}

fn from_order_preserving(value: u64) -> i64 {
    (value ^ (1 << 63)) as i64
}

/// What a column counts in: a time may be whole seconds or milliseconds.
const TICKS: [u64; 3] = [1, 1_000, 1_000_000];

fn pack_column<T: Number>(values: &[T], out: &mut Vec<u8>) {
    let (low, high) = dispatch(Range(values));
    let offsets = values.iter().map(|value| value.as_u64().wrapping_sub(low));
    pack_offsets(offsets, (low, high - low, 0), out);
}

/// The lengths of the runs of equal values, if these are half as many as there are values at most, and not
/// one, which costs nothing as it is. Runs of more than two bytes hold are several.
fn runs<T: PartialEq>(values: &[T]) -> Option<Vec<u16>> {
    let n_changes = values.windows(2).filter(|pair| pair[0] != pair[1]).count();
    if n_changes == 0 || 2 * (n_changes + 1) > values.len() {
        return None;
    }
    let runs = values.chunk_by(|a, b| a == b).flat_map(|run| run.chunks(u16::MAX.into()));
    Some(runs.map(|run| run.len() as u16).collect())
}

/// Packs the users of rows, or of runs of rows, where these are fewer. `before`: what stands before them.
fn pack_users<T: Number + PartialEq>(
    values: &[T],
    kind: u8,
    before: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    let Some(runs) = runs(values) else {
        out.push(kind);
        before(out);
        return pack_column(values, out);
    };
    out.push(kind | ARE_RUNS);
    out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    runs.iter().for_each(|length| out.extend_from_slice(&length.to_le_bytes()));
    before(out);
    let mut at = 0;
    let first = |length: &u16| {
        let first = values[at];
        at += usize::from(*length);
        first
    };
    pack_column(&runs.iter().map(first).collect::<Vec<T>>(), out);
}

/// Kinds of users, and the flag there that runs of them are what follows.
const INTS: u8 = 0;
const TEXTS: u8 = 1;
const ARE_RUNS: u8 = 2;

fn pack_times(times: &[i64], out: &mut Vec<u8>) {
    let (low, high) = dispatch(Range(times));
    let offsets = times.iter().map(|time| time.as_u64().wrapping_sub(low));
    // Each tick is a constant, so that no division is one.
    if offsets.clone().all(|offset| offset.is_multiple_of(TICKS[2])) {
        let span = (high - low) / TICKS[2];
        pack_offsets(offsets.map(|offset| offset / TICKS[2]), (low, span, 2), out);
    } else if offsets.clone().all(|offset| offset.is_multiple_of(TICKS[1])) {
        let span = (high - low) / TICKS[1];
        pack_offsets(offsets.map(|offset| offset / TICKS[1]), (low, span, 1), out);
    } else {
        pack_offsets(offsets, (low, high - low, 0), out);
    }
}

/// Smallest and largest value, 0 and 0 of none.
struct Range<'a, T>(&'a [T]);

impl<T: Number> Kernel for Range<'_, T> {
    type Output = (u64, u64);

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> (u64, u64) {
        let (mut low, mut high) = (u64::MAX, 0);
        for value in self.0 {
            low = low.min(value.as_u64());
            high = high.max(value.as_u64());
        }
        (low.min(high), high)
    }
}

/// Writes a column: its minimum, the largest offset, the tick, the offsets.
fn pack_offsets(
    offsets: impl ExactSizeIterator<Item = u64>,
    (low, largest, tick): (u64, u64, u8),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&low.to_le_bytes());
    out.extend_from_slice(&largest.to_le_bytes());
    out.push(tick);
    match bytes_of(largest) {
        0 => {}
        1 => write::<1>(offsets, out),
        2 => write::<2>(offsets, out),
        3 => write::<3>(offsets, out),
        4 => write::<4>(offsets, out),
        5 => write::<5>(offsets, out),
        6 => write::<6>(offsets, out),
        7 => write::<7>(offsets, out),
        _ => write::<8>(offsets, out),
    }
}

/// Bytes that hold a number.
fn bytes_of(largest: u64) -> usize {
    (64 - largest.leading_zeros()).div_ceil(8) as usize
}

/// The low `N` bytes of each value.
fn write<const N: usize>(values: impl ExactSizeIterator<Item = u64>, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + N * values.len(), 0);
    let (chunks, _) = out[start..].as_chunks_mut::<N>();
    for (chunk, value) in chunks.iter_mut().zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes()[..N]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{ByteIds, IdRef};

    type Row = (i64, u32, u8, f32, i64, u128);

    /// Number of a row's file.
    fn file_of(row: &Row) -> u32 {
        u32::from(row.2 % 3)
    }

    fn rows(raw: &[Row]) -> EventRows {
        let mut rows = EventRows::new_like(&Ids::Int(Vec::new()));
        for &(user, item, kind, value, time, digest) in raw {
            rows.users.push(IdRef::Int(user), 0);
            rows.items.push(item);
            rows.kinds.push(kind);
            rows.values.push(value);
            rows.times.push(time);
            rows.digests.push(digest);
        }
        rows.files = raw.iter().map(file_of).collect();
        rows
    }

    fn numbers(column: &Column<'_>, n_rows: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        column.for_each(n_rows, |number| numbers.push(number));
        assert!(numbers.iter().all(|number| (column.low()..=column.high()).contains(number)));
        numbers
    }

    fn unpacked(packed: &[u8]) -> Vec<Row> {
        let packed = Packed::new(packed);
        let n_rows = packed.n_rows;
        let PackedUsers::Int(users) = packed.users else { panic!("users are integers") };
        let users = numbers(&users, n_rows);
        let [items, kinds, values, times] =
            [packed.items, packed.kinds, packed.values, packed.times]
                .map(|column| numbers(&column, n_rows));
        let [low, high] = packed.digests.map_or([(); 2].map(|()| vec![0; n_rows]), |digests| {
            digests.map(|column| numbers(&column, n_rows))
        });
        let files = packed.files.map_or(Vec::new(), |files| numbers(&files, n_rows));
        let rows: Vec<Row> = (0..n_rows)
            .map(|row| {
                (
                    from_order_preserving(users[row]),
                    items[row] as u32,
                    kinds[row] as u8,
                    f32::from_bits(values[row] as u32),
                    from_order_preserving(times[row]),
                    u128::from(low[row]) | u128::from(high[row]) << 64,
                )
            })
            .collect();
        assert!(files.into_iter().eq(rows.iter().map(|row| u64::from(file_of(row)))));
        rows
    }

    /// Numbers that take few bytes as well as many.
    fn raw() -> impl Strategy<Value = Vec<Row>> {
        let row = any::<(i64, u32, u8, f32, i64, u128)>();
        (prop::collection::vec(row, 0..50), 0u32..64, 0usize..TICKS.len()).prop_map(
            |(mut rows, narrower, tick)| {
                for row in &mut rows {
                    row.0 >>= narrower;
                    row.1 >>= narrower / 2;
                    row.4 = (row.4 >> narrower) / TICKS[tick] as i64 * TICKS[tick] as i64;
                }
                rows
            },
        )
    }

    proptest! {
        #[test]
        fn unpacking_gives_back_what_was_packed(raw in raw()) {
            let unpacked = unpacked(&rows(&raw).pack());
            prop_assert_eq!(format!("{raw:?}"), format!("{unpacked:?}"));
        }

        #[test]
        fn items_are_replaced_and_nothing_else(
            raw in raw(), ranks in prop::collection::vec(any::<u32>(), 1..40)
        ) {
            let codes: Vec<Row> = raw
                .into_iter()
                .map(|row| (row.0, row.1 % ranks.len() as u32, row.2, row.3, row.4, row.5))
                .collect();
            let expected: Vec<Row> = codes
                .iter()
                .map(|row| (row.0, ranks[row.1 as usize], row.2, row.3, row.4, row.5))
                .collect();
            let replaced = with_items(&rows(&codes).pack(), &ranks);
            prop_assert_eq!(format!("{:?}", unpacked(&replaced)), format!("{expected:?}"));
            prop_assert_eq!(replaced, rows(&expected).pack());
        }

        #[test]
        fn string_users_come_back(ids in prop::collection::vec("[a-c]{0,3}", 0..300)) {
            let mut block = EventRows::new_like(&Ids::Bytes(ByteIds::default()));
            for round in 0..2 {
                block.clear();
                let of_round = || ids.iter().skip(round);
                let RowUsers::Bytes(users) = &mut block.users else { panic!("texts") };
                // Ids that share a hash are told apart all the same.
                let hashes: Vec<u64> = of_round().map(|id| id.len() as u64).collect();
                let rows: Vec<u32> = (0..hashes.len() as u32).collect();
                users.extend(&rows, |row| ids[round + row].as_bytes(), &hashes);
                for _ in of_round() {
                    block.items.push(1);
                    block.kinds.push(0);
                    block.values.push(1.0);
                    block.times.push(-5);
                }
            }
            let packed = block.pack();
            let packed = Packed::new(&packed);
            let PackedUsers::Bytes { distinct, codes } = packed.users else { panic!("texts") };
            let codes = numbers(&codes, packed.n_rows);
            let found: Vec<&[u8]> =
                codes.iter().map(|&code| distinct.get(code as usize)).collect();
            let expected: Vec<&[u8]> = ids.iter().skip(1).map(|id| id.as_bytes()).collect();
            let different: std::collections::BTreeSet<_> = expected.iter().collect();
            prop_assert_eq!(distinct.parts().1.len(), different.len());
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn users_on_end_are_there_by_run() {
        let log = |runs: &[(i64, usize)]| -> Vec<Row> {
            let users = runs.iter().flat_map(|&(user, n)| std::iter::repeat_n(user, n));
            users.zip(0..).map(|(user, n)| (user, n % 50, 1, 1.0, 7, 0)).collect()
        };
        let by_run = log(&[(7, 3), (-9, 70_000), (7, 2), (1 << 40, 40), (8, 1)]);
        let packed = rows(&by_run).pack();
        let PackedUsers::Int(users) = Packed::new(&packed).users else { panic!("integers") };
        let mut runs = Vec::new();
        users.each_run(by_run.len(), |id, n| runs.push((from_order_preserving(id), n)));
        let of_two_bytes = usize::from(u16::MAX);
        let halves = [(-9, of_two_bytes), (-9, 70_000 - of_two_bytes)];
        let others = [(7, 2), (1 << 40, 40), (8, 1)];
        assert_eq!(runs, [&[(7, 3)][..], &halves, &others].concat());
        assert!(users.are_runs());
        assert_eq!(unpacked(&packed), by_run);
        assert!(packed.len() < by_run.len() + 200, "an item, and no user, of each row");
        let by_row = rows(&log(&[(1, 1), (2, 2), (3, 1)])).pack();
        let PackedUsers::Int(users) = Packed::new(&by_row).users else { panic!("integers") };
        assert!(!users.are_runs());
    }

    #[test]
    fn a_constant_column_costs_nothing_per_row() {
        let one = rows(&[(7, 3, 1, 1.0, 99, 0)]).pack().len();
        let many = rows(&[(7, 3, 1, 1.0, 99, 0); 1000]).pack().len();
        assert_eq!(one, many);
    }

    #[test]
    fn a_column_that_no_row_has_is_its_constant() {
        let mut rows = rows(&[(7, 3, 0, 1.0, 0, 0), (9, 5, 0, 1.0, 0, 0)]);
        let packed = rows.pack();
        (rows.kinds, rows.values, rows.times) = (Vec::new(), Vec::new(), Vec::new());
        assert_eq!(rows.pack(), packed);
    }

    #[test]
    fn whole_seconds_count_in_seconds() {
        let log = |tick: i64| -> Vec<Row> {
            (0..200).map(|n| (7, 3, 1, 1.0, n * tick - 77_000_123, 0)).collect()
        };
        let [second, other] = [1_000_000, 1_000_001].map(|tick| rows(&log(tick)).pack().len());
        assert_eq!(other - second, 200 * 3, "4 bytes and 1");
        assert_eq!(unpacked(&rows(&log(1_000_000)).pack()), log(1_000_000));
    }
}
