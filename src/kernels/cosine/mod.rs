//! Item-item cosine neighbors, counted row by row from all users' histories.
//!
//! | part | what it does |
//! |---|---|
//! | `sorting` | the numbers of items and users, and pairs by both |
//! | `ranked` | what comes out of it |
//! | `parts` | the histories of the users of a row, asked for ahead |
//! | `counts` | rows whose pairs weigh 1 |
//! | `products` | rows of weighted pairs |
//! | `best` | the list of a row, and what cannot enter it any more |
//! | [`pair_counts`] | counts that are kept from run to run |

mod best;
mod counts;
pub mod pair_counts;
mod parts;
mod products;
mod ranked;
mod sorting;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::ranked::Ranked;
use self::ranked::{Code, Histories, Lists};
use crate::kernels::NeighborLists;
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
/// - Cost: for each user of each row one pass over the history; selection looks at every cell, or where
///   a row has few pairs at those of its pairs. Memory: 5 bytes per item and thread, 16 with affinities,
///   for 65,536 items at least, and the result. Runs on the rayon pool of the caller.
/// - Slow twin: `reference::neighbors`.
///
/// # Panics
/// If the shapes disagree or `rows` reaches beyond the items.
pub fn neighbors(rows: Range<usize>, ranked: &Ranked, params: &Params) -> NeighborLists {
    assert!(rows.end <= ranked.n_items(), "rows are items");
    assert!(params.affinity_unit > 0.0 && params.shrinkage >= 0.0, "parameters in range");
    let input = Input {
        ranked,
        n_neighbors: params.n_neighbors,
        shrinkage: params.shrinkage / (params.affinity_unit * params.affinity_unit),
        support_min: params.support_min.max(1),
    };
    match &ranked.histories {
        Histories::Narrow(histories) => of_histories(rows, &input, histories),
        Histories::Wide(histories) => of_histories(rows, &input, histories),
    }
}

/// What every row needs, with `shrinkage` in squared affinity units.
struct Input<'a> {
    ranked: &'a Ranked,
    n_neighbors: usize,
    shrinkage: f64,
    support_min: u32,
}

fn of_histories<C: Code>(
    rows: Range<usize>,
    input: &Input<'_>,
    histories: &Lists<C>,
) -> NeighborLists {
    let n_cells = C::n_cells(input.ranked.n_items());
    match &histories.affinities {
        None => on_all_threads(
            rows,
            input,
            || counts::Scratch::new(n_cells, input.ranked),
            |scratch, code, lists| scratch.push_row(input, histories, code, lists),
        ),
        Some(affinities) => on_all_threads(
            rows,
            input,
            || products::Scratch::new(n_cells),
            |scratch, code, lists| scratch.push_row(input, histories, affinities, code, lists),
        ),
    }
}

/// Lets every thread of the pool take small chunks of rows until none is left, then puts the chunks
/// together in row order.
///
/// Not a parallel iterator: its splits would each start with a new accumulator, and this way there
/// is one per thread.
fn on_all_threads<S>(
    rows: Range<usize>,
    input: &Input<'_>,
    scratch: impl Fn() -> S + Sync,
    push_row: impl Fn(&mut S, usize, &mut NeighborLists) + Sync,
) -> NeighborLists {
    let n_rows = rows.len();
    let chunk_rows = (n_rows / (64 * rayon::current_num_threads())).clamp(1, 256);
    let next_chunk = AtomicUsize::new(0);
    let of_threads = rayon::broadcast(|_| {
        let mut scratch = scratch();
        let mut done = Vec::new();
        loop {
            let chunk = next_chunk.fetch_add(1, Ordering::Relaxed);
            let start = chunk * chunk_rows;
            if start >= n_rows {
                return done;
            }
            let end = (start + chunk_rows).min(n_rows);
            let rows = rows.start + start..rows.start + end;
            done.push((
                chunk,
                lists(rows, input, |code, lists| push_row(&mut scratch, code, lists)),
            ));
        }
    });
    let mut chunks: Vec<(usize, NeighborLists)> = of_threads.into_iter().flatten().collect();
    chunks.sort_unstable_by_key(|&(chunk, _)| chunk);
    let n_neighbors = chunks.iter().map(|(_, lists)| lists.n_neighbors()).sum();
    let mut all = NeighborLists::with_capacity(n_rows, n_neighbors);
    chunks.into_iter().for_each(|(_, lists)| all.append(lists));
    all
}

/// The neighbors of a few rows, on one thread.
fn lists(
    rows: Range<usize>,
    input: &Input<'_>,
    mut push_row: impl FnMut(usize, &mut NeighborLists),
) -> NeighborLists {
    let mut lists = NeighborLists::with_capacity(rows.len(), 0);
    for row in rows {
        // No pair of an item has more users than the item.
        if input.ranked.support(ItemIdx(row as u32)) < input.support_min as usize {
            lists.push_row([]);
        } else {
            push_row(input.ranked.codes[row] as usize, &mut lists);
        }
    }
    lists
}
