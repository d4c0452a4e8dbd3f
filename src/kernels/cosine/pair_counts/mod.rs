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
mod tile;

use std::sync::Mutex;

use self::differences::Visits;
pub use self::differences::{Comparison, Differences};
pub use self::group::StoredGroup;
use self::group::{Counter, Group};
pub use self::ranking::{Numbers, merged};
pub use self::tile::Word;
use super::ranked::BLOCK;

/// Codes that there may be: they are held in two bytes.
pub const CODES_MAX: usize = 1 << 16;

/// Numbers of users of pairs of codes, by groups of 64 rows: all of them, or those that a process owns.
///
/// A block of 64 counts takes as many words of 64 bits as its largest count has digits. So memory is
/// `n_codes² / 128` times the mean of these digits in words, and a word or so for each digit of a tile of 64
/// blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairCounts {
    n_codes: usize,
    groups: Vec<Group>,
}

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
/// concave. A tile of 64 blocks has 32 words and the place of its end beside that.
pub fn bytes_max(n_codes: usize, n_counted: u64) -> u64 {
    let n_groups = n_groups(n_codes) as u64;
    let n_blocks = n_groups * (n_groups + 1) / 2 * BLOCK as u64;
    let digits = (n_counted as f64 / n_blocks.max(1) as f64 + 1.0).log2().ceil() as u64;
    n_blocks * (5 + 8 * digits.min(32))
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
    /// went, the whole history; and a look at every tile.
    ///
    /// # Panics
    /// If a code is beyond the room that was made, or a count falls below 0.
    pub fn add(&mut self, differences: &Differences) {
        let visits = visits(differences, self.n_codes);
        update(&mut self.groups, self.n_codes, &visits, differences);
    }

    /// Counts of `before` codes in files, made those of more by [`PairCounts::grow`], with what the
    /// differences say, as [`PairCounts::add`] adds it; `None` where these are no such counts. `read` gives
    /// the groups of a file.
    ///
    /// A file is read by the thread that adds to it, so that it is near, and gone before the next.
    ///
    /// # Errors
    /// What `read` says.
    ///
    /// # Panics
    /// As those do.
    pub fn read<F: Sync, E: Send>(
        files: &[F],
        read: impl Fn(&F, &mut dyn FnMut(StoredGroup<'_>)) -> Result<(), E> + Sync,
        [before, n_codes]: [usize; 2],
        is_owned: impl Fn(usize) -> bool,
        differences: &Differences,
    ) -> Result<Option<Self>, E> {
        let visits = visits(differences, n_codes);
        let n_before = n_groups(before);
        let next = Mutex::new(files.iter());
        let next = || next.lock().expect("no thread panicked").next();
        let of_threads = rayon::broadcast(|_| {
            let (mut counter, mut groups) = (Counter::new(n_codes), Some(Vec::new()));
            while let Some(file) = next() {
                read(file, &mut |stored| match &mut groups {
                    Some(groups) if stored.is_of(n_before) => {
                        let mut group = Group::new(stored.first, n_groups(n_codes));
                        counter.update(&mut group, Some(stored), &visits, differences.codes());
                        groups.push(group);
                    }
                    _ => groups = None,
                })?;
            }
            Ok(groups)
        });
        let mut groups = Vec::new();
        for of_thread in of_threads {
            let Some(of_thread) = of_thread? else { return Ok(None) };
            groups.extend(of_thread);
        }
        groups.sort_unstable_by_key(|group| group.first);
        if !groups.is_sorted_by(|a, b| a.first < b.first) {
            return Ok(None);
        }
        let n_read = groups.len();
        let mut counts = Self { n_codes: before, groups };
        counts.grow(n_codes, is_owned);
        update(&mut counts.groups[n_read..], n_codes, &visits, differences);
        Ok(Some(counts))
    }

    /// The groups that are here.
    pub fn groups(&self) -> impl Iterator<Item = StoredGroup<'_>> {
        self.groups.iter().map(Group::stored)
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

/// What is to be added, and what is to be taken.
fn visits(differences: &Differences, n_codes: usize) -> [Visits; 2] {
    [false, true].map(|minus| Visits::new(differences, minus, n_codes))
}

/// Adds to some groups, and takes from them.
fn update(groups: &mut [Group], n_codes: usize, visits: &[Visits; 2], differences: &Differences) {
    let next = Mutex::new(groups.iter_mut());
    let next = || next.lock().expect("no thread panicked").next();
    rayon::broadcast(|_| {
        let mut counter = Counter::new(n_codes);
        while let Some(group) = next() {
            counter.update(group, None, visits, differences.codes());
        }
    });
}
