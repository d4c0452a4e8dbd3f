//! `neighbor_scores` against a map per user: lists of 200 for 1,000 users.

use std::collections::{HashMap, HashSet};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tidemill::kernels::CandidateLists;
use tidemill::kernels::neighbor_scores::{Filter, History, Scratch, neighbor_scores};
use tidemill::types::ItemIdx;

use crate::cosine;
use crate::log::{CATALOGUES, Log, on_one_thread};

const K: usize = 200;
const N_USERS: usize = 1_000;

type Lists = Vec<Vec<(ItemIdx, f32)>>;

#[divan::bench(args = CATALOGUES, sample_count = 20, sample_size = 1)]
fn kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let shop = Shop::new(n_items);
    let mut scratch = Scratch::new(n_items);
    bencher
        .counter(ItemsCount::new(N_USERS))
        .bench_local(|| shop.by_kernel(black_box(N_USERS), &mut scratch));
}

#[divan::bench(args = CATALOGUES, sample_count = 5, sample_size = 1)]
fn plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let shop = Shop::new(n_items);
    bencher.counter(ItemsCount::new(N_USERS)).bench_local(|| shop.by_maps(black_box(N_USERS)));
}

pub(crate) fn assert_equal() {
    let shop = Shop::new(2_000);
    assert_eq!(shop.by_kernel(50, &mut Scratch::new(2_000)), shop.by_maps(50));
}

struct Shop {
    log: Log,
    neighbors: CandidateLists,
    recommendable: Vec<bool>,
}

impl Shop {
    fn new(n_items: usize) -> Self {
        let log = Log::new(n_items, 5_000, 50);
        let lists = on_one_thread(|| cosine::by_kernel(&log));
        let neighbors = CandidateLists::new(&lists, 500);
        let recommendable = (0..n_items).map(|item| item % 10 != 0).collect();
        Self { log, neighbors, recommendable }
    }

    fn by_kernel(&self, n_users: usize, scratch: &mut Scratch) -> Lists {
        let Self { log, neighbors, recommendable } = self;
        let list = |user: usize| {
            let items = log.history(user);
            let filter = Filter { seen: items, recommendable };
            let history = History { items, weights: None };
            neighbor_scores(&history, neighbors, &filter, K, scratch).list
        };
        (0..n_users).map(list).collect()
    }

    fn by_maps(&self, n_users: usize) -> Lists {
        (0..n_users).map(|user| self.list_by_map(self.log.history(user))).collect()
    }

    fn list_by_map(&self, history: &[ItemIdx]) -> Vec<(ItemIdx, f32)> {
        let seen: HashSet<ItemIdx> = history.iter().copied().collect();
        let mut scores: HashMap<ItemIdx, f32> = HashMap::new();
        for item in history {
            for &(neighbor, score) in self.neighbors.of(item.index()) {
                if self.recommendable[neighbor.index()] && !seen.contains(&neighbor) {
                    *scores.entry(neighbor).or_default() += score;
                }
            }
        }
        let mut list: Vec<(ItemIdx, f32)> = scores.into_iter().collect();
        list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        list.truncate(K);
        list
    }
}
