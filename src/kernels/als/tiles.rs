//! Sums over users in tiles: one shard's users by one range of items.
//!
//! The factors of a shard's users stay in a core's cache while all their pairs in the range are added
//! up. Within a tile pairs are ordered by item, then user. Those that products with A look at are filled
//! up to a multiple of four of each item by pairs that add nothing, so that no item has a rest; plain
//! ones, which add to right-hand sides alone, stand apart.

use rayon::prelude::*;

use super::halves::{Number, Numbers};
use super::item_sums::{Term, add, row_of};
use super::pairs::{AddPairs, BLOCK, Fixed, Pairs, is_plain, scaled_row, store_row};
use super::tree::Forest;
use super::users::Users;
use crate::kernels::simd::{LANES, Simd};

/// Items of one tile: what is held of them fits a core's second cache beside a shard's users, each of
/// whom comes several times. Few in tests, so that small logs have several tiles.
pub(super) const ITEMS_PER_TILE: usize = if cfg!(test) { 4 } else { 512 };

/// The pairs of one shard by item: 8 bytes per pair in blocks of one item each, 4 per plain pair, 12
/// per item with pairs, 12 per range of items.
#[derive(Debug)]
pub(super) struct ShardTiles {
    shard: u32,
    /// Where each range of items begins, and the end of the last.
    starts: Vec<Start>,
    /// The items with pairs, range after range.
    items: Vec<OfItem>,
    /// Users of the process, counted through its shards: [`BLOCK`] of each block.
    rows: Vec<u32>,
    confidences: Vec<f32>,
    /// Users of plain pairs.
    plain: Vec<u32>,
}

/// What is before a range of items.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    items: u32,
    blocks: u32,
    plain: u32,
}

/// How many pairs an item has in a shard.
#[derive(Clone, Copy, Debug)]
struct OfItem {
    /// Counted from the first of the range.
    item: u16,
    n_blocks: u32,
    n_plain: u32,
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

/// Pairs of each item that are not plain, and those that are.
fn counts(users: Users<'_>, n_items: usize, base: f32) -> Vec<[u32; 2]> {
    let mut counts = vec![[0, 0]; n_items];
    for row in users.solved_rows() {
        let pairs = users.of(row);
        for (item, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
            counts[item.index()][usize::from(is_plain(confidence, base))] += 1;
        }
    }
    counts
}

impl ShardTiles {
    fn new((shard, first): (u32, u32), users: Users<'_>, n_items: usize, base: f32) -> Self {
        let mut next = counts(users, n_items, base);
        let (mut tiles, end) = Self::empty(shard, &mut next);
        let n_pairs = BLOCK * end.blocks as usize;
        (tiles.rows, tiles.confidences) = (vec![first; n_pairs], vec![-base; n_pairs]);
        tiles.plain = vec![0; end.plain as usize];
        for row in users.solved_rows() {
            let (pairs, user) = (users.of(row), first + row as u32);
            for (item, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
                let is_plain = is_plain(confidence, base);
                let next = &mut next[item.index()][usize::from(is_plain)];
                let place = *next as usize;
                *next += 1;
                if is_plain {
                    tiles.plain[place] = user;
                } else {
                    (tiles.rows[place], tiles.confidences[place]) = (user, confidence);
                }
            }
        }
        tiles
    }

    /// The items without their pairs, and the end of the last range; counts become the places where
    /// the pairs of each item begin.
    ///
    /// Within a range items with few blocks come first, so that the end of an item's blocks is where
    /// the processor guesses it.
    fn empty(shard: u32, counts: &mut [[u32; 2]]) -> (Self, Start) {
        let (mut starts, mut items, mut at) = (Vec::new(), Vec::new(), Start::default());
        for range in counts.chunks_mut(ITEMS_PER_TILE) {
            starts.push(at);
            let n_blocks = |[n_pairs, _]: [u32; 2]| n_pairs.div_ceil(BLOCK as u32);
            let mut order: Vec<usize> = (0..range.len()).filter(|&i| range[i] != [0, 0]).collect();
            order.sort_by_key(|&item| (n_blocks(range[item]), range[item][1]));
            for item in order {
                let (n_blocks, n_plain) = (n_blocks(range[item]), range[item][1]);
                items.push(OfItem { item: item as u16, n_blocks, n_plain });
                range[item] = [BLOCK as u32 * at.blocks, at.plain];
                at.items += 1;
                at.blocks += n_blocks;
                at.plain += n_plain;
            }
        }
        starts.push(at);
        let (rows, confidences, plain) = (Vec::new(), Vec::new(), Vec::new());
        (Self { shard, starts, items, rows, confidences, plain }, at)
    }

    fn tile(&self, range: usize) -> Tile<'_> {
        let (start, end) = (self.starts[range], self.starts[range + 1]);
        let pairs = BLOCK * start.blocks as usize..BLOCK * end.blocks as usize;
        Tile {
            items: &self.items[start.items as usize..end.items as usize],
            pairs: Pairs { rows: &self.rows[pairs.clone()], confidences: &self.confidences[pairs] },
            plain: &self.plain[start.plain as usize..end.plain as usize],
        }
    }
}

/// The pairs of one tile.
#[derive(Clone, Copy)]
struct Tile<'a> {
    items: &'a [OfItem],
    pairs: Pairs<'a, u32>,
    plain: &'a [u32],
}

impl<'a> Tile<'a> {
    /// Each item with its pairs, in whole blocks, and with its plain ones.
    #[inline(always)]
    fn of_items(self) -> impl Iterator<Item = (usize, Pairs<'a, u32>, &'a [u32])> {
        let Self { items, mut pairs, mut plain } = self;
        items.iter().map(move |&OfItem { item, n_blocks, n_plain }| {
            let (rows, rows_after) = pairs.rows.split_at(BLOCK * n_blocks as usize);
            let (confidences, confidences_after) = pairs.confidences.split_at(rows.len());
            let (of_item, plain_after) = plain.split_at(n_plain as usize);
            pairs = Pairs { rows: rows_after, confidences: confidences_after };
            plain = plain_after;
            (usize::from(item), Pairs { rows, confidences }, of_item)
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
        for (item, pairs, plain) in tile.of_items() {
            if !RESIDUAL && pairs.rows.is_empty() {
                continue;
            }
            let v = scaled_row(simd, &v_rows[item], users.unit);
            let mut sum = [simd.splat(0.0); GROUPS];
            let add = AddPairs::new(pairs, self.users.base, users);
            add.add::<S, RESIDUAL, GROUPS>(simd, &mut sum, &v);
            if RESIDUAL {
                users.add_rows_in_registers(simd, &mut sum, plain, self.users.base);
            }
            store_row(simd, room, &sum, users.unit);
            forest.push(simd, item, shard, room.as_flattened_mut());
        }
    }

    /// The same item by item.
    #[inline(always)]
    fn add_runs<S: Simd>(&self, simd: S, leaf: Leaf<'_>) {
        let Leaf { tile, shard, room, forest } = leaf;
        for (item, pairs, plain) in tile.of_items() {
            if self.term == Term::Product && pairs.rows.is_empty() {
                continue;
            }
            room.fill(0.0);
            let v = row_of(self.v, item, self.users.stride);
            add(simd, self.term, room, pairs, plain, self.users, v);
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
