//! Sums per item over all users, added to from all threads at once.

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
/// silently: [`fits`] tells afterwards, from the heaviest pair, whether any can have.
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

    /// Adds what one user did with `item`.
    #[inline]
    pub fn add_pair(&self, item: u32, pair: PairSums) {
        let sums = &self.sums[N_SUMS * item as usize..][..N_SUMS];
        sums[0].fetch_add(pair.events, Relaxed);
        sums[1].fetch_add(1, Relaxed);
        sums[2].fetch_add(pair.weight, Relaxed);
        sums[3].fetch_add(pair.affinity, Relaxed);
        sums[4].fetch_add(pair.newer, Relaxed);
        self.add_heaviest(pair.weight.max(pair.affinity));
    }

    /// Notes a weight or affinity that no sum holds.
    #[inline]
    pub fn add_heaviest(&self, heaviest: i64) {
        if heaviest > self.heaviest.load(Relaxed) {
            self.heaviest.fetch_max(heaviest, Relaxed);
        }
    }

    /// The largest weight or affinity of any pair, in units of 2⁻¹⁶.
    pub fn heaviest(&self) -> i64 {
        self.heaviest.load(Relaxed)
    }

    /// Notes the first and the last event of one user with `item`.
    #[inline]
    pub fn add_times(&self, item: u32, first_us: i64, last_us: i64) {
        let times = &self.times[2 * item as usize..][..2];
        if first_us < times[0].load(Relaxed) {
            times[0].fetch_min(first_us, Relaxed);
        }
        if last_us > times[1].load(Relaxed) {
            times[1].fetch_max(last_us, Relaxed);
        }
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
