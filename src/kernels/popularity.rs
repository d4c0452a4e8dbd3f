//! What is read off the integer sums per item: order, ranks, shares, trend.

use crate::types::{AFFINITY_ONE, ItemIdx};

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
}
