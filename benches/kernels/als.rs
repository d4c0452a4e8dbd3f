//! Half-steps of ALS with 64 factors against plain loops: 10,000 users, half a million pairs.
//!
//! Users take three steps of conjugate gradient. For the items one sum over users is measured, of
//! which a step needs one: by tiles of items, item by item, and plainly.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tidemill::kernels::als::gram::{gram, rounded};
use tidemill::kernels::als::item_sums::{ByItem, Request, Term, Walk, sums};
use tidemill::kernels::als::rows::System;
use tidemill::kernels::als::start::start;
use tidemill::kernels::als::users::{Params, Users, solve_users};
use tidemill::kernels::als::{Confidence, Dialect, Fixed, Objective, Solver};
use tidemill::types::ItemLists;

use crate::log::{CATALOGUES, Log, on_one_thread};

/// A multiple of the lanes, so rows are not padded.
const N_FACTORS: usize = 64;
const STEPS: usize = 3;
const OBJECTIVE: Objective = Objective {
    dialect: Dialect::Implicit,
    confidence: Confidence::Linear { alpha: 2.0 },
    regularization: 0.1,
};

#[divan::bench(args = CATALOGUES, sample_count = 5, sample_size = 1)]
fn users_kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let model = Model::new(n_items, 10_000, 50);
    let bencher = bencher.counter(ItemsCount::new(model.n_pairs()));
    bencher.bench_local(|| black_box(&model).users_by_kernel());
}

#[divan::bench(args = CATALOGUES, sample_count = 3, sample_size = 1)]
fn users_plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let model = Model::new(n_items, 10_000, 50);
    let bencher = bencher.counter(ItemsCount::new(model.n_pairs()));
    bencher.bench_local(|| black_box(&model).users_plainly());
}

#[divan::bench(args = CATALOGUES, sample_count = 5, sample_size = 1)]
fn items_kernel_tiles(bencher: Bencher<'_, '_>, n_items: usize) {
    let model = Model::new(n_items, 10_000, 50);
    let bencher = bencher.counter(ItemsCount::new(model.n_pairs()));
    bencher.bench_local(|| black_box(&model).items_by_kernel(Walk::Tiles));
}

#[divan::bench(args = CATALOGUES, sample_count = 5, sample_size = 1)]
fn items_kernel_item_by_item(bencher: Bencher<'_, '_>, n_items: usize) {
    let model = Model::new(n_items, 10_000, 50);
    let bencher = bencher.counter(ItemsCount::new(model.n_pairs()));
    bencher.bench_local(|| black_box(&model).items_by_kernel(Walk::ItemByItem));
}

#[divan::bench(args = CATALOGUES, sample_count = 3, sample_size = 1)]
fn items_plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let model = Model::new(n_items, 10_000, 50);
    let bencher = bencher.counter(ItemsCount::new(model.n_pairs()));
    bencher.bench_local(|| black_box(&model).items_plainly());
}

pub(crate) fn assert_equal() {
    let model = Model::new(500, 300, 20);
    assert_close(&model.users_by_kernel(), &model.users_plainly());
    let plain = model.items_plainly();
    assert_close(&model.items_by_kernel(Walk::Tiles), &plain);
    assert_close(&model.items_by_kernel(Walk::ItemByItem), &plain);
}

/// Sums are taken in another order.
fn assert_close(found: &[f32], expected: &[f32]) {
    let size = expected.iter().fold(0f32, |size, value| size.max(value.abs()));
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * size;
    assert!(size > 0.0 && found.len() == expected.len());
    assert!(found.iter().zip(expected).all(close), "the kernel differs from its twin");
}

/// One shard of users, with factors of both sides.
struct Model {
    interactions: ItemLists,
    confidences: Vec<f32>,
    tiles: ByItem,
    lists: ByItem,
    users: Vec<f32>,
    items: Vec<f32>,
    gram_items: Vec<f32>,
}

impl Model {
    fn new(n_items: usize, n_users: usize, history: usize) -> Self {
        let log = Log::new(n_items, n_users, history);
        let interactions = ItemLists {
            ends: log.offsets[1..].iter().map(|&end| end as u32).collect(),
            items: log.items,
        };
        let confidences: Vec<f32> =
            interactions.items.iter().map(|item| 1.0 + (item.0 % 5) as f32).collect();
        let of_users =
            Users { interactions: &interactions, confidences: &confidences, solved: None };
        let [tiles, lists] = [Walk::Tiles, Walk::ItemByItem].map(|walk| {
            on_one_thread(|| ByItem::new(&[(0, of_users)], n_items, walk, OBJECTIVE.base()))
        });
        let (users, items) = (factors(n_users, 1), factors(n_items, 1 << 32));
        let gram_items = on_one_thread(|| rounded(&gram(&items, N_FACTORS)));
        Self { interactions, confidences, tiles, lists, users, items, gram_items }
    }

