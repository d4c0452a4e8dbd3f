//! Sums per item over all users, added to from all threads.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

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
    /// Of one user.
    fn of(pair: PairSums) -> Self {
        let PairSums { events, weight, affinity, newer } = pair;
        Self { events, users: 1, weight, affinity, newer }
    }

    /// Adds one user.
    pub fn add(&mut self, pair: PairSums) {
        self.merge(&Self::of(pair));
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
    /// Held by the thread that brings its own sums.
    bringing: Mutex<()>,
}

const N_SUMS: usize = 5;

impl ItemTotals {
    /// All zero.
    pub fn new(n_items: usize) -> Self {
        let sums = (0..N_SUMS * n_items).map(|_| AtomicI64::new(0)).collect();
        let unset = [i64::MAX, i64::MIN];
        let times = (0..2 * n_items).map(|place| AtomicI64::new(unset[place % 2])).collect();
        Self { sums, times, heaviest: AtomicI64::new(0), bringing: Mutex::new(()) }
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.times.len() / 2
    }

    /// What one thread of `n_threads` adds through; all adders must be told of as many.
    pub fn adder(&self, n_threads: usize) -> Adder<'_> {
        Adder {
            totals: self,
            n_threads,
            cells: Vec::new(),
            counts: Vec::new(),
            same: None,
            n_counted: 0,
            heaviest: 0,
        }
    }

    fn add(&self, item: usize, sum: &ItemSum) {
        let values = [sum.events, sum.users, sum.weight, sum.affinity, sum.newer];
        for (sum, value) in self.sums[N_SUMS * item..][..N_SUMS].iter().zip(values) {
            sum.fetch_add(value, Relaxed);
        }
    }

    /// The same of a thread that holds `bringing`, where nobody adds otherwise: several times as fast.
    fn bring(&self, item: usize, sum: &ItemSum) {
        let values = [sum.events, sum.users, sum.weight, sum.affinity, sum.newer];
        for (sum, value) in self.sums[N_SUMS * item..][..N_SUMS].iter().zip(values) {
            sum.store(sum.load(Relaxed).wrapping_add(value), Relaxed);
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
pub struct Cell {
    sum: ItemSum,
    first_us: i64,
    last_us: i64,
    /// What events of the user at hand weigh.
    of_user: i64,
}

impl Cell {
    const UNSET: Self = Self {
        sum: ItemSum { events: 0, users: 0, weight: 0, affinity: 0, newer: 0 },
        first_us: i64::MAX,
        last_us: i64::MIN,
        of_user: 0,
    };

    /// Adds an event of the user at hand whose affinity is its weight, `newer` of it in the newer half of
    /// the window.
    #[inline(always)]
    pub fn add_event(&mut self, weight: i64, newer: i64, time_us: i64) {
        self.of_user = self.of_user.wrapping_add(weight);
        self.sum.events = self.sum.events.wrapping_add(1);
        self.sum.newer = self.sum.newer.wrapping_add(newer);
        self.add_times(time_us, time_us);
    }

    /// Adds the user at hand, who has such events; returns what they weigh.
    #[inline(always)]
    pub fn close_user(&mut self) -> i64 {
        let of_user = std::mem::take(&mut self.of_user);
        self.sum.users = self.sum.users.wrapping_add(1);
        self.sum.weight = self.sum.weight.wrapping_add(of_user);
        self.sum.affinity = self.sum.affinity.wrapping_add(of_user);
        of_user
    }

    #[inline(always)]
    fn add_times(&mut self, first_us: i64, last_us: i64) {
        self.first_us = self.first_us.min(first_us);
        self.last_us = self.last_us.max(last_us);
    }

    fn add(&mut self, pair: PairSums) {
        let ItemSum { events, users, weight, affinity, newer } = &mut self.sum;
        *events = events.wrapping_add(pair.events);
        *users = users.wrapping_add(1);
        *weight = weight.wrapping_add(pair.weight);
        *affinity = affinity.wrapping_add(pair.affinity);
        *newer = newer.wrapping_add(pair.newer);
    }
}

/// The same of events that differ in nothing but user and item, which are counted: the smaller, the more
/// of it is near.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Events of the user at hand.
    of_user: u32,
    events: u32,
    users: u32,
}

impl Count {
    /// Adds an event of the user at hand.
    #[inline(always)]
    pub fn add_event(&mut self) {
        self.of_user = self.of_user.wrapping_add(1);
    }

    /// Adds the user at hand, who has events of the item; returns how many.
    #[inline(always)]
    pub fn close_user(&mut self) -> u32 {
        let of_user = std::mem::take(&mut self.of_user);
        self.events = self.events.wrapping_add(of_user);
        self.users = self.users.wrapping_add(1);
        of_user
    }
}

/// What is the same of all events of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Same {
    /// What one weighs, which is its affinity.
    pub weight: i64,
    /// When it is.
    pub time_us: i64,
    /// Whether that is in the newer half of the window.
    pub is_newer: bool,
}

