//! Cosine neighbors and the candidates made from them, against their slow twins.

use proptest::prelude::*;

use crate::kernels::cosine::{Interactions, Params, Transposed, neighbors};
use crate::kernels::neighbor_scores::{Filter, History, Scratch, neighbor_scores};
use crate::kernels::{CandidateLists, KernelError, NeighborLists, reference};
use crate::types::ItemIdx;

/// Histories that own what `Interactions` borrows.
#[derive(Clone, Debug)]
struct Log {
    offsets: Vec<u64>,
    items: Vec<ItemIdx>,
    affinities: Option<Vec<i64>>,
    n_items: usize,
}

impl Log {
    fn new(histories: &[Vec<(u32, i64)>], weighted: bool, n_items: usize) -> Self {
        let mut offsets = vec![0];
        let (mut items, mut affinities) = (Vec::new(), Vec::new());
        for history in histories {
            items.extend(history.iter().map(|pair| ItemIdx(pair.0)));
            affinities.extend(history.iter().map(|pair| pair.1));
            offsets.push(items.len() as u64);
        }
        Self { offsets, items, affinities: weighted.then_some(affinities), n_items }
    }

    fn view(&self) -> Interactions<'_> {
        Interactions {
            offsets: &self.offsets,
            items: &self.items,
            affinities: self.affinities.as_deref(),
            n_items: self.n_items,
        }
    }

    fn history(&self, user: usize) -> &[ItemIdx] {
        &self.items[self.offsets[user] as usize..self.offsets[user + 1] as usize]
    }
}

fn all_neighbors(log: &Log, params: &Params) -> NeighborLists {
    let interactions = log.view();
    let transposed = Transposed::new(&interactions).unwrap();
    neighbors(0..log.n_items, &interactions, &transposed, params)
}

fn on_threads<T: Send>(n_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(work)
}

/// Small catalogues take the scanning way, large ones the touched list.
fn logs() -> impl Strategy<Value = Log> {
    let catalogue = prop_oneof![1usize..30, 300usize..400];
    (catalogue, any::<bool>()).prop_flat_map(|(n_items, weighted)| {
        let item = 0..(n_items as u32).min(40);
        let history = prop::collection::btree_map(item, 1i64..200_000, 0..12);
        let histories = prop::collection::vec(history, 1..25);
        histories.prop_map(move |histories| {
            let histories: Vec<Vec<_>> =
                histories.into_iter().map(|history| history.into_iter().collect()).collect();
            Log::new(&histories, weighted, n_items)
        })
    })
}

fn params() -> impl Strategy<Value = Params> {
    (0usize..8, prop_oneof![Just(0.0), 0.0..20.0], 0u32..4, 1e-5..3e-5).prop_map(
        |(n_neighbors, shrinkage, support_min, affinity_unit)| Params {
            n_neighbors,
            shrinkage,
            support_min,
            affinity_unit,
        },
    )
}

const PLAIN: Params =
    Params { n_neighbors: 10, shrinkage: 0.0, support_min: 1, affinity_unit: 1.0 };

#[test]
fn a_hand_computed_catalogue() {
    // Users: {0, 1}, {0, 1, 2}, {0}, {}. Item 3 belongs to nobody.
    let users = [vec![(0, 1), (1, 1)], vec![(0, 1), (1, 1), (2, 1)], vec![(0, 1)], vec![]];
    let log = Log::new(&users, false, 4);
    let lists = all_neighbors(&log, &PLAIN);
    let row = lists.of(0);
    assert_eq!(row.items, [ItemIdx(1), ItemIdx(2)]);
    assert_eq!(row.supports, [2, 1]);
    assert_eq!(row.scores, [(2.0 / 6f64.sqrt()) as f32, (1.0 / 3f64.sqrt()) as f32]);
    assert!(lists.of(3).items.is_empty());

    let shrunk = all_neighbors(&log, &Params { shrinkage: 2.0, ..PLAIN });
    assert_eq!(shrunk.of(1).scores[0], (2.0 / (6f64.sqrt() + 2.0)) as f32);
    let supported = all_neighbors(&log, &Params { support_min: 2, ..PLAIN });
    assert_eq!(supported.of(0).items, [ItemIdx(1)]);
    assert!(supported.of(2).items.is_empty());
    assert_eq!(all_neighbors(&log, &Params { n_neighbors: 0, ..PLAIN }).n_neighbors(), 0);
}

#[test]
fn shrinkage_is_in_weight_whatever_the_unit() {
    let log = Log::new(&[vec![(0, 65_536), (1, 131_072)]], true, 2);
    let params = Params { shrinkage: 2.0, affinity_unit: 1.0 / 65_536.0, ..PLAIN };
    assert_eq!(all_neighbors(&log, &params).of(0).scores, [0.5]);
}

#[test]
fn squares_that_could_overflow_are_refused() {
    let large = 3_037_000_500; // The smallest number whose square reaches 2^63.
    let fits = Log::new(&[vec![(0, large - 1), (1, large - 1)]], true, 2);
    assert_eq!(all_neighbors(&fits, &PLAIN).of(0).scores, [1.0]);
    let too_large = Log::new(&[vec![(0, 1), (1, large)]], true, 2);
    let error = Transposed::new(&too_large.view()).unwrap_err();
    assert_eq!(error, KernelError::SquaredAffinities { item: ItemIdx(1) });
}

#[test]
fn no_users_and_no_items() {
    let empty = Log::new(&[], false, 0);
    assert_eq!(all_neighbors(&empty, &PLAIN).n_rows(), 0);
    let unused = Log::new(&[], false, 3);
    assert_eq!(all_neighbors(&unused, &PLAIN).n_rows(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn neighbors_equal_the_slow_twin(log in logs(), params in params()) {
        prop_assert_eq!(all_neighbors(&log, &params), reference::neighbors(&log.view(), &params));
    }

    #[test]
    fn threads_and_ranges_do_not_matter(log in logs(), params in params(), cut in 0f64..1.0) {
        let one = on_threads(1, || all_neighbors(&log, &params));
        let three = on_threads(3, || all_neighbors(&log, &params));
        let interactions = log.view();
        let transposed = Transposed::new(&interactions).unwrap();
        let cut = (cut * log.n_items as f64) as usize;
        let mut parts = neighbors(0..cut, &interactions, &transposed, &params);
        parts.append(neighbors(cut..log.n_items, &interactions, &transposed, &params));
        prop_assert_eq!(&three, &one);
        prop_assert_eq!(&parts, &one);
    }

    #[test]
    fn candidates_equal_the_slow_twin(
        log in logs(),
        params in params(),
        k in 0usize..20,
        skip in 2usize..5,
        weighted in any::<bool>(),
    ) {
        let lists = CandidateLists::new(&all_neighbors(&log, &params), 10);
        let recommendable: Vec<bool> = (0..log.n_items).map(|item| item % skip != 0).collect();
        let mut scratch = Scratch::new(log.n_items);
        for user in 0..log.view().n_users() {
            let items = log.history(user);
            let weights: Vec<f32> = (1..=items.len()).map(|at| 1.0 / at as f32).collect();
            let history = History { items, weights: weighted.then_some(&weights) };
            let seen: Vec<ItemIdx> = items.iter().step_by(skip).copied().collect();
            let filter = Filter { seen: &seen, recommendable: &recommendable };
            let found = neighbor_scores(&history, &lists, &filter, k, &mut scratch);
            prop_assert_eq!(found, reference::neighbor_scores(&history, &lists, &filter, k));
        }
    }
}
