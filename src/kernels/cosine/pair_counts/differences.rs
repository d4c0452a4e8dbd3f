//! What histories that changed add to the rows of counts.

use std::ops::Range;
use std::slice;

use rayon::prelude::*;

use super::CODES_MAX;
use crate::kernels::cosine::ranked::BLOCK;
use crate::kernels::cosine::sorting;

/// Histories before and after, of users for whom these differ.
///
/// A user whose history becomes `N` by losing `R` and gaining `A`, so that `K` stays, adds to the pairs of
/// each item of `A` with those of `N`, of each of `K` with those of `A`, and takes from those of `R`
/// with what there was and of `K` with `R`. One triangle is counted, so each of these is a **walk**: its
/// rows, and what to add to each of them from its own code on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences {
    codes: Vec<u16>,
    walks: Vec<Walk>,
}

/// Each code of `rows` is counted with all of `with` that are not below it.
#[derive(Clone, Debug, PartialEq)]
struct Walk {
    rows: Range<u32>,
    with: Range<u32>,
    minus: bool,
}

impl Walk {
    /// Codes that are copied to each row: looking for so few takes longer than counting them.
    const FEW: usize = 8;

    fn is_short(&self) -> bool {
        self.with.len() < Self::FEW
    }
}

impl Differences {
    /// Codes that one `Differences` holds before it should be added: each takes 2 bytes, and 8 more while
    /// they are sorted by row.
    pub const CODES_AT_ONCE: usize = 1 << 25;

    /// Adds a user whose history is another, see [`Comparison::push`].
    fn push(&mut self, before: &[u16], after: &[u16], changed: &Comparison) -> u64 {
        let Comparison { kept, added, removed, .. } = changed;
        if before.is_empty() {
            let all = self.append(after);
            return self.walk(all.clone(), all, false);
        }
        let kept = self.append(if removed.is_empty() { before } else { kept });
        let mut counted = 0;
        if !added.is_empty() {
            let (added, after) = (self.append(added), self.append(after));
            counted += self.walk(added.clone(), after, false);
            counted += self.walk(kept.clone(), added, false);
        }
        if !removed.is_empty() {
            let (removed, before) = (self.append(removed), self.append(before));
            counted += self.walk(removed.clone(), before, true);
            counted += self.walk(kept, removed, true);
        }
        counted
    }

    fn append(&mut self, codes: &[u16]) -> Range<u32> {
        let start = self.codes.len();
        self.codes.extend_from_slice(codes);
        let end = |at: usize| u32::try_from(at).expect("codes are added before there are 2^32");
        end(start)..end(self.codes.len())
    }

    /// Half of the pairs of rows and codes, about, are those of one triangle.
    fn walk(&mut self, rows: Range<u32>, with: Range<u32>, minus: bool) -> u64 {
        let counted = rows.len() as u64 * with.len() as u64 / 2;
        if !rows.is_empty() && !with.is_empty() {
            self.walks.push(Walk { rows, with, minus });
        }
        counted
    }

    /// Adds the users of another.
    ///
    /// # Panics
    /// If there would be 2³² codes.
    pub fn append_all(&mut self, other: &Self) {
        let by = self.append(&other.codes).start;
        let moved = |range: &Range<u32>| range.start + by..range.end + by;
        let moved = |walk: &Walk| Walk {
            rows: moved(&walk.rows),
            with: moved(&walk.with),
            minus: walk.minus,
        };
        self.walks.extend(other.walks.iter().map(moved));
    }

    /// Whether it holds as much as should be added at once.
    pub fn is_full(&self) -> bool {
        self.codes.len() >= Self::CODES_AT_ONCE
    }

    pub(super) fn codes(&self) -> &[u16] {
        &self.codes
    }

