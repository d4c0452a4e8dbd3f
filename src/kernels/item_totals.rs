//! Sums per item over all users, added to from all threads.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// What one user adds to one item.
#[derive(Clone, Copy, Debug)]
pub struct PairSums {
    /// Events that count.
    pub events: i64,
    /// Undecayed weight in units of 2⁻¹⁶.
    pub weight: i64,
    /// Affinity in units of 2⁻¹⁶ at the reference time.
    pub affinity: i64,
    /// The part of `weight` from the newer half of the window.
    pub newer: i64,
}

/// Sums of one item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemSum {
    /// Events that count.
    pub events: i64,
    /// Distinct users.
    pub users: i64,
    /// Undecayed weight in units of 2⁻¹⁶.
    pub weight: i64,
    /// Affinity in units of 2⁻¹⁶ at the reference time.
    pub affinity: i64,
    /// The part of `weight` from the newer half of the window.
    pub newer: i64,
}

impl ItemSum {
    /// Adds one user.
    pub fn add(&mut self, pair: PairSums) {
        self.users += 1;
        self.events += pair.events;
        self.weight += pair.weight;
        self.affinity += pair.affinity;
        self.newer += pair.newer;
    }

    /// Adds the sums over other users.
    pub fn merge(&mut self, other: &Self) {
        self.users += other.users;
        self.events += other.events;
        self.weight += other.weight;
        self.affinity += other.affinity;
        self.newer += other.newer;
    }
}

/// Sums of every item of the dictionary over the users of this process.
///
/// Everything is an integer, so relaxed atomic additions in any order give the same sums. They wrap
/// silently: [`fits`] tells afterwards, from the heaviest pair, whether any can have. Each thread adds
/// through an [`Adder`] of its own.
pub struct ItemTotals {
    /// Events, users, weight, affinity, newer weight of each item, next to each other.
    sums: Vec<AtomicI64>,
    /// First and last event of each item.
    times: Vec<AtomicI64>,
    /// Largest weight or affinity of any pair.
    heaviest: AtomicI64,
}

const N_SUMS: usize = 5;

impl ItemTotals {
    /// All zero.
    pub fn new(n_items: usize) -> Self {
        let sums = (0..N_SUMS * n_items).map(|_| AtomicI64::new(0)).collect();
        let unset = [i64::MAX, i64::MIN];
        let times = (0..2 * n_items).map(|place| AtomicI64::new(unset[place % 2])).collect();
        Self { sums, times, heaviest: AtomicI64::new(0) }
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.times.len() / 2
    }

    /// What one thread of `n_threads` adds through.
    pub fn adder(&self, n_threads: usize) -> Adder<'_> {
        let is_apart = all_apart_bytes(self.n_items(), n_threads) <= APART_BYTES_MAX;
        let own = if is_apart { vec![Cell::UNSET; self.n_items()] } else { Vec::new() };
        Adder { totals: self, own, heaviest: 0 }
    }

    fn add(&self, item: usize, cell: &Cell) {
        let values = [cell.events, cell.users, cell.weight, cell.affinity, cell.newer];
        for (sum, value) in self.sums[N_SUMS * item..][..N_SUMS].iter().zip(values) {
            sum.fetch_add(value, Relaxed);
        }
    }

    fn add_times(&self, item: usize, first_us: i64, last_us: i64) {
        let times = &self.times[2 * item..][..2];
        if first_us < times[0].load(Relaxed) {
            times[0].fetch_min(first_us, Relaxed);
        }
        if last_us > times[1].load(Relaxed) {
            times[1].fetch_max(last_us, Relaxed);
        }
    }

    /// The largest weight or affinity of any pair, in units of 2⁻¹⁶.
    pub fn heaviest(&self) -> i64 {
        self.heaviest.load(Relaxed)
    }

    /// The sums as numbers to add up over processes: five per item.
    pub fn sums(&self) -> Vec<i64> {
        self.sums.iter().map(|sum| sum.load(Relaxed)).collect()
    }

    /// First and last event as numbers to bring together by minimum and maximum: two per item,
    /// `i64::MAX` and `i64::MIN` where there is no event.
    pub fn times(&self) -> Vec<i64> {
        self.times.iter().map(|time| time.load(Relaxed)).collect()
    }
}

/// Sums of one item that one thread keeps for itself: a cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Cell {
    events: i64,
    users: i64,
    weight: i64,
    affinity: i64,
    newer: i64,
    first_us: i64,
    last_us: i64,
}

