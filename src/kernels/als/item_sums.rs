//! The item half: what the users of a process add to the normal equations of the items.
//!
//! Every sum over users has the shape of the tree over shards ([`super::tree`]): within a shard user
//! after user, then shard with shard. So the sums of several processes add up to the same bits.

use std::ops::Range;

use rayon::prelude::*;

use super::pairs::{Fixed, Pairs, add_product, add_residual};
use super::tree::TreeSum;
use super::triangle;
use super::users::Users;
use crate::kernels::simd::{Kernel, dispatch};

/// Which sum over the observed pairs of an item is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// sum (target − extra · (x · v)) x: the right-hand side less what the observed pairs say at v.
    Residual,
    /// sum extra · (x · v) x: the observed part of A·v.
    Product,
    /// The observed part of A as a lower triangle, and the right-hand side; v is not read.
    Normal,
}

/// Numbers of one sum.
pub fn width(term: Term, n_factors: usize) -> usize {
    match term {
        Term::Residual | Term::Product => super::stride(n_factors),
        Term::Normal => triangle::len(n_factors) + super::stride(n_factors),
    }
}

/// The interactions of a process's users by item: 8 bytes per interaction and 8 per item.
#[derive(Debug)]
pub struct ByItem {
    offsets: Vec<u64>,
    /// Users of this process, counted through its shards; ascending per item.
    rows: Vec<u32>,
    confidences: Vec<f32>,
    /// Shard of each user.
    shard_of_row: Vec<u16>,
}

impl ByItem {
    /// Sorts the interactions of the users that are solved for by item; shards come in order.
    ///
    /// # Panics
    /// If an item is not below `n_items`.
    pub fn new<'a>(shards: impl Iterator<Item = (u32, Users<'a>)> + Clone, n_items: usize) -> Self {
        let pairs = |(shard, users): (u32, Users<'a>)| {
            let rows = 0..users.interactions.ends.len();
            rows.map(move |row| {
                let left_out = users.solved.is_some_and(|solved| !solved[row]);
                let none = Pairs { rows: &[], confidences: &[] };
                (shard, if left_out { none } else { users.of(row) })
            })
        };
        let mut offsets = vec![0u64; n_items + 1];
        for (_, pairs) in shards.clone().flat_map(pairs) {
            pairs.rows.iter().for_each(|item| offsets[item.index() + 1] += 1);
        }
        for item in 0..n_items {
            offsets[item + 1] += offsets[item];
        }
        let n_pairs = offsets[n_items] as usize;
        let mut next = offsets.clone();
        let (mut rows, mut confidences) = (vec![0u32; n_pairs], vec![0.0f32; n_pairs]);
        let mut shard_of_row = Vec::new();
        for (shard, pairs) in shards.flat_map(pairs) {
            for (item, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
                let slot = next[item.index()] as usize;
                next[item.index()] += 1;
                (rows[slot], confidences[slot]) = (shard_of_row.len() as u32, confidence);
            }
            shard_of_row.push(shard as u16);
        }
        Self { offsets, rows, confidences, shard_of_row }
    }

    /// Observed pairs of each item, and those with a positive weight.
    pub fn counts(&self) -> (Vec<i64>, Vec<i64>) {
        let of_item = |ends: &[u64]| {
            let confidences = &self.confidences[ends[0] as usize..ends[1] as usize];
            let positive = confidences.iter().filter(|&&confidence| confidence > 0.0).count();
            (confidences.len() as i64, positive as i64)
        };
        self.offsets.windows(2).map(of_item).unzip()
    }

    /// The rows of the users of some shards of this process.
    pub fn rows_of(&self, shards: &Range<u32>) -> Range<u32> {
        let below = |end: u32| self.shard_of_row.partition_point(|&shard| u32::from(shard) < end);
        below(shards.start) as u32..below(shards.end) as u32
    }

    fn of(&self, item: usize, rows: &Range<u32>) -> Range<usize> {
        let all = self.offsets[item] as usize..self.offsets[item + 1] as usize;
        let of_item = &self.rows[all.clone()];
        // A process mostly owns one subtree, and then all of its rows are asked for.
        let start = if rows.start == 0 { 0 } else { of_item.partition_point(|&r| r < rows.start) };
        let end = match of_item.last() {
            Some(&last) if last >= rows.end => of_item.partition_point(|&row| row < rows.end),
            _ => of_item.len(),
        };
        all.start + start..all.start + end
    }
}

/// In which order the leaves are visited. The bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Item after item: each item's users through all shards.
    ItemByItem,
    /// Shard after shard within a range of items: the users' factors of a shard stay in the cache.
    Tiles,
}

impl Walk {
    /// The faster one, by estimate: tiles pay where a shard's factors fit a core's second cache and
    /// are read several times per range of items.
    pub fn faster(by_item: &ByItem, n_shards: usize, stride: usize) -> Self {
        let (n_items, n_pairs) = (by_item.offsets.len() - 1, by_item.rows.len());
        let shard_bytes = 4 * stride * by_item.shard_of_row.len() / n_shards.max(1);
        let pairs_per_leaf = n_pairs / (n_items * n_shards).max(1);
        if n_shards > 1 && shard_bytes <= 1 << 20 && pairs_per_leaf >= 2 {
            Self::Tiles
        } else {
            Self::ItemByItem
        }
    }
}

