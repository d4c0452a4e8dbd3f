//! Sums over shards in the shape of one binary tree, the same for any number of processes.
//!
//! The leaves are the shards, in order; a node is the sum of its left and its right half. A leaf that
//! nothing touches is absent: its sibling passes upwards unchanged. A process that owns a whole
//! subtree can send its sum alone, and whoever adds the sums of several subtrees gets the same bits.

use crate::kernels::simd::{LANES, Simd};

/// One sum of vectors in the making. Leaves come in ascending order of their shards.
#[derive(Clone, Debug)]
pub struct TreeSum<T> {
    width: usize,
    /// One shard in each subtree that waits for its right sibling, leftmost first.
    shards: Vec<u32>,
    /// Their sums end to end.
    values: Vec<T>,
}

/// Height of the lowest node over two shards.
fn height(a: u32, b: u32) -> u32 {
    u32::BITS - (a ^ b).leading_zeros()
}

impl<T: Copy + Default + std::ops::Add<Output = T>> TreeSum<T> {
    /// An empty sum of vectors of `width` numbers.
    pub fn new(width: usize) -> Self {
        Self { width, shards: Vec::new(), values: Vec::new() }
    }

    /// The leaf of `shard`, or the sum of the subtree that holds it: zeros, to be added to.
    ///
    /// # Panics
    /// If shards do not ascend (in debug builds).
    #[inline(always)]
    pub fn leaf(&mut self, shard: u32) -> &mut [T] {
        debug_assert!(self.shards.last().is_none_or(|&last| last < shard), "shards ascend");
        while let [.., left, right] = self.shards[..]
            && height(left, right) < height(right, shard)
        {
            self.merge();
        }
        self.shards.push(shard);
        let start = self.values.len();
        self.values.resize(start + self.width, T::default());
        &mut self.values[start..]
    }

    /// Adds the last subtree to the one before it.
    #[inline(always)]
    fn merge(&mut self) {
        let start = self.values.len() - self.width;
        let (left, right) = self.values.split_at_mut(start);
        let left = &mut left[start - self.width..];
        left.iter_mut().zip(right.iter()).for_each(|(left, right)| *left = *left + *right);
        self.values.truncate(start);
        self.shards.pop();
    }

    /// The sum of all leaves, or `None` if there are none. Empty afterwards.
    #[inline(always)]
    pub fn finish(&mut self, out: &mut [T]) -> bool {
        while self.shards.len() > 1 {
            self.merge();
        }
        let present = self.shards.pop().is_some();
        if present {
            out.copy_from_slice(&self.values);
        }
        self.values.clear();
        present
    }
}

/// The sums of several rows at once, each in the shape of [`TreeSum`]; leaves are handed over whole.
///
/// A node is added up as soon as nothing can follow in it, so that what waits stays small.
#[derive(Debug)]
pub(super) struct Forest {
    width: usize,
    /// How many wait in each row.
    lens: Vec<usize>,
    /// `[depth, n_rows]`: one shard in each of them.
    shards: Vec<u32>,
    /// `[depth, n_rows, width]`: their sums.
    values: Vec<f32>,
}

impl Forest {
    /// Empty sums of rows of `width` numbers, over shards of one aligned subtree of `n_shards`.
    pub(super) fn new(n_rows: usize, width: usize, n_shards: usize) -> Self {
        let depth = n_shards.next_power_of_two().ilog2() as usize + 2;
        let values = vec![0.0; n_rows * depth * width];
        Self { width, lens: vec![0; n_rows], shards: vec![0; n_rows * depth], values }
    }

    fn slot(&self, depth: usize, row: usize) -> usize {
        depth * self.lens.len() + row
    }

