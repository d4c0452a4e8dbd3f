//! Runs that die and are gone on with: the same bytes, and no more work than has to be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use object_store::ObjectStoreExt;
use object_store::path::Path as Key;

use super::crash_tests::{SPEC, published_tables, request, world};
use super::*;
use crate::store::CollectionRules;
use crate::store::faults::{Call, Fault, FaultStore, World};
use crate::store::witness::{objects, violations};

/// Four iterations, saved after the second and the fourth.
fn spec() -> String {
    let spec = SPEC.replace("iterations = 2", "iterations = 4");
    format!("{spec}\n[checkpoints]\nals_iterations = 2\n")
}

fn run_on(runtime: &IoRuntime, store: FaultStore, run_id: &str, workers: usize) -> Result<Outcome> {
    run_as(runtime, store, Request { workers, ..request(&spec(), run_id) })
}

fn run_as(runtime: &IoRuntime, store: FaultStore, request: Request) -> Result<Outcome> {
    runtime.insert_bucket("s3://shop", Arc::new(store));
    attempts::run_on(runtime.clone(), request).0
}

fn quiet(world: &World) -> FaultStore {
    FaultStore::new(world, |_| None)
}

/// Dies after the write whose path holds `place`.
fn dying_after(world: &World, place: &'static str) -> FaultStore {
    let is_there = move |call: &Call| call.kind == "put" && call.path.contains(place);
    FaultStore::new(world, move |call| is_there(call).then_some(Fault::CrashAfter))
}

fn checkpoints(world: &World) -> Vec<String> {
    let found = objects(&world.objects, "out/_checkpoints");
    found.into_keys().map(|key| key.splitn(3, '/').last().unwrap().to_owned()).collect()
}

/// The tables of a run without checkpoints, on one worker.
fn wanted() -> BTreeMap<String, Vec<u8>> {
    let (world, runtime) = world();
    let spec = SPEC.replace("iterations = 2", "iterations = 4");
    run_as(&runtime, quiet(&world), request(&spec, "r0")).unwrap();
    assert_eq!(checkpoints(&world), [""; 0]);
    published_tables(&world, "without checkpoints")
}

/// What stages a run had, and which of them went on from a checkpoint.
fn stages(outcome: &Outcome) -> Vec<(String, bool)> {
    let Outcome::Published { manifest, .. } = outcome else { panic!("{outcome:?}") };
    let resumed = |stage: &Stage| stage.more.get("resumed") == Some(&json!(true));
    manifest.stages.iter().map(|stage| (stage.name.clone(), resumed(stage))).collect()
}

fn resumed(outcome: &Outcome) -> Vec<String> {
    stages(outcome).into_iter().filter(|(_, resumed)| *resumed).map(|(name, _)| name).collect()
}

#[test]
fn a_run_killed_at_any_request_is_gone_on_with_to_the_same_bytes() {
    let wanted = wanted();
    let (calm, runtime) = world();
    let store = quiet(&calm);
    run_on(&runtime, store.clone(), "r0", 1).unwrap();
    assert!(published_tables(&calm, "with checkpoints") == wanted, "other bytes");
    assert_eq!(checkpoints(&calm), [""; 0], "they are removed");
    let n_calls = store.calls();
    let mut n_resumed = 0;
    for number in 0..n_calls {
        let (fault, workers) = match number % 2 {
            0 => (Fault::CrashBefore, [1, 3, 2][number as usize % 3]),
            _ => (Fault::CrashAfter, [1, 2][number as usize / 2 % 2]),
        };
        // A cluster keeps its run's id, and a scheduler's next try has one of its own.
        let next_id = ["r1", "r2"][number as usize / 3 % 2];
        let when = format!("{fault:?} at call {number} of {n_calls}, then {next_id} on {workers}");
        let (world, _) = world();
        let dying = FaultStore::new(&world, move |call| (call.number == number).then_some(fault));
        let died = run_on(&runtime, dying, "r1", 1);
        let code = died.as_ref().map_or_else(exit_code, |_| 0);
        assert!(matches!(code, 0 | 75), "{when}: {died:?}");
        let found = violations(&objects(&world.objects, "out"), "s3://shop/out/");
        assert!(found.is_empty(), "{when}: {found:#?}");
        let next = run_on(&runtime, quiet(&world), next_id, workers);
        let next = next.unwrap_or_else(|error| panic!("{when}: {error:#}"));
        assert!(published_tables(&world, &when) == wanted, "{when}: other bytes");
        assert_eq!(checkpoints(&world), [""; 0], "{when}: checkpoints stay");
        if let Outcome::Published { .. } = &next {
            n_resumed += u64::from(!resumed(&next).is_empty());
        }
    }
    // Many of the others died after the commit.
    assert!(n_resumed > n_calls / 4, "{n_resumed} of {n_calls} runs went on from a checkpoint");
}