impl Cell {
    const UNSET: Self = Self {
        events: 0,
        users: 0,
        weight: 0,
        affinity: 0,
        newer: 0,
        first_us: i64::MAX,
        last_us: i64::MIN,
    };

    fn of(pair: PairSums) -> Self {
        let mut cell = Self::UNSET;
        cell.add(pair);
        cell
    }

    fn add(&mut self, pair: PairSums) {
        self.events = self.events.wrapping_add(pair.events);
        self.users = self.users.wrapping_add(1);
        self.weight = self.weight.wrapping_add(pair.weight);
        self.affinity = self.affinity.wrapping_add(pair.affinity);
        self.newer = self.newer.wrapping_add(pair.newer);
    }
}

/// What one user did with one item.
#[derive(Clone, Copy, Debug)]
pub struct OfUser {
    /// The item.
    pub item: u32,
    /// Time of the first event.
    pub first_us: i64,
    /// Time of the last event.
    pub last_us: i64,
    /// What the events that count add; absent where none does.
    pub sums: Option<PairSums>,
}

/// Most bytes of the sums that all threads of a process keep for themselves. With more, they add to
/// common ones, which takes several times as long.
const APART_BYTES_MAX: usize = 128 << 20;

/// At most so many bytes of sums do `n_threads` keep for themselves.
pub fn apart_bytes(n_items: usize, n_threads: usize) -> usize {
    all_apart_bytes(n_items, n_threads).min(APART_BYTES_MAX)
}

fn all_apart_bytes(n_items: usize, n_threads: usize) -> usize {
    n_items.saturating_mul(n_threads).saturating_mul(size_of::<Cell>())
}

/// One thread's way to add to [`ItemTotals`], which have everything once it is dropped.
pub struct Adder<'a> {
    totals: &'a ItemTotals,
    /// Sums of this thread; empty where it adds to the common ones.
    own: Vec<Cell>,
    heaviest: i64,
}

impl Adder<'_> {
    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.totals.n_items()
    }

    /// Adds what one user did.
    ///
    /// All items of a user at once: the sums of most are not in the cache, and a short loop waits for
    /// many of them at a time.
    #[inline]
    pub fn add_user(&mut self, items: impl IntoIterator<Item = OfUser>) {
        for OfUser { item, first_us, last_us, sums } in items {
            let item = item as usize;
            let heaviest = sums.map_or(0, |sums| sums.weight.max(sums.affinity));
            self.heaviest = self.heaviest.max(heaviest);
            let Some(cell) = self.own.get_mut(item) else {
                self.totals.add_times(item, first_us, last_us);
                sums.iter().for_each(|&sums| self.totals.add(item, &Cell::of(sums)));
                continue;
            };
            cell.first_us = cell.first_us.min(first_us);
            cell.last_us = cell.last_us.max(last_us);
            if let Some(sums) = sums {
                cell.add(sums);
            }
        }
    }

    /// Notes a weight or affinity that no sum holds.
    #[inline]
    pub fn add_heaviest(&mut self, heaviest: i64) {
        self.heaviest = self.heaviest.max(heaviest);
    }
}

impl Drop for Adder<'_> {
    fn drop(&mut self) {
        self.totals.heaviest.fetch_max(self.heaviest, Relaxed);
        for (item, cell) in self.own.iter().enumerate() {
            if cell.users > 0 {
                self.totals.add(item, cell);
            }
            self.totals.add_times(item, cell.first_us, cell.last_us);
        }
    }
}

/// The sums of `item` in what [`ItemTotals::sums`] gave, added up over processes.
pub fn sum_of(sums: &[i64], item: usize) -> ItemSum {
    let of_item = &sums[N_SUMS * item..][..N_SUMS];
    ItemSum {
        events: of_item[0],
        users: of_item[1],
        weight: of_item[2],
        affinity: of_item[3],
        newer: of_item[4],
    }
}

/// Whether no sum can have wrapped: the heaviest pair of all processes times the largest number of
/// users of an item, which is too small to wrap itself, stays below 2⁶³.
pub fn fits(sums: &[i64], heaviest: i64) -> bool {
    let users_max = sums.chunks_exact(N_SUMS).map(|of_item| of_item[1]).max().unwrap_or(0);
    i128::from(users_max) * i128::from(heaviest) < 1 << 63
}
