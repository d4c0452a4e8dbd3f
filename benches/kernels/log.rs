//! Seeded logs: a few items have most of the events.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tidemill::kernels::cosine::Interactions;
use tidemill::kernels::event_rows::{EventRows, RowUsers};
use tidemill::types::{DAY_US, ItemIdx};

/// Items of the catalogues that are measured: one whose accumulators fit a cache, one that does not.
pub(crate) const CATALOGUES: [usize; 2] = [27_000, 1_000_000];

/// The day after the last event.
pub(crate) const AS_OF_US: i64 = 20_000 * DAY_US;

/// An item, low ones far more often than high ones.
fn item(n_items: usize, rng: &mut ChaCha8Rng) -> u32 {
    (rng.random::<f64>().powi(3) * n_items as f64) as u32
}

/// Histories end to end.
pub(crate) struct Log {
    pub(crate) offsets: Vec<u64>,
    pub(crate) items: Vec<ItemIdx>,
    pub(crate) n_items: usize,
}

impl Log {
    /// `n_users` users with up to `history` items each.
    pub(crate) fn new(n_items: usize, n_users: usize, history: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut log = Self { offsets: vec![0], items: Vec::new(), n_items };
        for _ in 0..n_users {
            let items: BTreeSet<u32> = (0..history).map(|_| item(n_items, &mut rng)).collect();
            log.items.extend(items.into_iter().map(ItemIdx));
            log.offsets.push(log.items.len() as u64);
        }
        log
    }

    pub(crate) fn interactions(&self) -> Interactions<'_> {
        let Self { offsets, items, n_items } = self;
        Interactions { offsets, items, affinities: None, n_items: *n_items }
    }

    pub(crate) fn history(&self, user: usize) -> &[ItemIdx] {
        &self.items[self.offsets[user] as usize..self.offsets[user + 1] as usize]
    }

    pub(crate) fn n_users(&self) -> usize {
        self.offsets.len() - 1
    }
}

/// One event as a struct.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) user: i64,
    pub(crate) item: u32,
    pub(crate) kind: u8,
    pub(crate) value: f32,
    pub(crate) time: i64,
}

/// Events of half a year, in no order.
pub(crate) fn events(n_items: usize, n_users: i64, n_events: usize) -> Vec<Event> {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    (0..n_events)
        .map(|_| Event {
            user: rng.random_range(0..n_users),
            item: item(n_items, &mut rng),
            kind: u8::from(rng.random_bool(0.1)),
            value: 1.0,
            time: AS_OF_US - 1 - rng.random_range(0..180 * DAY_US),
        })
        .collect()
}

/// The same events as columns.
pub(crate) fn rows(events: &[Event]) -> EventRows {
    EventRows {
        users: RowUsers::Int(events.iter().map(|event| event.user).collect()),
        items: events.iter().map(|event| event.item).collect(),
        kinds: events.iter().map(|event| event.kind).collect(),
        values: events.iter().map(|event| event.value).collect(),
        times: events.iter().map(|event| event.time).collect(),
        digests: Vec::new(),
        files: Vec::new(),
    }
}

/// Runs `work` with a rayon pool of one thread around it.
pub(crate) fn on_one_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("one more thread can be started").install(work)
}
