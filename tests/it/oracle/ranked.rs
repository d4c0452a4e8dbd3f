//! The oracle's second half: neighbors and lists from the histories.

use std::collections::BTreeMap;

use super::counted::{Item, User, text, texts, unit};
use super::{K, N_NEIGHBORS, Rows, SHRINKAGE, Variant};

/// Item, score, and its support or the item behind it.
pub(super) type Scored = (i64, f32, i64);

fn best(mut scored: Vec<Scored>, n: usize) -> Vec<Scored> {
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(n);
    scored
}

/// Scores are rounded to f32 where the definition says so: that is what decides ties.
pub(super) fn neighbors(
    items: &BTreeMap<i64, Item>,
    users: &BTreeMap<&str, User<'_>>,
    weighted: bool,
) -> BTreeMap<i64, Vec<Scored>> {
    let value = |user: &User<'_>, item: i64| {
        user.history.get(&item).map(|&affinity| if weighted { affinity } else { 1 })
    };
    let shrinkage = if weighted { SHRINKAGE / unit().powi(2) } else { SHRINKAGE };
    let dot = |a: i64, b: i64| {
        let common = users.values().filter_map(|user| Some(value(user, a)? * value(user, b)?));
        common.fold((0, 0), |(dot, support), product| (dot + product, support + 1))
    };
    let norm = |item| (dot(item, item).0 as f64).sqrt();
    let kept: Vec<i64> =
        items.iter().filter(|(_, item)| item.idx.is_some()).map(|(&id, _)| id).collect();
    let of = |a: i64| {
        let others = kept.iter().filter(|&&b| b != a && dot(a, b).1 > 0).map(|&b| {
            let (dot, support) = dot(a, b);
            (b, (dot as f64 / (norm(a) * norm(b) + shrinkage)) as f32, support)
        });
        (a, best(others.collect(), N_NEIGHBORS))
    };
    kept.iter().copied().map(of).collect()
}

pub(super) fn neighbor_rows(neighbors: &BTreeMap<i64, Vec<Scored>>) -> Rows {
    let of_item = |(item, list): (&i64, &Vec<Scored>)| -> Rows {
        let row = |(rank, &(neighbor, score, support)): (i32, &Scored)| {
            (texts(&[item, &rank, &neighbor, &support]), vec![f64::from(score)])
        };
        (1..).zip(list).map(row).collect()
    };
    neighbors.iter().flat_map(of_item).collect()
}

/// What a history item proposes: the candidates nearest to it that have it among their neighbors.
fn proposals(neighbors: &BTreeMap<i64, Vec<Scored>>, of: i64) -> Vec<Scored> {
    let similarity = |(&candidate, list): (&i64, &Vec<Scored>)| {
        list.iter().find(|entry| entry.0 == of).map(|entry| (candidate, entry.1, of))
    };
    best(neighbors.iter().filter_map(similarity).collect(), 3 * N_NEIGHBORS)
}

/// Sums of similarities to the history, in its order and in f32, with the largest one's item.
fn by_neighbors(
    user: &User<'_>,
    neighbors: &BTreeMap<i64, Vec<Scored>>,
    weighted: bool,
) -> Vec<Scored> {
    let mut sums: BTreeMap<i64, (f32, f32, i64)> = BTreeMap::new();
    for (&item, &affinity) in &user.history {
        let weight = if weighted { (affinity as f64 * unit()) as f32 } else { 1.0 };
        for (candidate, similarity, _) in proposals(neighbors, item) {
            let (sum, largest, because) = sums.entry(candidate).or_default();
            *sum += weight * similarity;
            if weight * similarity > *largest {
                (*largest, *because) = (weight * similarity, item);
            }
        }
    }
    sums.retain(|item, _| !user.seen.contains(item));
    best(sums.into_iter().map(|(item, (sum, _, because))| (item, sum, because)).collect(), 200)
}

struct Entry {
    item: i64,
    score: f32,
    source: &'static str,
}

/// Reciprocal ranks: `1 / (60 + rank)` of the neighbors and `0.7 / (60 + rank)` of popularity.
fn blended(near: &[Scored], popular: &[(i64, f32)]) -> Vec<Entry> {
    let mut sums: BTreeMap<i64, [f64; 2]> = BTreeMap::new();
    for (rank, entry) in (1..).zip(near) {
        sums.entry(entry.0).or_default()[0] = 1.0 / (60.0 + f64::from(rank));
    }
    for (rank, entry) in (1..).zip(popular) {
        sums.entry(entry.0).or_default()[1] = 0.7 / (60.0 + f64::from(rank));
    }
    let entry = |(item, [near, popular]): (i64, [f64; 2])| {
        let source = if popular > near { "popularity" } else { "item_neighbors" };
        Entry { item, score: (near + popular) as f32, source }
    };
    let mut entries: Vec<Entry> = sums.into_iter().map(entry).collect();
    entries.sort_by(|a, b| b.score.total_cmp(&a.score));
    entries
}

pub(super) fn list_rows(
    items: &BTreeMap<i64, Item>,
    users: &BTreeMap<&str, User<'_>>,
    neighbors: &BTreeMap<i64, Vec<Scored>>,
    variant: Variant,
) -> Rows {
    let mut ranked: Vec<(&i64, &Item)> = items.iter().filter(|item| item.1.idx.is_some()).collect();
    ranked.sort_by_key(|(_, item)| item.rank);
    let share = |item: &Item| (item.affinity as f64 / ranked[0].1.affinity as f64) as f32;
    let mut rows = Rows::new();
    for (id, user) in users {
        let near = by_neighbors(user, neighbors, variant.weighted);
        let unseen = ranked.iter().filter(|(item, _)| !user.seen.contains(item));
        let popular: Vec<(i64, f32)> = unseen.map(|(id, item)| (**id, share(item))).collect();
        let mut list = if variant.blended {
            blended(&near, &popular)
        } else {
            let entry =
                |&(item, score, _): &Scored| Entry { item, score, source: "item_neighbors" };
            near.iter().map(entry).collect()
        };
        list.truncate(K);
        let low = list.last().map_or(1.0, |entry| f64::from(entry.score));
        for (item, share) in popular {
            if list.len() < K && list.iter().all(|entry| entry.item != item) {
                let score = (low * f64::from(share)) as f32;
                list.push(Entry { item, score, source: "fallback" });
            }
        }
        for (rank, Entry { item, score, source }) in (1..).zip(list) {
            let because = near.iter().find(|entry| entry.0 == item).map(|entry| entry.2);
            let exact = texts(&[id, &rank, &item, &source, &text(because)]);
            rows.push((exact, vec![f64::from(score)]));
        }
    }
    rows
}
