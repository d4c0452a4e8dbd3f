//! Rows of weighted pairs: exact sums of products of affinities.

use super::Input;
use super::best::{Best, Cell, Passing, Row};
use super::counts::walks;
use super::parts::Parts;
use super::ranked::{BLOCK, Code, Lists};
use crate::kernels::NeighborLists;
use crate::kernels::simd::dispatch;

/// The cell of weighted pairs; side by side, so that a pair costs one cache line.
#[derive(Clone, Copy, Default)]
struct Product {
    dot: i64,
    support: u32,
}

impl Cell for Product {
    type Dot = i64;

    #[inline(always)]
    fn dot(self) -> i64 {
        self.dot
    }
}

/// One thread's accumulator, a cell per code; all are empty between rows.
pub(super) struct Scratch {
    cells: Vec<Product>,
    parts: Parts,
    best: Best,
}

impl Scratch {
    pub(super) fn new(n_cells: usize) -> Self {
        let cells = vec![Product::default(); n_cells];
        Self { cells, parts: Parts::default(), best: Best::default() }
    }

    /// Appends the neighbors of an item. `affinities` are those of the entries of `histories`.
    pub(super) fn push_row<C: Code>(
        &mut self,
        input: &Input<'_>,
        histories: &Lists<C>,
        affinities: &[i64],
        code: usize,
        lists: &mut NeighborLists,
    ) {
        let Self { cells, parts, best } = self;
        best.reset(input.n_neighbors);
        let mut row = Row::new(input, code);
        let users = &input.ranked.users;
        let n_pairs = parts.find(users.of(code), histories);
        let of_row = users.affinities.as_ref().expect("both ways of pairs have affinities");
        for (at, &of_user) in of_row[users.range(code)].iter().enumerate() {
            let codes = parts.take(at, &histories.entries);
            add(cells, codes, parts.take(at, affinities), of_user);
        }
        cells[code] = Product::default();
        let n_cells = input.ranked.n_cells();
        if walks(n_pairs, n_cells) {
            walk(&mut row, parts, histories, cells, best);
        } else {
            let cells = &mut cells[..n_cells];
            scan(&mut row, cells, best);
            cells.fill(Product::default());
        }
        lists.push_row(best.list());
    }
}

/// Adds one history, times the affinity of its user for the row.
#[inline(always)]
fn add<C: Code>(cells: &mut [Product], codes: &[C], affinities: &[i64], of_user: i64) {
    for (code, &affinity) in codes.iter().zip(affinities) {
        let cell = &mut cells[code.index()];
        // Neither can wrap: sums of squares were checked, and users are numbered in 32 bits.
        cell.dot = cell.dot.wrapping_add(of_user.wrapping_mul(affinity));
        cell.support = cell.support.wrapping_add(1);
    }
}

/// Offers what is in the cells, all of them one after the other. Popular items come first: theirs are
/// most of the best scores of rows that are scanned, so the floor rises early.
fn scan(row: &mut Row<'_>, cells: &[Product], best: &mut Best) {
    for (block, cells) in cells.as_chunks::<BLOCK>().0.iter().enumerate().rev() {
        let least = (row.least_dot(block) as i64).max(1);
        let mut passing = dispatch(Passing { cells, least });
        while passing != 0 {
            let at = passing.trailing_zeros() as usize;
            passing &= passing - 1;
            let Product { dot, support } = cells[at];
            if support >= row.input.support_min {
                row.offer(BLOCK * block + at, dot as f64, support, best);
            }
        }
    }
}

/// Offers the cells that the histories name, and empties them: the first history that names an item
/// takes the whole product.
fn walk<C: Code>(
    row: &mut Row<'_>,
    parts: &Parts,
    histories: &Lists<C>,
    cells: &mut [Product],
    best: &mut Best,
) {
    for at in 0..parts.len() {
        for code in parts.take(at, &histories.entries) {
            let code = code.index();
            let Product { dot, support } = std::mem::take(&mut cells[code]);
            if dot > 0
                && support >= row.input.support_min
                && dot as f64 >= row.least_dot(code / BLOCK)
            {
                row.offer(code, dot as f64, support, best);
            }
        }
    }
}
