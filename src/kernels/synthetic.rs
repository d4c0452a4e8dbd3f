//! An invented shop: a catalog, its users and their events, from a seed.
//!
//! Every draw comes from ChaCha8 with its own stream per table and per chunk of events, only 64-bit
//! words are taken from it, and `exp`, `ln`, `cos` and `pow` come from `libm`: the same parameters
//! give the same shop on every machine, and chunks may be made in any order.

mod words;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::types::DAY_US;
use words::{ADJECTIVES, COUNTRIES, SHELVES, Shelf};

/// Events per chunk; the last chunk may be shorter.
pub const CHUNK_EVENTS: u64 = 65_536;

/// Names of the event types, in the order of [`Event::kind`].
pub const EVENT_KINDS: [&str; 5] = ["view", "click", "cart", "purchase", "return"];

const PURCHASE: u8 = 3;
const RETURN: u8 = 4;

const CLUSTERS_MAX: usize = 64;
const ITEMS_PER_CLUSTER: usize = 16;
const TASTES_PER_USER: usize = 3;
const IN_TASTE_SHARE: f64 = 0.7;
const RETURN_SHARE: f64 = 0.08;
const RETURN_DAYS: i64 = 14;
const POPULARITY_EXPONENT: f64 = 0.9;
const ACTIVITY_SIGMA: f64 = 1.1;

const CATALOG_STREAM: u64 = 0;
const USERS_STREAM: u64 = 1;
const FIRST_CHUNK_STREAM: u64 = 2;

/// Times are whole milliseconds: more digits than that look invented.
const TICK_US: i64 = 1_000;

/// What shop to invent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Users, at least 1. A user may end up without an event.
    pub n_users: u32,
    /// Items, at least 1. An item may end up without an event.
    pub n_items: u32,
    /// Events, returns included.
    pub n_events: u64,
    /// Time of the first possible event, microseconds since 1970 UTC.
    pub start_us: i64,
    /// End of the log, exclusive, at least a millisecond after `start_us`.
    pub end_us: i64,
    /// Another seed is another shop.
    pub seed: u64,
}

impl Params {
    /// Number of chunks that make up the log.
    pub fn n_chunks(&self) -> u64 {
        self.n_events.div_ceil(CHUNK_EVENTS)
    }

    /// Rows of the log in chunk `chunk`, as first row and row after the last.
    fn chunk_rows(&self, chunk: u64) -> (u64, u64) {
        (chunk * CHUNK_EVENTS, ((chunk + 1) * CHUNK_EVENTS).min(self.n_events))
    }

    /// The time at which row `row` of an evenly busy log falls.
    fn time_of_row(&self, row: u64) -> i64 {
        let span = i128::from(self.end_us) - i128::from(self.start_us);
        let offset = span * i128::from(row) / i128::from(self.n_events.max(1));
        self.start_us + offset as i64
    }
}

/// What a shop says about one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Unique in the catalog, and tells the genre: `The Copper Lighthouse (mystery)`.
    pub title: String,
    /// One of 16 genres; items of a genre are liked by the same users.
    pub genre: &'static str,
    /// False for one item in twenty.
    pub in_stock: bool,
}

/// The items, and how often they are picked.
///
/// Popularity is a power law over a random order of the items. They are dealt in that order to up
/// to 64 taste clusters, so every cluster has its bestsellers; a genre is one to four clusters.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// Items cluster by cluster, the most popular of each cluster first.
    item_by_position: Vec<u32>,
    /// Running sum of popularity along `item_by_position`.
    popularity_sums: Vec<f64>,
    /// Position at which each cluster starts, and the end.
    cluster_starts: Vec<usize>,
    /// Cluster of each item.
    clusters: Vec<u8>,
    /// In (-1, 1): above 0 the item is picked more often late in the log, below 0 early.
    trends: Vec<f32>,
    in_stock: Vec<bool>,
}

