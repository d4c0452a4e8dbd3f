//! Publishers, rollbacks and collections on one output, their requests in random turns and going
//! wrong at random: whatever happens, readers see nothing false.
//!
//! `TIDEMILL_SCHEDULES=0..10000` runs other seeds than those of every test run.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use jiff::civil::date;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use uuid::{NoContext, Timestamp, Uuid};

use super::faults::{Call, Fault, FaultStore, Turns, World};
use super::publish_tests::manifest;
use super::witness::{newest, objects, violations};
use super::*;

const NOW: &str = "2026-11-23T01:02:03Z";
const URL: &str = "s3://shop/out/";
const HOUR_US: i64 = 3_600_000_000;
const NOW_US: i64 = 1_000_000 * HOUR_US;
const PROCESSES: usize = 3;
const FAULTS: [Fault; 7] = [
    Fault::NotApplied,
    Fault::ReplyLost,
    Fault::AppliedThenRefused,
    Fault::Conflict,
    Fault::Late,
    Fault::CrashBefore,
    Fault::CrashAfter,
];

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TIDEMILL_SCHEDULES") else { return 0..500 };
    let (first, end) = text.split_once("..").expect("TIDEMILL_SCHEDULES is first..end");
    first.parse().unwrap()..end.parse().unwrap()
}

/// The name of a run that began so many hours ago.
fn run_id(rng: &mut ChaCha8Rng, hours_ago: i64) -> String {
    let began_us = (NOW_US - hours_ago * HOUR_US) as u64;
    let time = Timestamp::from_unix(NoContext, began_us / 1_000_000, 0);
    let id = Uuid::new_v7(time).as_u128();
    // The random part of the library's is not the seed's.
    let id = (id >> 74 << 74) | u128::from(rng.random::<u64>() >> 2) | (2 << 62);
    Uuid::from_u128(id).to_string()
}

fn publish_run(output: &Output, rng: &mut ChaCha8Rng, hours_ago: i64) -> Result<(), PublishError> {
    let day = date(2026, 11, 20 + rng.random_range(0..3));
    let run = run_id(rng, hours_ago);
    let path = RunPath::new(day, &run);
    let mut files = Vec::new();
    let current = output.read_current()?.filter(|_| rng.random_bool(0.5));
    let tables: &[&str] = if rng.random_bool(0.8) { &["items", "users"] } else { &["items"] };
    let mut unchanged_since = None;
    for table in tables {
        // Users may be as they were: in a file of the run that readers see, or of one before it.
        if let Some(run) = current.as_ref().filter(|_| *table == "users") {
            let earlier = output.read_manifest(run)?.files;
            if let Some(file) = earlier.into_iter().find(|file| file.table == *table) {
                let (generation, run_id) = (run.generation, run.run_id.clone());
                unchanged_since = Some(EarlierRun { generation, run_id });
                files.push(file);
                continue;
            }
        }
        let numbers = Int64Array::from_iter_values([rng.random()]);
        let rows = RecordBatch::try_from_iter([("n", Arc::new(numbers) as ArrayRef)]).unwrap();
        let mut file = TableFile::new(table, &rows.schema(), &["n"]).unwrap();
        file.write(&rows).unwrap();
        files.push(put_file(output, &path.table_part(table, 0, 1), file.finish().unwrap())?);
        // One request of a process at a time: what happens is a function of the seed.
        output.settle()?;
    }
    let fingerprint = format!("input {}", rng.random_range(0..6));
    let manifest =
        Manifest { files, delta: true, unchanged_since, ..manifest(day, &run, &fingerprint) };
    let published = output.publish(&path, &manifest, NOW, rng.random_bool(0.5))?;
    let log = output.read_log()?;
    let (Published::New(told) | Published::Already(told)) = published;
    let kept = log.entries().iter().find(|entry| entry.run == told);
    let kept = kept.expect("what was said to be published is in the log");
    assert!(told.run_id == run || kept.fingerprint == fingerprint);
    Ok(())
}

/// What one process does, one thing after the other; an error ends it, as it would.
fn process(output: &Output, rng: &mut ChaCha8Rng) -> Result<(), PublishError> {
    for _ in 0..rng.random_range(1..4) {
        let nonce = rng.random::<u64>().to_string();
        match rng.random_range(0..10) {
            0 => drop(output.withdraw(None, NOW, &nonce)),
            1 => drop(output.follow_log()?),
            2 | 3 => {
                let keep = rng.random_range(1..3);
                let rules = CollectionRules { keep, grace_us: 48 * HOUR_US, now_us: NOW_US };
                match output.collect(&rules, NOW, &nonce) {
                    Err(PublishError::Contended { .. }) => {}
                    result => drop(result?),
                }
            }
            // One run in four takes longer than the grace that gc was told to give.
            _ => {
                let hours_ago = if rng.random_bool(0.25) { 60 } else { 1 };
                match publish_run(output, rng, hours_ago) {
                    Err(
                        PublishError::Withdrawn { .. }
                        | PublishError::Collected { .. }
                        | PublishError::UnchangedGone { .. },
                    ) => {}
                    result => result?,
                }
            }
        }
    }
    Ok(())
}

