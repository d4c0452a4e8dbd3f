//! Counts of 64 rows in bit planes.

use std::ops::Range;

use super::super::ranked::{BLOCK, Code};
use super::differences::{Visit, Visits};
use crate::kernels::simd::{Kernel, Simd, dispatch, prefetch};

/// Counts of the rows of 64 codes with themselves and with all that follow.
///
/// A **tile** holds the counts of these rows with 64 codes, a **block** those of one row in it: one word
/// for each binary digit of the largest, the lowest first, in which bit `c` belongs to the `c`-th code of the
/// tile. Tiles stand one after the other, the one of the rows with themselves first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// The group's place among all: its rows begin at 64 times that code.
    pub(super) first: usize,
    /// Digits of each block, by tile and row.
    digits: Vec<u8>,
    planes: Vec<u64>,
    /// Where each tile begins in `planes`, and the end of the last.
    starts: Vec<usize>,
}

impl Group {
    /// Counts of nobody, of a group in so many.
    pub(super) fn new(first: usize, n_groups: usize) -> Self {
        let mut group = Self { first, digits: Vec::new(), planes: Vec::new(), starts: vec![0] };
        group.grow(n_groups);
        group
    }

    /// Adds tiles, so that there are so many groups.
    pub(super) fn grow(&mut self, n_groups: usize) {
        let n_tiles = n_groups - self.first;
        self.digits.resize(n_tiles * BLOCK, 0);
        self.starts.resize(n_tiles + 1, self.planes.len());
    }

    pub(super) fn parts(&self) -> (usize, &[u8], &[u64]) {
        (self.first, &self.digits, &self.planes)
    }

    /// The inverse, if it can be.
    pub(super) fn from_parts(
        first: usize,
        n_groups: usize,
        digits: Vec<u8>,
        planes: Vec<u64>,
    ) -> Option<Self> {
        let is_count = |&digits: &u8| u32::from(digits) <= u32::BITS;
        if digits.len() != (n_groups - first) * BLOCK || !digits.iter().all(is_count) {
            return None;
        }
        let mut group = Self { first, digits, planes, starts: Vec::new() };
        (group.set_starts() == group.planes.len()).then_some(group)
    }

    /// Finds where tiles begin from the digits of their blocks; returns the end of the last.
    fn set_starts(&mut self) -> usize {
        let Self { digits, starts, .. } = self;
        starts.clear();
        starts.push(0);
        let mut end = 0;
        starts.extend(digits.as_chunks::<BLOCK>().0.iter().map(|tile| {
            end += tile.iter().map(|&digits| usize::from(digits)).sum::<usize>();
            end
        }));
        end
    }

    /// The codes of its rows.
    pub(super) fn codes(&self) -> Range<usize> {
        self.first * BLOCK..(self.first + 1) * BLOCK
    }

    fn n_tiles(&self) -> usize {
        self.starts.len() - 1
    }

    /// The blocks of a tile, in the order of rows.
    #[inline]
    pub(super) fn tile(&self, tile: usize) -> Tile<'_> {
        let digits = self.digits[tile * BLOCK..].first_chunk().expect("a whole tile");
        Tile { digits, planes: &self.planes[self.starts[tile]..self.starts[tile + 1]] }
    }

    /// Tiles from the one of the rows with themselves on.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Tile<'_>> {
        (0..self.n_tiles()).map(|tile| self.tile(tile))
    }

    /// Users of one of its codes.
    pub(super) fn support(&self, code: usize) -> u32 {
        let row = code % BLOCK;
        let mut blocks = self.tile(0).blocks();
        count(blocks.nth(row).expect("a row of the group"), row as u32)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.digits.capacity() + 8 * (self.planes.capacity() + self.starts.capacity())
    }
}

/// Counts of 64 rows with 64 codes.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) digits: &'a [u8; BLOCK],
    planes: &'a [u64],
}

impl<'a> Tile<'a> {
    /// The planes of each row.
    #[inline(always)]
    pub(super) fn blocks(self) -> impl Iterator<Item = &'a [u64]> {
        let mut planes = self.planes;
        self.digits.iter().map(move |&digits| {
            let (block, rest) = planes.split_at(usize::from(digits));
            planes = rest;
            block
        })
    }
}

/// One count of a block.
#[inline(always)]
pub(super) fn count(planes: &[u64], at: u32) -> u32 {
    let digit = |(digit, plane): (usize, &u64)| ((plane >> at & 1) as u32) << digit;
    planes.iter().enumerate().map(digit).sum()
}

/// Histories between the one that is counted and the one that is asked for.
const AHEAD: usize = 8;

/// Codes of a history that are asked for; what follows the hardware sees coming.
const ASKED_FOR: usize = 128;

