//! The best of one row, mostly without a look at scores.

use super::Input;
use super::ranked::{BLOCK, Ranked};
use crate::kernels::simd::{Kernel, Simd};
use crate::types::ItemIdx;

/// The neighbors kept of one row, in a buffer of about twice the length of the list.
///
/// Whenever the buffer is full it is cut to the best, and the last of them becomes the floor.
#[derive(Default)]
pub(super) struct Best {
    n_neighbors: usize,
    /// Key and support.
    kept: Vec<(u64, u32)>,
    /// Only larger keys can enter; 0 while too few were offered.
    floor: u64,
}

/// Score and item in one number: larger is better, ties to the lower index. Scores are above 0, so
/// their bits have their order.
#[inline]
fn key(item: ItemIdx, score: f32) -> u64 {
    u64::from(score.to_bits()) << 32 | u64::from(!item.0)
}

fn score_of(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}

fn item_of(key: u64) -> ItemIdx {
    ItemIdx(!(key as u32))
}

impl Best {
    /// Empties the list and sets its length. The buffer stays.
    pub(super) fn reset(&mut self, n_neighbors: usize) {
        self.n_neighbors = n_neighbors;
        self.kept.clear();
        self.floor = if n_neighbors == 0 { u64::MAX } else { 0 };
    }

    /// The last neighbor, if it can only be replaced by a better one.
    pub(super) fn floor(&self) -> Option<(ItemIdx, f32)> {
        (self.floor != 0).then(|| (item_of(self.floor), score_of(self.floor)))
    }

    /// Adds an item, each at most once, unless enough others are better. Whether the floor rose.
    #[inline]
    pub(super) fn offer(&mut self, item: ItemIdx, score: f32, support: u32) -> bool {
        let key = key(item, score);
        if key <= self.floor {
            return false;
        }
        self.kept.push((key, support));
        // The 16 spare a cut per item where lists are tiny.
        if self.kept.len() < 2 * self.n_neighbors + 16 {
            return false;
        }
        let last = self.n_neighbors - 1;
        self.kept.select_nth_unstable_by_key(last, |&(key, _)| !key);
        self.kept.truncate(self.n_neighbors);
        self.floor = self.kept[last].0;
        true
    }

    /// The neighbors, best first.
    pub(super) fn list(&mut self) -> impl Iterator<Item = (ItemIdx, f32, u32)> {
        self.kept.sort_unstable_by_key(|&(key, _)| !key);
        self.kept.truncate(self.n_neighbors);
        self.kept.iter().map(|&(key, support)| (item_of(key), score_of(key), support))
    }
}

/// Scores of one row, and what a dot product must reach to enter its list.
pub(super) struct Row<'a> {
    pub(super) input: &'a Input<'a>,
    norm: f64,
    /// A score below it cannot enter.
    floor: f64,
}

/// Counts with a limit of their own, from 1: most counts of a row with few users.
pub(super) const LIMITED: usize = 2;

/// The first code that cannot enter with a count of 0, of 1, and so on; the last is of all larger counts,
/// with which any code may.
pub(super) type Limits = [u32; LIMITED + 2];

impl<'a> Row<'a> {
    pub(super) fn new(input: &'a Input<'a>, code: usize) -> Self {
        Self { input, norm: input.ranked.norm(code), floor: 0.0 }
    }

    #[inline(always)]
    fn scale(&self, norm: f64) -> f64 {
        self.norm * norm + self.input.shrinkage
    }

    /// No dot product below this one enters in a block of codes.
    #[inline(always)]
    pub(super) fn least_dot(&self, block: usize) -> f64 {
        self.floor * self.scale(self.input.ranked.block_norms[block])
    }

    /// Offers a pair with enough support. Whether the floor rose.
    #[inline]
    pub(super) fn offer(&mut self, code: usize, dot: f64, support: u32, best: &mut Best) -> bool {
        let scale = self.scale(self.input.ranked.norm(code));
        // Most candidates end here, and a product is far cheaper than a quotient.
        if dot < self.floor * scale {
            return false;
        }
        let score = (dot / scale) as f32;
        let rose = score > 0.0 && best.offer(self.input.ranked.items[code], score, support);
        if rose {
            self.floor = best.floor().map_or(0.0, |(_, score)| safely_below(score));
        }
        rose
    }

    /// The limits that follow from the floor, where a dot product is a count.
    pub(super) fn limits(&self, best: &Best) -> Limits {
        let mut limits = [u32::MAX; LIMITED + 2];
        limits[0] = 0;
        if let Some(floor) = best.floor() {
            for (count, limit) in limits.iter_mut().enumerate().skip(1).take(LIMITED) {
                *limit = self.limit(count as f64, floor);
            }
        }
        limits
    }

    /// The first code that cannot enter with this count: scores never rise with the code, and where
    /// norms are equal a lower code is a lower index.
    fn limit(&self, count: f64, (last, floor): (ItemIdx, f32)) -> u32 {
        let Ranked { classes, items, .. } = self.input.ranked;
        let reaches = |&(norm, _): &(f64, u32)| count >= self.floor * self.scale(norm);
        let n_classes = classes.partition_point(reaches);
        let end = classes.get(n_classes).map_or(items.len(), |&(_, start)| start as usize);
        let Some(&(norm, start)) = classes[..n_classes].last() else { return 0 };
        if (count / self.scale(norm)) as f32 > floor {
            return end as u32;
        }
        let class = &items[start as usize..end];
        start + class.partition_point(|&item| item < last) as u32
    }
}

/// A bound so far below `floor` that a quotient under it stays under `floor` when rounded to f32.
pub(super) fn safely_below(floor: f32) -> f64 {
    if floor.is_normal() { f64::from(floor) * (1.0 - 1e-6) } else { 0.0 }
}

/// What is summed for one pair of items.
pub(super) trait Cell: Copy {
    /// What its score rises with.
    type Dot: Copy + PartialOrd;

    fn dot(self) -> Self::Dot;
}

/// The cells of a block that hold at least so much, as bits.
pub(super) struct Passing<'a, C: Cell> {
    pub(super) cells: &'a [C; BLOCK],
    pub(super) least: C::Dot,
}

impl<C: Cell> Kernel for Passing<'_, C> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> u64 {
        let mut flags = [0u8; BLOCK];
        for (flag, cell) in flags.iter_mut().zip(self.cells) {
            *flag = u8::from(cell.dot() >= self.least);
        }
        bits(&flags)
    }
}

/// Which flags are set, as bits.
#[inline(always)]
fn bits(flags: &[u8; BLOCK]) -> u64 {
    let mut bits = 0;
    for (at, bytes) in flags.as_chunks::<8>().0.iter().enumerate() {
        // Gathers the lowest bit of each byte in the highest byte.
        let gathered = u64::from_le_bytes(*bytes).wrapping_mul(0x0102_0408_1020_4080);
        bits |= gathered >> 56 << (8 * at);
    }
    bits
}
