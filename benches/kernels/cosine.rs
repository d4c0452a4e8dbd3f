//! `cosine::neighbors` against a map of counts per item: 20,000 users, a million pairs.

use std::collections::HashMap;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tidemill::kernels::NeighborLists;
use tidemill::kernels::cosine::{Params, Ranked, neighbors};
use tidemill::types::ItemIdx;

use crate::log::{CATALOGUES, Log, on_one_thread};

const PARAMS: Params =
    Params { n_neighbors: 50, shrinkage: 0.0, support_min: 1, affinity_unit: 1.0 };

#[divan::bench(args = CATALOGUES, sample_count = 5, sample_size = 1)]
fn kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let log = Log::new(n_items, 20_000, 50);
    let bencher = bencher.counter(ItemsCount::new(log.items.len()));
    bencher.bench_local(|| on_one_thread(|| by_kernel(black_box(&log))));
}

#[divan::bench(args = CATALOGUES, sample_count = 2, sample_size = 1)]
fn plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let log = Log::new(n_items, 20_000, 50);
    bencher.counter(ItemsCount::new(log.items.len())).bench_local(|| by_maps(black_box(&log)));
}

pub(crate) fn assert_equal() {
    let log = Log::new(500, 300, 20);
    assert_eq!(on_one_thread(|| by_kernel(&log)), by_maps(&log));
}

/// From histories to lists, their sorting included.
pub(crate) fn by_kernel(log: &Log) -> NeighborLists {
    let ranked = Ranked::new(&log.interactions()).expect("counts do not overflow");
    neighbors(0..log.n_items, &ranked, &PARAMS)
}

fn by_maps(log: &Log) -> NeighborLists {
    let mut users_of: HashMap<ItemIdx, Vec<usize>> = HashMap::new();
    for user in 0..log.n_users() {
        for &item in log.history(user) {
            users_of.entry(item).or_default().push(user);
        }
    }
    let norm = |item: &ItemIdx| (users_of[item].len() as f64).sqrt();
    let mut lists = NeighborLists::default();
    for row in (0..log.n_items as u32).map(ItemIdx) {
        let mut counts: HashMap<ItemIdx, u32> = HashMap::new();
        for &user in users_of.get(&row).into_iter().flatten() {
            for &item in log.history(user) {
                *counts.entry(item).or_default() += 1;
            }
        }
        counts.remove(&row);
        let score = |item: &ItemIdx, count: u32| f64::from(count) / (norm(&row) * norm(item));
        let mut scored: Vec<(ItemIdx, f32, u32)> = counts
            .into_iter()
            .map(|(item, count)| (item, score(&item, count) as f32, count))
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored.truncate(PARAMS.n_neighbors);
        lists.push_row(scored);
    }
    lists
}
