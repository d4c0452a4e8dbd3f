//! Packed blocks, taken apart column by column.

use std::ops::Range;

use super::{ARE_RUNS, INTS, TICKS, bytes_of, pack_column};
use crate::types::ByteIds;

/// A packed block: where its columns are, not yet decoded.
#[derive(Clone, Debug)]
pub struct Packed<'a> {
    /// The whole block.
    pub bytes: &'a [u8],
    /// Number of rows.
    pub n_rows: usize,
    /// Who.
    pub users: PackedUsers<'a>,
    /// Item codes.
    pub items: Column<'a>,
    /// Kinds of events.
    pub kinds: Column<'a>,
    /// Bits of values.
    pub values: Column<'a>,
    /// Times, moved so that they are not negative: see [`Column::as_i64`].
    pub times: Column<'a>,
    /// Low and high halves of the digests of event ids; absent if no row has one.
    pub digests: Option<[Column<'a>; 2]>,
    /// Numbers of files; absent where nobody asked for them.
    pub files: Option<Column<'a>>,
    /// Where the items stand.
    items_at: Range<usize>,
}

/// The users of a packed block.
#[derive(Clone, Debug)]
pub enum PackedUsers<'a> {
    /// Ids, moved as times are.
    Int(Column<'a>),
    /// Ids, each once, and per row which of them.
    Bytes {
        /// The ids in the order of their codes.
        distinct: ByteIds,
        /// Codes by row.
        codes: Column<'a>,
    },
}

impl<'a> PackedUsers<'a> {
    /// Ids, or codes.
    pub fn column(&self) -> &Column<'a> {
        match self {
            Self::Int(column) | Self::Bytes { codes: column, .. } => column,
        }
    }
}

/// A column of a packed block.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    low: u64,
    /// What the largest value is above that, in ticks.
    largest: u64,
    tick: u64,
    packed: &'a [u8],
    /// The lengths of the runs that the values are those of; absent if they are those of rows.
    runs: Option<&'a [[u8; 2]]>,
}

impl<'a> Packed<'a> {
    /// Takes a block apart.
    ///
    /// # Panics
    /// If `packed` is not what [`EventRows::pack`](super::EventRows::pack) wrote.
    pub fn new(packed: &'a [u8]) -> Self {
        let mut reader = Reader { bytes: packed };
        let n_rows = reader.u32() as usize;
        let kind = reader.take(1)[0];
        let runs = (kind & ARE_RUNS != 0).then(|| reader.runs());
        let users = match kind & !ARE_RUNS {
            INTS => PackedUsers::Int(reader.users(n_rows, runs)),
            _ => reader.texts(n_rows, runs),
        };
        let items_start = packed.len() - reader.bytes.len();
        let items = reader.column(n_rows);
        let items_at = items_start..packed.len() - reader.bytes.len();
        let [kinds, values, times] = [(); 3].map(|()| reader.column(n_rows));
        let has_digests = reader.take(1)[0] == 1;
        let digests = has_digests.then(|| [(); 2].map(|()| reader.column(n_rows)));
        let has_files = reader.take(1)[0] == 1;
        let files = has_files.then(|| reader.column(n_rows));
        let bytes = packed;
        Self { bytes, n_rows, users, items, kinds, values, times, digests, files, items_at }
    }
}

/// The block with `ranks[code]` in the place of each item code.
///
/// # Panics
/// If `packed` is no packed block, or a code is not among `ranks`.
pub fn with_items(packed: &[u8], ranks: &[u32]) -> Vec<u8> {
    let Packed { n_rows, items, items_at, .. } = Packed::new(packed);
    let mut of_rows = Vec::new();
    items.decode(n_rows, &mut of_rows, |code| ranks[code as usize]);
    let mut out = Vec::with_capacity(packed.len() + 2 * n_rows);
    out.extend_from_slice(&packed[..items_at.start]);
    pack_column(&of_rows, &mut out);
    out.extend_from_slice(&packed[items_at.end..]);
    out
}