impl Catalog {
    /// Invents the items. Cost: O(n_items) time, 18 bytes per item.
    ///
    /// # Panics
    /// If there are no items.
    pub fn new(params: &Params) -> Self {
        assert!(params.n_items > 0, "a catalog needs an item");
        let n_items = params.n_items as usize;
        let n_clusters = (n_items / ITEMS_PER_CLUSTER).clamp(1, CLUSTERS_MAX);
        let mut rng = stream(params.seed, CATALOG_STREAM);
        let item_by_rank = shuffled(&mut rng, params.n_items);
        let mut catalog = Self {
            item_by_position: Vec::with_capacity(n_items),
            popularity_sums: Vec::with_capacity(n_items),
            cluster_starts: Vec::with_capacity(n_clusters + 1),
            clusters: vec![0; n_items],
            trends: (0..n_items).map(|_| trend(&mut rng)).collect(),
            in_stock: (0..n_items).map(|_| unit(&mut rng) >= 0.05).collect(),
        };
        // A flat head of twenty items for large catalogs, a steeper one for small ones, whose few
        // items would otherwise be almost equally popular.
        let head = (n_items as f64 / 100.0).min(20.0);
        let mut sum = 0.0;
        for cluster in 0..n_clusters {
            catalog.cluster_starts.push(catalog.item_by_position.len());
            for rank in (cluster..n_items).step_by(n_clusters) {
                let item = item_by_rank[rank];
                sum += libm::pow(rank as f64 + 1.0 + head, -POPULARITY_EXPONENT);
                catalog.item_by_position.push(item);
                catalog.popularity_sums.push(sum);
                catalog.clusters[item as usize] = cluster as u8;
            }
        }
        catalog.cluster_starts.push(n_items);
        catalog
    }

    /// All items, in the order of their numbers.
    pub fn items(&self) -> impl Iterator<Item = Item> + '_ {
        let mut n_titled = [0_usize; SHELVES.len()];
        self.clusters.iter().zip(&self.in_stock).map(move |(&cluster, &in_stock)| {
            let shelf = usize::from(cluster) % SHELVES.len();
            let number = n_titled[shelf];
            n_titled[shelf] += 1;
            Item { title: title(shelf, number), genre: SHELVES[shelf].genre, in_stock }
        })
    }

    fn n_clusters(&self) -> usize {
        self.cluster_starts.len() - 1
    }

    /// Picks from the whole catalog.
    fn pick_any(&self, rng: &mut ChaCha8Rng) -> u32 {
        self.pick(rng, 0, self.item_by_position.len())
    }

    /// Picks from one cluster.
    fn pick_in_cluster(&self, rng: &mut ChaCha8Rng, cluster: usize) -> u32 {
        self.pick(rng, self.cluster_starts[cluster], self.cluster_starts[cluster + 1])
    }

    fn pick(&self, rng: &mut ChaCha8Rng, start: usize, end: usize) -> u32 {
        let before = if start == 0 { 0.0 } else { self.popularity_sums[start - 1] };
        let sums = &self.popularity_sums[start..end];
        self.item_by_position[start + pick_by_sums(rng, before, sums)]
    }
}

/// The users: how active each is, where they live and what they like.
#[derive(Clone, Debug)]
pub struct Users {
    /// Running sum of activity, which is lognormal.
    activity_sums: Vec<f64>,
    tastes: Vec<[u8; TASTES_PER_USER]>,
    countries: Vec<u8>,
}

