//! Runs between two fits, held against runs that keep no list, and on other numbers of workers.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::changes_tests::{current_manifest, rows};
use super::crash_tests::{published_tables, request};
use super::state_tests::{Log, Row, assert_made_up_for, put, put_ids, run_on};
use super::*;
use crate::store::faults::World;
use crate::store::witness::objects;

fn spec(rng: &mut ChaCha8Rng) -> String {
    let mut spec = String::from(
        "name = \"between\"\nshards = 4\n[limits]\nreject_share_max = 0.9\n\
         [[events]]\nurl = \"s3://shop/log/\"\ntime_unit = \"s\"\n\
         columns = { user = \"user\", item = \"item\", time = \"time\", event = \"event\" }\n\
         [events.weights]\nview = 1.0\nbuy = 3.0\n",
    );
    let mut maybe = |text: &'static str, share: f64| {
        let text = if rng.random_bool(share) { text } else { "" };
        spec.push_str(text);
    };
    maybe("hide = -2.0\n", 0.3);
    maybe("[history]\nusers_per_item_min = 3\n", 0.5);
    maybe("[deny.items]\nurl = \"s3://shop/items.parquet\"\ncolumn = \"item\"\n", 0.7);
    maybe("[popularity]\n", 0.3);
    let als = "[als]\nn_factors = 4\niterations = 2\nwarm_iterations = 0\nwarm_runs_max = 3\n";
    maybe(als, 1.0);
    maybe("interactions_per_user_min = 3\n", 0.3);
    maybe("[output]\nurl = \"s3://shop/out/\"\n[top_k]\nk = 3\n", 1.0);
    maybe("shape = \"lists\"\n", 0.5);
    maybe("because = false\n", 0.2);
    maybe("exclude_seen = [\"buy\"]\n", 0.7);
    maybe("candidates = { als = 2.0 }\n", 0.3);
    spec
}

/// The vectors of a table of factors, with the digest where there is one, by id.
fn vectors(
    seen: &BTreeMap<String, Vec<u8>>,
    of: &Manifest,
    table: &str,
) -> BTreeMap<String, Vec<String>> {
    let all = rows(seen, of, table).into_iter();
    all.map(|row| {
        let mut row: Vec<String> = row.into_iter().flatten().collect();
        let id = row.remove(0);
        // The number of the row belongs to the run.
        row.remove(0);
        (id, row)
    })
    .collect()
}

/// The tables but for why an item is there, which an earlier list keeps.
fn without_reasons(
    world: &World,
    manifest: &Manifest,
) -> BTreeMap<String, Vec<Vec<Option<String>>>> {
    let seen = objects(&world.objects, "out");
    let names: BTreeSet<&str> = manifest.files.iter().map(|file| file.table.as_str()).collect();
    let of_table = |name: &str| {
        let mut rows = rows(&seen, manifest, name);
        if name.starts_with("user_top_k") {
            rows.iter_mut().for_each(|row| drop(row.pop()));
        }
        (name.to_owned(), rows)
    };
    names.into_iter().map(of_table).collect()
}

/// What some runs came to.
#[derive(Default)]
struct Sums {
    fold_ins: u64,
    users_kept: u64,
    users_folded_in: u64,
    items_folded_in: u64,
    lists_kept: u64,
    vectors_new: u64,
}

