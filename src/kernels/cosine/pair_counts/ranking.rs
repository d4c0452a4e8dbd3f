//! The best neighbors of all items from the counts of their pairs.

use rayon::prelude::*;

use super::super::Params;
use super::super::best::{Best, safely_below};
use super::super::ranked::BLOCK;
use super::tile::{Counts, Planes, Tile};
use super::{Group, PairCounts, n_groups};
use crate::kernels::NeighborLists;
use crate::kernels::simd::{Kernel, Simd, dispatch};
use crate::types::ItemIdx;

/// What codes stand for in this run.
#[derive(Clone, Copy, Debug)]
pub struct Numbers<'a> {
    /// The item of each code, anything where it has no user: `[n_codes]`.
    pub items: &'a [ItemIdx],
    /// Users of each code, over all processes: `[n_codes]`.
    pub supports: &'a [u32],
    /// Number of items; every index is below it.
    pub n_items: usize,
}

impl PairCounts {
    /// The nearest items of each item, as [`neighbors`](super::super::neighbors) gives them, among the pairs
    /// of the groups that are here.
    ///
    /// The pairs weigh 1. Cost: two looks at each block, and one at each count that may enter a list. Runs
    /// on the rayon pool of the caller.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn neighbors(&self, numbers: &Numbers<'_>, params: &Params) -> NeighborLists {
        assert_eq!(params.affinity_unit, 1.0, "pairs weigh 1");
        let n_codes = self.n_codes;
        assert!(numbers.items.len() == n_codes && numbers.supports.len() == n_codes, "shapes");
        let norms: Vec<f64> =
            numbers.supports.iter().map(|&users| f64::from(users).sqrt()).collect();
        let least = |block: &[f64]| {
            block.iter().copied().filter(|&norm| norm > 0.0).fold(f64::INFINITY, f64::min)
        };
        let input = Input {
            numbers,
            block_norms: norms.chunks(BLOCK).map(least).collect(),
            norms,
            shrinkage: params.shrinkage,
            support_min: params.support_min.max(1),
        };
        let of_groups: Vec<NeighborLists> = (0..n_groups(n_codes))
            .into_par_iter()
            .with_max_len(1)
            .map_init(
                || Rows::new(params.n_neighbors),
                |rows, first| rows.of_group(&self.groups, &input, first),
            )
            .collect();
        let mut code_of = vec![None; numbers.n_items];
        for (code, item) in numbers.items.iter().enumerate() {
            if numbers.supports[code] > 0 {
                code_of[item.index()] = Some(code);
            }
        }
        let n_neighbors = of_groups.iter().map(NeighborLists::n_neighbors).sum();
        let mut lists = NeighborLists::with_capacity(numbers.n_items, n_neighbors);
        for code in code_of {
            match code {
                Some(code) => lists.push_row(of_groups[code / BLOCK].of(code % BLOCK).iter()),
                None => lists.push_row([]),
            }
        }
        lists
    }
}

/// The best of lists that were made of parts of the pairs, with so many neighbors at most.
///
/// # Panics
/// If they are not of the same items.
pub fn merged(parts: &[NeighborLists], n_neighbors: usize) -> NeighborLists {
    let n_rows = parts.first().map_or(0, NeighborLists::n_rows);
    assert!(parts.iter().all(|part| part.n_rows() == n_rows), "lists of the same items");
    let mut lists = NeighborLists::with_capacity(n_rows, 0);
    let mut best = Best::default();
    for row in 0..n_rows {
        best.reset(n_neighbors);
        for (item, score, support) in parts.iter().flat_map(|part| part.of(row).iter()) {
            best.offer(item, score, support);
        }
        lists.push_row(best.list());
    }
    lists
}

struct Input<'a> {
    numbers: &'a Numbers<'a>,
    norms: Vec<f64>,
    /// The smallest norm of each 64 codes that have users.
    block_norms: Vec<f64>,
    shrinkage: f64,
    support_min: u32,
}