/// What is summed up for whom.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The interactions.
    pub by_item: &'a ByItem,
    /// Factors of all users of the process.
    pub users: Fixed<'a>,
    /// Which sum.
    pub term: Term,
    /// Order of the leaves.
    pub walk: Walk,
}

/// Sums of a range of items over some users.
#[derive(Debug)]
pub struct Sums {
    /// `[n_items, width]`, zeros where an item has no user.
    pub values: Vec<f32>,
    /// Whether an item has a user.
    pub present: Vec<bool>,
}

/// Items handled by one task, and so the range of a tile.
const ITEMS_PER_TASK: usize = 512;

/// Sums over the users in `rows`, whole shards of an aligned subtree, for the items in `items`.
///
/// `v` is `[items, stride]`. Cost: O(pairs · n_factors) time on all threads of the pool, for
/// [`Term::Normal`] O(pairs · n_factors²); the result, and per thread log2(shards) times the sums of
/// 512 items for [`Walk::Tiles`].
pub fn sums(request: Request<'_>, items: Range<usize>, rows: Range<u32>, v: &[f32]) -> Sums {
    let Fixed { n_factors, stride, .. } = request.users;
    let width = width(request.term, n_factors);
    assert!(request.term == Term::Normal || v.len() == items.len() * stride, "a row per item");
    let mut sums =
        Sums { values: vec![0.0; items.len() * width], present: vec![false; items.len()] };
    let tasks = sums
        .values
        .par_chunks_mut(ITEMS_PER_TASK * width)
        .zip(sums.present.par_chunks_mut(ITEMS_PER_TASK));
    tasks.enumerate().for_each(|(task, (values, present))| {
        let first = task * ITEMS_PER_TASK;
        let v = if v.is_empty() { v } else { &v[first * stride..] };
        let rows = rows.clone();
        dispatch(Task { request, first: items.start + first, rows, v, values, present, width });
    });
    sums
}

struct Task<'a> {
    request: Request<'a>,
    first: usize,
    rows: Range<u32>,
    v: &'a [f32],
    values: &'a mut [f32],
    present: &'a mut [bool],
    width: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.request.walk {
            Walk::ItemByItem => self.item_by_item(),
            Walk::Tiles => self.tiles(),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn item_by_item(self) {
        let mut tree = TreeSum::new(self.width);
        for at in 0..self.present.len() {
            let mut range = self.request.by_item.of(self.first + at, &self.rows);
            while !range.is_empty() {
                range.start = self.leaf(at, range.clone(), &mut tree);
            }
            self.present[at] = tree.finish(&mut self.values[at * self.width..][..self.width]);
        }
    }

    #[inline(always)]
    fn tiles(self) {
        let by_item = self.request.by_item;
        let mut trees = vec![TreeSum::new(self.width); self.present.len()];
        let mut ranges: Vec<Range<usize>> =
            (0..self.present.len()).map(|at| by_item.of(self.first + at, &self.rows)).collect();
        let (mut start, end) = (self.rows.start as usize, self.rows.end as usize);
        while start < end {
            let shard = by_item.shard_of_row[start];
            for (at, range) in ranges.iter_mut().enumerate() {
                let in_shard = |&row: &u32| by_item.shard_of_row[row as usize] == shard;
                if by_item.rows[range.clone()].first().is_some_and(in_shard) {
                    range.start = self.leaf(at, range.clone(), &mut trees[at]);
                }
            }
            start += by_item.shard_of_row[start..end].partition_point(|&of| of == shard);
        }
        for (at, tree) in trees.iter_mut().enumerate() {
            self.present[at] = tree.finish(&mut self.values[at * self.width..][..self.width]);
        }
    }

    /// Adds the first leaf of an item's pairs in `range` and returns where the next begins.
    #[inline(always)]
    fn leaf(&self, at: usize, range: Range<usize>, tree: &mut TreeSum<f32>) -> usize {
        let Request { by_item, users, term, .. } = self.request;
        let shard = by_item.shard_of_row[by_item.rows[range.start] as usize];
        let rest = &by_item.rows[range.clone()];
        let n = rest
            .iter()
            .position(|&row| by_item.shard_of_row[row as usize] != shard)
            .unwrap_or(rest.len());
        let end = range.start + n;
        let pairs = Pairs { rows: &rest[..n], confidences: &by_item.confidences[range.start..end] };
        let leaf = tree.leaf(u32::from(shard));
        let stride = users.stride;
        match term {
            Term::Residual => add_residual(leaf, pairs, users, &self.v[at * stride..][..stride]),
            Term::Product => add_product(leaf, pairs, users, &self.v[at * stride..][..stride]),
            Term::Normal => {
                let (matrix, rhs) = leaf.split_at_mut(triangle::len(users.n_factors));
                triangle::add_pairs(matrix, rhs, pairs, users);
            }
        }
        end
    }
}
