//! Fits that go on from the factors of the run before.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::changes_tests::current_manifest;
use super::crash_tests::{published_tables, request};
use super::state_tests::{Log, put, put_ids, run_on, told, two_days};
use super::*;
use crate::store::faults::{Call, Fault, FaultStore, World};

const SPEC: &str = "name = \"warm\"\nshards = 4\n[limits]\nreject_share_max = 0.9\n\
    [checkpoints]\nals_iterations = 1\n\
    [[events]]\nurl = \"s3://shop/log/\"\ntime_unit = \"s\"\n\
    columns = { user = \"user\", item = \"item\", time = \"time\", event = \"event\" }\n\
    [events.weights]\nview = 1.0\nbuy = 3.0\n\
    [als]\nn_factors = 4\niterations = 6\nwarm_iterations = 2\nwarm_runs_max = 2\n\
    [top_k]\nk = 3\n[output]\nurl = \"s3://shop/out/\"\n";

/// A log that grows by a file each day.
fn logs() -> Vec<Log> {
    let (_, first, second) = two_days();
    let new = second["day-1.parquet"].clone();
    let day = |n: usize| {
        let mut log = first.clone();
        log.extend((1..=n).map(|n| (format!("day-{n}.parquet"), new[..n.min(new.len())].to_vec())));
        log
    };
    (0..5).map(day).collect()
}

/// A run for one day, whatever its newest event is.
fn of_day(spec: &str, run_id: &str) -> Request {
    let flags = PlanFlags { date: Some("2023-11-25".to_owned()), ..PlanFlags::default() };
    Request { flags, ..request(spec, run_id) }
}

/// Publishes a run; the generation that its fit went on from, and how many iterations it took.
fn publish(world: &World, runtime: &IoRuntime, request: Request) -> (Option<u64>, u64) {
    let outcome = run_on(world, runtime, request).unwrap();
    let iterations = told(&outcome, "als", "iterations").unwrap().as_u64().unwrap();
    let start = current_manifest(world).unwrap().fit_start.unwrap();
    assert_eq!(start.since.is_some(), start.runs > 0);
    (start.since.map(|run| run.generation), iterations)
}

fn last_loss(manifest: &Manifest) -> f64 {
    let als = manifest.stages.iter().find(|stage| stage.name == "als").unwrap();
    als.more["loss"].as_array().unwrap().last().unwrap().as_f64().unwrap()
}

#[test]
fn fits_go_on_from_the_last_ones_and_now_and_then_begin_anew() {
    let runtime = IoRuntime::new().unwrap();
    let mut wanted: Vec<BTreeMap<String, Vec<u8>>> = Vec::new();
    for workers in [1, 3] {
        let world = World::new();
        for (day, log) in logs().into_iter().enumerate() {
            put(&world, &log, false, 100);
            let found =
                publish(&world, &runtime, Request { workers, ..of_day(SPEC, &format!("r{day}")) });
            let since = [None, Some(1), Some(2), None, Some(4)][day];
            assert_eq!(found, (since, if since.is_some() { 2 } else { 6 }), "day {day}");
            let tables = published_tables(&world, "warm");
            match wanted.get(day) {
                Some(wanted) => assert!(*wanted == tables, "day {day}: other bytes"),
                None => wanted.push(tables),
            }
        }
        // The same log from scratch, to about the same loss.
        let warm = current_manifest(&world).unwrap();
        let scratch = SPEC.replace("warm_iterations = 2\n", "");
        run_on(&world, &runtime, of_day(&scratch, "scratch")).unwrap();
        let scratch = current_manifest(&world).unwrap();
        assert_eq!(scratch.fit_start, None);
        let (warm, scratch) = (last_loss(&warm), last_loss(&scratch));
        assert!(warm < 1.01 * scratch, "{warm} beside {scratch}");
    }
}

#[test]
fn a_fit_begins_from_scratch_where_the_last_one_was_another() {
    let runtime = IoRuntime::new().unwrap();
    let world = World::new();
    let logs = logs();
    let deleting =
        format!("{SPEC}[delete.users]\nurl = \"s3://shop/users.parquet\"\ncolumn = \"user\"\n");
    put_ids(&world, "user", &[4]);
    let mut day = 0;
    let mut next = |spec: &str| {
        put(&world, &logs[day], false, 100);
        day += 1;
        publish(&world, &runtime, of_day(spec, &format!("r{day}"))).0
    };
    assert_eq!(next(SPEC), None, "nothing was published");
    assert_eq!(next(&SPEC.replace("n_factors = 4", "n_factors = 5")), None, "another section");
    assert_eq!(next(&SPEC.replace("n_factors = 4", "n_factors = 5")), Some(2));
    assert_eq!(next(&deleting.replace("n_factors = 4", "n_factors = 5")), None, "a new list");
    assert_eq!(next(&deleting.replace("n_factors = 4", "n_factors = 5")), Some(4), "the same list");
    put_ids(&world, "user", &[4, 9]);
    let forced = Request { force: true, ..of_day(&deleting, "forced") };
    assert_eq!(publish(&world, &runtime, forced).0, None, "somebody new is on it");
    let forced = Request { force: true, ..of_day(&deleting, "again") };
    assert_eq!(publish(&world, &runtime, forced).0, Some(6));
    let mut past = of_day(&deleting, "past");
    past.flags.date = Some("2023-11-24".to_owned());
    let outcome = run_on(&world, &runtime, past).unwrap();
    let Outcome::Published { manifest, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(manifest.fit_start.unwrap().since, None, "factors know of a later day");
    let mut none = of_day(&deleting, "none");
    (none.force, none.spec.als.as_mut().unwrap().warm_runs_max) = (true, 0);
    assert_eq!(publish(&world, &runtime, none).0, None, "no warm start is wanted");
}

#[test]
fn a_fit_that_went_on_is_resumed_to_the_same_bytes() {
    let runtime = IoRuntime::new().unwrap();
    let logs = logs();
    let first_day = || {
        let world = World::new();
        put(&world, &logs[0], false, 100);
        run_on(&world, &runtime, request(SPEC, "r0")).unwrap();
        put(&world, &logs[1], false, 100);
        world
    };
    let calm = first_day();
    run_on(&calm, &runtime, request(SPEC, "r1")).unwrap();
    let wanted = published_tables(&calm, "calm");
    for next in ["r1", "r2"] {
        let world = first_day();
        let is_there =
            |call: &Call| call.kind == "put" && call.path.contains("als_since_1-00001/_seal.json");
        let dying =
            FaultStore::new(&world, move |call| is_there(call).then_some(Fault::CrashAfter));
        runtime.insert_bucket("s3://shop", Arc::new(dying));
        attempts::run_on(runtime.clone(), request(SPEC, "r1")).0.unwrap_err();
        let outcome = run_on(&world, &runtime, Request { workers: 2, ..request(SPEC, next) });
        let resumed = told(&outcome.unwrap(), "als", "resumed");
        assert_eq!(resumed, Some(json!(true)), "{next}");
        assert!(published_tables(&world, next) == wanted, "{next}: other bytes");
    }
}
