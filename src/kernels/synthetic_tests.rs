use std::collections::HashSet;

use super::synthetic::{CHUNK_EVENTS, Catalog, EVENT_KINDS, Event, Params, Users, chunk_events};
use crate::types::DAY_US;

const END_US: i64 = 1_795_392_000_000_000;

fn params(n_users: u32, n_items: u32, n_events: u64, seed: u64) -> Params {
    Params { n_users, n_items, n_events, start_us: END_US - 180 * DAY_US, end_us: END_US, seed }
}

fn log(params: &Params) -> Vec<Event> {
    let catalog = Catalog::new(params);
    let users = Users::new(params, &catalog);
    (0..params.n_chunks()).flat_map(|c| chunk_events(params, &catalog, &users, c)).collect()
}

fn counts(n: u32, indices: impl Iterator<Item = u32>) -> Vec<usize> {
    let mut counts = vec![0; n as usize];
    indices.for_each(|index| counts[index as usize] += 1);
    counts
}

fn share_of_top_tenth(mut counts: Vec<usize>) -> f64 {
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let top: usize = counts[..counts.len() / 10].iter().sum();
    top as f64 / counts.iter().sum::<usize>() as f64
}

#[test]
fn log_has_asked_size_in_time_order_and_in_range() {
    for n_events in [0, 1, 1000, CHUNK_EVENTS, 2 * CHUNK_EVENTS + 1] {
        let params = params(300, 100, n_events, 7);
        let events = log(&params);
        assert_eq!(events.len() as u64, n_events);
        assert!(events.is_sorted_by_key(|e| e.time_us));
        for event in events {
            assert!(event.user < 300 && event.item < 100);
            assert!((params.start_us..params.end_us).contains(&event.time_us));
            assert!((1..=8).contains(&event.quantity));
            assert!(usize::from(event.kind) < EVENT_KINDS.len());
        }
    }
}

#[test]
fn smallest_shop_and_shortest_time_work() {
    let tight = Params { start_us: 0, end_us: 1000, ..params(1, 1, 5000, 3) };
    assert!(log(&tight).iter().all(|e| (e.time_us, e.user, e.item) == (0, 0, 0)));
}

#[test]
fn chunks_depend_on_seed_and_number_only() {
    let first = params(500, 200, 3 * CHUNK_EVENTS, 7);
    let catalog = Catalog::new(&first);
    let users = Users::new(&first, &catalog);
    let third = chunk_events(&first, &catalog, &users, 2);
    let first_chunk = chunk_events(&first, &catalog, &users, 0);
    assert_eq!(third, log(&first)[2 * CHUNK_EVENTS as usize..]);
    assert_ne!(first_chunk[0].user, third[0].user);
    assert_ne!(log(&Params { seed: 8, ..first }), log(&first));
}

#[test]
fn event_types_have_their_shares_and_returns_follow_purchases() {
    let events = log(&params(2000, 500, 200_000, 7));
    let kinds = counts(5, events.iter().map(|e| u32::from(e.kind)));
    let shares: Vec<f64> = kinds.iter().map(|&n| n as f64 / events.len() as f64).collect();
    for (share, expected) in shares.iter().zip([0.70, 0.20, 0.06, 0.04, 0.0032]) {
        assert!((share - expected).abs() < 0.1 * expected + 0.002, "{shares:?}");
    }
    let mut bought = HashSet::new();
    for event in events {
        match EVENT_KINDS[usize::from(event.kind)] {
            "purchase" => drop(bought.insert((event.user, event.item))),
            "return" => assert!(bought.contains(&(event.user, event.item))),
            _ => {}
        }
    }
}

#[test]
fn few_items_and_users_make_up_most_of_the_log() {
    for (n_users, n_items) in [(600, 300), (5000, 2000), (2000, 50_000)] {
        let events = log(&params(n_users, n_items, 200_000, 7));
        let items = share_of_top_tenth(counts(n_items, events.iter().map(|e| e.item)));
        let users = share_of_top_tenth(counts(n_users, events.iter().map(|e| e.user)));
        assert!((0.4..0.9).contains(&items), "{items}");
        assert!((0.3..0.7).contains(&users), "{users}");
    }
}

#[test]
fn users_stay_with_few_genres() {
    let params = params(200, 2000, 100_000, 7);
    let genres: Vec<_> = Catalog::new(&params).items().map(|item| item.genre).collect();
    let names: Vec<_> = genres.iter().collect::<HashSet<_>>().into_iter().collect();
    assert_eq!(names.len(), 16);
    let mut by_user = vec![[0_usize; 16]; 200];
    for event in log(&params) {
        let genre = names.iter().position(|&&name| name == genres[event.item as usize]);
        by_user[event.user as usize][genre.expect("genre is listed")] += 1;
    }
    let mut in_top_three = 0;
    for genres in &mut by_user {
        genres.sort_unstable();
        in_top_three += genres[13..].iter().sum::<usize>();
    }
    assert!(in_top_three > 65_000, "{in_top_three} of 100,000");
}

#[test]
fn some_items_rise_and_some_fall() {
    let params = params(500, 200, 100_000, 7);
    let events = log(&params);
    let early = counts(200, events[..50_000].iter().map(|e| e.item));
    let late = counts(200, events[50_000..].iter().map(|e| e.item));
    let ratio = |(e, l): (&usize, &usize)| (*l as f64 + 10.0) / (*e as f64 + 10.0);
    let ratios: Vec<f64> = early.iter().zip(&late).map(ratio).collect();
    assert!(ratios.iter().filter(|&&r| r > 1.4).count() >= 10);
    assert!(ratios.iter().filter(|&&r| r < 0.7).count() >= 10);
    assert!(ratios.iter().filter(|&&r| (0.8..1.25).contains(&r)).count() >= 80);
}

#[test]
fn titles_are_unique_and_tell_the_genre() {
    let catalog = Catalog::new(&params(1, 1_000_000, 0, 7));
    let mut titles = HashSet::new();
    let mut n_in_stock = 0;
    for item in catalog.items() {
        assert!(item.title.ends_with(&format!("({})", item.genre)), "{}", item.title);
        n_in_stock += usize::from(item.in_stock);
        assert!(titles.insert(item.title));
    }
    assert_eq!(titles.len(), 1_000_000);
    assert!((940_000..960_000).contains(&n_in_stock));
}

/// The first values of the stream, so that a change of the generator is never an accident.
#[test]
fn first_events_are_pinned() {
    let params = params(600, 300, 20_000, 7);
    let catalog = Catalog::new(&params);
    let titles: Vec<_> = catalog.items().take(3).map(|item| item.title).collect();
    let events = log(&params);
    let expected =
        ["The Copper Alibi (mystery)", "The Indigo Phantom (horror)", "The Iron Armada (history)"];
    assert_eq!(titles, expected);
    let time_us = 1_779_840_097_281_000;
    assert_eq!(events[0], Event { time_us, user: 376, item: 78, quantity: 1, kind: 3 });
}
