//! The pairs in the numbers that rows are counted with: by item and by user.

use std::ops::Range;

use super::{Interactions, sorting};
use crate::kernels::KernelError;
use crate::types::ItemIdx;

/// Codes that share a bound.
pub(super) const BLOCK: usize = 64;

/// All pairs by item and by user, with both renumbered so that what is read often lies together.
///
/// An item's **code** is its place by norm, smallest first, then by index; a user's **rank** is the place
/// by length of the history, longest first. So popular items share cache lines, and of two codes with
/// equal dot products the lower one is the better neighbor.
#[derive(Clone, Debug)]
pub struct Ranked {
    /// The item of each code.
    pub(super) items: Vec<ItemIdx>,
    /// The code of each item.
    pub(super) codes: Vec<u32>,
    /// The Euclidean norm of the column of each code, in affinity units: the root of an exact integer.
    norms: Vec<f64>,
    /// The smallest norm of each block of codes.
    pub(super) block_norms: Vec<f64>,
    /// Each norm that there is, with the first code that has it.
    pub(super) classes: Vec<(f64, u32)>,
    /// The ranks of the users of each code, ascending.
    pub(super) users: Lists<u32>,
    /// The codes of the items of each rank, ascending.
    pub(super) histories: Histories,
    /// Codes below it are of so few users that a byte counts them. In whole blocks; 0 with affinities.
    pub(super) cut: usize,
}

/// Lists one after the other, and the affinity of each entry where pairs have one.
#[derive(Clone, Debug)]
pub(super) struct Lists<T> {
    /// Where each list starts, and the end of the last.
    pub(super) offsets: Vec<u64>,
    pub(super) entries: Vec<T>,
    pub(super) affinities: Option<Vec<i64>>,
}

/// Histories by rank; codes are narrow where all fit, as they are most of what is read.
#[derive(Clone, Debug)]
pub(super) enum Histories {
    Narrow(Lists<u16>),
    Wide(Lists<u32>),
}

impl Ranked {
    /// Renumbers the pairs and sorts them both ways, on the rayon pool of the caller.
    ///
    /// Cost: O(n_pairs log(history) + n_items log n_items) time. Per pair 6 bytes remain (8 beyond
    /// 65,536 items), 22 (24) with affinities; per item 40 at most, per user 8. While it works, 8 per
    /// pair at most, and 16 with affinities and thread for the longest history.
    ///
    /// # Errors
    /// [`KernelError::SquaredAffinities`] if the squares of an item's affinities sum to 2⁶³ or more.
    /// Below that no pair product can overflow, by Cauchy–Schwarz.
    ///
    /// # Panics
    /// If the shapes disagree, or an item is not below `n_items`.
    pub fn new(interactions: &Interactions<'_>) -> Result<Self, KernelError> {
        interactions.check();
        let supports = sorting::supports(interactions);
        let squared = sorting::squared_norms(interactions)?;
        let squared = squared.as_ref().unwrap_or(&supports);
        let items = sorting::items_by(squared);
        let mut codes = vec![0; items.len()];
        (0..).zip(&items).for_each(|(code, item)| codes[item.index()] = code);
        let norms: Vec<f64> =
            items.iter().map(|item| (squared[item.index()] as f64).sqrt()).collect();
        let block_norms = norms.iter().step_by(BLOCK).copied().collect();
        let mut classes: Vec<(f64, u32)> = norms.iter().copied().zip(0..).collect();
        classes.dedup_by_key(|&mut (norm, _)| norm);
        classes.shrink_to_fit();
        let offsets = sorting::offsets(items.iter().map(|item| supports[item.index()]));
        let few = |item: &ItemIdx| supports[item.index()] <= u64::from(u8::MAX);
        let cut = if interactions.affinities.is_none() { items.partition_point(few) } else { 0 };
        let (users, histories) = if items.len() <= 1 << 16 {
            let histories = sorting::by_rank(interactions, &codes);
            (sorting::by_code(&histories, offsets), Histories::Narrow(histories))
        } else {
            let histories = sorting::by_rank(interactions, &codes);
            (sorting::by_code(&histories, offsets), Histories::Wide(histories))
        };
        let cut = cut / BLOCK * BLOCK;
        Ok(Self { items, codes, norms, block_norms, classes, users, histories, cut })
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.items.len()
    }

    /// Number of users who have the item.
    pub fn support(&self, item: ItemIdx) -> usize {
        self.users.range(self.codes[item.index()] as usize).len()
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        let histories = match &self.histories {
            Histories::Narrow(lists) => lists.heap_bytes(),
            Histories::Wide(lists) => lists.heap_bytes(),
        };
        4 * (self.items.capacity() + self.codes.capacity())
            + 8 * (self.norms.capacity() + self.block_norms.capacity())
            + 16 * self.classes.capacity()
            + self.users.heap_bytes()
            + histories
    }

    /// The norm of a code. Most blocks hold one norm alone, and those stay in the caches.
    #[inline(always)]
    pub(super) fn norm(&self, code: usize) -> f64 {
        let block = code / BLOCK;
        match self.block_norms.get(block + 1) {
            Some(&next) if next == self.block_norms[block] => next,
            _ => self.norms[code],
        }
    }

    /// Cells of whole blocks for all items.
    pub(super) fn n_cells(&self) -> usize {
        BLOCK * self.block_norms.len()
    }
}

impl<T> Lists<T> {
    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    #[inline(always)]
    pub(super) fn range(&self, list: usize) -> Range<usize> {
        self.offsets[list] as usize..self.offsets[list + 1] as usize
    }

    #[inline(always)]
    pub(super) fn of(&self, list: usize) -> &[T] {
        &self.entries[self.range(list)]
    }

    fn heap_bytes(&self) -> usize {
        8 * self.offsets.capacity()
            + size_of::<T>() * self.entries.capacity()
            + 8 * self.affinities.as_ref().map_or(0, Vec::capacity)
    }
}

/// A code as it is held in memory.
pub(super) trait Code: Copy + Default + Ord + Send + Sync {
    /// The code of a number that fits.
    fn new(code: u32) -> Self;

    /// The code as a position.
    fn index(self) -> usize;

    /// Cells of an accumulator: whole blocks for all items.
    fn n_cells(n_items: usize) -> usize;

    /// Adds one to the cell of each code. At most 255 times, then a cell may be full.
    fn count(cells: &mut [u8], codes: &[Self]);
}

impl Code for u16 {
    #[inline(always)]
    fn new(code: u32) -> Self {
        code as Self
    }

    #[inline(always)]
    fn index(self) -> usize {
        usize::from(self)
    }

    /// One for whatever a code may be, so that counting has nothing to check.
    fn n_cells(_: usize) -> usize {
        1 << 16
    }

    #[inline(always)]
    fn count(cells: &mut [u8], codes: &[Self]) {
        let cells: &mut [u8; 1 << 16] = cells.try_into().expect("a cell for every code");
        for code in codes {
            let cell = &mut cells[code.index()];
            *cell = cell.wrapping_add(1);
        }
    }
}

impl Code for u32 {
    #[inline(always)]
    fn new(code: u32) -> Self {
        code
    }

    #[inline(always)]
    fn index(self) -> usize {
        self as usize
    }

    fn n_cells(n_items: usize) -> usize {
        n_items.next_multiple_of(BLOCK)
    }

    #[inline(always)]
    fn count(cells: &mut [u8], codes: &[Self]) {
        for code in codes {
            let cell = &mut cells[code.index()];
            *cell = cell.wrapping_add(1);
        }
    }
}
