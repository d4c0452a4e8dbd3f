//! Sums over users in tiles: one shard's users by one range of items.
//!
//! The factors of a shard's users stay in a core's cache while all their pairs in the range are added
//! up. Within a tile pairs are ordered by item, then user, and each item's are filled up to a multiple
//! of four by pairs that add nothing, so that one loop without a rest walks the tile.

use rayon::prelude::*;

use super::halves::{Number, Numbers};
use super::item_sums::{Term, add, row_of};
use super::pairs::{AddPairs, Fixed, Pairs, scaled_row, store_row};
use super::tree::Forest;
use super::users::Users;
use crate::kernels::simd::{LANES, Simd};

/// Items of one tile: what is held of them fits a core's second cache beside a shard's users, each of
/// whom comes several times. Few in tests, so that small logs have several tiles.
pub(super) const ITEMS_PER_TILE: usize = if cfg!(test) { 4 } else { 1024 };

/// Pairs that are added together.
const BLOCK: usize = 4;

/// The pairs of one shard in blocks of one item each: 8 bytes per pair, 2 per block, 4 per range of
/// items.
#[derive(Debug)]
pub(super) struct ShardTiles {
    shard: u32,
    /// Where the blocks of each range of items begin, and the end of the last.
    starts: Vec<u32>,
    /// The item of each block, counted from the first of the range.
    items: Vec<u16>,
    /// Users of the process, counted through its shards.
    rows: Vec<u32>,
    confidences: Vec<f32>,
}

/// The tiles of each shard; users are counted through all of them.
///
/// A pair with the confidence −`base` has neither a target nor extra weight: it fills blocks up.
pub(super) fn tiles(shards: &[(u32, Users<'_>)], n_items: usize, base: f32) -> Vec<ShardTiles> {
    let ends = shards.iter().scan(0, |end, (_, users)| {
        *end += users.len();
        Some(*end)
    });
    let firsts: Vec<usize> = std::iter::once(0).chain(ends).collect();
    let of_shard =
        |(&(shard, users), &first)| ShardTiles::new((shard, first as u32), users, n_items, base);
    shards.par_iter().zip(&firsts[..shards.len()]).with_max_len(1).map(of_shard).collect()
}

/// Where the blocks of each item begin, and those of each range of items and the end of the last.
///
/// Within a range items with few blocks come first, so that the end of an item's blocks is where the
/// processor guesses it.
fn first_blocks(users: Users<'_>, n_items: usize) -> (Vec<u32>, Vec<u32>) {
    let mut blocks = vec![0u32; n_items];
    for row in users.solved_rows() {
        users.of(row).rows.iter().for_each(|item| blocks[item.index()] += 1);
    }
    blocks.iter_mut().for_each(|n_pairs| *n_pairs = n_pairs.div_ceil(BLOCK as u32));
    let (mut starts, mut next) = (Vec::new(), 0);
    for range in blocks.chunks_mut(ITEMS_PER_TILE) {
        starts.push(next);
        let mut order: Vec<usize> = (0..range.len()).collect();
        order.sort_by_key(|&item| range[item]);
        for item in order {
            next += std::mem::replace(&mut range[item], next);
        }
    }
    starts.push(next);
    (blocks, starts)
}

impl ShardTiles {
    fn new((shard, first): (u32, u32), users: Users<'_>, n_items: usize, base: f32) -> Self {
        let (blocks, starts) = first_blocks(users, n_items);
        let n_blocks = *starts.last().expect("the end of the last") as usize;
        let mut items = vec![0; n_blocks];
        let (mut rows, mut confidences) =
            (vec![first; BLOCK * n_blocks], vec![-base; BLOCK * n_blocks]);
        let mut next: Vec<usize> = blocks.iter().map(|&block| BLOCK * block as usize).collect();
        for row in users.solved_rows() {
            let pairs = users.of(row);
            for (item, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
                let place = next[item.index()];
                next[item.index()] += 1;
                (rows[place], confidences[place]) = (first + row as u32, confidence);
                items[place / BLOCK] = (item.index() % ITEMS_PER_TILE) as u16;
            }
        }
        Self { shard, starts, items, rows, confidences }
    }

    fn tile(&self, range: usize) -> Tile<'_> {
        let blocks = self.starts[range] as usize..self.starts[range + 1] as usize;
        let pairs = BLOCK * blocks.start..BLOCK * blocks.end;
        Tile {
            items: &self.items[blocks],
            pairs: Pairs { rows: &self.rows[pairs.clone()], confidences: &self.confidences[pairs] },
        }
    }
}

/// The blocks of one tile.
#[derive(Clone, Copy)]
struct Tile<'a> {
    items: &'a [u16],
    pairs: Pairs<'a, u32>,
}

