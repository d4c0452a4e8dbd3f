//! Integer sums per item, and what is read off them: order, ranks, shares, trend.

use crate::kernels::KernelError;
use crate::types::{AFFINITY_ONE, ItemIdx};

/// The sums of one item, or what one event or one shard adds to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemSum {
    /// Number of events.
    pub events: i64,
    /// Number of distinct users.
    pub users: i64,
    /// Sum of event weights, in units of 2⁻¹⁶.
    pub weight: i64,
    /// Sum of affinities: decayed weights, in units of 2⁻¹⁶ at the reference time.
    pub affinity: i64,
    /// The part of `weight` in the newer half of the window.
    pub newer_weight: i64,
    /// The part of `weight` in the older half of the window.
    pub older_weight: i64,
}

/// One [`ItemSum`] per item, in columns: integers, so that any order of adding gives the same sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemSums {
    /// Number of events.
    pub events: Vec<i64>,
    /// Number of distinct users.
    pub users: Vec<i64>,
    /// Sum of event weights, in units of 2⁻¹⁶.
    pub weight: Vec<i64>,
    /// Sum of affinities: decayed weights, in units of 2⁻¹⁶ at the reference time.
    pub affinity: Vec<i64>,
    /// The part of `weight` in the newer half of the window.
    pub newer_weight: Vec<i64>,
    /// The part of `weight` in the older half of the window.
    pub older_weight: Vec<i64>,
}

impl ItemSums {
    /// Sums of zero for `n_items` items.
    pub fn zeros(n_items: usize) -> Self {
        let zeros = || vec![0; n_items];
        Self {
            events: zeros(),
            users: zeros(),
            weight: zeros(),
            affinity: zeros(),
            newer_weight: zeros(),
            older_weight: zeros(),
        }
    }

    /// Number of items.
    pub fn n_items(&self) -> usize {
        self.events.len()
    }

    /// The sums of one item.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn get(&self, item: ItemIdx) -> ItemSum {
        let row = item.index();
        ItemSum {
            events: self.events[row],
            users: self.users[row],
            weight: self.weight[row],
            affinity: self.affinity[row],
            newer_weight: self.newer_weight[row],
            older_weight: self.older_weight[row],
        }
    }

    /// Adds to the sums of one item.
    ///
    /// # Errors
    /// [`KernelError::ItemSum`] when a column overflows; the sums are then of no use.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn add(&mut self, item: ItemIdx, more: &ItemSum) -> Result<(), KernelError> {
        add_to(&mut self.events, item, more.events, "events")?;
        add_to(&mut self.users, item, more.users, "users")?;
        add_to(&mut self.weight, item, more.weight, "weight")?;
        add_to(&mut self.affinity, item, more.affinity, "affinity")?;
        add_to(&mut self.newer_weight, item, more.newer_weight, "newer_weight")?;
        add_to(&mut self.older_weight, item, more.older_weight, "older_weight")
    }

    /// Adds the sums of other users to these: `users` must count disjoint sets.
    ///
    /// # Errors
    /// [`KernelError::ItemSum`] when a column overflows; the sums are then of no use.
    ///
    /// # Panics
    /// If the two differ in their number of items.
    pub fn merge(&mut self, other: &Self) -> Result<(), KernelError> {
        assert_eq!(self.n_items(), other.n_items(), "sums of the same items");
        (0..other.n_items() as u32)
            .map(ItemIdx)
            .try_for_each(|item| self.add(item, &other.get(item)))
    }
}

/// Adds to one place of a column, checked.
fn add_to(
    column: &mut [i64],
    item: ItemIdx,
    more: i64,
    name: &'static str,
) -> Result<(), KernelError> {
    let sum = &mut column[item.index()];
    *sum = sum.checked_add(more).ok_or(KernelError::ItemSum { column: name, item })?;
    Ok(())
}