    /// Adds the leaf of `shard` to a row; shards ascend. The leaf is scratch afterwards.
    #[inline(always)]
    pub(super) fn push<S: Simd>(&mut self, simd: S, row: usize, shard: u32, leaf: &mut [f32]) {
        let mut len = self.lens[row];
        while len >= 2 {
            let (left, right) = (self.slot(len - 2, row), self.slot(len - 1, row));
            if height(self.shards[left], self.shards[right]) >= height(self.shards[right], shard) {
                break;
            }
            let (before, after) = self.values.split_at_mut(right * self.width);
            add_slices(simd, &mut before[left * self.width..], &after[..self.width]);
            len -= 1;
        }
        // The leaf's subtree is full below the node over both: no later shard is in it.
        while len >= 1 {
            let last = self.slot(len - 1, row);
            if (shard + 1).trailing_zeros() + 1 < height(self.shards[last], shard) {
                break;
            }
            add_slices(simd, leaf, &self.values[last * self.width..][..self.width]);
            len -= 1;
        }
        let slot = self.slot(len, row);
        copy(simd, &mut self.values[slot * self.width..][..self.width], leaf);
        self.shards[slot] = shard;
        self.lens[row] = len + 1;
    }

    /// The sum of all leaves of a row, or `false` if there are none.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(&mut self, simd: S, row: usize, out: &mut [f32]) -> bool {
        let Some(last) = self.lens[row].checked_sub(1) else { return false };
        let at = |depth: usize| self.slot(depth, row) * self.width;
        out.copy_from_slice(&self.values[at(last)..][..self.width]);
        for depth in (0..last).rev() {
            add_slices(simd, out, &self.values[at(depth)..][..self.width]);
        }
        true
    }
}

/// A copy of whole groups of lanes, too short for a call.
#[inline(always)]
fn copy<S: Simd>(simd: S, to: &mut [f32], from: &[f32]) {
    for (to, from) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(from.as_chunks::<LANES>().0) {
        simd.store(simd.load(from), to);
    }
}

/// `sum += other`, whole groups of lanes.
#[inline(always)]
fn add_slices<S: Simd>(simd: S, sum: &mut [f32], other: &[f32]) {
    for (sum, other) in sum.as_chunks_mut::<LANES>().0.iter_mut().zip(other.as_chunks::<LANES>().0)
    {
        simd.store(simd.add(simd.load(sum), simd.load(other)), sum);
    }
}

/// The largest aligned subtrees that make up the shards `start..end`, in order.
pub fn aligned_subtrees(mut start: u32, end: u32) -> Vec<std::ops::Range<u32>> {
    let mut subtrees = Vec::new();
    while start < end {
        let aligned = if start == 0 { u32::MAX } else { 1 << start.trailing_zeros() };
        let fitting = 1 << (end - start).ilog2();
        let size = aligned.min(fitting);
        subtrees.push(start..start + size);
        start += size;
    }
    subtrees
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: halves, and nothing where there is nothing.
    fn by_halves(leaves: &[Option<f32>]) -> Option<f32> {
        if let [leaf] = leaves {
            return *leaf;
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        match (by_halves(left), by_halves(right)) {
            (Some(left), Some(right)) => Some(left + right),
            (one, other) => one.or(other),
        }
    }

    fn sum(leaves: impl Iterator<Item = (u32, Option<f32>)>) -> Option<f32> {
        let mut tree = TreeSum::new(1);
        leaves.for_each(|(shard, leaf)| {
            if let Some(value) = leaf {
                tree.leaf(shard)[0] = value;
            }
        });
        let mut out = [0.0];
        tree.finish(&mut out).then_some(out[0])
    }

    proptest! {
        #[test]
        fn any_split_into_processes_gives_the_sum_by_halves(
            leaves in (0u32..6).prop_flat_map(|log2| {
                prop::collection::vec(prop::option::of(-1e3f32..1e3), 1usize << log2)
            }),
            cuts in prop::collection::vec(0u32..33, 0..4),
        ) {
            let n_shards = leaves.len() as u32;
            let expected = by_halves(&leaves).map(f32::to_bits);
            let all = (0..n_shards).zip(leaves.iter().copied());
            prop_assert_eq!(sum(all).map(f32::to_bits), expected);

            let mut bounds: Vec<u32> = cuts.into_iter().map(|cut| cut.min(n_shards)).collect();
            bounds.extend([0, n_shards]);
            bounds.sort_unstable();
            let of_processes = bounds.windows(2).flat_map(|w| aligned_subtrees(w[0], w[1]));
            let parts = of_processes.map(|shards| {
                let leaves = shards.clone().map(|shard| (shard, leaves[shard as usize]));
                (shards.start, sum(leaves))
            });
            prop_assert_eq!(sum(parts).map(f32::to_bits), expected);
        }
    }
}
