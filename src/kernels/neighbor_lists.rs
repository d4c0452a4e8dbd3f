//! The neighbors of a range of items, row after row.

use crate::types::ItemIdx;

/// Neighbor lists of consecutive items in three flat columns.
///
/// Row `r` is the `r`-th item of the range that was asked for, best neighbor first. A row without
/// neighbors is empty. 12 bytes per neighbor and 8 per row.
#[derive(Clone, Debug, PartialEq)]
pub struct NeighborLists {
    offsets: Vec<u64>,
    items: Vec<ItemIdx>,
    scores: Vec<f32>,
    supports: Vec<u32>,
}

/// The neighbors of one item, best first: three slices of equal length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbors<'a> {
    /// The neighbors.
    pub items: &'a [ItemIdx],
    /// Their similarities, above 0, never increasing.
    pub scores: &'a [f32],
    /// Number of users who have both items.
    pub supports: &'a [u32],
}

impl<'a> Neighbors<'a> {
    /// Neighbor, similarity and users, best first.
    pub fn iter(self) -> impl Iterator<Item = (ItemIdx, f32, u32)> + 'a {
        let scored = self.items.iter().zip(self.scores).zip(self.supports);
        scored.map(|((&item, &score), &support)| (item, score, support))
    }
}

impl Default for NeighborLists {
    fn default() -> Self {
        Self { offsets: vec![0], items: Vec::new(), scores: Vec::new(), supports: Vec::new() }
    }
}

impl NeighborLists {
    /// Lists without a row, with room for `n_rows` rows of `n_neighbors` in all.
    pub fn with_capacity(n_rows: usize, n_neighbors: usize) -> Self {
        let mut offsets = Vec::with_capacity(n_rows + 1);
        offsets.push(0);
        Self {
            offsets,
            items: Vec::with_capacity(n_neighbors),
            scores: Vec::with_capacity(n_neighbors),
            supports: Vec::with_capacity(n_neighbors),
        }
    }

    /// Number of rows, empty ones included.
    pub fn n_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of neighbors in all rows.
    pub fn n_neighbors(&self) -> usize {
        self.items.len()
    }

    /// The neighbors in one row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline]
    pub fn of(&self, row: usize) -> Neighbors<'_> {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        Neighbors {
            items: &self.items[range.clone()],
            scores: &self.scores[range.clone()],
            supports: &self.supports[range],
        }
    }

    /// Adds one row at the end.
    pub fn push_row(&mut self, neighbors: impl IntoIterator<Item = (ItemIdx, f32, u32)>) {
        for (item, score, support) in neighbors {
            self.items.push(item);
            self.scores.push(score);
            self.supports.push(support);
        }
        self.offsets.push(self.items.len() as u64);
    }

    /// Adds all rows of `other` at the end.
    pub fn append(&mut self, other: Self) {
        let start = self.items.len() as u64;
        self.offsets.extend(other.offsets[1..].iter().map(|end| start + end));
        self.items.extend_from_slice(&other.items);
        self.scores.extend_from_slice(&other.scores);
        self.supports.extend_from_slice(&other.supports);
    }

    /// The lists as bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 8 * self.n_rows() + 12 * self.n_neighbors());
        out.extend_from_slice(&(self.n_rows() as u64).to_le_bytes());
        self.offsets[1..].iter().for_each(|end| out.extend_from_slice(&end.to_le_bytes()));
        self.items.iter().for_each(|item| out.extend_from_slice(&item.0.to_le_bytes()));
        self.scores.iter().for_each(|score| out.extend_from_slice(&score.to_le_bytes()));
        self.supports.iter().for_each(|support| out.extend_from_slice(&support.to_le_bytes()));
        out
    }

    /// The inverse of [`NeighborLists::encode`].
    ///
    /// # Panics
    /// If `bytes` is nothing that it wrote.
    pub fn decode(bytes: &[u8]) -> Self {
        let (n_rows, bytes) = bytes.split_at(8);
        let n_rows = u64::from_le_bytes(n_rows.try_into().expect("8 bytes")) as usize;
        let (ends, bytes) = bytes.split_at(8 * n_rows);
        let ends = ends.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
        let mut columns = bytes.chunks_exact((bytes.len() / 3).max(4));
        let mut words = || {
            let column = columns.next().unwrap_or_default().chunks_exact(4);
            column.map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect::<Vec<_>>()
        };
        Self {
            offsets: std::iter::once(0).chain(ends).collect(),
            items: words().into_iter().map(ItemIdx).collect(),
            scores: words().into_iter().map(f32::from_bits).collect(),
            supports: words(),
        }
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        8 * self.offsets.capacity()
            + 4 * (self.items.capacity() + self.scores.capacity() + self.supports.capacity())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_survive_the_wire(
            rows in prop::collection::vec(prop::collection::btree_map(0u32..6, (0.1f32..1.0, 1u32..9), 0..5), 6)
        ) {
            let mut lists = NeighborLists::default();
            for row in &rows {
                lists.push_row(row.iter().map(|(&item, &(score, support))| (ItemIdx(item), score, support)));
            }
            prop_assert_eq!(&NeighborLists::decode(&lists.encode()), &lists);
        }
    }
}