/// How much an item gains: `(newer + prior) / (older + prior)`, in units of weight.
///
/// - `newer_weight` and `older_weight` are the halves of the window in units of 2⁻¹⁶, at least 0. A
///   half without events is 0, so a brand-new item has a trend above 1 instead of none.
/// - `prior` is a weight above 0: the larger, the closer the trend of a rare item is to 1.
/// - Computed in f64. The result is above 0 and finite.
///
/// # Panics
/// If `prior` is not above 0.
pub fn trend(newer_weight: i64, older_weight: i64, prior: f64) -> f64 {
    assert!(prior > 0.0, "the prior of a trend is above 0");
    let weight = |units: i64| units as f64 / AFFINITY_ONE as f64;
    (weight(newer_weight) + prior) / (weight(older_weight) + prior)
}

/// All items, the most popular first: by decayed weight, ties to the lower index.
///
/// `affinity` is the column of that name, of all users or of one segment.
pub fn order(affinity: &[i64]) -> Vec<ItemIdx> {
    let mut items: Vec<ItemIdx> = (0..affinity.len() as u32).map(ItemIdx).collect();
    items.sort_unstable_by_key(|&item| (std::cmp::Reverse(affinity[item.index()]), item));
    items
}

/// The place of each item in an [`order`], counted from 1.
pub fn ranks(order: &[ItemIdx]) -> Vec<u32> {
    let mut ranks = vec![0; order.len()];
    for (rank, item) in (1..).zip(order) {
        ranks[item.index()] = rank;
    }
    ranks
}

/// The fallback list: items with a positive affinity in popularity [`order`], each with its affinity
/// as a share of the largest, in (0, 1] and never increasing. Divided in f64, rounded once to f32.
pub fn shares(affinity: &[i64]) -> Vec<(ItemIdx, f32)> {
    let mut items = order(affinity);
    items.retain(|item| affinity[item.index()] > 0);
    let max = items.first().map_or(1, |item| affinity[item.index()]) as f64;
    items.into_iter().map(|item| (item, (affinity[item.index()] as f64 / max) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_missing_half_counts_as_zero() {
        assert_eq!(trend(0, 0, 5.0), 1.0);
        assert_eq!(trend(3 * AFFINITY_ONE, 0, 1.0), 4.0);
        assert_eq!(trend(0, 3 * AFFINITY_ONE, 1.0), 0.25);
    }

    #[test]
    fn popularity_is_decayed_weight_then_the_lower_index() {
        let affinity = [5, 9, 0, 9];
        let order = order(&affinity);
        assert_eq!(order, [1, 3, 0, 2].map(ItemIdx));
        assert_eq!(ranks(&order), [3, 1, 4, 2]);
        let expected = [(ItemIdx(1), 1.0), (ItemIdx(3), 1.0), (ItemIdx(0), 5.0 / 9.0)];
        assert_eq!(shares(&affinity), expected);
        assert!(shares(&[0, 0]).is_empty() && shares(&[]).is_empty());
    }

    #[test]
    fn overflow_names_the_column_and_the_item() {
        let mut sums = ItemSums::zeros(2);
        let more = ItemSum { weight: i64::MAX, ..ItemSum::default() };
        sums.add(ItemIdx(1), &more).unwrap();
        let error = sums.clone().merge(&sums).unwrap_err();
        assert_eq!(error, KernelError::ItemSum { column: "weight", item: ItemIdx(1) });
    }

    proptest! {
        #[test]
        fn sums_do_not_depend_on_how_events_are_split(
            events in prop::collection::vec((0u32..5, -9i64..99, any::<bool>()), 0..60),
        ) {
            let (mut all, mut parts) =
                (ItemSums::zeros(5), [ItemSums::zeros(5), ItemSums::zeros(5)]);
            for &(item, weight, first) in &events {
                let newer_weight = if first { weight } else { 0 };
                let more = ItemSum {
                    events: 1,
                    users: i64::from(first),
                    weight,
                    affinity: weight / 2,
                    newer_weight,
                    older_weight: weight - newer_weight,
                };
                all.add(ItemIdx(item), &more).unwrap();
                parts[usize::from(first)].add(ItemIdx(item), &more).unwrap();
            }
            let [mut left, right] = parts;
            left.merge(&right).unwrap();
            prop_assert_eq!(&left, &all);
            let total: i64 = events.iter().map(|event| event.1).sum();
            prop_assert_eq!(all.weight.iter().sum::<i64>(), total);
        }
    }
}
