//! Counts of 64 rows with all codes that follow.

use std::ops::Range;

use super::super::ranked::{BLOCK, Code};
use super::differences::{Visit, Visits};
use super::tile::{Counts, Planes, Tile, Word};
use crate::kernels::simd::{Kernel, Simd, dispatch, prefetch};

/// Counts of the rows of 64 codes with themselves and with all that follow.
///
/// Tiles stand one after the other, the one of the rows with themselves first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// The group's place among all: its rows begin at 64 times that code.
    pub(super) first: usize,
    /// Where each tile ends in `words`.
    ends: Vec<u32>,
    words: Vec<Word>,
}

impl Group {
    /// Counts of nobody, of a group in so many.
    pub(super) fn new(first: usize, n_groups: usize) -> Self {
        Self { first, ends: vec![0; n_groups - first], words: Vec::new() }
    }

    /// Adds tiles, so that there are so many groups.
    pub(super) fn grow(&mut self, n_groups: usize) {
        self.ends.resize(n_groups - self.first, self.words.len() as u32);
    }

    pub(super) fn stored(&self) -> StoredGroup<'_> {
        StoredGroup { first: self.first, ends: &self.ends, words: &self.words }
    }

    /// The codes of its rows.
    pub(super) fn codes(&self) -> Range<usize> {
        codes(self.first)
    }

    pub(super) fn tile(&self, tile: usize) -> Tile<'_> {
        self.stored().tile(tile)
    }

    pub(super) fn n_tiles(&self) -> usize {
        self.ends.len()
    }

    /// Users of one of its codes.
    pub(super) fn support(&self, code: usize) -> u32 {
        self.tile(0).on_diagonal(code % BLOCK)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        4 * self.ends.capacity() + size_of::<Word>() * self.words.capacity()
    }
}

fn codes(group: usize) -> Range<usize> {
    group * BLOCK..(group + 1) * BLOCK
}

/// The counts of a group where they lie, as in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredGroup<'a> {
    /// The group's place among all.
    pub first: usize,
    /// Where each tile ends in `words`.
    pub ends: &'a [u32],
    /// Packed counts, tile by tile.
    pub words: &'a [Word],
}

impl<'a> StoredGroup<'a> {
    /// Whether it can be one of so many groups.
    pub(super) fn is_of(&self, n_groups: usize) -> bool {
        self.first < n_groups
            && self.ends.len() == n_groups - self.first
            && self.ends.is_sorted()
            && self.ends.last().is_some_and(|&end| end as usize == self.words.len())
    }

