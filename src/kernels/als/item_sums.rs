//! The item half: what the users of a process add to the normal equations of the items.
//!
//! Every sum over users has the shape of the tree over shards ([`super::tree`]): within a shard user
//! after user, then shard with shard. So the sums of several processes add up to the same bits.

use std::ops::Range;

use rayon::prelude::*;

use super::pairs::{Fixed, Pairs, add_plain, is_plain, product, residual};
use super::tiles::{ITEMS_PER_TILE, RangeSums, ShardTiles, tiles};
use super::tree::TreeSum;
use super::triangle;
use super::users::Users;
use crate::kernels::simd::{Kernel, Simd, dispatch};
use crate::types::ItemIdx;

/// Items handled by one task, and so the range of a tile.
pub const ITEMS_PER_TASK: usize = ITEMS_PER_TILE;

/// Pairs between one whose factors are asked for and the one that is added, item by item.
const AHEAD: usize = 32;

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

/// The pairs of a process's users in the order in which they are added up.
#[derive(Debug)]
pub struct ByItem {
    /// Shards of the process with pairs, ascending.
    shards: Vec<u32>,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Lists(Lists),
    Tiles(Vec<ShardTiles>),
}

/// In which order the leaves are visited. The bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Item after item: each item's users through all shards. 8 bytes per pair, 4 per plain one, 16
    /// per item.
    ItemByItem,
    /// Shard after shard within a range of items: the users' factors of a shard stay in the cache.
    /// 8 bytes per pair, each item's in a shard filled up to a multiple of four, 4 per plain one, and
    /// 12 per item and shard.
    Tiles,
}

impl Walk {
    /// The faster one, by estimate: tiles pay where a shard's factors fit a core's second cache and
    /// are read several times per range of items.
    pub fn faster(
        n_pairs: usize,
        n_items: usize,
        n_users: usize,
        n_shards: usize,
        stride: usize,
    ) -> Self {
        let shard_bytes = 4 * stride * n_users / n_shards.max(1);
        let pairs_per_leaf = n_pairs / (n_items * n_shards).max(1);
        if n_shards > 1 && shard_bytes <= 2 << 20 && pairs_per_leaf >= 2 {
            Self::Tiles
        } else {
            Self::ItemByItem
        }
    }
}

