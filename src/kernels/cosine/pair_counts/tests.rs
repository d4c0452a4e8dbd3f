//! Counts that were kept against counts made anew, and lists from both against their slow twin.

use proptest::prelude::*;

use super::{
    Comparison, Differences, Numbers, PairCounts, StoredGroup, bytes_max, merged, n_groups,
};
use crate::kernels::cosine::{Interactions, Params};
use crate::kernels::{NeighborLists, reference, simd};
use crate::types::ItemIdx;

thread_local! {
    /// This thread alone: others would choose their instructions themselves.
    static ALONE: rayon::ThreadPool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread()
        .build()
        .expect("a pool of this thread");
}

type Histories = Vec<Vec<u16>>;

/// Counts of these histories, after those before.
fn add(counts: &mut PairCounts, before: &Histories, after: &Histories) {
    counts.add(&differences(before, after));
}

fn differences(before: &Histories, after: &Histories) -> Differences {
    let (mut differences, mut comparison) = (Differences::default(), Comparison::default());
    for (before, after) in before.iter().zip(after) {
        let (any_order, mut sorted) = (after.iter().rev().copied(), vec![9]);
        let counted = comparison.push(before, any_order, &mut sorted, &mut differences);
        assert_eq!(counted.is_some(), before != after);
        assert_eq!(sorted[1..], after[..]);
    }
    Differences::decode(&differences.encode())
}

/// Counts that lie in files, every so many-th group in each, with what the histories add.
fn read(
    stored: &PairCounts,
    n_files: usize,
    n_codes: usize,
    (before, after): (&Histories, &Histories),
) -> PairCounts {
    let files: Vec<usize> = (0..n_files).collect();
    let read = |file: &usize, give: &mut dyn FnMut(StoredGroup<'_>)| {
        stored.groups().filter(|group| group.first % n_files == *file).for_each(give);
        Ok::<(), ()>(())
    };
    let differences = differences(before, after);
    let codes = [stored.n_codes(), n_codes];
    PairCounts::read(&files, read, codes, |_| true, &differences).unwrap().unwrap()
}