impl Users {
    /// Invents the users of `catalog`. Cost: O(n_users) time, 12 bytes per user.
    ///
    /// # Panics
    /// If there are no users.
    pub fn new(params: &Params, catalog: &Catalog) -> Self {
        assert!(params.n_users > 0, "a shop needs a user");
        let n_users = params.n_users as usize;
        let mut rng = stream(params.seed, USERS_STREAM);
        let mut users = Self {
            activity_sums: Vec::with_capacity(n_users),
            tastes: Vec::with_capacity(n_users),
            countries: Vec::with_capacity(n_users),
        };
        let mut sum = 0.0;
        for _ in 0..n_users {
            sum += libm::exp(ACTIVITY_SIGMA * standard_normal(&mut rng));
            let country = below_skewed(&mut rng, COUNTRIES.len());
            // Each country has other favorites, so that popularity per segment differs.
            let tastes = std::array::from_fn(|_| {
                let taste = below_skewed(&mut rng, catalog.n_clusters());
                ((taste + 5 * country) % catalog.n_clusters()) as u8
            });
            users.activity_sums.push(sum);
            users.tastes.push(tastes);
            users.countries.push(country as u8);
        }
        users
    }

    /// ISO code of each user's country, in the order of the users' numbers.
    pub fn countries(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.countries.iter().map(|&country| COUNTRIES[usize::from(country)])
    }
}

/// One row of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Microseconds since 1970 UTC, a whole millisecond if `start_us` is one.
    pub time_us: i64,
    /// Number of the user, `0..n_users`.
    pub user: u32,
    /// Number of the item, `0..n_items`.
    pub item: u32,
    /// Pieces, 1 to 8; for views and clicks 1.
    pub quantity: i32,
    /// Position in [`EVENT_KINDS`].
    pub kind: u8,
}

/// The events of chunk `chunk`, in time order; all chunks in order are the log in time order.
///
/// A chunk covers its share of the time span, and every event in it is drawn by itself: the user by
/// activity, the item 7 times in 10 from one of the user's three taste clusters and else from the
/// whole catalog, by popularity and by the item's trend at that time, the type as 70 % views, 20 %
/// clicks, 6 % cart and 4 % purchases. A purchase in 12 or so is followed by a return of the same
/// user and item, of as many pieces or fewer, within 14 days and within the chunk. Rows at the same
/// time keep the order in which they were drawn. Cost: O(log n_users + log n_items) per event.
///
/// # Panics
/// If `chunk` is not below `params.n_chunks()`, or `catalog` or `users` are of other parameters.
pub fn chunk_events(params: &Params, catalog: &Catalog, users: &Users, chunk: u64) -> Vec<Event> {
    assert!(chunk < params.n_chunks(), "chunk out of range");
    assert_eq!(catalog.clusters.len(), params.n_items as usize, "catalog of other parameters");
    assert_eq!(users.countries.len(), params.n_users as usize, "users of other parameters");
    let (first_row, end_row) = params.chunk_rows(chunk);
    let (start_us, end_us) = (params.time_of_row(first_row), params.time_of_row(end_row));
    let n_events = (end_row - first_row) as usize;
    let mut rng = stream(params.seed, FIRST_CHUNK_STREAM + chunk);
    let mut events = Vec::with_capacity(n_events);
    while events.len() < n_events {
        let time_us = time_between(&mut rng, start_us, end_us);
        let event = draw_event(params, catalog, users, &mut rng, time_us);
        events.push(event);
        let returned = event.kind == PURCHASE && unit(&mut rng) < RETURN_SHARE;
        if returned && events.len() < n_events && time_us + TICK_US < end_us {
            let return_end_us = end_us.min(time_us + RETURN_DAYS * DAY_US);
            events.push(Event {
                time_us: time_between(&mut rng, time_us + TICK_US, return_end_us),
                quantity: 1 + below(&mut rng, event.quantity as usize) as i32,
                kind: RETURN,
                ..event
            });
        }
    }
    events.sort_by_key(|event| event.time_us);
    events
}