impl ByItem {
    /// Sorts the pairs of the users that are solved for; shards ascend. `base` is
    /// [`Objective::base`](super::Objective::base).
    ///
    /// Cost: O(pairs + items · shards) time, tiles on all threads of the pool.
    ///
    /// # Panics
    /// If an item is not below `n_items`.
    pub fn new(shards: &[(u32, Users<'_>)], n_items: usize, walk: Walk, base: f32) -> Self {
        let numbers = shards.iter().map(|(shard, _)| *shard).collect();
        let order = match walk {
            Walk::ItemByItem => Order::Lists(Lists::new(shards, n_items, base)),
            Walk::Tiles => Order::Tiles(tiles(shards, n_items, base)),
        };
        Self { shards: numbers, order }
    }

    /// The places of some shards among those of this process.
    fn places(&self, shards: &Range<u32>) -> Range<usize> {
        let below = |end: u32| self.shards.partition_point(|&shard| shard < end);
        below(shards.start)..below(shards.end)
    }
}

/// Observed pairs of each item, and those with a positive weight, of the users that are solved for; and how
/// many of all weigh what unobserved ones do. `base` is [`Objective::base`](super::Objective::base).
pub fn counts<'a>(
    shards: impl Iterator<Item = Users<'a>>,
    n_items: usize,
    base: f32,
) -> (Vec<i64>, Vec<i64>, i64) {
    let (mut observed, mut positive, mut n_plain) = (vec![0; n_items], vec![0; n_items], 0);
    for users in shards {
        for row in users.solved_rows() {
            let pairs = users.of(row);
            for (item, &confidence) in pairs.rows.iter().zip(pairs.confidences) {
                observed[item.index()] += 1;
                positive[item.index()] += i64::from(confidence > 0.0);
                n_plain += i64::from(is_plain(confidence, base));
            }
        }
    }
    (observed, positive, n_plain)
}

/// Pairs item by item.
#[derive(Debug)]
struct Lists {
    /// Those that are not plain.
    weighted: List,
    plain: List,
    /// Place of each user's shard among those of the process.
    place_of_row: Vec<u16>,
    /// Where the users of each shard begin, and the end of the last.
    first_rows: Vec<u32>,
}

impl Lists {
    fn new(shards: &[(u32, Users<'_>)], n_items: usize, base: f32) -> Self {
        let (mut place_of_row, mut first_rows) = (Vec::new(), vec![0]);
        for (place, (_, users)) in shards.iter().enumerate() {
            place_of_row.resize(place_of_row.len() + users.len(), place as u16);
            first_rows.push(place_of_row.len() as u32);
        }
        let of_kind = |plain| {
            List::new(shards, n_items, move |confidence| is_plain(confidence, base) == plain)
        };
        let (weighted, mut plain) = (of_kind(false), of_kind(true));
        plain.confidences = Vec::new();
        Self { weighted, plain, place_of_row, first_rows }
    }

    /// The place of the first shard with pairs in these ranges.
    #[inline(always)]
    fn first_place(&self, weighted: &Range<usize>, plain: &Range<usize>) -> Option<usize> {
        let first = |list: &List, range: &Range<usize>| {
            (!range.is_empty())
                .then(|| usize::from(self.place_of_row[list.rows[range.start] as usize]))
        };
        match (first(&self.weighted, weighted), first(&self.plain, plain)) {
            (Some(weighted), Some(plain)) => Some(weighted.min(plain)),
            (weighted, plain) => weighted.or(plain),
        }
    }
}

/// Some of the pairs, item by item.
#[derive(Debug)]
struct List {
    offsets: Vec<u64>,
    /// Users of this process, counted through its shards; ascending per item.
    rows: Vec<u32>,
    confidences: Vec<f32>,
}

impl List {
    fn new(
        shards: &[(u32, Users<'_>)],
        n_items: usize,
        is_wanted: impl Fn(f32) -> bool + Copy,
    ) -> Self {
        let wanted = |pairs: Pairs<'_, ItemIdx>, add: &mut dyn FnMut(ItemIdx, f32)| {
            let pairs = pairs.rows.iter().zip(pairs.confidences);
            pairs.filter(|(_, confidence)| is_wanted(**confidence)).for_each(|(i, c)| add(*i, *c));
        };
        let mut offsets = vec![0u64; n_items + 1];
        for (_, users) in shards {
            for row in users.solved_rows() {
                wanted(users.of(row), &mut |item, _| offsets[item.index() + 1] += 1);
            }
        }
        for item in 0..n_items {
            offsets[item + 1] += offsets[item];
        }
        let n_pairs = offsets[n_items] as usize;
        let mut next = offsets.clone();
        let (mut rows, mut confidences) = (vec![0u32; n_pairs], vec![0.0f32; n_pairs]);
        let mut first = 0;
        for (_, users) in shards {
            for row in users.solved_rows() {
                wanted(users.of(row), &mut |item, confidence| {
                    let slot = next[item.index()] as usize;
                    next[item.index()] += 1;
                    (rows[slot], confidences[slot]) = ((first + row) as u32, confidence);
                });
            }
            first += users.len();
        }
        Self { offsets, rows, confidences }
    }

    /// The pairs of an item with some users.
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

    /// Takes the pairs with users below `end` off a range, and asks for the factors of as many that
    /// come later.
    #[inline(always)]
    fn take<S: Simd>(
        &self,
        simd: S,
        range: &mut Range<usize>,
        end: u32,
        users: Fixed<'_>,
    ) -> Range<usize> {
        let rest = &self.rows[range.clone()];
        let n = rest.iter().position(|&row| row >= end).unwrap_or(rest.len());
        users.prefetch(simd, &self.rows[self.rows.len().min(range.start + AHEAD)..], n);
        let taken = range.start..range.start + n;
        range.start = taken.end;
        taken
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
}

/// Sums of a range of items over some users.
#[derive(Debug)]
pub struct Sums {
    /// `[n_items, width]`, zeros where an item has no user.
    pub values: Vec<f32>,
    /// Whether an item has a user.
    pub present: Vec<bool>,
}

/// Sums over the users of some shards, an aligned subtree, for the items in `items`, which start at a
/// multiple of [`ITEMS_PER_TASK`].
///
/// `v` is `[items, stride]`. Cost: O(pairs · n_factors) time on all threads of the pool, for
/// [`Term::Normal`] O(pairs · n_factors²); the result, and per thread about log2(shards) times the sums
/// of 1,024 items for [`Walk::Tiles`].
pub fn sums(request: Request<'_>, items: Range<usize>, shards: Range<u32>, v: &[f32]) -> Sums {
    let Fixed { n_factors, stride, .. } = request.users;
    let width = width(request.term, n_factors);
    assert!(request.term == Term::Normal || v.len() == items.len() * stride, "a row per item");
    assert!(items.start.is_multiple_of(ITEMS_PER_TASK), "items start at a whole task");
    let mut sums =
        Sums { values: vec![0.0; items.len() * width], present: vec![false; items.len()] };
    let places = request.by_item.places(&shards);
    let tasks = sums
        .values
        .par_chunks_mut(ITEMS_PER_TASK * width)
        .zip(sums.present.par_chunks_mut(ITEMS_PER_TASK));
    tasks.enumerate().for_each(|(task, (values, present))| {
        let first = task * ITEMS_PER_TASK;
        let v = if v.is_empty() { v } else { &v[first * stride..][..present.len() * stride] };
        let (first, places) = (items.start + first, places.clone());
        dispatch(Task { request, first, places, v, values, present, width });
    });
    sums
}

struct Task<'a> {
    request: Request<'a>,
    first: usize,
    /// Places of the shards.
    places: Range<usize>,
    v: &'a [f32],
    values: &'a mut [f32],
    present: &'a mut [bool],
    width: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Request { by_item, users, term } = self.request;
        match &by_item.order {
            Order::Lists(lists) => self.item_by_item(simd, lists),
            Order::Tiles(shards) => {
                let range = RangeSums { users, term, v: self.v, width: self.width };
                let shards = shards[self.places].iter();
                let at = self.first / ITEMS_PER_TASK;
                range.run(simd, at, shards, self.values, self.present);
            }
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn item_by_item<S: Simd>(self, simd: S, lists: &Lists) {
        let Request { users, term, by_item } = self.request;
        let mut tree = TreeSum::new(self.width);
        let rows = lists.first_rows[self.places.start]..lists.first_rows[self.places.end];
        for at in 0..self.present.len() {
            let mut weighted = lists.weighted.of(self.first + at, &rows);
            let mut plain = match term {
                Term::Product => 0..0,
                Term::Residual | Term::Normal => lists.plain.of(self.first + at, &rows),
            };
            while let Some(place) = lists.first_place(&weighted, &plain) {
                let end = lists.first_rows[place + 1];
                let pairs = lists.weighted.take(simd, &mut weighted, end, users);
                let plain = lists.plain.take(simd, &mut plain, end, users);
                let pairs = Pairs {
                    rows: &lists.weighted.rows[pairs.clone()],
                    confidences: &lists.weighted.confidences[pairs],
                };
                let (leaf, v) =
                    (tree.leaf(by_item.shards[place]), row_of(self.v, at, users.stride));
                add(simd, term, leaf, pairs, &lists.plain.rows[plain], users, v);
            }
            self.present[at] = tree.finish(&mut self.values[at * self.width..][..self.width]);
        }
    }
}

/// Adds up the pairs of one item in one shard; the leaf holds zeros, and `v` is the item's row.
#[inline(always)]
pub(super) fn add<S: Simd>(
    simd: S,
    term: Term,
    leaf: &mut [f32],
    pairs: Pairs<'_, u32>,
    plain: &[u32],
    users: Fixed<'_>,
    v: &[f32],
) {
    match term {
        Term::Residual => residual(simd, leaf, pairs, users, v),
        Term::Product => return product(simd, leaf, pairs, users, v),
        Term::Normal => {
            let (matrix, rhs) = leaf.split_at_mut(triangle::len(users.n_factors));
            triangle::add_pairs(matrix, rhs, pairs, users);
        }
    }
    let rhs = leaf.len() - users.stride;
    add_plain(simd, &mut leaf[rhs..], plain, users);
}

/// A row of v, which is empty where none is read.
#[inline(always)]
pub(super) fn row_of(v: &[f32], item: usize, stride: usize) -> &[f32] {
    if v.is_empty() { v } else { &v[item * stride..][..stride] }
}
