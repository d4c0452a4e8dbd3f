//! Rows whose pairs weigh 1: the dot product is a number of users.

use super::Input;
use super::best::{Best, Cell, LIMITED, Passing, Row};
use super::parts::Parts;
use super::ranked::{BLOCK, Code, Lists, Ranked};
use crate::kernels::NeighborLists;
use crate::kernels::simd::{Kernel, Simd, dispatch};

/// A number of users.
trait Count: Copy + Ord + Into<u32> + Cell<Dot = Self> {
    /// The count, if it is not above the largest.
    fn new(count: u32) -> Option<Self>;
}

impl Count for u8 {
    #[inline(always)]
    fn new(count: u32) -> Option<Self> {
        Self::try_from(count).ok()
    }
}

impl Count for u32 {
    #[inline(always)]
    fn new(count: u32) -> Option<Self> {
        Some(count)
    }
}

impl Cell for u8 {
    type Dot = Self;

    #[inline(always)]
    fn dot(self) -> Self {
        self
    }
}

impl Cell for u32 {
    type Dot = Self;

    #[inline(always)]
    fn dot(self) -> Self {
        self
    }
}

/// Users that a byte counts.
const FULL: usize = u8::MAX as usize;

/// One thread's accumulators; all cells are empty between rows.
pub(super) struct Scratch {
    cells: Cells,
    parts: Parts,
    best: Best,
}

/// Counts of one row: a byte per code, which the caches hold far longer than four. Wide rows, those
/// with more users than a byte counts, add them up in words in time. Codes below the cut need none.
struct Cells {
    bytes: Vec<u8>,
    cut: usize,
    /// Of the codes from the cut on.
    words: Vec<u32>,
}

impl Scratch {
    pub(super) fn new(n_cells: usize, ranked: &Ranked) -> Self {
        let words = vec![0; ranked.n_cells() - ranked.cut];
        let cells = Cells { bytes: vec![0; n_cells], cut: ranked.cut, words };
        Self { cells, parts: Parts::default(), best: Best::default() }
    }

    /// Appends the neighbors of an item.
    pub(super) fn push_row<C: Code>(
        &mut self,
        input: &Input<'_>,
        histories: &Lists<C>,
        code: usize,
        lists: &mut NeighborLists,
    ) {
        let Self { cells, parts, best } = self;
        best.reset(input.n_neighbors);
        let mut row = Row::new(input, code);
        let n_pairs = parts.find(input.ranked.users.of(code), histories);
        let wide = parts.len() > FULL;
        for at in 0..parts.len() {
            C::count(&mut cells.bytes, parts.take(at, &histories.entries));
            if wide && ((at + 1) % FULL == 0 || at + 1 == parts.len()) {
                dispatch(Flush(cells));
            }
        }
        cells.take(code, wide);
        if walks(n_pairs, input.ranked.n_cells()) {
            walk(&mut row, parts, histories, cells, wide, best);
        } else {
            cells.offer(&mut row, wide, best);
            cells.clear(wide);
        }
        lists.push_row(best.list());
    }
}

impl Cells {
    /// Takes a count out.
    #[inline(always)]
    fn take(&mut self, code: usize, wide: bool) -> u32 {
        if wide && code >= self.cut {
            std::mem::take(&mut self.words[code - self.cut])
        } else {
            u32::from(std::mem::take(&mut self.bytes[code]))
        }
    }

    /// Offers all counts.
    fn offer(&self, row: &mut Row<'_>, wide: bool, best: &mut Best) {
        let n_cells = self.cut + self.words.len();
        if wide {
            scan(row, self.cut / BLOCK, &self.words, best);
            scan(row, 0, &self.bytes[..self.cut], best);
        } else {
            scan(row, 0, &self.bytes[..n_cells], best);
        }
    }

    fn clear(&mut self, wide: bool) {
        let n_cells = self.cut + self.words.len();
        self.bytes[..n_cells].fill(0);
        if wide {
            self.words.fill(0);
        }
    }
}

/// Moves bytes that may be full to their words.
struct Flush<'a>(&'a mut Cells);

impl Kernel for Flush<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Cells { bytes, cut, words } = self.0;
        for (word, byte) in words.iter_mut().zip(&mut bytes[*cut..]) {
            *word = word.wrapping_add(u32::from(*byte));
            *byte = 0;
        }
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
        let Some(least) = T::new(least.max(row.input.support_min)) else { continue };
        let mut passing = dispatch(Passing { cells, least });
        while passing != 0 {
            let at = passing.trailing_zeros() as usize;
            passing &= passing - 1;
            let count = cells[at].into();
            row.offer(BLOCK * block + at, f64::from(count), count, best);
        }
    }
}

/// Offers the cells that the histories name, and empties them. An item may be named by many histories:
/// the first takes the whole count.
fn walk<C: Code>(
    row: &mut Row<'_>,
    parts: &Parts,
    histories: &Lists<C>,
    cells: &mut Cells,
    wide: bool,
    best: &mut Best,
) {
    let mut limits = row.limits(best);
    for at in 0..parts.len() {
        for code in parts.take(at, &histories.entries) {
            let code = code.index();
            let count = cells.take(code, wide);
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