impl Column<'_> {
    /// No value is below this one; some value is equal to it, if there is any.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// No value is above this one; some value is equal to it, if there is any.
    pub fn high(&self) -> u64 {
        self.low.wrapping_add(self.tick.wrapping_mul(self.largest))
    }

    /// What all differences of two values are a multiple of: 1, 1,000 or 1,000,000.
    pub fn tick(&self) -> u64 {
        self.tick
    }

    /// The signed number that `value` stands for in a column that was moved.
    pub fn as_i64(value: u64) -> i64 {
        super::from_order_preserving(value)
    }

    /// Whether equal values stand next to each other, so that there are far fewer runs of them than rows.
    pub fn are_runs(&self) -> bool {
        self.runs.is_some()
    }

    /// Gives the value of every row, in order.
    #[inline]
    pub fn for_each(&self, n_rows: usize, mut give: impl FnMut(u64)) {
        if self.are_runs() {
            return self.each_run(n_rows, |value, length| (0..length).for_each(|_| give(value)));
        }
        self.each_value(n_rows, give);
    }

    /// Gives the value and the number of rows of each run of equal values, or of parts of it.
    #[inline]
    pub fn each_run(&self, n_rows: usize, mut give: impl FnMut(u64, usize)) {
        let Some(runs) = self.runs else { return self.each_value(n_rows, |value| give(value, 1)) };
        let mut lengths = runs.iter().map(|length| usize::from(u16::from_le_bytes(*length)));
        self.each_value(runs.len(), |value| give(value, lengths.next().expect("one of each run")));
    }

    #[inline]
    fn each_value(&self, n_values: usize, mut give: impl FnMut(u64)) {
        let (low, tick) = (self.low, self.tick);
        let mut give = |offset: u64| give(low.wrapping_add(tick.wrapping_mul(offset)));
        match bytes_of(self.largest) {
            0 => (0..n_values).for_each(|_| give(0)),
            1 => read::<1>(self.packed).for_each(give),
            2 => read::<2>(self.packed).for_each(give),
            3 => read::<3>(self.packed).for_each(give),
            4 => read::<4>(self.packed).for_each(give),
            5 => read::<5>(self.packed).for_each(give),
            6 => read::<6>(self.packed).for_each(give),
            7 => read::<7>(self.packed).for_each(give),
            _ => read::<8>(self.packed).for_each(give),
        }
    }

    /// Replaces what is in `out` by what `make` makes of the values, of a column without
    /// [runs](Self::are_runs).
    #[inline]
    pub fn decode<T: Clone>(&self, n_rows: usize, out: &mut Vec<T>, make: impl Fn(u64) -> T) {
        let (low, tick) = (self.low, self.tick);
        self.decode_offsets(n_rows, out, |offset| {
            make(low.wrapping_add(tick.wrapping_mul(offset)))
        });
    }

    /// The same of (value − [`low`](Self::low)) / [`tick`](Self::tick), of a column without
    /// [runs](Self::are_runs).
    #[inline]
    pub fn decode_offsets<T: Clone>(
        &self,
        n_rows: usize,
        out: &mut Vec<T>,
        make: impl Fn(u64) -> T,
    ) {
        assert!(!self.are_runs(), "only users stand in runs");
        out.clear();
        match bytes_of(self.largest) {
            0 => out.resize(n_rows, make(0)),
            1 => out.extend(read::<1>(self.packed).map(make)),
            2 => out.extend(read::<2>(self.packed).map(make)),
            3 => out.extend(read::<3>(self.packed).map(make)),
            4 => out.extend(read::<4>(self.packed).map(make)),
            5 => out.extend(read::<5>(self.packed).map(make)),
            6 => out.extend(read::<6>(self.packed).map(make)),
            7 => out.extend(read::<7>(self.packed).map(make)),
            _ => out.extend(read::<8>(self.packed).map(make)),
        }
    }
}

fn read<const N: usize>(packed: &[u8]) -> impl Iterator<Item = u64> {
    packed.as_chunks::<N>().0.iter().map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    })
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

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("4 bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("8 bytes"))
    }

    fn column(&mut self, n_rows: usize) -> Column<'a> {
        let [low, largest] = [(); 2].map(|()| self.u64());
        let tick = TICKS[usize::from(self.take(1)[0])];
        let packed = self.take(n_rows * bytes_of(largest));
        Column { low, largest, tick, packed, runs: None }
    }

    fn runs(&mut self) -> &'a [[u8; 2]] {
        let n_runs = self.u32() as usize;
        self.take(2 * n_runs).as_chunks().0
    }

    fn users(&mut self, n_rows: usize, runs: Option<&'a [[u8; 2]]>) -> Column<'a> {
        Column { runs, ..self.column(runs.map_or(n_rows, <[_]>::len)) }
    }

    fn texts(&mut self, n_rows: usize, runs: Option<&'a [[u8; 2]]>) -> PackedUsers<'a> {
        let n_distinct = self.u32() as usize;
        let mut ends = Vec::new();
        self.column(n_distinct).decode(n_distinct, &mut ends, |end| end as usize);
        let bytes = self.take(ends.last().copied().unwrap_or(0));
        let distinct = ByteIds::from_parts(bytes.to_vec(), ends);
        PackedUsers::Bytes { distinct, codes: self.users(n_rows, runs) }
    }
}
