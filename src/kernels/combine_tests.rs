//! Combination and fallback, against the slow twin and their promises.

use proptest::prelude::*;

use crate::kernels::combine::{Candidate, Combine, Ranker, Source, combine, fill};
use crate::kernels::{reference, top_k};
use crate::types::ItemIdx;

const RECIPROCAL: Combine = Combine::ReciprocalRank { constant: 60.0 };

fn list(entries: &[(u32, f32)]) -> Vec<(ItemIdx, f32)> {
    entries.iter().map(|&(item, score)| (ItemIdx(item), score)).collect()
}

fn lists() -> impl Strategy<Value = Vec<Vec<(ItemIdx, f32)>>> {
    let list = prop::collection::btree_map(0u32..30, -4i8..9, 0..15).prop_map(|entries| {
        let mut list: Vec<_> =
            entries.into_iter().map(|(item, score)| (ItemIdx(item), f32::from(score))).collect();
        top_k::select(&mut list, 15);
        list
    });
    prop::collection::vec(list, 0..4)
}

fn any_combine() -> impl Strategy<Value = Combine> {
    prop_oneof![
        Just(Combine::ScaledScore),
        (0.0..100.0).prop_map(|constant| Combine::ReciprocalRank { constant })
    ]
}

#[test]
fn scaled_scores_by_hand() {
    let (a, b) = (list(&[(1, 4.0), (2, 2.0)]), list(&[(2, 3.0), (3, -1.0)]));
    let rankers = [Ranker { weight: 1.0, list: &a }, Ranker { weight: 0.5, list: &b }];
    let combined = combine(&rankers, Combine::ScaledScore, None);
    let expected = [(1, 1.0, 0), (2, 1.0, 0), (3, 0.0, 1)].map(|(item, score, ranker)| Candidate {
        item: ItemIdx(item),
        score,
        source: Source::Ranker(ranker),
    });
    assert_eq!(combined, expected);
}

#[test]
fn reciprocal_ranks_by_hand() {
    let (a, b) = (list(&[(1, 4.0), (2, 2.0)]), list(&[(2, 9.0)]));
    let rankers = [Ranker { weight: 1.0, list: &a }, Ranker { weight: 2.0, list: &b }];
    let combined = combine(&rankers, RECIPROCAL, None);
    assert_eq!(combined[0].item, ItemIdx(2));
    assert_eq!(combined[0].score, (1.0 / 62.0 + 2.0 / 61.0) as f32);
    assert_eq!(combined[0].source, Source::Ranker(1));
}

#[test]
fn one_ranker_keeps_its_scores() {
    let raw = list(&[(1, 40.0), (2, -2.0)]);
    let kept = combine(&[Ranker { weight: 0.5, list: &raw }], RECIPROCAL, None);
    assert_eq!(kept.iter().map(|one| one.score).collect::<Vec<_>>(), [40.0, -2.0]);
    assert!(combine(&[], RECIPROCAL, None).is_empty());
}

#[test]
fn a_discount_reorders_the_scaled_list() {
    let raw = list(&[(0, 40.0), (1, 30.0)]);
    let rankers = [Ranker { weight: 1.0, list: &raw }];
    let found = combine(&rankers, Combine::ScaledScore, Some(&[0.5, 1.0]));
    assert_eq!(found.iter().map(|one| one.score).collect::<Vec<_>>(), [0.75, 0.5]);
    let equal = list(&[(0, -3.0), (1, -3.0)]);
    let rankers = [Ranker { weight: 1.0, list: &equal }];
    assert_eq!(combine(&rankers, Combine::ScaledScore, Some(&[1.0, 1.0]))[1].score, 1.0);
}

#[test]
fn the_fallback_goes_on_below_the_list() {
    let fallback = list(&[(5, 1.0), (1, 0.9), (6, 0.5), (7, 0.25)]);
    let filled = |scores: &[(u32, f32)], k| {
        let rankers = [Ranker { weight: 1.0, list: &list(scores) }];
        let mut found = combine(&rankers, Combine::ScaledScore, None);
        fill(&mut found, k, fallback.iter().copied(), |item| item != ItemIdx(6));
        found.iter().map(|one| (one.item.0, one.score)).collect::<Vec<_>>()
    };
    assert_eq!(filled(&[(1, 4.0)], 3), [(1, 4.0), (5, 4.0), (7, 1.0)]);
    assert_eq!(filled(&[(1, -4.0)], 9), [(1, -4.0), (5, -4.0), (7, -4.75)]);
    assert_eq!(filled(&[], 2), [(5, 1.0), (1, 0.9)]);
    assert_eq!(filled(&[(1, 4.0), (2, 3.0)], 1), [(1, 4.0), (2, 3.0)]);
}

proptest! {
    #[test]
    fn combine_equals_the_slow_twin(
        lists in lists(),
        how in any_combine(),
        weights in prop::array::uniform4(0.1f64..5.0),
        discounts in prop::option::of(prop::collection::vec(0.01f32..1.0, 30)),
    ) {
        let rankers: Vec<Ranker<'_>> = lists
            .iter()
            .zip(weights)
            .map(|(list, weight)| Ranker { weight, list })
            .collect();
        let found = combine(&rankers, how, discounts.as_deref());
        prop_assert_eq!(found, reference::combine(&rankers, how, discounts.as_deref()));
    }

    #[test]
    fn a_filled_list_keeps_its_promises(
        lists in lists(),
        scale in prop_oneof![Just(0.0f32), Just(1e-42), Just(1.0), Just(1e38)],
        shares in prop::collection::vec(0f64..1.0, 0..40),
        k in 0usize..30,
    ) {
        let raw = lists.first().cloned().unwrap_or_default();
        let raw: Vec<_> =
            raw.into_iter().map(|(item, score)| (item, score / 9.0 * scale)).collect();
        let mut list = combine(&[Ranker { weight: 1.0, list: &raw }], RECIPROCAL, None);
        let n_ranked = list.len();
        let mut shares: Vec<f32> = shares.iter().map(|share| 1.0 - *share as f32 * 0.99).collect();
        shares.sort_by(|a, b| b.total_cmp(a));
        let fallback = (0..).map(ItemIdx).zip(shares.iter().copied());
        let is_allowed = |item: ItemIdx| !item.0.is_multiple_of(3);
        fill(&mut list, k, fallback, is_allowed);

        prop_assert!(list.iter().all(|one| one.score.is_finite()));
        prop_assert!(list.is_sorted_by(|a, b| a.score >= b.score));
        let mut items: Vec<ItemIdx> = list.iter().map(|one| one.item).collect();
        items.sort();
        prop_assert!(items.is_sorted_by(|a, b| a < b), "each item once");
        let added = &list[n_ranked..];
        prop_assert!(added.iter().all(|one| one.source == Source::Fallback));
        prop_assert!(added.iter().all(|one| is_allowed(one.item)));
        let left = (0..shares.len() as u32)
            .map(ItemIdx)
            .filter(|&item| is_allowed(item) && raw.iter().all(|entry| entry.0 != item))
            .count();
        prop_assert_eq!(list.len(), n_ranked.max(k.min(n_ranked + left)));
    }
}