/// Codes to a cache line.
const PER_LINE: usize = 32;

/// Visits that a byte counts.
const FULL: usize = u8::MAX as usize;

/// What one thread counts the rows of a group with; empty between groups.
pub(super) struct Counter {
    n_cells: usize,
    /// Lowest digits, row by row, and behind them what makes a row of as many as there may be codes.
    bytes: Vec<u8>,
    rows: [Counted; BLOCK],
    /// Room for the planes of a group, with what it had there before.
    planes: Vec<u64>,
}

/// What is counted of one row beside its bytes.
#[derive(Default)]
struct Counted {
    /// Whether there is anything.
    any: bool,
    /// What went beyond a byte, of codes that come often; empty if nothing did.
    words: Vec<u32>,
}

impl Counter {
    pub(super) fn new(n_codes: usize) -> Self {
        let n_cells = n_codes.next_multiple_of(BLOCK);
        let bytes = vec![0; (BLOCK - 1) * n_cells + u16::n_cells(n_codes)];
        Self {
            n_cells,
            bytes,
            rows: std::array::from_fn(|_| Counted::default()),
            planes: Vec::new(),
        }
    }

    /// Adds to all rows of a group, or takes from them.
    pub(super) fn add(&mut self, group: &mut Group, visits: &Visits, codes: &[u16], minus: bool) {
        let Self { n_cells, bytes, rows, planes } = self;
        let start = group.codes().start;
        for (row, (code, counted)) in group.codes().zip(rows.iter_mut()).enumerate() {
            let cells = &mut bytes[row * *n_cells..][..u16::n_cells(*n_cells)];
            counted.count(cells, visits.of(code), codes, start..visits.cut.max(start));
        }
        let (before, n_cells) = (&*group, *n_cells);
        group.digits = dispatch(Merge { before, bytes, n_cells, rows, minus, planes });
        let n_planes = group.set_starts();
        // As long as it is and no longer, in the place that it has where it fits.
        group.planes.clear();
        group.planes.reserve_exact(n_planes);
        group.planes.extend_from_slice(&planes[..n_planes]);
    }
}

impl Counted {
    /// Counts the codes of visits in bytes; those in `often` may come more often than a byte counts.
    fn count(
        &mut self,
        bytes: &mut [u8],
        (long, short): (&[Visit], &[u16]),
        codes: &[u16],
        often: Range<usize>,
    ) {
        let Self { any, words } = self;
        *any = !(long.is_empty() && short.is_empty());
        words.clear();
        for (n, visit) in long.iter().enumerate() {
            if let Some(next) = long.get(n + AHEAD) {
                ask_for(codes, *next);
            }
            u16::count(bytes, visit.of(codes));
            if (n + 1) % FULL == 0 {
                words.resize(often.end, 0);
                dispatch(Flush(&mut words[often.clone()], &mut bytes[often.clone()]));
            }
        }
        count_carrying(bytes, words, short, often.end);
    }
}

/// Adds one to the cell of each code, which may be full.
#[inline(always)]
fn count_carrying(bytes: &mut [u8], words: &mut Vec<u32>, codes: &[u16], often: usize) {
    let bytes: &mut [u8; 1 << 16] = bytes.try_into().expect("a cell for every code");
    for code in codes {
        let byte = &mut bytes[code.index()];
        *byte = byte.wrapping_add(1);
        if *byte == 0 {
            carry(words, code.index(), often);
        }
    }
}

#[cold]
fn carry(words: &mut Vec<u32>, code: usize, often: usize) {
    words.resize(often, 0);
    words[code] += 1 << u8::BITS;
}

/// Moves bytes that may be full to their words.
struct Flush<'a>(&'a mut [u32], &'a mut [u8]);

impl Kernel for Flush<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (word, byte) in self.0.iter_mut().zip(self.1) {
            *word = word.wrapping_add(u32::from(*byte));
            *byte = 0;
        }
    }
}

fn ask_for(codes: &[u16], Visit { start, end }: Visit) {
    let (start, end) = (start as usize, end as usize);
    let end = end.min(start + ASKED_FOR);
    (start..end).step_by(PER_LINE).for_each(|at| prefetch(codes, at));
}

/// Adds what was counted to the rows of a group, or takes it away, and empties it. Gives the digits of each
/// block.
struct Merge<'a> {
    before: &'a Group,
    bytes: &'a mut [u8],
    /// Bytes of a row.
    n_cells: usize,
    rows: &'a mut [Counted; BLOCK],
    minus: bool,
    /// Where the planes go, from the start.
    planes: &'a mut Vec<u64>,
}