fn draw_event(
    params: &Params,
    catalog: &Catalog,
    users: &Users,
    rng: &mut ChaCha8Rng,
    time_us: i64,
) -> Event {
    let elapsed = (time_us - params.start_us) as f64 / (params.end_us - params.start_us) as f64;
    let user = pick_by_sums(rng, 0.0, &users.activity_sums);
    let kind = match unit(rng) {
        r if r < 0.70 => 0,
        r if r < 0.90 => 1,
        r if r < 0.96 => 2,
        _ => PURCHASE,
    };
    let mut quantity = 1;
    while kind >= 2 && quantity < 8 && unit(rng) < 0.2 {
        quantity += 1;
    }
    Event {
        time_us,
        user: user as u32,
        item: draw_item(catalog, users.tastes[user], rng, elapsed),
        quantity,
        kind,
    }
}

/// Picks until the item's trend lets it pass, which half the picks do.
fn draw_item(
    catalog: &Catalog,
    tastes: [u8; TASTES_PER_USER],
    rng: &mut ChaCha8Rng,
    elapsed: f64,
) -> u32 {
    loop {
        let item = if unit(rng) < IN_TASTE_SHARE {
            let taste = tastes[below(rng, TASTES_PER_USER)];
            catalog.pick_in_cluster(rng, usize::from(taste))
        } else {
            catalog.pick_any(rng)
        };
        let slope = f64::from(catalog.trends[item as usize]);
        if 2.0 * unit(rng) <= 1.0 + slope * (2.0 * elapsed - 1.0) {
            return item;
        }
    }
}

/// The `number`-th title of a shelf: adjective and noun, and a volume once all pairs are used.
fn title(shelf: usize, number: usize) -> String {
    let Shelf { genre, nouns } = &SHELVES[shelf];
    let n_pairs = ADJECTIVES.len() * nouns.len();
    // 197 is odd and `n_pairs` a power of two: all pairs come up before one does again.
    let pair = (number * 197 + shelf * 41) % n_pairs;
    let (adjective, noun) = (ADJECTIVES[pair / nouns.len()], nouns[pair % nouns.len()]);
    match number / n_pairs {
        0 => format!("The {adjective} {noun} ({genre})"),
        volume => format!("The {adjective} {noun} {} ({genre})", volume + 1),
    }
}

/// Most items are steady: the cube keeps half of them within an eighth of zero. Staying off ±1
/// keeps every item possible at all times, so that picking ends.
fn trend(rng: &mut ChaCha8Rng) -> f32 {
    let side = 2.0 * unit(rng) - 1.0;
    (0.95 * side * side * side) as f32
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(bytes);
    rng.set_stream(stream);
    rng
}

/// Uniform in [0, 1), 53 bits.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    const STEP: f64 = 1.0 / (1_u64 << 53) as f64;
    (rng.next_u64() >> 11) as f64 * STEP
}

/// Uniform in `0..n`.
fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// In `0..n`, with 0 up to three times as likely as `n - 1`.
fn below_skewed(rng: &mut ChaCha8Rng, n: usize) -> usize {
    let r = unit(rng);
    ((0.5 * (r + r * r) * n as f64) as usize).min(n - 1)
}

/// A whole number of ticks after `start_us` and before `end_us`; `start_us` if there is none.
fn time_between(rng: &mut ChaCha8Rng, start_us: i64, end_us: i64) -> i64 {
    let n_ticks = (end_us - start_us) / TICK_US;
    start_us + TICK_US * below(rng, n_ticks as usize) as i64
}

/// Box-Muller; the second value of the pair is not kept.
fn standard_normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - unit(rng)));
    radius * libm::cos(std::f64::consts::TAU * unit(rng))
}

/// `0..n` in random order (Fisher-Yates).
fn shuffled(rng: &mut ChaCha8Rng, n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, below(rng, last + 1));
    }
    order
}

/// A position of `sums` in proportion to its share, where `sums` are running sums that begin after
/// `before`.
fn pick_by_sums(rng: &mut ChaCha8Rng, before: f64, sums: &[f64]) -> usize {
    let target = before + unit(rng) * (sums[sums.len() - 1] - before);
    sums.partition_point(|&sum| sum <= target).min(sums.len() - 1)
}