#[test]
fn a_run_moves_from_one_worker_to_three_and_on_to_two() {
    let wanted = wanted();
    let (world, runtime) = world();
    let kept = |id: &'static str, workers, place| {
        run_on(&runtime, dying_after(&world, place), id, workers).unwrap_err();
        checkpoints(&world)
    };
    assert_eq!(
        kept("r1", 1, "histories/_seal.json"),
        [
            "histories/_seal.json",
            "histories/common",
            "histories/shard-00000",
            "histories/shard-00001"
        ]
    );
    assert!(kept("r1", 3, "als-00002/_seal.json").contains(&"als-00002/shard-00001".to_owned()));
    let later = kept("r1", 2, "als-00004/_seal.json");
    // The process died before it could remove the one before.
    assert!(
        ["als-00002/_seal.json", "als-00004/_seal.json"]
            .iter()
            .all(|seal| { later.contains(&(*seal).to_owned()) })
    );
    let outcome = run_on(&runtime, quiet(&world), "r1", 3).unwrap();
    assert_eq!(
        resumed(&outcome),
        ["histories", "write popularity", "item neighbors", "write neighbors", "als"]
    );
    assert!(published_tables(&world, "at the end") == wanted, "other bytes");
}

/// Remembers what is said.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn begin(&self, _: &str, _: Option<(u64, &'static str)>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, stage: &str, text: &str) {
        self.0.lock().unwrap().push(format!("{stage}: {text}"));
    }
    fn end(&self, stage: &str, _: f64, note: &str) {
        self.0.lock().unwrap().push(format!("{stage} ends: {note}"));
    }
}

/// A store that remembers its requests.
fn recording(world: &World) -> (FaultStore, Arc<Mutex<Vec<String>>>) {
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = calls.clone();
    let store = FaultStore::new(world, move |call| {
        record.lock().unwrap().push(format!("{} {}", call.kind, call.path));
        None
    });
    (store, calls)
}

fn n_of(calls: &Arc<Mutex<Vec<String>>>, what: &str) -> usize {
    calls.lock().unwrap().iter().filter(|call| call.starts_with(what)).count()
}

#[test]
fn nothing_that_is_saved_is_done_again() {
    let (world, runtime) = world();
    run_on(&runtime, dying_after(&world, "als-00002/_seal.json"), "r1", 1).unwrap_err();
    let (store, planning) = recording(&world);
    runtime.insert_bucket("s3://shop", Arc::new(store));
    let asked = request(&spec(), "r1");
    plan(&runtime, &asked.spec, &asked.base, &asked.flags).unwrap();
    let (store, calls) = recording(&world);
    let notes = Arc::new(Notes::default());
    let outcome = run_as(&runtime, store, Request { observer: notes.clone(), ..asked }).unwrap();
    let footers = n_of(&planning, "get log/");
    assert!(footers > 0 && n_of(&calls, "get log/") == footers, "the log is read again");
    for written in ["users", "items", "item_popularity", "item_neighbors"] {
        assert_eq!(
            n_of(&calls, &format!("put out/tables/{written}/logical_date=")),
            0,
            "{written}"
        );
    }
    assert!(n_of(&calls, "put out/tables/item_factors/logical_date=") > 0);
    let names: Vec<String> = stages(&outcome).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "plan",
            "histories",
            "side tables",
            "popularity",
            "write popularity",
            "item neighbors",
            "write neighbors",
            "als",
            "write factors",
            "top-k lists"
        ]
    );
    let notes = notes.0.lock().unwrap();
    let iterations: Vec<&String> =
        notes.iter().filter(|note| note.starts_with("als: iteration")).collect();
    assert!(notes.contains(&"als: resumed after iteration 2".to_owned()), "{notes:?}");
    assert!(notes.contains(&"histories ends: resumed from a checkpoint".to_owned()), "{notes:?}");
    assert_eq!(iterations.len(), 2, "{iterations:?}");
    assert!(iterations[0].starts_with("als: iteration 3: "), "{iterations:?}");
}

#[test]
fn another_run_goes_on_from_the_checkpoint_and_writes_all_files_itself() {
    let wanted = wanted();
    let (world, runtime) = world();
    run_on(&runtime, dying_after(&world, "als-00004/_seal.json"), "r1", 1).unwrap_err();
    let (store, calls) = recording(&world);
    let outcome = run_as(&runtime, store, request(&spec(), "r2")).unwrap();
    assert_eq!(resumed(&outcome), ["histories", "item neighbors", "als"]);
    assert!(n_of(&calls, "put out/tables/users/logical_date=") > 0);
    assert!(published_tables(&world, "at the end") == wanted, "other bytes");
}

