//! Item-item cosine neighbors, counted row by row from all users' histories.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::kernels::top_k::Shortlist;
use crate::kernels::{KernelError, NeighborLists};
use crate::types::ItemIdx;

/// All users' histories, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Interactions<'a> {
    /// Where each user's history starts, and the end of the last: `[n_users + 1]`.
    pub offsets: &'a [u64],
    /// The items of each history, in ascending order, each once: `[n_pairs]`.
    pub items: &'a [ItemIdx],
    /// The affinity of each pair, `[n_pairs]`, or `None` if every pair weighs 1.
    pub affinities: Option<&'a [i64]>,
    /// Number of items; every index is below it.
    pub n_items: usize,
}

impl<'a> Interactions<'a> {
    /// Number of users, those with an empty history included.
    pub fn n_users(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Where the pairs of one user are.
    #[inline]
    fn range(&self, user: u32) -> Range<usize> {
        let user = user as usize;
        self.offsets[user] as usize..self.offsets[user + 1] as usize
    }

    fn check(&self) {
        assert!(self.n_users() <= u32::MAX as usize, "users are numbered in 32 bits");
        assert_eq!(self.offsets.last(), Some(&(self.items.len() as u64)), "the last offset");
        assert!(self.affinities.is_none_or(|values| values.len() == self.items.len()));
        debug_assert!(
            (0..self.n_users() as u32)
                .all(|user| self.items[self.range(user)].is_sorted_by(|a, b| a < b)),
            "a history is sorted and holds an item once"
        );
    }
}

/// The same pairs by item: who has it, and the norm of its column.
#[derive(Clone, Debug)]
pub struct Transposed {
    offsets: Vec<u64>,
    users: Vec<u32>,
    affinities: Option<Vec<i64>>,
    norms: Vec<f64>,
}

impl Transposed {
    /// Sorts the pairs by item with a counting sort; users stay in ascending order.
    ///
    /// Cost: O(n_pairs + n_items) time. 4 bytes per pair, 12 with affinities, and 16 per item
    /// remain; 8 more per item while it works.
    ///
    /// # Errors
    /// [`KernelError::SquaredAffinities`] if the squares of an item's affinities sum to 2⁶³ or more.
    /// Below that no pair product can overflow, by Cauchy–Schwarz.
    ///
    /// # Panics
    /// If the shapes disagree, or an item is not below `n_items`.
    pub fn new(interactions: &Interactions<'_>) -> Result<Self, KernelError> {
        interactions.check();
        let offsets = item_offsets(interactions);
        let mut next = offsets.clone();
        let mut users = vec![0; interactions.items.len()];
        let mut affinities = interactions.affinities.map(|values| vec![0; values.len()]);
        for user in 0..interactions.n_users() as u32 {
            for pair in interactions.range(user) {
                let place = &mut next[interactions.items[pair].index()];
                users[*place as usize] = user;
                if let (Some(from), Some(to)) = (interactions.affinities, &mut affinities) {
                    to[*place as usize] = from[pair];
                }
                *place += 1;
            }
        }
        drop(next);
        let norms = norms(&offsets, affinities.as_deref())?;
        Ok(Self { offsets, users, affinities, norms })
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.norms.len()
    }

    /// Number of users who have the item.
    pub fn support(&self, item: ItemIdx) -> usize {
        self.range(item.index()).len()
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        8 * (self.offsets.capacity() + self.norms.capacity())
            + 4 * self.users.capacity()
            + 8 * self.affinities.as_ref().map_or(0, Vec::capacity)
    }

