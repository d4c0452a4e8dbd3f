//! `factor_scores::best` against scoring, sorting and cutting: the best 50 of all items by 64
//! factors for 96 users, as one block.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tidemill::kernels::factor_scores::{PackedItems, Scratch, UserBlock, best, score};
use tidemill::types::ItemIdx;

use crate::als::factors;
use crate::log::{CATALOGUES, Log, on_one_thread};

const N_FACTORS: usize = 64;
const N_USERS: usize = 96;
const K: usize = 50;

type Lists = Vec<Vec<(ItemIdx, f32)>>;

#[divan::bench(args = CATALOGUES, sample_count = 10, sample_size = 1)]
fn kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let shop = Shop::new(n_items);
    let packed = shop.packed();
    let mut scratch = Scratch::default();
    bencher
        .counter(ItemsCount::new(N_USERS * n_items))
        .bench_local(|| black_box(&shop).by_kernel(&packed, &mut scratch));
}

#[divan::bench(args = CATALOGUES, sample_count = 3, sample_size = 1)]
fn plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let shop = Shop::new(n_items);
    bencher
        .counter(ItemsCount::new(N_USERS * n_items))
        .bench_local(|| black_box(&shop).by_sorting(dot));
}

pub(crate) fn assert_equal() {
    let shop = Shop::new(2_000);
    // To the bit, with the sums of the kernel.
    let expected = shop.by_sorting(score);
    assert_eq!(shop.by_kernel(&shop.packed(), &mut Scratch::default()), expected);
}

/// What anybody would write; [`score`] is slow where it is not compiled for its instructions.
fn dot(user: &[f32], item: &[f32]) -> f32 {
    user.iter().zip(item).map(|(x, y)| x * y).sum()
}

struct Shop {
    log: Log,
    users: Vec<f32>,
    items: Vec<f32>,
    recommendable: Vec<bool>,
}

impl Shop {
    fn new(n_items: usize) -> Self {
        Self {
            log: Log::new(n_items, N_USERS, 50),
            users: factors(N_USERS, 1),
            items: factors(n_items, 1 << 32),
            recommendable: (0..n_items).map(|item| item % 10 != 0).collect(),
        }
    }

    fn packed(&self) -> PackedItems {
        let Self { items, recommendable, .. } = self;
        on_one_thread(|| PackedItems::new(items, N_FACTORS, N_FACTORS, recommendable))
    }

    fn by_kernel(&self, packed: &PackedItems, scratch: &mut Scratch) -> Lists {
        let seen: Vec<&[ItemIdx]> = (0..N_USERS).map(|user| self.log.history(user)).collect();
        let users = UserBlock { factors: &self.users, stride: N_FACTORS, seen: &seen };
        best(packed, users, K, scratch)
    }

    fn by_sorting(&self, score: fn(&[f32], &[f32]) -> f32) -> Lists {
        let of_user = |(user, x): (usize, &[f32])| {
            let seen = self.log.history(user);
            let items = (0..).map(ItemIdx).zip(self.items.chunks_exact(N_FACTORS));
            let may = |item: &ItemIdx| self.recommendable[item.index()] && !seen.contains(item);
            let mut list: Vec<(ItemIdx, f32)> =
                items.filter(|(item, _)| may(item)).map(|(item, y)| (item, score(x, y))).collect();
            list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            list.truncate(K);
            list
        };
        self.users.chunks_exact(N_FACTORS).enumerate().map(of_user).collect()
    }
}
