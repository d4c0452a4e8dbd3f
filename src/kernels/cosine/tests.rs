//! Cosine neighbors and the candidates made from them, against their slow twins.

use proptest::prelude::*;

use super::{Interactions, Params, Ranked, neighbors};
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
    let ranked = Ranked::new(&interactions).unwrap();
    neighbors(0..log.n_items, &ranked, params)
}

fn on_threads<T: Send>(n_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(work)
}

/// In small catalogues all cells are scanned, in others those of short rows are walked. Histories are
/// repeated in some, so that a byte does not hold all counts.
fn logs() -> impl Strategy<Value = Log> {
    let catalogue = prop_oneof![1usize..30, 300usize..600];
    let repeats = prop_oneof![4 => Just(1usize), 1 => Just(40)];
    (catalogue, repeats, any::<bool>()).prop_flat_map(|(n_items, repeats, weighted)| {
        let item = 0..(n_items as u32).min(40);
        let history = prop::collection::btree_map(item, 1i64..200_000, 0..12);
        let histories = prop::collection::vec(history, 1..25);
        histories.prop_map(move |histories| {
            let histories: Vec<Vec<_>> =
                histories.into_iter().map(|history| history.into_iter().collect()).collect();
            let n_users = repeats * histories.len();
            let histories: Vec<_> = histories.into_iter().cycle().take(n_users).collect();
            Log::new(&histories, weighted, n_items)
        })
    })
}

/// The same log in a catalogue of many more items, which keep their order.
fn spread_out(log: &Log, n_items: usize) -> (Log, Vec<ItemIdx>) {
    let step = n_items / log.n_items;
    let items: Vec<_> = (0..log.n_items).map(|item| ItemIdx((item * step) as u32)).collect();
    let renamed = log.items.iter().map(|item| items[item.index()]).collect();
    (Log { items: renamed, n_items, ..log.clone() }, items)
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
    let error = Ranked::new(&too_large.view()).unwrap_err();
    assert_eq!(error, KernelError::SquaredAffinities { item: ItemIdx(1) });
}

/// Counts of more than two bytes, next to counts of one.
#[test]
fn very_many_users() {
    let rare = vec![vec![(0, 3), (2, 5)], vec![(1, 1), (2, 1), (3, 1)], vec![(0, 1), (3, 1)]];
    for (n_users, weighted) in [(300, false), (70_000, false), (70_000, true)] {
        let mut users = vec![vec![(0, 1), (1, 2)]; n_users];
        users.extend_from_slice(&rare);
        let log = Log::new(&users, weighted, 4);
        let expected = reference::neighbors(&log.view(), &PLAIN);
        assert_eq!(all_neighbors(&log, &PLAIN), expected);
        assert_eq!(expected.of(0).supports[0] as usize, n_users);
        let (wide, items) = spread_out(&log, 70_000);
        assert_equal_lists(&all_neighbors(&wide, &PLAIN), &expected, &items);
    }
}

/// The lists of a log that was spread out are those of the log.
fn assert_equal_lists(wide: &NeighborLists, lists: &NeighborLists, items: &[ItemIdx]) {
    assert_eq!(wide.n_neighbors(), lists.n_neighbors());
    for (row, &item) in items.iter().enumerate() {
        let (found, expected) = (wide.of(item.index()), lists.of(row));
        let renamed: Vec<_> = expected.items.iter().map(|item| items[item.index()]).collect();
        assert_eq!(found.items, renamed);
        assert_eq!(found.scores, expected.scores);
        assert_eq!(found.supports, expected.supports);
    }
}

#[test]
fn pairs_are_numbered_by_support_and_by_length() {
    // Supports: item 0 has 1 user, item 1 has 3, item 2 has 2, item 3 has none.
    let users = [vec![(1, 1)], vec![(0, 1), (1, 1), (2, 1)], vec![(1, 1), (2, 1)]];
    let ranked = Ranked::new(&Log::new(&users, false, 4).view()).unwrap();
    assert_eq!(ranked.items, [3, 0, 2, 1].map(ItemIdx));
    assert_eq!(ranked.codes, [1, 3, 2, 0]);
    assert_eq!(ranked.users.entries, [0, 0, 1, 0, 1, 2]);
    assert_eq!(ranked.classes, [(0.0, 0), (1.0, 1), (2f64.sqrt(), 2), (3f64.sqrt(), 3)]);
    assert_eq!((ranked.support(ItemIdx(1)), ranked.support(ItemIdx(3))), (3, 0));
    let weighted = Ranked::new(&Log::new(&[vec![(0, 3), (1, 2)]], true, 2).view()).unwrap();
    assert_eq!(weighted.items, [1, 0].map(ItemIdx));
    assert_eq!(weighted.users.affinities, Some(vec![2, 3]));
}

#[test]
fn no_users_and_no_items() {
    let empty = Log::new(&[], false, 0);
    assert_eq!(all_neighbors(&empty, &PLAIN).n_rows(), 0);
    let unused = Log::new(&[], false, 3);
    assert_eq!(all_neighbors(&unused, &PLAIN).n_rows(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn neighbors_equal_the_slow_twin(log in logs(), params in params()) {
        prop_assert_eq!(all_neighbors(&log, &params), reference::neighbors(&log.view(), &params));
    }

    #[test]
    fn a_large_catalogue_has_the_same_lists(log in logs(), params in params()) {
        let (wide, items) = spread_out(&log, 70_000);
        let expected = reference::neighbors(&log.view(), &params);
        assert_equal_lists(&all_neighbors(&wide, &params), &expected, &items);
    }

    #[test]
    fn threads_and_ranges_do_not_matter(log in logs(), params in params(), cut in 0f64..1.0) {
        let one = on_threads(1, || all_neighbors(&log, &params));
        let three = on_threads(3, || all_neighbors(&log, &params));
        let interactions = log.view();
        let ranked = Ranked::new(&interactions).unwrap();
        let cut = (cut * log.n_items as f64) as usize;
        let mut parts = neighbors(0..cut, &ranked, &params);
        parts.append(neighbors(cut..log.n_items, &ranked, &params));
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
        let mut without = Scratch::without_reasons(log.n_items);
        for user in 0..log.view().n_users() {
            let items = log.history(user);
            let weights: Vec<f32> = (1..=items.len()).map(|at| 1.0 / at as f32).collect();
            let history = History { items, weights: weighted.then_some(&weights) };
            let seen: Vec<ItemIdx> = items.iter().step_by(skip).copied().collect();
            let filter = Filter { seen: &seen, recommendable: &recommendable };
            let found = neighbor_scores(&history, &lists, &filter, k, &mut scratch);
            let expected = reference::neighbor_scores(&history, &lists, &filter, k);
            let bare = neighbor_scores(&history, &lists, &filter, k, &mut without);
            prop_assert_eq!((&bare.list, bare.because.len()), (&expected.list, 0));
            prop_assert_eq!(found, expected);
        }
    }
}