/// The rows of a group on one thread.
struct Rows {
    n_neighbors: usize,
    best: Vec<Best>,
    /// A score below it cannot enter.
    floors: [f64; BLOCK],
    norms: [f64; BLOCK],
    /// Code of the first row.
    start: usize,
    counts: Box<Counts>,
}

impl Rows {
    fn new(n_neighbors: usize) -> Self {
        let best = (0..BLOCK).map(|_| Best::default()).collect();
        Self {
            n_neighbors,
            best,
            floors: [0.0; BLOCK],
            norms: [0.0; BLOCK],
            start: 0,
            counts: Counts::new(),
        }
    }

    /// The lists of a group's rows, empty ones for codes that there are not.
    fn of_group(&mut self, groups: &[Group], input: &Input<'_>, first: usize) -> NeighborLists {
        self.start = first * BLOCK;
        self.floors = [0.0; BLOCK];
        self.norms = [0.0; BLOCK];
        let norms = &input.norms[self.start..input.norms.len().min(self.start + BLOCK)];
        self.norms[..norms.len()].copy_from_slice(norms);
        self.best.iter_mut().for_each(|best| best.reset(self.n_neighbors));
        // Low codes come first: most of them are popular, theirs are most of the best scores.
        let lower = &groups[..groups.partition_point(|group| group.first < first)];
        for (n, group) in lower.iter().enumerate() {
            if let Some(next) = lower.get(n + 1) {
                next.tile(first - next.first).ask_for();
            }
            self.columns(input, group.tile(first - group.first), group.first);
        }
        if let Ok(own) = groups.binary_search_by_key(&first, |group| group.first) {
            for tile in 0..groups[own].n_tiles() {
                self.rows(input, groups[own].tile(tile), first + tile);
            }
        }
        let mut lists = NeighborLists::with_capacity(BLOCK, BLOCK * self.n_neighbors);
        self.best.iter_mut().for_each(|best| lists.push_row(best.list()));
        lists
    }

    /// The least count of each row that may enter with codes of a block.
    fn least(&self, input: &Input<'_>, block: usize) -> Least {
        dispatch(LeastOf {
            floors: &self.floors,
            norms: &self.norms,
            block_norm: input.block_norms[block],
            input: (input.shrinkage, input.support_min),
        })
    }

    /// Offers the counts of lower codes with the rows: a bit of a block belongs to a row.
    fn columns(&mut self, input: &Input<'_>, tile: Tile<'_>, block: usize) {
        let least = self.least(input, block);
        let digits_min = (u32::BITS - least.smallest.leading_zeros()) as usize;
        if tile.n_digits() < digits_min {
            return;
        }
        let reach = dispatch(Reach {
            tile,
            least: &Bounds::Columns(&least.planes),
            counts: &mut self.counts,
        });
        for (place, mut passing) in reach.into_iter().enumerate() {
            while passing != 0 {
                let row = passing.trailing_zeros();
                passing &= passing - 1;
                let count = self.counts.count(place, row);
                self.offer(input, row as usize, block * BLOCK + place, count);
            }
        }
    }

    /// Offers the counts of the rows with themselves or higher codes: a block belongs to a row.
    fn rows(&mut self, input: &Input<'_>, tile: Tile<'_>, block: usize) {
        let is_own = block * BLOCK == self.start;
        // A pair of two rows is there once, and counts for both.
        let least = if is_own { [input.support_min; BLOCK] } else { self.least(input, block).of };
        let reach =
            dispatch(Reach { tile, least: &Bounds::Rows(&least), counts: &mut self.counts });
        for (row, mut passing) in reach.into_iter().enumerate() {
            if is_own {
                passing &= !(1 << row);
            }
            while passing != 0 {
                let at = passing.trailing_zeros();
                passing &= passing - 1;
                let count = self.counts.count(row, at);
                self.offer(input, row, block * BLOCK + at as usize, count);
                if is_own {
                    self.offer(input, at as usize, self.start + row, count);
                }
            }
        }
    }

