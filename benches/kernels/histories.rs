//! `histories::draft` and `finish` against nested maps: one shard of 262,144 events.

use std::collections::BTreeMap;

use divan::Bencher;
use divan::counter::ItemsCount;
use tidemill::kernels::decay::{Decay, ValueTransform, event_weight};
use tidemill::kernels::histories::{Block, Calendar, EventKind, Params, Scratch, draft, finish};
use tidemill::kernels::item_totals::ItemTotals;
use tidemill::types::{DAY_US, Histories, Ids, ItemIdx};

use crate::log::{AS_OF_US, CATALOGUES, Event, events, rows};

const N_EVENTS: usize = 262_144;
const CAP: usize = 1_000;
const WEIGHTS: [f64; 2] = [1.0, 10.0];
const DECAY: Decay = Decay { half_life_us: Some(30 * DAY_US), as_of_us: AS_OF_US };

type ByUser = BTreeMap<i64, BTreeMap<u32, i64>>;

#[divan::bench(args = CATALOGUES, sample_count = 10, sample_size = 1)]
fn kernel(bencher: Bencher<'_, '_>, n_items: usize) {
    let packed = rows(&shard(n_items)).pack();
    let idx_of_rank: Vec<u32> = (0..n_items as u32).collect();
    let totals = ItemTotals::new(n_items);
    let mut scratch = Scratch::new(&totals, 2);
    bencher
        .counter(ItemsCount::new(N_EVENTS))
        .bench_local(|| by_kernel(&packed, &mut scratch, &idx_of_rank));
}

#[divan::bench(args = CATALOGUES, sample_count = 5, sample_size = 1)]
fn plain(bencher: Bencher<'_, '_>, n_items: usize) {
    let events = shard(n_items);
    bencher.counter(ItemsCount::new(N_EVENTS)).bench_local(|| by_maps(&events));
}

pub(crate) fn assert_equal() {
    let events = events(300, 40, 5_000);
    let idx_of_rank: Vec<u32> = (0..300).collect();
    let totals = ItemTotals::new(300);
    let packed = rows(&events).pack();
    let histories = by_kernel(&packed, &mut Scratch::new(&totals, 1), &idx_of_rank);
    let twin = by_maps(&events);
    assert_eq!(histories.n_users(), twin.len());
    for (row, items) in twin.values().enumerate() {
        let (found, affinities) = histories.of(row);
        assert!(found.iter().copied().eq(items.keys().map(|&item| ItemIdx(item))));
        assert!(affinities.iter().eq(items.values()));
    }
}

fn shard(n_items: usize) -> Vec<Event> {
    events(n_items, 2_600, N_EVENTS)
}

fn by_kernel(packed: &[u8], scratch: &mut Scratch<'_>, idx_of_rank: &[u32]) -> Histories {
    let calendar = Calendar {
        as_of_us: AS_OF_US,
        window_start_us: i64::MIN,
        seen_start_us: i64::MIN,
        middle_us: AS_OF_US - 90 * DAY_US,
        decay: DECAY,
    };
    let kinds = WEIGHTS.map(kind);
    let params = Params {
        kinds: &kinds,
        calendar: &calendar,
        interactions_per_user_max: CAP,
        segment_of: None,
    };
    let blocks = [Block { packed, ranks: None, users: None }];
    let draft = draft(&blocks, &Ids::Int(Vec::new()), params, scratch);
    finish(draft, 0, idx_of_rank, CAP).0
}

fn kind(weight: f64) -> EventKind {
    EventKind {
        weight,
        transform: ValueTransform::None,
        value_max: None,
        group: u8::from(weight > 1.0),
        undoes: None,
        negative_undoes: false,
        excludes_item: false,
        marks_seen: true,
    }
}

/// Affinities alone: no sums, seen items, duplicates or undo events.
fn by_maps(events: &[Event]) -> ByUser {
    let mut users = ByUser::new();
    for event in events {
        let weight = WEIGHTS[usize::from(event.kind)];
        let weight = event_weight(weight, event.value.into(), ValueTransform::None, None);
        let affinity = DECAY.affinity(weight, event.time).expect("small weights fit");
        *users.entry(event.user).or_default().entry(event.item).or_default() += affinity;
    }
    users
}
