//! The best k of many scored items, without sorting them all.

use std::cmp::Ordering;

use crate::types::ItemIdx;

/// The order of every published list: higher score first, ties to the lower index.
///
/// Scores compare by `f32::total_cmp`, so the order is total and 0.0 comes before -0.0.
#[inline]
pub fn order(a: &(ItemIdx, f32), b: &(ItemIdx, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the best `k` candidates, best first, in the order of [`order`].
///
/// - Fewer than `k` candidates are all kept; `k` = 0 keeps none. Each item comes once.
/// - Scores are never NaN (checked in debug builds only).
/// - Cost: O(n + k log k) time, no allocation. Slow twin: `reference::select`.
pub fn select(candidates: &mut Vec<(ItemIdx, f32)>, k: usize) {
    cut(candidates, k);
    candidates.sort_unstable_by(order);
}

/// Keeps the best `k` candidates; the last of them is in the last place where any were dropped.
fn cut(candidates: &mut Vec<(ItemIdx, f32)>, k: usize) {
    debug_assert!(candidates.iter().all(|(_, score)| !score.is_nan()), "a score is never NaN");
    if k == 0 {
        candidates.clear();
    } else if candidates.len() > k {
        candidates.select_nth_unstable_by(k - 1, order);
        candidates.truncate(k);
    }
}

/// The best k of a stream of scored items, kept in a buffer of about 2k.
///
/// Whenever the buffer is full it is cut to the best k, and the score of the k-th becomes the floor
/// under which nothing can enter: amortized O(1) per item, mostly one comparison.
#[derive(Debug, Default)]
pub(crate) struct Shortlist {
    k: usize,
    /// What was pushed, by [`key`].
    kept: Vec<u64>,
    floor: Option<f32>,
    best: Vec<(ItemIdx, f32)>,
}

/// A number that is lower the earlier an item comes in [`order`].
#[inline]
fn key(item: ItemIdx, score: f32) -> u64 {
    let bits = score.to_bits();
    // As f32::total_cmp has it, the other way round.
    let descending = if bits >> 31 == 0 { !bits ^ (1 << 31) } else { bits };
    u64::from(descending) << 32 | u64::from(item.0)
}

#[inline]
fn of_key(key: u64) -> (ItemIdx, f32) {
    let descending = (key >> 32) as u32;
    let bits = if descending >> 31 == 0 { !descending ^ (1 << 31) } else { descending };
    (ItemIdx(key as u32), f32::from_bits(bits))
}

impl Shortlist {
    /// Empties the list and sets its length. The buffer stays.
    pub(crate) fn reset(&mut self, k: usize) {
        self.k = k;
        self.kept.clear();
        self.kept.reserve(self.full().min(1 << 10));
        self.floor = None;
    }

    /// A score below this one is not among the best k. `None` while too few items were pushed.
    #[inline]
    pub(crate) fn floor(&self) -> Option<f32> {
        self.floor
    }

    /// Adds an item, each at most once, unless it is below the floor.
    #[inline]
    pub(crate) fn push(&mut self, item: ItemIdx, score: f32) {
        debug_assert!(!score.is_nan(), "a score is never NaN");
        if self.floor.is_some_and(|floor| score < floor) {
            return;
        }
        self.kept.push(key(item, score));
        if self.kept.len() >= self.full() {
            self.cut();
            self.floor = self.kept.last().map(|&key| of_key(key).1);
        }
    }

    /// How many are kept before they are cut; the 16 spare a cut per item where k is tiny.
    #[inline]
    fn full(&self) -> usize {
        2 * self.k + 16
    }

    /// Keeps the best k, the last of them in the last place where any were dropped.
    fn cut(&mut self) {
        if self.kept.len() > self.k && self.k > 0 {
            self.kept.select_nth_unstable(self.k - 1);
        }
        self.kept.truncate(self.k);
    }

    /// The best k of what was pushed since the last reset, best first.
    pub(crate) fn best(&mut self) -> &[(ItemIdx, f32)] {
        self.cut();
        self.kept.sort_unstable();
        self.best.clear();
        self.best.extend(self.kept.iter().map(|&key| of_key(key)));
        &self.best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::reference;

    /// Items in shuffled order with few distinct scores, so that ties are common.
    fn candidates() -> impl Strategy<Value = Vec<(ItemIdx, f32)>> {
        let scores = prop::collection::vec(prop_oneof![-3i8..3, Just(0)], 0..200);
        scores.prop_flat_map(|scores| {
            let pairs: Vec<_> = (0..).map(ItemIdx).zip(scores).collect();
            Just(pairs.into_iter().map(|(item, score)| (item, f32::from(score) / 7.0)).collect())
                .prop_shuffle()
        })
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let mut list = vec![(ItemIdx(3), 1.0), (ItemIdx(1), 1.0), (ItemIdx(2), 2.0)];
        select(&mut list, 2);
        assert_eq!(list, [(ItemIdx(2), 2.0), (ItemIdx(1), 1.0)]);
        select(&mut list, 0);
        assert!(list.is_empty());
    }

    proptest! {
        #[test]
        fn select_equals_sort_then_truncate(list in candidates(), k in 0usize..60) {
            let mut selected = list.clone();
            select(&mut selected, k);
            prop_assert_eq!(selected, reference::select(list, k));
        }

        #[test]
        fn a_shortlist_equals_sort_then_truncate(list in candidates(), k in 0usize..60) {
            let mut shortlist = Shortlist::default();
            for _ in 0..2 {
                shortlist.reset(k);
                list.iter().for_each(|&(item, score)| shortlist.push(item, score));
                let expected = reference::select(list.clone(), k);
                prop_assert_eq!(shortlist.best(), &expected[..]);
            }
        }
    }
}