    #[inline]
    fn range(&self, item: usize) -> Range<usize> {
        self.offsets[item] as usize..self.offsets[item + 1] as usize
    }
}

/// Where each item's users start in the transpose.
fn item_offsets(interactions: &Interactions<'_>) -> Vec<u64> {
    let mut offsets = vec![0; interactions.n_items + 1];
    for item in interactions.items {
        offsets[item.index() + 1] += 1;
    }
    let mut sum = 0;
    for offset in &mut offsets {
        sum += *offset;
        *offset = sum;
    }
    offsets
}

/// The Euclidean norm of each item's column, in affinity units: the root of an exact integer.
fn norms(offsets: &[u64], affinities: Option<&[i64]>) -> Result<Vec<f64>, KernelError> {
    let square = |affinity: &i64| u128::from(affinity.unsigned_abs()).pow(2);
    let norm = |item: usize| {
        let range = offsets[item] as usize..offsets[item + 1] as usize;
        let squared = match affinities {
            None => range.len() as u128,
            Some(affinities) => affinities[range].iter().map(square).sum(),
        };
        let fits = squared < 1 << 63;
        let item = ItemIdx(item as u32);
        if fits {
            Ok((squared as f64).sqrt())
        } else {
            Err(KernelError::SquaredAffinities { item })
        }
    };
    (0..offsets.len() - 1).map(norm).collect()
}

/// What makes a neighbor, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Longest list of an item.
    pub n_neighbors: usize,
    /// Added to the product of the norms, so that pairs with little behind them score lower. In
    /// users where pairs weigh 1, in squared weight (at `as_of`) with affinities. At least 0.
    pub shrinkage: f64,
    /// A pair needs at least this many users in common; 0 means 1.
    pub support_min: u32,
    /// Value of one affinity unit at `as_of`, above 0: `Decay::unit`. 1 where pairs weigh 1.
    pub affinity_unit: f64,
}

/// The nearest items of each item in `rows`: `dot / (norm_a * norm_b + shrinkage)`.
///
/// - `dot` sums the products of both items' affinities over the users who have both. It is an exact
///   integer, as are the squared norms; the rest is f64, rounded once to f32.
/// - Row `r` of the result is item `rows.start + r`, without the item itself, best first, ties to the
///   lower index. Pairs below `support_min` or with a similarity that is not above 0 are dropped.
/// - The result does not depend on the number of threads or on how items are cut into `rows`.
/// - Cost: for each user of each row one pass over the history; selection is linear in the items
///   touched. Memory: 4 bytes per item and thread, 16 with affinities, and the result. Runs on the
///   rayon pool of the caller.
/// - Slow twin: `reference::neighbors`.
///
/// # Panics
/// If the shapes disagree or `rows` reaches beyond the items.
pub fn neighbors(
    rows: Range<usize>,
    interactions: &Interactions<'_>,
    transposed: &Transposed,
    params: &Params,
) -> NeighborLists {
    assert!(rows.end <= interactions.n_items, "rows are items");
    assert_eq!(transposed.n_items(), interactions.n_items, "the transpose of these interactions");
    assert_eq!(transposed.users.len(), interactions.items.len(), "the transpose");
    assert!(params.affinity_unit > 0.0 && params.shrinkage >= 0.0, "parameters in range");
    let input = Input {
        interactions,
        transposed,
        n_neighbors: params.n_neighbors,
        shrinkage: params.shrinkage / (params.affinity_unit * params.affinity_unit),
        support_min: params.support_min.max(1),
    };
    match (interactions.affinities, &transposed.affinities) {
        (None, None) => on_all_threads::<u32>(rows, &input),
        (Some(_), Some(_)) => on_all_threads::<Product>(rows, &input),
        _ => panic!("interactions and their transpose both have affinities, or neither"),
    }
}

/// What every row needs, with `shrinkage` in squared affinity units.
struct Input<'a> {
    interactions: &'a Interactions<'a>,
    transposed: &'a Transposed,
    n_neighbors: usize,
    shrinkage: f64,
    support_min: u32,
}