    /// One tile, of nobody where the codes are new.
    #[inline]
    fn tile(&self, tile: usize) -> Tile<'a> {
        let Some(&end) = self.ends.get(tile) else { return Tile(&[]) };
        let start = if tile == 0 { 0 } else { self.ends[tile - 1] };
        Tile(&self.words[start as usize..end as usize])
    }
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
    /// Counts of a tile, and what is added to them.
    counts: Box<Counts>,
    by: Box<Counts>,
    /// Room for a group.
    ends: Vec<u32>,
    words: Vec<Word>,
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
            counts: Counts::new(),
            by: Counts::new(),
            ends: Vec::new(),
            words: Vec::new(),
        }
    }

    /// Adds to the counts of a group what is to be added, and takes what is to be taken. `stored`: where its
    /// counts lie, perhaps of fewer tiles, if they are not in the group yet.
    pub(super) fn update(
        &mut self,
        group: &mut Group,
        mut stored: Option<StoredGroup<'_>>,
        visits: &[Visits; 2],
        codes: &[u16],
    ) {
        for (visits, minus) in visits.iter().zip([false, true]) {
            if visits.any(group.codes()) {
                let before = stored.take().unwrap_or_else(|| group.stored());
                self.merge(before, group.n_tiles(), visits, codes, minus);
                self.give(group);
            }
        }
        if let Some(StoredGroup { ends, words, .. }) = stored {
            group.words = words.to_vec();
            group.ends.fill(words.len() as u32);
            group.ends[..ends.len()].copy_from_slice(ends);
        }
    }

    /// Makes what was merged the group: as long as it is and no longer, in the place that it has where it fits.
    fn give(&mut self, group: &mut Group) {
        group.ends.copy_from_slice(&self.ends);
        group.words.clear();
        group.words.reserve_exact(self.words.len());
        group.words.extend_from_slice(&self.words);
    }

    /// Counts of a group with what visits add, or take.
    fn merge(
        &mut self,
        before: StoredGroup<'_>,
        n_tiles: usize,
        visits: &Visits,
        visited: &[u16],
        minus: bool,
    ) {
        let Self { n_cells, bytes, rows, counts, by, ends, words } = self;
        let codes = codes(before.first);
        for (row, (code, counted)) in codes.clone().zip(rows.iter_mut()).enumerate() {
            let cells = &mut bytes[row * *n_cells..][..u16::n_cells(*n_cells)];
            counted.count(
                cells,
                visits.of(code),
                visited,
                codes.start..visits.cut.max(codes.start),
            );
        }
        ends.clear();
        words.clear();
        let tiles = (before, n_tiles);
        dispatch(Merge { tiles, bytes, n_cells: *n_cells, rows, minus, counts, by, ends, words });
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

/// Adds what was counted to the rows of a group, or takes it away, and empties it.
struct Merge<'a> {
    /// The group, and how many tiles it gets.
    tiles: (StoredGroup<'a>, usize),
    bytes: &'a mut [u8],
    /// Bytes of a row.
    n_cells: usize,
    rows: &'a mut [Counted; BLOCK],
    minus: bool,
    counts: &'a mut Counts,
    by: &'a mut Counts,
    ends: &'a mut Vec<u32>,
    words: &'a mut Vec<Word>,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { tiles: (before, n_tiles), bytes, n_cells, rows, minus, counts, by, .. } = self;
        for tile in 0..n_tiles {
            counted(simd, (bytes, n_cells), rows, (before.first + tile) * BLOCK, by);
            let packed = before.tile(tile);
            if by.n_digits == 0 {
                self.words.extend_from_slice(packed.0);
            } else {
                counts.unpack(packed);
                if minus {
                    counts.take(by);
                } else {
                    counts.add(by);
                }
                counts.pack(self.words);
            }
            self.ends.push(u32::try_from(self.words.len()).expect("1,024 tiles of 33 x 65 words"));
        }
    }
}

/// Puts what was counted of rows with 64 codes into `by`, and empties it.
#[inline(always)]
fn counted<S: Simd>(
    simd: S,
    (bytes, n_cells): (&mut [u8], usize),
    rows: &mut [Counted; BLOCK],
    codes: usize,
    by: &mut Counts,
) {
    by.n_digits = 0;
    if rows.iter().any(|counted| codes < counted.words.len()) {
        for (row, counted) in rows.iter_mut().enumerate().filter(|(_, counted)| counted.any) {
            let low = std::mem::replace(block_of(bytes, row * n_cells + codes), [0; BLOCK]);
            let mut counts = low.map(u32::from);
            if codes < counted.words.len() {
                let high = block_of(&mut counted.words, codes);
                counts.iter_mut().zip(&*high).for_each(|(count, high)| *count += high);
                high.fill(0);
            }
            let planes = Planes::new(simd, &counts);
            by.extend(planes.planes().len());
            by.planes.iter_mut().zip(planes.planes()).for_each(|(of, plane)| of[row] = *plane);
        }
        return;
    }
    let mut all = [0; BLOCK];
    for row in (0..BLOCK).filter(|&row| rows[row].any) {
        let low = block_of(bytes, row * n_cells + codes);
        all.iter_mut().zip(&*low).for_each(|(all, low)| *all |= low);
    }
    by.n_digits = digits_of(&all);
    if by.n_digits == 0 {
        return;
    }
    for row in 0..BLOCK {
        let at = row * n_cells + codes;
        let low = std::mem::replace(block_of(bytes, at), [0; BLOCK]);
        prefetch(bytes, at + BLOCK);
        for (digit, planes) in (0..).zip(&mut by.planes[..by.n_digits]) {
            planes[row] = simd.bytes_with(digit, &low);
        }
    }
}

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
