//! Sums over users in tiles: one shard's users by one range of items.
//!
//! The factors of a shard's users stay in a core's cache while all their pairs in the range are added
//! up. Within a tile pairs are ordered by item, then user.

use rayon::prelude::*;

use super::item_sums::{Term, add, row_of};
use super::pairs::{Fixed, Pairs};
use super::tree::Forest;
use super::users::Users;
use crate::kernels::simd::Simd;

/// Items of one tile: what is held of them fits a core's second cache beside a shard's users, each of
/// whom comes several times. Few in tests, so that small logs have several tiles.
pub(super) const ITEMS_PER_TILE: usize = if cfg!(test) { 4 } else { 1024 };

/// The pairs of one shard, 10 bytes each and 4 per range of items.
#[derive(Debug)]
pub(super) struct ShardTiles {
    shard: u32,
    /// Where the pairs of each range of items begin, and the end of the last.
    starts: Vec<u32>,
    /// Users of the process, counted through its shards.
    rows: Vec<u32>,
    /// Items, counted from the first of the range.
    items: Vec<u16>,
    confidences: Vec<f32>,
}

/// The tiles of each shard; users are counted through all of them.
pub(super) fn tiles(shards: &[(u32, Users<'_>)], n_items: usize) -> Vec<ShardTiles> {
    let ends = shards.iter().scan(0, |end, (_, users)| {
        *end += users.len();
        Some(*end)
    });
    let firsts: Vec<usize> = std::iter::once(0).chain(ends).collect();
    let of_shard = |(&(shard, users), &first)| ShardTiles::new(shard, first as u32, users, n_items);
    shards.par_iter().zip(&firsts[..shards.len()]).with_max_len(1).map(of_shard).collect()
}

impl ShardTiles {
    fn new(shard: u32, first: u32, users: Users<'_>, n_items: usize) -> Self {
        let mut next = vec![0u32; n_items + 1];
        for row in users.solved_rows() {
            users.of(row).rows.iter().for_each(|item| next[item.index() + 1] += 1);
        }
        for item in 0..n_items {
            next[item + 1] += next[item];
        }
        let n_pairs = next[n_items];
        let mut starts: Vec<u32> =
            next[..n_items].iter().copied().step_by(ITEMS_PER_TILE).collect();
        starts.push(n_pairs);
        let n_pairs = n_pairs as usize;
        let (mut rows, mut confidences) = (vec![0; n_pairs], vec![0.0; n_pairs]);
        let mut items = vec![0; n_pairs];
        for row in users.solved_rows() {
            let pairs = users.of(row);
            for (item, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
                let place = next[item.index()] as usize;
                next[item.index()] += 1;
                (rows[place], confidences[place]) = (first + row as u32, confidence);
                items[place] = (item.index() % ITEMS_PER_TILE) as u16;
            }
        }
        Self { shard, starts, rows, items, confidences }
    }

    fn tile(&self, range: usize) -> Tile<'_> {
        let pairs = self.starts[range] as usize..self.starts[range + 1] as usize;
        Tile {
            rows: &self.rows[pairs.clone()],
            items: &self.items[pairs.clone()],
            confidences: &self.confidences[pairs],
        }
    }
}

/// The pairs of one tile.
#[derive(Clone, Copy)]
struct Tile<'a> {
    rows: &'a [u32],
    items: &'a [u16],
    confidences: &'a [f32],
}

/// What one range of items is summed with.
#[derive(Clone, Copy)]
pub(super) struct RangeSums<'a> {
    pub(super) users: Fixed<'a>,
    pub(super) term: Term,
    /// `[n_items, stride]` of the range; empty for [`Term::Normal`].
    pub(super) v: &'a [f32],
    /// Numbers of one sum.
    pub(super) width: usize,
}

impl RangeSums<'_> {
    /// Sums of one range of items over some shards, ascending.
    #[inline(always)]
    pub(super) fn run<'t, S: Simd>(
        &self,
        simd: S,
        range: usize,
        shards: impl ExactSizeIterator<Item = &'t ShardTiles>,
        values: &mut [f32],
        present: &mut [bool],
    ) {
        let mut forest = Forest::new(present.len(), self.width, shards.len());
        let mut leaves = vec![0.0; values.len()];
        for shard in shards {
            let tile = shard.tile(range);
            let mut touched = [false; ITEMS_PER_TILE];
            tile.items.iter().for_each(|&item| touched[usize::from(item)] = true);
            let touched = &touched[..present.len()];
            for (leaf, _) in leaves.chunks_exact_mut(self.width).zip(touched).filter(|of| *of.1) {
                leaf.fill(0.0);
            }
            self.add(simd, tile, &mut leaves);
            for (at, leaf) in leaves.chunks_exact_mut(self.width).enumerate() {
                if touched[at] {
                    forest.push(simd, at, shard.shard, leaf);
                }
            }
        }
        for (at, value) in values.chunks_exact_mut(self.width).enumerate() {
            present[at] = forest.finish(simd, at, value);
        }
    }

    /// Adds the pairs of a tile to the leaves of its items.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, tile: Tile<'_>, leaves: &mut [f32]) {
        let Self { users, term, width, v } = *self;
        let mut start = 0;
        while let Some(&item) = tile.items.get(start) {
            let rest = &tile.items[start..];
            let n = rest.iter().position(|&other| other != item).unwrap_or(rest.len());
            let of_item = start..start + n;
            let confidences = &tile.confidences[of_item.clone()];
            let pairs = Pairs { rows: &tile.rows[of_item], confidences };
            start += n;
            let item = usize::from(item);
            let leaf = &mut leaves[item * width..][..width];
            add(simd, term, leaf, pairs, users, row_of(v, item, users.stride));
        }
    }
}