impl<'a> Tile<'a> {
    /// Each item with its pairs, whole blocks.
    #[inline(always)]
    fn runs(self) -> impl Iterator<Item = (usize, Pairs<'a, u32>)> {
        let mut start = 0;
        self.items.chunk_by(|a, b| a == b).map(move |run| {
            let of_item = start..start + BLOCK * run.len();
            start = of_item.end;
            let Pairs { rows, confidences } = self.pairs;
            let pairs = Pairs { rows: &rows[of_item.clone()], confidences: &confidences[of_item] };
            (usize::from(run[0]), pairs)
        })
    }
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
        let mut leaf = vec![0.0; self.width];
        for shard in shards {
            let (tile, shard) = (shard.tile(range), shard.shard);
            let leaf = Leaf { tile, shard, room: &mut leaf, forest: &mut forest };
            match self.users.halves {
                Some(halves) => self.add_tile(simd, halves.all(), leaf),
                None => self.add_tile(simd, self.users.whole(), leaf),
            }
        }
        for (at, value) in values.chunks_exact_mut(self.width).enumerate() {
            present[at] = forest.finish(simd, at, value);
        }
    }

    #[inline(always)]
    fn add_tile<S: Simd, N: Number>(&self, simd: S, users: Numbers<'_, N>, leaf: Leaf<'_>) {
        match (self.term, self.users.stride / LANES) {
            (Term::Residual, 4) => self.add::<S, N, true, 4>(simd, users, leaf),
            (Term::Product, 4) => self.add::<S, N, false, 4>(simd, users, leaf),
            (Term::Residual, 8) => self.add::<S, N, true, 8>(simd, users, leaf),
            (Term::Product, 8) => self.add::<S, N, false, 8>(simd, users, leaf),
            _ => self.add_runs(simd, leaf),
        }
    }

    /// Adds the leaves of one tile: each item's blocks follow each other. The common widths have this
    /// code of their own, in which v and the sum stay in registers; the bits are the same.
    #[inline(always)]
    fn add<S: Simd, N: Number, const RESIDUAL: bool, const GROUPS: usize>(
        &self,
        simd: S,
        users: Numbers<'_, N>,
        leaf: Leaf<'_>,
    ) {
        let Leaf { tile, shard, room, forest } = leaf;
        let room: &mut [[f32; LANES]; GROUPS] =
            room.as_chunks_mut().0.try_into().expect("the width of a row");
        let v_rows = self.v.as_chunks::<LANES>().0.as_chunks::<GROUPS>().0;
        let add = AddPairs::<u32, N, RESIDUAL>::new(tile.pairs, self.users, users);
        for (item, pairs) in tile.runs() {
            let v = scaled_row(simd, &v_rows[item], users.unit);
            let mut sum = [simd.splat(0.0); GROUPS];
            add.blocks::<S, GROUPS, BLOCK>(simd, pairs, &mut sum, &v);
            store_row(simd, room, &sum, users.unit);
            forest.push(simd, item, shard, room.as_flattened_mut());
        }
    }

    /// The same item by item.
    #[inline(always)]
    fn add_runs<S: Simd>(&self, simd: S, leaf: Leaf<'_>) {
        let Leaf { tile, shard, room, forest } = leaf;
        for (item, pairs) in tile.runs() {
            room.fill(0.0);
            let v = row_of(self.v, item, self.users.stride);
            add(simd, self.term, room, pairs, self.users, v);
            forest.push(simd, item, shard, room);
        }
    }
}

/// One tile, and where its leaves go.
struct Leaf<'a> {
    tile: Tile<'a>,
    shard: u32,
    /// Numbers of one leaf.
    room: &'a mut [f32],
    forest: &'a mut Forest,
}