#[test]
fn files_that_are_gone_since_are_written_again() {
    let wanted = wanted();
    let (world, runtime) = world();
    run_on(&runtime, dying_after(&world, "als-00004/_seal.json"), "r1", 1).unwrap_err();
    let seen = objects(&world.objects, "");
    let path = seen.keys().find(|path| path.contains("tables/item_neighbors/")).unwrap();
    wait(world.objects.delete(&Key::from(path.as_str()))).unwrap();
    let outcome = run_on(&runtime, quiet(&world), "r1", 1).unwrap();
    assert_eq!(resumed(&outcome), ["histories", "write popularity", "item neighbors", "als"]);
    assert!(published_tables(&world, "at the end") == wanted, "other bytes");
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[test]
fn damaged_truncated_and_missing_checkpoints_are_computed_again() {
    let wanted = wanted();
    let (died, runtime) = world();
    let is_list = |call: &Call| call.kind == "put" && call.path.contains("tables/user_top_k/");
    let dying = FaultStore::new(&died, move |call| is_list(call).then_some(Fault::CrashBefore));
    run_on(&runtime, dying, "r1", 1).unwrap_err();
    let whole = objects(&died.objects, "");
    let saved: Vec<&String> =
        whole.keys().filter(|path| path.starts_with("out/_checkpoints/")).collect();
    assert_eq!(saved.len(), 14, "{saved:#?}");
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes[20] ^= 0x40,
        Vec::clear,
    ];
    for (number, (path, damage)) in
        saved.iter().flat_map(|path| damages.map(|damage| (*path, damage))).enumerate()
    {
        let world = World::new();
        for (key, bytes) in &whole {
            let mut bytes = bytes.clone();
            if key == path {
                damage(&mut bytes);
            }
            // An empty object stands for one that is missing.
            if !bytes.is_empty() {
                wait(world.objects.put(&Key::from(key.as_str()), bytes.into())).unwrap();
            }
        }
        let when = format!("damage {} of {path}", number % damages.len());
        let outcome = run_on(&runtime, quiet(&world), "r1", 1 + number % 3);
        let outcome = outcome.unwrap_or_else(|error| panic!("{when}: {error:#}"));
        assert!(published_tables(&world, &when) == wanted, "{when}: other bytes");
        let n_resumed = resumed(&outcome).len();
        assert!(n_resumed == 5 || path.ends_with("_seal.json"), "{when}: {n_resumed}");
    }
}

#[test]
fn a_store_that_takes_no_checkpoints_costs_no_run() {
    let wanted = wanted();
    let (world, runtime) = world();
    let store = FaultStore::new(&world, |call| {
        let refused = call.path.contains("_checkpoints") && call.kind != "list";
        refused.then_some(Fault::NotApplied)
    });
    run_on(&runtime, store, "r1", 2).unwrap();
    assert!(published_tables(&world, "without a place") == wanted, "other bytes");
    let (world, _) = super::crash_tests::world();
    let store = FaultStore::new(&world, |call| {
        call.path.contains("_checkpoints").then_some(Fault::NotApplied)
    });
    run_on(&runtime, store, "r1", 2).unwrap();
    assert!(published_tables(&world, "without a listing") == wanted, "other bytes");
}

#[test]
fn checkpoints_lie_where_the_spec_says_and_by_default_where_asked() {
    let wanted = wanted();
    let (first, runtime) = world();
    let spec = spec() + "url = \"s3://shop/scratch/\"\n";
    let dying = || dying_after(&first, "als-00002/_seal.json");
    run_as(&runtime, dying(), request(&spec, "r1")).unwrap_err();
    assert_eq!(checkpoints(&first), [""; 0]);
    assert!(!objects(&first.objects, "scratch").is_empty());
    let outcome = run_as(&runtime, quiet(&first), request(&spec, "r2")).unwrap();
    assert_eq!(resumed(&outcome), ["histories", "item neighbors", "als"]);
    assert!(published_tables(&first, "elsewhere") == wanted, "other bytes");
    assert!(objects(&first.objects, "scratch").is_empty());

    let (second, _) = world();
    let spec = SPEC.replace("iterations = 2", "iterations = 4");
    let by_default = || Request { checkpoints_by_default: true, ..request(&spec, "r1") };
    run_as(&runtime, dying_after(&second, "als-00004/_seal.json"), by_default()).unwrap_err();
    let outcome = run_as(&runtime, quiet(&second), by_default()).unwrap();
    assert_eq!(resumed(&outcome).len(), 5);
    assert!(published_tables(&second, "by default") == wanted, "other bytes");
}

#[test]
fn gc_removes_checkpoints_that_nobody_has_added_to_for_long() {
    let (world, runtime) = world();
    run_on(&runtime, dying_after(&world, "als-00002/_seal.json"), "r1", 1).unwrap_err();
    runtime.insert_bucket("s3://shop", Arc::new(quiet(&world)));
    let output = Output::open(&runtime, "s3://shop/out/", std::path::Path::new("")).unwrap();
    let fingerprint = objects(&world.objects, "out/_checkpoints").into_keys().next().unwrap();
    let fingerprint = fingerprint.split('/').next().unwrap().to_owned();
    let far = 4_000_000_000_000_000;
    let rules = |grace_us| CollectionRules { keep: 7, grace_us, now_us: far };
    let patient = output.plan_collection(&rules(far)).unwrap();
    assert_eq!((patient.checkpoints.len(), patient.objects), (0, 0));
    let planned = output.plan_collection(&rules(0)).unwrap();
    assert_eq!(planned.checkpoints, [fingerprint]);
    assert!(!checkpoints(&world).is_empty(), "a plan removes nothing");
    let done = output.collect(&rules(0), "2026-11-23T00:00:00Z", "a collection").unwrap();
    assert_eq!(done.checkpoints, planned.checkpoints);
    assert_eq!(checkpoints(&world), [""; 0]);
}