fn script(seed: u64, share: f64) -> impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static {
    let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
    move |call| {
        let mut rng = rng.lock().unwrap();
        let fault = FAULTS[rng.random_range(0..FAULTS.len())];
        let fails = rng.random_bool(share);
        // Lists of files hold nothing that makes each version new, as their format has no room.
        let late_list = fault == Fault::Late && call.path.contains("/manifests/");
        (fails && !late_list).then_some(fault)
    }
}

fn schedule(seed: u64, runtimes: &[IoRuntime]) {
    let world = World::new();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let open = |runtime: &IoRuntime, store: FaultStore| {
        runtime.insert_bucket("s3://shop", Arc::new(store));
        Output::open(runtime, URL, Path::new("")).unwrap()
    };
    let look = |when: &str| {
        let seen = objects(&world.objects, "out");
        let found = violations(&seen, URL);
        assert!(found.is_empty(), "seed {seed}, {when}: {found:#?}");
        seen
    };
    let calm = open(&runtimes[PROCESSES], FaultStore::new(&world, |_| None));
    for _ in 0..rng.random_range(0..4) {
        let _ = publish_run(&calm, &mut rng, 100);
    }
    let turns = Turns::new(seed, PROCESSES);
    let share = [0.0, 0.03, 0.1, 0.2][rng.random_range(0..4)];
    thread::scope(|scope| {
        for (thread, runtime) in runtimes[..PROCESSES].iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(rng.random());
            let faults = FaultStore::new(&world, {
                let (script, world) = (script(rng.random(), share), world.clone());
                move |call| {
                    // Nobody else asks for anything meanwhile, so this is what a reader sees now.
                    if call.number.is_multiple_of(4) {
                        let seen = objects(&world.objects, "out");
                        let found = violations(&seen, URL);
                        assert!(found.is_empty(), "seed {seed}, before {call:?}: {found:#?}");
                    }
                    script(call)
                }
            });
            let output = open(runtime, faults.in_turns(&turns, thread));
            let turns = turns.clone();
            scope.spawn(move || {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _ = process(&output, &mut rng);
                }));
                turns.finish();
                done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        }
    });
    look("when all processes are gone");
    world.settle();
    look("when all requests have arrived");
    calm.repair().unwrap();
    settled(&look("after a repair"), seed);
    // `--force`: the fingerprint may be one that was withdrawn.
    let mut last = ChaCha8Rng::seed_from_u64(seed ^ 1);
    match publish_run(&calm, &mut last, 1) {
        Err(PublishError::Withdrawn { .. }) => {}
        result => result.unwrap(),
    }
    let rules = CollectionRules { keep: 1, grace_us: 48 * HOUR_US, now_us: NOW_US };
    calm.collect(&rules, NOW, "the last collection").unwrap();
    settled(&look("after a collection"), seed);
    assert_eq!(calm.read_log().unwrap(), calm.read_log_entries().unwrap(), "seed {seed}");
}

/// `current.json`, lists of files and Delta logs all say what the log says.
fn settled(objects: &std::collections::BTreeMap<String, Vec<u8>>, seed: u64) {
    let is_entry = |key: &&String| key.starts_with("_log/") && !key.contains("snapshot");
    let log: Vec<Value> = objects
        .keys()
        .filter(is_entry)
        .map(|key| serde_json::from_slice(&objects[key]).unwrap())
        .collect();
    let wanted = newest(&log);
    let current: Option<Value> =
        objects.get("current.json").map(|bytes| serde_json::from_slice(bytes).unwrap());
    let named = current.map(|current| current["run_id"].as_str().unwrap().to_owned());
    assert_eq!(named, wanted, "seed {seed}");
    let Some(wanted) = wanted else { return };
    let list = String::from_utf8(objects["manifests/items/manifest"].clone()).unwrap();
    assert!(list.contains(&format!("run_id={wanted}/")), "seed {seed}: {list}");
    let delta = objects.keys().rfind(|key| key.starts_with("tables/items/_delta_log/")).unwrap();
    let delta = String::from_utf8(objects[delta].clone()).unwrap();
    assert!(delta.contains(&format!("run_id={wanted}/")), "seed {seed}: {delta}");
}

#[test]
fn readers_see_nothing_false_whatever_goes_wrong() {
    let runtimes: Vec<IoRuntime> = (0..=PROCESSES).map(|_| IoRuntime::new().unwrap()).collect();
    for seed in seeds() {
        schedule(seed, &runtimes);
    }
}