/// A cell for each item.
pub enum Cells<'a> {
    /// For events of any weight and time.
    Any(&'a mut [Cell]),
    /// For events that are all the same.
    Same(&'a mut [Count], Same),
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
const APART_BYTES_MAX: usize = 512 << 20;

/// At most so many bytes of sums do `n_threads` keep for themselves.
pub fn apart_bytes(n_items: usize, n_threads: usize) -> usize {
    all_apart_bytes::<Cell>(n_items, n_threads).min(APART_BYTES_MAX)
}

fn all_apart_bytes<T>(n_items: usize, n_threads: usize) -> usize {
    n_items.saturating_mul(n_threads).saturating_mul(size_of::<T>())
}

/// One thread's way to add to [`ItemTotals`], which have everything once it is dropped.
pub struct Adder<'a> {
    totals: &'a ItemTotals,
    n_threads: usize,
    /// Its sums; empty before the first.
    cells: Vec<Cell>,
    /// Those of events that are as `same` says; empty before the first.
    counts: Vec<Count>,
    /// Of the events of the shard at hand.
    same: Option<Same>,
    /// No count is above this.
    n_counted: u64,
    heaviest: i64,
}

impl Adder<'_> {
    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.totals.n_items()
    }

    /// Whether this thread may have sums of its own of type `T`.
    fn is_apart<T>(&self) -> bool {
        all_apart_bytes::<T>(self.n_items(), self.n_threads) <= APART_BYTES_MAX
    }

    /// Says of the events of a shard, of which there are `n_events`, what they are if all are the same.
    /// False, and no [`cells`](Self::cells), where these would be too large.
    pub fn begin(&mut self, n_events: usize, same: Option<Same>) -> bool {
        let is_apart = match same {
            Some(_) => self.is_apart::<Count>(),
            None => self.is_apart::<Cell>(),
        };
        if !is_apart {
            return false;
        }
        self.n_counted += n_events as u64;
        if self.same != same || self.n_counted > u32::MAX.into() {
            self.add_counts();
            self.n_counted = n_events as u64;
        }
        self.same = same;
        let n_items = self.n_items();
        if same.is_some() {
            self.counts.resize(n_items, Count::default());
        } else {
            self.cells.resize(n_items, Cell::UNSET);
        }
        true
    }

    /// Where events of the shard at hand are added that count as a whole. Their heaviest pair is to be
    /// [noted](Self::add_heaviest).
    #[inline]
    pub fn cells(&mut self) -> Cells<'_> {
        match self.same {
            Some(same) => Cells::Same(&mut self.counts, same),
            None => Cells::Any(&mut self.cells),
        }
    }

    /// Adds what one user did.
    ///
    /// All items of a user at once: the sums of most are not in the cache, and a short loop waits for
    /// many of them at a time.
    #[inline]
    pub fn add_user(&mut self, items: impl IntoIterator<Item = OfUser>) {
        if self.is_apart::<Cell>() {
            self.cells.resize(self.n_items(), Cell::UNSET);
        }
        for OfUser { item, first_us, last_us, sums } in items {
            let item = item as usize;
            let heaviest = sums.map_or(0, |sums| sums.weight.max(sums.affinity));
            self.heaviest = self.heaviest.max(heaviest);
            let Some(cell) = self.cells.get_mut(item) else {
                self.totals.add_times(item, first_us, last_us);
                sums.iter().for_each(|&sums| self.totals.add(item, &ItemSum::of(sums)));
                continue;
            };
            cell.add_times(first_us, last_us);
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

    /// Brings the counts to the totals.
    fn add_counts(&mut self) {
        let Some(Same { weight, time_us, is_newer }) = self.same else { return };
        // Without cells, others may be adding to common sums.
        let is_alone = self.is_apart::<Cell>();
        let _held = self.totals.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        for (item, count) in self.counts.iter_mut().enumerate().filter(|(_, count)| count.users > 0)
        {
            let Count { events, users, .. } = std::mem::take(count);
            let [events, users] = [events, users].map(i64::from);
            let weight = weight.wrapping_mul(events);
            let newer = if is_newer { weight } else { 0 };
            let sum = ItemSum { events, users, weight, affinity: weight, newer };
            match is_alone {
                true => self.totals.bring(item, &sum),
                false => self.totals.add(item, &sum),
            }
            self.totals.add_times(item, time_us, time_us);
        }
    }
}

impl Drop for Adder<'_> {
    fn drop(&mut self) {
        self.totals.heaviest.fetch_max(self.heaviest, Relaxed);
        self.add_counts();
        let _held = self.totals.bringing.lock().unwrap_or_else(PoisonError::into_inner);
        for (item, cell) in self.cells.iter().enumerate() {
            if cell.sum.users > 0 {
                self.totals.bring(item, &cell.sum);
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