#[test]
fn who_is_as_before_keeps_factors_and_list_and_all_else_is_as_if_made_anew() {
    let runtime = IoRuntime::new().unwrap();
    let mut sums = Sums::default();
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let spec = spec(&mut rng);
        let mut log = Log::new();
        let worlds = [World::new(), World::new(), World::new()];
        let workers = [rng.random_range(1..4), rng.random_range(1..4), 1];
        let mut denied: Vec<i64> = vec![1, 2];
        let mut before: Option<Manifest> = None;
        for day in 0..rng.random_range(2..6usize) {
            let n_rows = if day == 0 { 150 } else { rng.random_range(0..6) };
            let mut new: Vec<Row> = (0..n_rows).map(|_| Row::random(&mut rng, 0)).collect();
            // Items of later days are new.
            if day > 0 && rng.random_bool(0.6) {
                new.iter_mut().for_each(|row| row.item = Some(100 + day as i64));
            }
            log.insert(format!("day-{day}.parquet"), new);
            if rng.random_bool(0.3) {
                denied = (0..rng.random_range(0..3)).map(|_| rng.random_range(0..10)).collect();
            }
            // A job that is never the same to the letter keeps no list.
            let other = format!("name = \"day-{day}\"\n{}", spec.split_once('\n').unwrap().1);
            let mut published = Vec::new();
            for (at, world) in worlds.iter().enumerate() {
                put(world, &log, false, 100);
                put_ids(world, "item", &denied);
                let spec = if at == 2 { &other } else { &spec };
                let request = Request { workers: workers[at], ..request(spec, &format!("r{day}")) };
                let outcome = run_on(world, &runtime, request)
                    .unwrap_or_else(|error| panic!("seed {seed}, day {day}: {error:#}\n{spec}"));
                let Outcome::Published { manifest, .. } = outcome else { panic!("{outcome:?}") };
                published.push(*manifest);
            }
            let when = format!("seed {seed}, day {day}, {workers:?} workers\n{spec}");
            let [one, same, anew] = published.as_slice() else { panic!("three runs") };
            assert!(
                published_tables(&worlds[0], "one") == published_tables(&worlds[1], "same"),
                "{when}: other bytes"
            );
            let wanted = without_reasons(&worlds[2], anew);
            for (table, rows) in without_reasons(&worlds[0], one) {
                assert_eq!(rows, wanted[&table], "{when}: {table}");
            }
            assert_eq!(one.fit_start, same.fit_start);
            assert_eq!(anew.counts["lists_kept"], json!(0));
            let start = one.fit_start.as_ref().unwrap();
            if let (Some(before), Some(_)) = (&before, &start.since) {
                let als = one.stages.iter().find(|stage| stage.name == "als").unwrap();
                let told = |key: &str| als.more[key].as_u64().unwrap();
                sums.fold_ins += 1;
                sums.users_kept += told("users_kept");
                sums.users_folded_in += told("users_folded_in");
                sums.items_folded_in += told("items_folded_in");
                sums.lists_kept += one.counts["lists_kept"].as_u64().unwrap();
                assert_eq!(one.embedding_space_id, before.embedding_space_id, "{when}");
                let seen = objects(&worlds[0].objects, "out");
                let of = |manifest, table| vectors(&seen, manifest, table);
                let (then, now) = (of(before, "item_factors"), of(one, "item_factors"));
                for (item, vector) in &now {
                    assert!(
                        then.get(item).is_none_or(|then| then == vector),
                        "{when}: item {item}"
                    );
                }
                let (then, now) = (of(before, "user_factors"), of(one, "user_factors"));
                for (user, row) in &now {
                    let Some(then) = then.get(user) else { continue };
                    let is_new = then[1] != row[1];
                    assert!(is_new || then[0] == row[0], "{when}: user {user}");
                    sums.vectors_new += u64::from(is_new && then[0] != row[0]);
                }
            } else {
                assert_eq!(one.counts["lists_kept"], json!(0), "{when}");
            }
            before = current_manifest(&worlds[0]);
        }
    }
    let Sums { fold_ins, users_kept, users_folded_in, items_folded_in, lists_kept, vectors_new } =
        sums;
    let all = [fold_ins, users_kept, users_folded_in, items_folded_in, lists_kept, vectors_new];
    assert!(all.iter().zip([60, 200, 60, 20, 100, 60]).all(|(&n, least)| n > least), "{all:?}");
}

#[test]
fn a_run_between_fits_that_is_killed_is_made_up_for_by_the_next() {
    let runtime = IoRuntime::new().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let spec = spec(&mut rng);
    let mut rows = |n: usize| (0..n).map(|_| Row::random(&mut rng, 0)).collect::<Vec<Row>>();
    let before = Log::from([("day-0.parquet".to_owned(), rows(150))]);
    let mut after = before.clone();
    after.insert("day-1.parquet".to_owned(), rows(5));
    let first_day = || {
        let world = World::new();
        put(&world, &before, false, 100);
        put_ids(&world, "item", &[1]);
        run_on(&world, &runtime, request(&spec, "r0")).unwrap();
        put(&world, &after, false, 100);
        world
    };
    let outcome = assert_made_up_for(&runtime, &spec, first_day, (3, 2));
    let Outcome::Published { manifest, .. } = outcome else { panic!("{outcome:?}") };
    assert!(manifest.counts["lists_kept"].as_u64().unwrap() > 0, "{spec}");
}