    fn n_pairs(&self) -> usize {
        self.confidences.len()
    }

    /// Items and confidences of each user.
    fn pairs(&self, user: usize) -> impl Iterator<Item = (usize, f32)> + Clone {
        let range = self.interactions.range(user);
        let rows = self.interactions.items[range.clone()].iter().map(|item| item.index());
        rows.zip(self.confidences[range].iter().copied())
    }

    fn fixed<'a>(&self, factors: &'a [f32]) -> Fixed<'a> {
        let base = OBJECTIVE.base();
        Fixed { factors, halves: None, n_factors: N_FACTORS, stride: N_FACTORS, base }
    }

    fn users_by_kernel(&self) -> Vec<f32> {
        let Self { interactions, confidences, gram_items, items, .. } = self;
        let users = Users { interactions, confidences, solved: None };
        let fixed = self.fixed(items);
        let system = System { fixed, gram: gram_items, unobserved: OBJECTIVE.unobserved() };
        let solver = Solver::ConjugateGradient { steps: STEPS };
        let n_items = (items.len() / N_FACTORS) as u64;
        let params = Params { objective: &OBJECTIVE, solver, n_items };
        let mut x = self.users.clone();
        on_one_thread(|| solve_users(&mut x, users, system, params, false))
            .expect("rows are finite");
        x
    }

    /// Conjugate gradient as in a textbook, a user at a time.
    fn users_plainly(&self) -> Vec<f32> {
        let mut users = self.users.clone();
        let lambda = OBJECTIVE.regularization as f32;
        for (user, x) in users.chunks_exact_mut(N_FACTORS).enumerate() {
            let times_a = |v: &[f32]| {
                let gram = self.gram_items.chunks_exact(N_FACTORS).zip(v);
                let mut product: Vec<f32> =
                    gram.map(|(row, own)| dot(row, v) + lambda * own).collect();
                for (item, confidence) in self.pairs(user) {
                    let y = row(&self.items, item);
                    add(&mut product, (confidence - 1.0) * dot(y, v), y);
                }
                product
            };
            let mut r = vec![0.0; N_FACTORS];
            self.pairs(user).for_each(|(item, c)| add(&mut r, c, row(&self.items, item)));
            add(&mut r, -1.0, &times_a(x));
            let mut p = r.clone();
            for _ in 0..STEPS {
                let ap = times_a(&p);
                let before = dot(&r, &r);
                let alpha = before / dot(&p, &ap);
                add(x, alpha, &p);
                add(&mut r, -alpha, &ap);
                let beta = dot(&r, &r) / before;
                p.iter_mut().zip(&r).for_each(|(p, r)| *p = r + beta * *p);
            }
        }
        users
    }

    fn items_by_kernel(&self, walk: Walk) -> Vec<f32> {
        let users = self.fixed(&self.users);
        let by_item = match walk {
            Walk::Tiles => &self.tiles,
            Walk::ItemByItem => &self.lists,
        };
        let request = Request { by_item, users, term: Term::Product };
        let all = 0..self.items.len() / N_FACTORS;
        on_one_thread(|| sums(request, all, 0..1, &self.items)).values
    }

    /// User after user, each item of theirs.
    fn items_plainly(&self) -> Vec<f32> {
        let mut sums = vec![0.0; self.items.len()];
        for user in 0..self.users.len() / N_FACTORS {
            let x = row(&self.users, user);
            for (item, confidence) in self.pairs(user) {
                let scale = (confidence - 1.0) * dot(x, row(&self.items, item));
                add(&mut sums[item * N_FACTORS..][..N_FACTORS], scale, x);
            }
        }
        sums
    }
}

/// Starting values, large enough that products are not lost beside the regularization.
pub(crate) fn factors(n_rows: usize, first: u64) -> Vec<f32> {
    let mut factors = vec![0.0; n_rows * N_FACTORS];
    for (row, values) in factors.chunks_exact_mut(N_FACTORS).enumerate() {
        start(first + row as u64, N_FACTORS, values);
    }
    factors
}

fn row(factors: &[f32], row: usize) -> &[f32] {
    &factors[row * N_FACTORS..][..N_FACTORS]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], scale: f32, values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += scale * value);
}