impl Kernel for Merge<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<u8> {
        let Self { before, bytes, n_cells, rows, minus, planes } = self;
        let mut digits = vec![0; before.digits.len()];
        let mut end = 0;
        let tiles = before.tiles().zip((before.first..).map(|block| block * BLOCK));
        for ((tile, codes), digits) in tiles.zip(digits.as_chunks_mut::<BLOCK>().0) {
            if planes.len() < end + BLOCK * DIGITS_MAX {
                planes.resize(2 * end + BLOCK * DIGITS_MAX, 0);
            }
            let of_rows = rows.iter_mut().zip(digits).enumerate();
            for ((row, (counted, digits)), block) in of_rows.zip(tile.blocks()) {
                let to = planes[end..].first_chunk_mut().expect("room for the digits");
                let at = row * n_cells + codes;
                prefetch(bytes, at + BLOCK);
                let n_digits = if !counted.any {
                    to[..block.len()].copy_from_slice(block);
                    block.len()
                } else if codes < counted.words.len() {
                    let high = block_of(&mut counted.words, codes);
                    let low = block_of(bytes, at);
                    high.iter_mut().zip(&*low).for_each(|(high, &low)| *high += u32::from(low));
                    let by = Planes::new(simd, high);
                    high.fill(0);
                    low.fill(0);
                    sum(to, block, |digit| by.planes[digit], by.n, minus)
                } else {
                    let low = block_of(bytes, at);
                    let by = std::mem::replace(low, [0; BLOCK]);
                    let digit = |digit| simd.bytes_with(digit as u32, &by);
                    sum(to, block, digit, digits_of(&by), minus)
                };
                *digits = n_digits as u8;
                end += n_digits;
            }
        }
        digits
    }
}

/// Binary digits of any count, and one more.
const DIGITS_MAX: usize = u32::BITS as usize + 1;

#[inline(always)]
fn block_of<T>(cells: &mut [T], code: usize) -> &mut [T; BLOCK] {
    cells[code..].first_chunk_mut().expect("whole blocks")
}

/// Binary digits of the largest.
#[inline(always)]
fn digits_of(bytes: &[u8; BLOCK]) -> usize {
    let mut all = 0;
    for eight in bytes.as_chunks::<8>().0 {
        all |= u64::from_le_bytes(*eight);
    }
    let all = all.to_le_bytes().iter().fold(0, |all, byte| all | byte);
    (u8::BITS - all.leading_zeros()) as usize
}

/// Writes what a block becomes with numbers of which these are the digits; returns how many digits it has.
#[inline(always)]
fn sum(
    to: &mut [u64; DIGITS_MAX],
    block: &[u64],
    digit: impl Fn(usize) -> u64,
    n_digits: usize,
    minus: bool,
) -> usize {
    let mut carry = 0;
    if minus {
        assert!(n_digits <= block.len(), "no more users leave a pair than it has");
        for (at, (to, &a)) in to.iter_mut().zip(block).enumerate() {
            let b = if at < n_digits { digit(at) } else { 0 };
            *to = a ^ b ^ carry;
            carry = (!a & b) | (carry & !(a ^ b));
        }
        assert!(carry == 0, "no more users leave a pair than it has");
        let last = to[..block.len()].iter().rposition(|&plane| plane != 0);
        return last.map_or(0, |last| last + 1);
    }
    for (at, to) in to.iter_mut().enumerate().take(n_digits) {
        let (a, b) = (block.get(at).copied().unwrap_or(0), digit(at));
        *to = a ^ b ^ carry;
        carry = (a & b) | (carry & (a ^ b));
    }
    for (to, &a) in to.iter_mut().zip(block).skip(n_digits) {
        *to = a ^ carry;
        carry &= a;
    }
    let end = n_digits.max(block.len());
    to[end] = carry;
    end + usize::from(carry != 0)
}

/// 64 numbers in bit planes: one word for each binary digit, the lowest first.
pub(super) struct Planes {
    planes: [u64; u32::BITS as usize],
    /// All above are 0.
    n: usize,
}

impl Planes {
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, words: &[u32; BLOCK]) -> Self {
        let mut all = 0;
        for word in words {
            all |= word;
        }
        let n = (u32::BITS - all.leading_zeros()) as usize;
        let mut planes = [0; u32::BITS as usize];
        for (byte, planes) in planes[..n].chunks_mut(u8::BITS as usize).enumerate() {
            let mut bytes = [0; BLOCK];
            for (to, word) in bytes.iter_mut().zip(words) {
                *to = (word >> (8 * byte)) as u8;
            }
            for (digit, plane) in planes.iter_mut().enumerate() {
                *plane = simd.bytes_with(digit as u32, &bytes);
            }
        }
        Self { planes, n }
    }

    #[inline(always)]
    pub(super) fn planes(&self) -> &[u64] {
        &self.planes[..self.n]
    }
}