/// What is summed for one pair of items: a count alone, or a count and a product.
trait Cell: Copy + Default {
    /// Adds the histories of all users of `row` into `cells`, one cell per item, and names each
    /// item whose cell was empty.
    fn accumulate(input: &Input<'_>, row: usize, cells: &mut [Self], first: impl FnMut(ItemIdx));

    /// Number of users who have both items.
    fn support(self) -> u32;

    /// The dot product of both items' columns.
    fn dot(self) -> f64;
}

/// Where pairs weigh 1, the dot product is the number of users.
impl Cell for u32 {
    fn accumulate(
        input: &Input<'_>,
        row: usize,
        cells: &mut [Self],
        mut first: impl FnMut(ItemIdx),
    ) {
        let Input { interactions, transposed, .. } = input;
        for &user in &transposed.users[transposed.range(row)] {
            for &item in &interactions.items[interactions.range(user)] {
                let count = &mut cells[item.index()];
                if *count == 0 {
                    first(item);
                }
                // Users are numbered in 32 bits, so there is nothing to check for.
                *count = count.wrapping_add(1);
            }
        }
    }

    #[inline]
    fn support(self) -> u32 {
        self
    }

    #[inline]
    fn dot(self) -> f64 {
        f64::from(self)
    }
}

/// The cell of weighted pairs; side by side, so that a pair costs one cache line.
#[derive(Clone, Copy, Default)]
struct Product {
    dot: i64,
    support: u32,
}

impl Cell for Product {
    fn accumulate(
        input: &Input<'_>,
        row: usize,
        cells: &mut [Self],
        mut first: impl FnMut(ItemIdx),
    ) {
        let Input { interactions, transposed, .. } = input;
        let (Some(of_users), Some(of_row)) = (interactions.affinities, &transposed.affinities)
        else {
            return;
        };
        let range = transposed.range(row);
        for (&user, &row_affinity) in transposed.users[range.clone()].iter().zip(&of_row[range]) {
            let history = interactions.range(user);
            let pairs = interactions.items[history.clone()].iter().zip(&of_users[history]);
            for (&item, &affinity) in pairs {
                let cell = &mut cells[item.index()];
                if cell.support == 0 {
                    first(item);
                }
                cell.dot += row_affinity * affinity;
                cell.support = cell.support.wrapping_add(1);
            }
        }
    }

    #[inline]
    fn support(self) -> u32 {
        self.support
    }