    /// The differences as bytes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 17 * self.walks.len() + 2 * self.codes.len());
        out.extend_from_slice(&(self.walks.len() as u64).to_le_bytes());
        for Walk { rows, with, minus } in &self.walks {
            for bound in [rows.start, rows.end, with.start, with.end] {
                out.extend_from_slice(&bound.to_le_bytes());
            }
            out.push(u8::from(*minus));
        }
        self.codes.iter().for_each(|code| out.extend_from_slice(&code.to_le_bytes()));
        out
    }

    /// The inverse of [`Differences::encode`].
    ///
    /// # Panics
    /// If `bytes` is nothing that it wrote.
    pub fn decode(bytes: &[u8]) -> Self {
        let (n_walks, bytes) = bytes.split_at(8);
        let n_walks = u64::from_le_bytes(n_walks.try_into().expect("8 bytes")) as usize;
        let (walks, codes) = bytes.split_at(17 * n_walks);
        let bound = |walk: &[u8], at: usize| {
            u32::from_le_bytes(walk[4 * at..4 * at + 4].try_into().expect("4 bytes"))
        };
        let walks = walks.chunks_exact(17).map(|walk| Walk {
            rows: bound(walk, 0)..bound(walk, 1),
            with: bound(walk, 2)..bound(walk, 3),
            minus: walk[16] == 1,
        });
        let codes = codes.as_chunks::<2>().0.iter().map(|code| u16::from_le_bytes(*code));
        Self { walks: walks.collect(), codes: codes.collect() }
    }

    /// The rows of a walk within `among`, each with where the codes stand that it is counted with, of which
    /// there are some.
    #[inline]
    fn each_visit(&self, walk: &Walk, among: &Range<usize>, mut give: impl FnMut(usize, Visit)) {
        let is_below = |code: &u16| usize::from(*code) < among.start;
        let rows = &self.codes[walk.rows.start as usize..walk.rows.end as usize];
        let rows = &rows[rows.partition_point(is_below)..];
        let with = &self.codes[walk.with.start as usize..walk.with.end as usize];
        let mut at = with.partition_point(is_below);
        for &row in rows {
            while with.get(at).is_some_and(|&code| code < row) {
                at += 1;
            }
            if usize::from(row) >= among.end || at == with.len() {
                break;
            }
            let start = walk.with.start + at as u32;
            give(usize::from(row), Visit { start, end: walk.with.end });
        }
    }
}

/// Holds histories against what they were, with room that is used again.
pub struct Comparison {
    /// By code: what is known of it while a history is looked at, otherwise 0.
    marks: Box<[u8; CODES_MAX]>,
    /// A bit for each code, while some are sorted.
    bits: Vec<u64>,
    kept: Vec<u16>,
    added: Vec<u16>,
    removed: Vec<u16>,
}

/// A code of the history before, and one that is there still.
const WAS: u8 = 1;
const STAYS: u8 = 2;

impl Default for Comparison {
    fn default() -> Self {
        let marks = vec![0; CODES_MAX].into_boxed_slice().try_into().expect("a mark for each code");
        Self { marks, bits: Vec::new(), kept: Vec::new(), added: Vec::new(), removed: Vec::new() }
    }
}

impl Comparison {
    /// Appends to `sorted` what a history is `now`, whose codes come in any order, and puts into
    /// `differences` how it differs from what it was `before`, ascending. Returns how many pairs are to be
    /// counted for it; `None` if nothing changed.
    ///
    /// Cost: a few steps for each code; sorting is for histories that are new, and for codes that came.
    ///
    /// # Panics
    /// If `differences` would hold 2³² codes.
    pub fn push(
        &mut self,
        before: &[u16],
        now: impl Iterator<Item = u16>,
        sorted: &mut Vec<u16>,
        differences: &mut Differences,
    ) -> Option<u64> {
        let start = sorted.len();
        self.added.clear();
        self.removed.clear();
        if before.is_empty() {
            self.added.extend(now);
            self.sort_added(sorted);
        } else {
            self.split(before, now);
            merge(if self.removed.is_empty() { before } else { &self.kept }, &self.added, sorted);
        }
        let changed = !self.added.is_empty() || !self.removed.is_empty();
        changed.then(|| differences.push(before, &sorted[start..], self))
    }

    /// Finds out what came and what went, each ascending; and what stays, if something went.
    fn split(&mut self, before: &[u16], now: impl Iterator<Item = u16>) {
        let Self { marks, kept, added, removed, .. } = self;
        before.iter().for_each(|&code| marks[usize::from(code)] = WAS);
        let mut n_kept = 0;
        for code in now {
            let mark = &mut marks[usize::from(code)];
            if *mark == WAS {
                *mark = STAYS;
                n_kept += 1;
            } else {
                added.push(code);
            }
        }
        added.sort_unstable();
        if n_kept < before.len() {
            kept.clear();
            for &code in before {
                let stays = marks[usize::from(code)] == STAYS;
                if stays { &mut *kept } else { &mut *removed }.push(code);
            }
        }
        before.iter().for_each(|&code| marks[usize::from(code)] = 0);
    }

    fn sort_added(&mut self, sorted: &mut Vec<u16>) {
        let Self { bits, added, .. } = self;
        let end = added.iter().max().map_or(0, |&last| usize::from(last) / 64 + 1);
        if bits.len() < end {
            bits.resize(end, 0);
        }
        added.iter().for_each(|code| bits[usize::from(code / 64)] |= 1 << (code % 64));
        for (word, start) in bits[..end].iter_mut().zip((0..).step_by(64)) {
            let mut left = std::mem::take(word);
            while left != 0 {
                sorted.push(start + left.trailing_zeros() as u16);
                left &= left - 1;
            }
        }
    }
}

