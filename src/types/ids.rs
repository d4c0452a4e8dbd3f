//! Columns of ids in the caller's own type.

use std::cmp::Ordering;

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// The type in which ids come in and go out again.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum IdType {
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// UTF-8 string with 32-bit offsets.
    Utf8,
    /// UTF-8 string with 64-bit offsets.
    LargeUtf8,
    /// Bytes with 32-bit offsets.
    Binary,
    /// Bytes with 64-bit offsets.
    LargeBinary,
}

impl IdType {
    /// Whether ids of this type are held as integers.
    pub fn is_int(self) -> bool {
        matches!(self, Self::Int32 | Self::Int64)
    }

    /// The narrowest type that holds ids of both, or `None` where they cannot be mixed: integers,
    /// strings and bytes never turn into each other (`"007"` is not `7`).
    pub fn widen(self, other: Self) -> Option<Self> {
        use IdType::*;
        match (self, other) {
            (Int32 | Int64, Int32 | Int64)
            | (Utf8 | LargeUtf8, Utf8 | LargeUtf8)
            | (Binary | LargeBinary, Binary | LargeBinary) => Some(self.max(other)),
            _ => None,
        }
    }
}

/// One id, borrowed. Integers order numerically, bytes lexicographically.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdRef<'a> {
    /// An integer id.
    Int(i64),
    /// A string or binary id.
    Bytes(&'a [u8]),
}

impl IdRef<'_> {
    /// A hash that is the same on every machine and in every version: it decides the shard.
    ///
    /// Integers hash as their 8 little-endian bytes, whatever width they came in.
    #[inline]
    pub fn stable_hash(self, seed: u64) -> u64 {
        match self {
            IdRef::Int(id) => xxh3_64_with_seed(&id.to_le_bytes(), seed),
            IdRef::Bytes(id) => xxh3_64_with_seed(id, seed),
        }
    }

    /// 128 bits that stand for the id where only equality matters.
    #[inline]
    pub fn digest(self) -> u128 {
        match self {
            IdRef::Int(id) => id as u64 as u128,
            IdRef::Bytes(id) => xxh3_128(id),
        }
    }
}

impl std::fmt::Display for IdRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IdRef::Int(id) => write!(f, "{id}"),
            IdRef::Bytes(id) => write!(f, "{}", String::from_utf8_lossy(id)),
        }
    }
}

/// A column of ids: all integers or all byte strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Integer ids of any width.
    Int(Vec<i64>),
    /// String and binary ids.
    Bytes(ByteIds),
}

/// Byte strings end to end, with their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteIds {
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl ByteIds {
    /// The `row`-th id.
    #[inline]
    pub fn get(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.bytes[start..self.ends[row]]
    }

    /// Appends an id.
    pub fn push(&mut self, id: &[u8]) {
        self.bytes.extend_from_slice(id);
        self.ends.push(self.bytes.len());
    }

    /// Ids that stand end to end in `bytes`, with their ends.
    ///
    /// # Panics
    /// If the ends descend, or do not end with the bytes.
    pub fn from_parts(bytes: Vec<u8>, ends: Vec<usize>) -> Self {
        assert!(ends.is_sorted(), "the ends of ids ascend");
        assert_eq!(ends.last().copied().unwrap_or(0), bytes.len(), "the last id ends the bytes");
        Self { ends, bytes }
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no id.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Removes all ids and keeps the room.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.bytes.clear();
    }

    /// All bytes end to end, and the end of each id.
    pub fn parts(&self) -> (&[u8], &[usize]) {
        (&self.bytes, &self.ends)
    }
}

impl Ids {
    /// An empty column for ids of `id_type`.
    pub fn new(id_type: IdType) -> Self {
        if id_type.is_int() { Self::Int(Vec::new()) } else { Self::Bytes(ByteIds::default()) }
    }

    /// An empty column of the same kind as this one.
    pub fn new_like(&self) -> Self {
        match self {
            Self::Int(_) => Self::Int(Vec::new()),
            Self::Bytes(_) => Self::Bytes(ByteIds::default()),
        }
    }

    /// Number of ids.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Int(ids) => ids.len(),
            Self::Bytes(ids) => ids.ends.len(),
        }
    }

    /// Whether there is no id.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `row`-th id.
    ///
    /// # Panics
    /// If `row` is out of range.
    #[inline]
    pub fn get(&self, row: usize) -> IdRef<'_> {
        match self {
            Self::Int(ids) => IdRef::Int(ids[row]),
            Self::Bytes(ids) => IdRef::Bytes(ids.get(row)),
        }
    }

    /// Appends an id.
    ///
    /// # Panics
    /// If the id is of the other kind: one column never mixes integers and bytes.
    #[inline]
    pub fn push(&mut self, id: IdRef<'_>) {
        match (self, id) {
            (Self::Int(ids), IdRef::Int(id)) => ids.push(id),
            (Self::Bytes(ids), IdRef::Bytes(id)) => ids.push(id),
            _ => panic!("a column of ids is all integers or all bytes"),
        }
    }

    /// All ids in order.
    pub fn iter(&self) -> impl Iterator<Item = IdRef<'_>> {
        (0..self.len()).map(|row| self.get(row))
    }

    /// Compares the ids of two rows.
    #[inline]
    pub fn cmp_rows(&self, a: usize, b: usize) -> Ordering {
        self.get(a).cmp(&self.get(b))
    }

    /// The row of `id` in a sorted column.
    pub fn find_sorted(&self, id: IdRef<'_>) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle).cmp(&id) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// The ids of `rows`, in that order.
    pub fn take(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let mut taken = self.new_like();
        for row in rows {
            taken.push(self.get(row));
        }
        taken
    }

    /// The ids in sorted order, each once.
    pub fn sorted_unique(&self) -> Self {
        if let Self::Int(ids) = self {
            // Stable, as that is linear in sorted runs.
            let mut ids = ids.clone();
            ids.sort();
            ids.dedup();
            return Self::Int(ids);
        }
        let mut rows: Vec<u32> = (0..self.len() as u32).collect();
        rows.sort_unstable_by(|&a, &b| self.cmp_rows(a as usize, b as usize));
        rows.dedup_by(|a, b| self.cmp_rows(*a as usize, *b as usize).is_eq());
        self.take(rows.into_iter().map(|row| row as usize))
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Int(ids) => 8 * ids.capacity(),
            Self::Bytes(ids) => 8 * ids.ends.capacity() + ids.bytes.capacity(),
        }
    }
}
