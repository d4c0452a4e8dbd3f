//! Slow twins: each follows the definition of a kernel word for word, without regard for cost.

use std::collections::BTreeMap;

use crate::kernels::combine::{Candidate, Combine, Ranker, Source};
use crate::kernels::cosine::{Interactions, Params};
use crate::kernels::neighbor_scores::{Filter, History, ReasonedList};
use crate::kernels::{CandidateLists, NeighborLists, top_k};
use crate::types::ItemIdx;

/// Twin of `top_k::select`: sort, then truncate.
pub(crate) fn select(mut candidates: Vec<(ItemIdx, f32)>, k: usize) -> Vec<(ItemIdx, f32)> {
    candidates.sort_by(|a, b| {
        b.1.partial_cmp(&a.1).expect("scores in tests are numbers").then(a.0.0.cmp(&b.0.0))
    });
    candidates.truncate(k);
    candidates
}

/// Twin of `cosine::neighbors` over all rows: dense columns, every pair of items.
pub(crate) fn neighbors(interactions: &Interactions<'_>, params: &Params) -> NeighborLists {
    let columns = columns(interactions);
    let mut lists = NeighborLists::default();
    for a in 0..interactions.n_items {
        let mut supports = BTreeMap::new();
        let mut scored = Vec::new();
        for b in (0..interactions.n_items).filter(|&b| b != a) {
            let common = || columns[a].iter().zip(&columns[b]).filter(|(x, y)| **x * **y != 0);
            let support = common().count() as u32;
            let score = similarity(&columns[a], &columns[b], params) as f32;
            if support > 0 && support >= params.support_min && score > 0.0 {
                supports.insert(ItemIdx(b as u32), support);
                scored.push((ItemIdx(b as u32), score));
            }
        }
        let best = select(scored, params.n_neighbors);
        lists.push_row(best.into_iter().map(|(item, score)| (item, score, supports[&item])));
    }
    lists
}

/// One dense column per item: the affinity of every user, 0 where there is none.
fn columns(interactions: &Interactions<'_>) -> Vec<Vec<i64>> {
    let mut columns = vec![vec![0; interactions.n_users()]; interactions.n_items];
    for (user, ends) in interactions.offsets.windows(2).enumerate() {
        for pair in ends[0] as usize..ends[1] as usize {
            let affinity = interactions.affinities.map_or(1, |affinities| affinities[pair]);
            columns[interactions.items[pair].index()][user] = affinity;
        }
    }
    columns
}

fn similarity(a: &[i64], b: &[i64], params: &Params) -> f64 {
    let dot = |x: &[i64], y: &[i64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<i64>() as f64;
    let shrinkage = params.shrinkage / (params.affinity_unit * params.affinity_unit);
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt() + shrinkage)
}

/// Twin of `neighbor_scores`: a map per user, filters as look-ups.
pub(crate) fn neighbor_scores(
    history: &History<'_>,
    neighbors: &CandidateLists,
    filter: &Filter<'_>,
    k: usize,
) -> ReasonedList {
    let mut contributions: BTreeMap<ItemIdx, Vec<(ItemIdx, f32)>> = BTreeMap::new();
    for (at, &from) in history.items.iter().enumerate() {
        let weight = history.weights.map_or(1.0, |weights| weights[at]);
        for &(item, similarity) in neighbors.of(from.index()) {
            contributions.entry(item).or_default().push((from, weight * similarity));
        }
    }
    contributions
        .retain(|item, _| filter.recommendable[item.index()] && !filter.seen.contains(item));
    let total = |list: &[(ItemIdx, f32)]| list.iter().fold(0.0, |sum, (_, one)| sum + one);
    let scored = contributions.iter().map(|(&item, list)| (item, total(list))).collect();
    let list = select(scored, k);
    let reason = |item| select(contributions[item].clone(), 1)[0].0;
    ReasonedList { because: list.iter().map(|(item, _)| reason(item)).collect(), list }
}

/// Twin of `combine::combine`: item by item, every ranker looked up.
pub(crate) fn combine(
    rankers: &[Ranker<'_>],
    how: Combine,
    discounts: Option<&[f32]>,
) -> Vec<Candidate> {
    let mut items: Vec<ItemIdx> =
        rankers.iter().flat_map(|ranker| ranker.list).map(|entry| entry.0).collect();
    items.sort();
    items.dedup();
    let mut candidates: Vec<Candidate> = Vec::new();
    for item in items {
        let shares: Vec<f64> = rankers.iter().map(|ranker| share(ranker, how, item)).collect();
        let lists = |ranker: &usize| rankers[*ranker].list.iter().any(|entry| entry.0 == item);
        let mut by_share: Vec<usize> = (0..rankers.len()).filter(lists).collect();
        by_share.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        let score = match rankers {
            [only] => only.list.iter().find(|entry| entry.0 == item).expect("is listed").1,
            _ => shares.iter().sum::<f64>() as f32,
        };
        candidates.push(Candidate { item, score, source: Source::Ranker(by_share[0]) });
    }
    if let Some(discounts) = discounts {
        let scores: Vec<f32> = candidates.iter().map(|candidate| candidate.score).collect();
        for candidate in &mut candidates {
            let discount = f64::from(discounts[candidate.item.index()]);
            candidate.score = (scaled(candidate.score, &scores) * discount) as f32;
        }
    }
    candidates.sort_by(|a, b| top_k::order(&(a.item, a.score), &(b.item, b.score)));
    candidates
}

/// What one ranker adds to an item: 0 if it does not list it.
fn share(ranker: &Ranker<'_>, how: Combine, item: ItemIdx) -> f64 {
    let Some(at) = ranker.list.iter().position(|entry| entry.0 == item) else { return 0.0 };
    let scores: Vec<f32> = ranker.list.iter().map(|entry| entry.1).collect();
    ranker.weight
        * match how {
            Combine::ScaledScore => scaled(scores[at], &scores),
            Combine::ReciprocalRank { constant } => 1.0 / (constant + (at + 1) as f64),
        }
}

fn scaled(score: f32, scores: &[f32]) -> f64 {
    let lo = f64::from(scores.iter().copied().fold(0.0, f32::min));
    let hi = f64::from(scores.iter().copied().fold(f32::MIN, f32::max));
    if hi == lo { 1.0 } else { (f64::from(score) - lo) / (hi - lo) }
}
