//! Rows whose pairs weigh 1: the dot product is a number of users.

use super::Input;
use super::best::{Best, LIMITED, Row, bits};
use super::parts::Parts;
use super::ranked::{BLOCK, Code, CutLists, Lists, Part};
use crate::kernels::NeighborLists;
use crate::kernels::simd::{Kernel, dispatch};

/// A number of users, as wide as it must be.
pub(super) trait Count: Copy + Default + Ord + Into<u32> {
    /// The largest count.
    const LARGEST: u32;

    /// The count, which is not above the largest.
    fn new(count: u32) -> Self;

    /// One more. Cells are chosen so that they hold what is counted, so there is nothing to check for.
    fn next(self) -> Self;
}

macro_rules! count {
    ($type:ty) => {
        impl Count for $type {
            const LARGEST: u32 = Self::MAX as u32;

            #[inline(always)]
            fn new(count: u32) -> Self {
                count as Self
            }

            #[inline(always)]
            fn next(self) -> Self {
                self.wrapping_add(1)
            }
        }
    };
}
count!(u8);
count!(u16);
count!(u32);

/// One thread's accumulators, a cell per code; all are empty between rows.
pub(super) struct Scratch {
    bytes: Vec<u8>,
    halves: Vec<u16>,
    words: Vec<u32>,
    parts: Parts,
    best: Best,
}

impl Scratch {
    pub(super) fn new(n_cells: usize) -> Self {
        Self {
            bytes: vec![0; n_cells],
            halves: vec![0; n_cells],
            words: vec![0; n_cells],
            parts: Parts::default(),
            best: Best::default(),
        }
    }

    /// Appends the neighbors of an item.
    ///
    /// Counts are held in the narrowest cells that hold the support of the row, or of all items below
    /// the cut. For most that is one byte per item, which the caches hold far longer than four.
    pub(super) fn push_row<C: Code>(
        &mut self,
        input: &Input<'_>,
        histories: &CutLists<C>,
        code: usize,
        lists: &mut NeighborLists,
    ) {
        let Self { bytes, halves, words, parts, best } = self;
        best.reset(input.n_neighbors);
        let mut row = Row::new(input, code);
        let support = input.ranked.users.range(code).len();
        let mut rest = Part::All;
        if support > 0xFF && input.ranked.cut > 0 {
            offer(&mut row, parts, histories, Part::BelowCut, bytes, best);
            rest = Part::FromCut;
        }
        match support {
            0..=0xFF => offer(&mut row, parts, histories, rest, bytes, best),
            0x100..=0xFFFF => offer(&mut row, parts, histories, rest, halves, best),
            _ => offer(&mut row, parts, histories, rest, words, best),
        }
        lists.push_row(best.list());
    }
}

/// Counts and offers the codes of one part.
fn offer<T: Count, C: Code>(
    row: &mut Row<'_>,
    parts: &mut Parts,
    histories: &CutLists<C>,
    part: Part,
    cells: &mut [T],
    best: &mut Best,
) {
    let ranked = row.input.ranked;
    let n_pairs = parts.find(ranked.users.of(row.code), histories, part);
    for at in 0..parts.len() {
        C::count(cells, parts.take(at, &histories.lists.entries));
    }
    cells[row.code] = T::default();
    let codes = ranked.codes_of(part);
    if walks(n_pairs, codes.len()) {
        walk(row, parts, &histories.lists, cells, best);
    } else {
        let cells = &mut cells[codes.clone()];
        scan(row, codes.start / BLOCK, cells, best);
        cells.fill(T::default());
    }
}

/// Whether it is cheaper to look at the cells of all pairs than at all cells: those lie side by side,
/// and a block costs no more than a few single ones. Both ways give the same row.
pub(super) fn walks(n_pairs: usize, n_codes: usize) -> bool {
    n_pairs < n_codes / 32
}

/// Offers what is in the cells, all of them one after the other. Popular items come first: theirs are
/// most of the best scores of rows that are scanned, so the floor rises early.
fn scan<T: Count>(row: &mut Row<'_>, first_block: usize, cells: &[T], best: &mut Best) {
    for (at, cells) in cells.as_chunks::<BLOCK>().0.iter().enumerate().rev() {
        let block = first_block + at;
        let bound = row.least_dot(block);
        // Rounded up, as counts are whole.
        let least = bound as u32 + u32::from(f64::from(bound as u32) < bound);
        let least = least.max(row.input.support_min);
        if least > T::LARGEST {
            continue;
        }
        let mut passing = dispatch(Passing { cells, least: T::new(least) });
        while passing != 0 {
            let at = passing.trailing_zeros() as usize;
            passing &= passing - 1;
            let count = cells[at].into();
            row.offer(BLOCK * block + at, f64::from(count), count, best);
        }
    }
}

/// The cells of a block that hold at least so many.
struct Passing<'a, T> {
    cells: &'a [T; BLOCK],
    least: T,
}

impl<T: Count> Kernel for Passing<'_, T> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let mut flags = [0u8; BLOCK];
        for (flag, cell) in flags.iter_mut().zip(self.cells) {
            *flag = u8::from(*cell >= self.least);
        }
        bits(&flags)
    }
}

/// Offers the cells that the histories name, and empties them. An item may be named by many histories:
/// the first takes the whole count.
fn walk<T: Count, C: Code>(
    row: &mut Row<'_>,
    parts: &Parts,
    histories: &Lists<C>,
    cells: &mut [T],
    best: &mut Best,
) {
    let mut limits = row.limits(best);
    for at in 0..parts.len() {
        for code in parts.take(at, &histories.entries) {
            let code = code.index();
            let count: u32 = std::mem::take(&mut cells[code]).into();
            let limit = limits[count.min(LIMITED as u32 + 1) as usize];
            if (code as u32) < limit
                && count >= row.input.support_min
                && row.offer(code, f64::from(count), count, best)
            {
                limits = row.limits(best);
            }
        }
    }
}