#[test]
fn what_cannot_be_counts_is_not_read() {
    let none: Differences = Differences::default();
    let words = [[1, 0, 0, 0, 0, 0, 0, 0], [1; 8]];
    let read = |groups: &[StoredGroup<'_>]| {
        let read = |_: &(), give: &mut dyn FnMut(StoredGroup<'_>)| {
            groups.iter().copied().for_each(give);
            Ok::<(), ()>(())
        };
        PairCounts::read(&[()], read, [70; 2], |_| false, &none).unwrap()
    };
    let first = StoredGroup { first: 0, ends: &[0, 2], words: &words };
    let second = StoredGroup { first: 1, ends: &[2], words: &words };
    assert_eq!(read(&[second, first]).unwrap().groups().count(), 2);
    let odd = [
        StoredGroup { ends: &[2], ..first },
        StoredGroup { ends: &[2, 0], ..first },
        StoredGroup { ends: &[0, 1], ..first },
        StoredGroup { first: 2, ends: &[], words: &[] },
        second,
    ];
    assert!(odd.iter().all(|&odd| read(&[odd, second]).is_none()));
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let read = |file: &u8, _: &mut dyn FnMut(StoredGroup<'_>)| Err(*file);
    let found = PairCounts::read(&[7], read, [70; 2], |_| true, &Differences::default());
    assert_eq!(found, Err(7));
}

/// Lists where item `i` has code `i`.
fn lists(counts: &PairCounts, supports: &[u32], params: &Params) -> NeighborLists {
    let items: Vec<ItemIdx> = (0..counts.n_codes() as u32).map(ItemIdx).collect();
    let numbers = Numbers { items: &items, supports, n_items: items.len() };
    counts.neighbors(&numbers, params)
}

fn slow(histories: &Histories, n_items: usize, params: &Params) -> NeighborLists {
    let mut offsets = vec![0];
    let mut items = Vec::new();
    for history in histories {
        items.extend(history.iter().map(|&code| ItemIdx(code.into())));
        offsets.push(items.len() as u64);
    }
    let interactions = Interactions { offsets: &offsets, items: &items, affinities: None, n_items };
    reference::neighbors(&interactions, params)
}

fn history(n_codes: u16) -> impl Strategy<Value = Vec<u16>> {
    prop::collection::btree_set(0..n_codes, 0..14).prop_map(|codes| codes.into_iter().collect())
}

/// Days of histories of the same users; some users are there many times, so that bytes do not do.
fn days() -> impl Strategy<Value = (Vec<Histories>, u16)> {
    let sizes = (prop_oneof![1u16..40, 60u16..200], prop_oneof![4 => Just(1usize), 1 => Just(150)]);
    (sizes, 1usize..20).prop_flat_map(|((n_codes, repeats), n_users)| {
        let day = prop::collection::vec(history(n_codes), n_users);
        prop::collection::vec(day, 1..4).prop_map(move |days| {
            let repeated = |day: Histories| {
                let n = repeats * day.len();
                day.into_iter().cycle().take(n).collect()
            };
            (days.into_iter().map(repeated).collect(), n_codes)
        })
    })
}

fn params() -> impl Strategy<Value = Params> {
    (0usize..8, prop_oneof![Just(0.0), 0.0..20.0], 0u32..4).prop_map(
        |(n_neighbors, shrinkage, support_min)| Params {
            n_neighbors,
            shrinkage,
            support_min,
            affinity_unit: 1.0,
        },
    )
}

#[test]
fn a_user_changes_one_item() {
    let days = [vec![vec![0, 1], vec![1, 2]], vec![vec![0, 2], vec![1, 2]], vec![vec![], vec![]]];
    let mut counts = PairCounts::new();
    counts.grow(3, |_| true);
    add(&mut counts, &vec![vec![], vec![]], &days[0]);
    assert_eq!(counts.supports(), [1, 2, 1]);
    add(&mut counts, &days[0], &days[1]);
    assert_eq!(counts.supports(), [1, 1, 2]);
    add(&mut counts, &days[1], &days[2]);
    let mut none = PairCounts::new();
    none.grow(3, |_| true);
    assert_eq!(counts, none);
}

#[test]
#[should_panic(expected = "no more users leave a pair than it has")]
fn what_was_never_counted_cannot_be_taken_away() {
    let mut counts = PairCounts::new();
    counts.grow(3, |_| true);
    add(&mut counts, &vec![vec![0, 1]], &vec![vec![]]);
}

#[test]
fn bytes_have_a_bound() {
    let histories: Histories = (0..300).map(|user| (0..=user % 90).collect()).collect();
    let mut counts = PairCounts::new();
    counts.grow(90, |_| true);
    add(&mut counts, &vec![vec![]; 300], &histories);
    let n_counted =
        histories.iter().map(|history| (history.len() * (history.len() + 1) / 2) as u64);
    let bound = bytes_max(90, n_counted.sum());
    assert!(counts.heap_bytes() as u64 <= bound + 100, "{} of {bound}", counts.heap_bytes());
    assert!((bytes_max(27_000, 1_200_000_000) as f64) < 4.0e8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn kept_counts_give_the_lists_of_the_slow_twin(
        (days, n_codes) in days(), params in params(), n_processes in 1usize..4,
    ) {
        let n_codes = usize::from(n_codes);
        let mut before = vec![Vec::new(); days[0].len()];
        let mut kept = vec![PairCounts::new(); n_processes];
        for (day, histories) in days.iter().enumerate() {
            // Codes that nobody has yet come later.
            let used = histories.iter().flatten().max().map_or(0, |&code| usize::from(code) + 1);
            let n_now = if day + 1 == days.len() { n_codes } else { used };
            let mut supports = vec![0; n_now.max(kept[0].n_codes())];
            for (index, counts) in kept.iter_mut().enumerate() {
                let stored = (n_processes == 1)
                    .then(|| read(counts, 1 + day, n_now.max(counts.n_codes()), (&before, histories)));
                counts.grow(n_now, |group| group % n_processes == index);
                add(counts, &before, histories);
                prop_assert!(stored.is_none_or(|stored| stored == *counts));
                supports.iter_mut().zip(counts.supports()).for_each(|(sum, of)| *sum += of);
            }
            for (code, &support) in supports.iter().enumerate() {
                let users = histories.iter().filter(|of| of.contains(&(code as u16))).count();
                prop_assert_eq!(support as usize, users);
            }
            let parts: Vec<_> =
                kept.iter().map(|counts| lists(counts, &supports, &params)).collect();
            let expected = slow(histories, supports.len(), &params);
            prop_assert_eq!(&merged(&parts, params.n_neighbors), &expected);
            before.clone_from(histories);
        }
        let mut anew = PairCounts::new();
        anew.grow(n_codes, |_| true);
        add(&mut anew, &vec![Vec::new(); before.len()], &before);
        if n_processes == 1 {
            prop_assert_eq!(&kept[0], &anew);
        }
        prop_assert_eq!(n_groups(n_codes), n_codes.div_ceil(64));
    }

    #[test]
    fn instructions_do_not_matter((days, n_codes) in days(), params in params()) {
        let at_each = simd::at_each_level(|| {
            let mut counts = PairCounts::new();
            counts.grow(n_codes.into(), |_| true);
            ALONE.with(|pool| pool.install(|| {
                add(&mut counts, &vec![Vec::new(); days[0].len()], &days[0]);
                let supports = counts.supports();
                let found = lists(&counts, &supports, &params);
                (counts, found)
            }))
        });
        for other in &at_each[1..] {
            prop_assert_eq!(other, &at_each[0]);
        }
    }
}
