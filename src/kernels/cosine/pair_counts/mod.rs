//! Users of every pair of items, kept from run to run: what changes is counted, not what there is.
//!
//! | part | what it does |
//! |---|---|
//! | `differences` | what histories that changed add to which rows |
//! | `group` | counts of 64 rows in bit planes, and how they are added to |
//! | `ranking` | the best neighbors of all items from the counts |
//!
//! An item's **code** is given once and stays, whatever other items come and go. Counts fill one
//! triangle: the row of a code holds the pairs with itself, which are its users, and with higher codes.

mod differences;
mod group;
mod ranking;
#[cfg(test)]
mod tests;

use std::sync::Mutex;

use self::differences::Visits;
pub use self::differences::{Comparison, Differences};
use self::group::{Counter, Group};
pub use self::ranking::{Numbers, merged};
use super::ranked::BLOCK;

/// Codes that there may be: they are held in two bytes.
pub const CODES_MAX: usize = 1 << 16;

/// Numbers of users of pairs of codes, by groups of 64 rows: all of them, or those that a process owns.
///
/// A block of 64 counts takes as many words of 64 bits as its largest count has digits. So memory is
/// `n_codes² / 128` times the mean of these digits in words, and a byte for each block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairCounts {
    n_codes: usize,
    groups: Vec<Group>,
}

/// A group's number, the digits of its blocks, and their bit planes.
pub type GroupParts = (usize, Vec<u8>, Vec<u64>);

/// Groups of so many codes.
pub fn n_groups(n_codes: usize) -> usize {
    n_codes.div_ceil(BLOCK)
}

/// Whether so many pairs are as many as there are blocks of counts of so many codes: if they are fewer, to
/// count them takes less than to look at these.
pub fn are_dense(n_codes: usize, n_counted: u64) -> bool {
    n_counted >= n_codes as u64 * n_groups(n_codes) as u64 / 2
}

/// The most bytes that counts of all groups can take, of so many codes whose pairs were counted so
/// often: a block that was added to n times needs log2(n + 1) digits at most, and the logarithm is
/// concave.
pub fn bytes_max(n_codes: usize, n_counted: u64) -> u64 {
    let n_groups = n_groups(n_codes) as u64;
    let n_blocks = n_groups * (n_groups + 1) / 2 * BLOCK as u64;
    let digits = (n_counted as f64 / n_blocks.max(1) as f64 + 1.0).log2().ceil() as u64;
    n_blocks * (1 + 8 * digits.min(32))
}

impl PairCounts {
    /// No counts, of no code.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of codes.
    pub fn n_codes(&self) -> usize {
        self.n_codes
    }

    /// Makes room for codes below `n_codes`, in groups that `is_owned`.
    ///
    /// # Panics
    /// If there would be more than [`CODES_MAX`].
    pub fn grow(&mut self, n_codes: usize, is_owned: impl Fn(usize) -> bool) {
        assert!(n_codes <= CODES_MAX, "codes are held in two bytes");
        let (before, after) = (n_groups(self.n_codes), n_groups(n_codes.max(self.n_codes)));
        self.n_codes = self.n_codes.max(n_codes);
        self.groups.iter_mut().for_each(|group| group.grow(after));
        let new = (before..after).filter(|&first| is_owned(first));
        self.groups.extend(new.map(|first| Group::new(first, after)));
    }

    /// Adds what the differences say, on the rayon pool of the caller.
    ///
    /// Cost: for each item that a history has or had, the items that came or went; for each that came or
    /// went, the whole history; and a look at every block.
    ///
    /// # Panics
    /// If a code is beyond the room that was made, or a count falls below 0.
    pub fn add(&mut self, differences: &Differences) {
        let n_codes = self.n_codes;
        let visits = [false, true].map(|minus| Visits::new(differences, minus, n_codes));
        let next = Mutex::new(self.groups.iter_mut());
        let next = || next.lock().expect("no thread panicked").next();
        rayon::broadcast(|_| {
            let mut counter = Counter::new(n_codes);
            while let Some(group) = next() {
                for (visits, minus) in visits.iter().zip([false, true]) {
                    if visits.any(group.codes()) {
                        counter.add(group, visits, differences.codes(), minus);
                    }
                }
            }
        });
    }

    /// The groups that are here: number, digits by block and bit planes.
    pub fn groups(&self) -> impl Iterator<Item = (usize, &[u8], &[u64])> {
        self.groups.iter().map(Group::parts)
    }

    /// Counts of so many codes from groups as [`PairCounts::groups`] gave them; `None` if they are not.
    pub fn from_groups(n_codes: usize, mut groups: Vec<GroupParts>) -> Option<Self> {
        groups.sort_unstable_by_key(|&(first, ..)| first);
        let is_ascending = groups.is_sorted_by(|a, b| a.0 < b.0);
        let n_groups = n_groups(n_codes);
        let groups = groups.into_iter().map(|(first, digits, planes)| {
            (first < n_groups).then(|| Group::from_parts(first, n_groups, digits, planes))?
        });
        let groups = groups.collect::<Option<Vec<Group>>>()?;
        (is_ascending && n_codes <= CODES_MAX).then_some(Self { n_codes, groups })
    }

    /// Number of users by code; 0 for codes of groups that are not owned.
    pub fn supports(&self) -> Vec<u32> {
        let mut supports = vec![0; self.n_codes];
        for group in &self.groups {
            let codes = group.codes().start..group.codes().end.min(self.n_codes);
            codes.for_each(|code| supports[code] = group.support(code));
        }
        supports
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.groups.iter().map(Group::heap_bytes).sum()
    }
}