    #[inline]
    fn offer(&mut self, input: &Input<'_>, row: usize, code: usize, count: u32) {
        let dot = f64::from(count);
        let scale = self.norms[row] * input.norms[code] + input.shrinkage;
        // Most candidates end here, and a product is far cheaper than a quotient.
        if dot < self.floors[row] * scale {
            return;
        }
        let score = (dot / scale) as f32;
        let best = &mut self.best[row];
        if score > 0.0 && best.offer(input.numbers.items[code], score, count) {
            self.floors[row] = best.floor().map_or(0.0, |(_, score)| safely_below(score));
        }
    }
}

/// The least counts of 64 rows that may enter.
struct Least {
    of: [u32; BLOCK],
    planes: Planes,
    smallest: u32,
}

/// Least counts that may enter.
enum Bounds<'a> {
    /// One for each row of a tile.
    Rows(&'a [u32; BLOCK]),
    /// One for each code, in planes.
    Columns(&'a Planes),
}

/// Unpacks a tile and finds which of its counts are at least so large: a word for each row.
struct Reach<'a> {
    tile: Tile<'a>,
    least: &'a Bounds<'a>,
    counts: &'a mut Counts,
}

impl Kernel for Reach<'_> {
    type Output = [u64; BLOCK];

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> [u64; BLOCK] {
        let Self { tile, least, counts } = self;
        counts.unpack(tile);
        let n_digits = counts.n_digits;
        let planes = &counts.planes[..n_digits];
        match least {
            Bounds::Rows(least) => {
                let is_beyond = |least: u32| least.checked_shr(n_digits as u32).unwrap_or(0) != 0;
                let equal = least.map(|least| if is_beyond(least) { 0 } else { u64::MAX });
                let digit =
                    |digit, row: usize| 0u64.wrapping_sub(u64::from(least[row] >> digit & 1));
                at_least(planes, equal, digit)
            }
            Bounds::Columns(least) => {
                let least = least.planes();
                let beyond = least.iter().skip(n_digits).fold(0, |all, plane| all | plane);
                let digit = |digit, _| least.get(digit).copied().unwrap_or(0);
                at_least(planes, [!beyond; BLOCK], digit)
            }
        }
    }
}

/// The counts that are at least so large, a word for each row. `equal`: those whose bound has no digit beyond
/// the planes; `least` gives the others by digit and row.
#[inline(always)]
fn at_least(
    planes: &[[u64; BLOCK]],
    mut equal: [u64; BLOCK],
    least: impl Fn(usize, usize) -> u64,
) -> [u64; BLOCK] {
    let mut above = [0; BLOCK];
    for (digit, planes) in planes.iter().enumerate().rev() {
        for row in 0..BLOCK {
            let least = least(digit, row);
            above[row] |= equal[row] & planes[row] & !least;
            equal[row] &= !(planes[row] ^ least);
        }
    }
    above.iter_mut().zip(equal).for_each(|(above, equal)| *above |= equal);
    above
}

struct LeastOf<'a> {
    floors: &'a [f64; BLOCK],
    norms: &'a [f64; BLOCK],
    block_norm: f64,
    /// Shrinkage and least support.
    input: (f64, u32),
}

impl Kernel for LeastOf<'_> {
    type Output = Least;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Least {
        let Self { floors, norms, block_norm, input: (shrinkage, support_min) } = self;
        let mut of = [0; BLOCK];
        let mut smallest = u32::MAX;
        for ((least, floor), norm) in of.iter_mut().zip(floors).zip(norms) {
            let bound = floor * (norm * block_norm + shrinkage);
            // Rounded up, as counts are whole.
            let whole = bound as u32;
            let up = whole.saturating_add(u32::from(f64::from(whole) < bound));
            *least = up.max(support_min);
            smallest = smallest.min(*least);
        }
        Least { of, planes: Planes::new(simd, &of), smallest }
    }
}