/// Appends the codes of both to `all`, ascending like each of them; `few` are far fewer.
fn merge(mut many: &[u16], few: &[u16], all: &mut Vec<u16>) {
    for &code in few {
        let (below, rest) = many.split_at(many.partition_point(|&other| other < code));
        all.extend_from_slice(below);
        all.push(code);
        many = rest;
    }
    all.extend_from_slice(many);
}

/// Where the codes stand that a row is counted with.
#[derive(Clone, Copy, Default)]
pub(super) struct Visit {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Visit {
    #[inline(always)]
    pub(super) fn of(self, codes: &[u16]) -> &[u16] {
        &codes[self.start as usize..self.end as usize]
    }
}

/// What is added to each row, or taken from it.
pub(super) struct Visits {
    /// Codes from it on are counted so rarely that a byte holds any sum.
    pub(super) cut: usize,
    long: ByRow<Visit>,
    /// Codes of short ones.
    short: ByRow<u16>,
}

impl Visits {
    /// Sorts walks of one sign by their rows.
    pub(super) fn new(differences: &Differences, minus: bool, n_codes: usize) -> Self {
        let walks = |is_short| {
            let is_wanted = |walk: &&Walk| walk.minus == minus && walk.is_short() == is_short;
            differences.walks.iter().filter(is_wanted).collect::<Vec<_>>()
        };
        let long =
            ByRow::new(differences, &walks(false), n_codes, |visit, _| slice::from_ref(visit));
        let short = ByRow::new(differences, &walks(true), n_codes, |visit, codes| visit.of(codes));
        // A walk counts a code once with each row, at most.
        let mut n_counted = vec![0u32; n_codes];
        for walk in differences.walks.iter().filter(|walk| walk.minus == minus) {
            let with = &differences.codes[walk.with.start as usize..walk.with.end as usize];
            with.iter().for_each(|&code| n_counted[usize::from(code)] += 1);
        }
        let is_often = |&n: &u32| n > u8::MAX.into();
        let cut = n_counted.iter().rposition(is_often).map_or(0, |last| last + 1);
        Self { cut: cut.next_multiple_of(BLOCK), long, short }
    }

    /// What a row is counted with: histories, and single codes.
    pub(super) fn of(&self, row: usize) -> (&[Visit], &[u16]) {
        (self.long.of(row), self.short.of(row))
    }

    /// Whether one of these rows is visited.
    pub(super) fn any(&self, rows: Range<usize>) -> bool {
        self.long.any(&rows) || self.short.any(&rows)
    }
}

/// Entries sorted by row.
struct ByRow<T> {
    offsets: Vec<u64>,
    entries: Vec<T>,
}

impl<T: Copy + Default + Send> ByRow<T> {
    /// Sorts what `entries` makes of the visits of walks.
    fn new(
        differences: &Differences,
        walks: &[&Walk],
        n_rows: usize,
        entries_of: impl for<'a> Fn(&'a Visit, &'a [u16]) -> &'a [T] + Sync,
    ) -> Self {
        let codes = &differences.codes;
        // A thread counts those of some walks, then sorts those of some rows.
        let chunk = walks.len().div_ceil(rayon::current_num_threads()).max(1);
        let counts = walks.par_chunks(chunk).map(|walks| {
            let mut counts = vec![0u64; n_rows];
            for walk in walks {
                differences.each_visit(walk, &(0..n_rows), |row, visit| {
                    counts[row] += entries_of(&visit, codes).len() as u64;
                });
            }
            counts
        });
        let counts = counts.reduce_with(|mut counts, others| {
            counts.iter_mut().zip(others).for_each(|(count, other)| *count += other);
            counts
        });
        let offsets = sorting::offsets(counts.unwrap_or_else(|| vec![0; n_rows]).into_iter());
        let mut entries = vec![T::default(); offsets[n_rows] as usize];
        let bounds = sorting::bounds(&offsets, rayon::current_num_threads());
        let parts = sorting::split(&mut entries, &bounds, &offsets);
        bounds.par_windows(2).zip(parts).for_each(|(rows, part)| {
            let rows = rows[0]..rows[1];
            let start = offsets[rows.start];
            let places = offsets[rows.clone()].iter().map(|offset| (offset - start) as usize);
            let mut next: Vec<usize> = places.collect();
            for walk in walks {
                differences.each_visit(walk, &rows, |row, visit| {
                    let place = &mut next[row - rows.start];
                    for entry in entries_of(&visit, codes) {
                        part[*place] = *entry;
                        *place += 1;
                    }
                });
            }
        });
        Self { offsets, entries }
    }

    fn of(&self, row: usize) -> &[T] {
        match self.offsets.get(row..row + 2) {
            Some(&[start, end]) => &self.entries[start as usize..end as usize],
            _ => &[],
        }
    }

    fn any(&self, rows: &Range<usize>) -> bool {
        let last = self.offsets.len() - 1;
        self.offsets[rows.start.min(last)] < self.offsets[rows.end.min(last)]
    }
}