    #[inline]
    fn dot(self) -> f64 {
        self.dot as f64
    }
}

/// Lets every thread of the pool take small chunks of rows until none is left, then puts the chunks
/// together in row order.
///
/// Not a parallel iterator: its splits would each start with a new accumulator, and this way there
/// is one per thread.
fn on_all_threads<C: Cell>(rows: Range<usize>, input: &Input<'_>) -> NeighborLists {
    let n_rows = rows.len();
    let chunk_rows = (n_rows / (64 * rayon::current_num_threads())).clamp(1, 256);
    let next_chunk = AtomicUsize::new(0);
    let of_threads = rayon::broadcast(|_| {
        let mut scratch = Scratch::<C>::new(input.interactions.n_items);
        let mut done = Vec::new();
        loop {
            let chunk = next_chunk.fetch_add(1, Ordering::Relaxed);
            let start = chunk * chunk_rows;
            if start >= n_rows {
                return done;
            }
            let end = (start + chunk_rows).min(n_rows);
            done.push((chunk, lists(rows.start + start..rows.start + end, input, &mut scratch)));
        }
    });
    let mut chunks: Vec<(usize, NeighborLists)> = of_threads.into_iter().flatten().collect();
    chunks.sort_unstable_by_key(|&(chunk, _)| chunk);
    let n_neighbors = chunks.iter().map(|(_, lists)| lists.n_neighbors()).sum();
    let mut all = NeighborLists::with_capacity(n_rows, n_neighbors);
    chunks.into_iter().for_each(|(_, lists)| all.append(lists));
    all
}

/// One thread's accumulator; all cells are empty between rows.
struct Scratch<C> {
    cells: Vec<C>,
    touched: Vec<ItemIdx>,
    shortlist: Shortlist,
}

impl<C: Cell> Scratch<C> {
    fn new(n_items: usize) -> Self {
        Self {
            cells: vec![C::default(); n_items],
            touched: Vec::new(),
            shortlist: Shortlist::default(),
        }
    }
}

/// The neighbors of a few rows, on one thread.
fn lists<C: Cell>(
    rows: Range<usize>,
    input: &Input<'_>,
    scratch: &mut Scratch<C>,
) -> NeighborLists {
    let mut lists = NeighborLists::with_capacity(rows.len(), 0);
    for row in rows {
        // No pair of an item has more users than the item.
        if input.transposed.range(row).len() < input.support_min as usize {
            lists.push_row([]);
        } else if touches_most(input, row) {
            push_by_scan(input, row, scratch, &mut lists);
        } else {
            push_by_touched(input, row, scratch, &mut lists);
        }
    }
    lists
}

/// Whether a scan of the whole accumulator is likely cheaper than a list of the cells touched. Both
/// ways give the same row.
fn touches_most(input: &Input<'_>, row: usize) -> bool {
    let interactions = input.interactions;
    let mean_length = interactions.items.len() / interactions.n_users().max(1);
    input.transposed.range(row).len() * mean_length > interactions.n_items / 4
}

/// Appends the neighbors of an item that shares users with a good part of the catalogue.
fn push_by_scan<C: Cell>(
    input: &Input<'_>,
    row: usize,
    scratch: &mut Scratch<C>,
    lists: &mut NeighborLists,
) {
    let Scratch { cells, shortlist, .. } = scratch;
    C::accumulate(input, row, cells, |_| ());
    cells[row] = C::default();
    shortlist.reset(input.n_neighbors);
    select(input, row, cells.iter().copied().enumerate(), shortlist);
    lists.push_row(with_supports(shortlist, cells));
    cells.fill(C::default());
}

/// Appends the neighbors of an item that shares users with few others: time and memory follow the
/// cells touched, not the catalogue.
fn push_by_touched<C: Cell>(
    input: &Input<'_>,
    row: usize,
    scratch: &mut Scratch<C>,
    lists: &mut NeighborLists,
) {
    let Scratch { cells, touched, shortlist } = scratch;
    C::accumulate(input, row, cells, |item| touched.push(item));
    cells[row] = C::default();
    shortlist.reset(input.n_neighbors);
    let candidates = touched.iter().map(|item| (item.index(), cells[item.index()]));
    select(input, row, candidates, shortlist);
    lists.push_row(with_supports(shortlist, cells));
    for item in touched.drain(..) {
        cells[item.index()] = C::default();
    }
}

/// Pushes the similarities of the candidates that have enough support.
fn select<C: Cell>(
    input: &Input<'_>,
    row: usize,
    candidates: impl Iterator<Item = (usize, C)>,
    shortlist: &mut Shortlist,
) {
    let norms = &input.transposed.norms;
    let norm = norms[row];
    let mut floor = 0.0;
    for (item, cell) in candidates {
        if cell.support() < input.support_min {
            continue;
        }
        let (dot, scale) = (cell.dot(), norm * norms[item] + input.shrinkage);
        // Most candidates end here, and a product is far cheaper than a quotient.
        if dot < floor * scale {
            continue;
        }
        let score = (dot / scale) as f32;
        if score > 0.0 {
            shortlist.push(ItemIdx(item as u32), score);
            floor = shortlist.floor().map_or(0.0, safely_below);
        }
    }
}

/// A bound so far below `floor` that a quotient under it stays under `floor` when rounded to f32.
fn safely_below(floor: f32) -> f64 {
    if floor.is_normal() { f64::from(floor) * (1.0 - 1e-6) } else { 0.0 }
}

fn with_supports<C: Cell>(
    shortlist: &mut Shortlist,
    cells: &[C],
) -> impl Iterator<Item = (ItemIdx, f32, u32)> {
    shortlist.best().iter().map(|&(item, score)| (item, score, cells[item.index()].support()))
}
