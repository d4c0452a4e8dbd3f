//! A whole run, its process killed at every request to the store, before and after it is applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use parquet::arrow::ArrowWriter;

use super::*;
use crate::job;
use crate::store::EarlierRun;
use crate::store::faults::{Fault, FaultStore, World};
use crate::store::witness::{objects, violations};

pub(super) const SPEC: &str = r#"
name = "small"
shards = 2
[[events]]
url = "s3://shop/log/"
time_unit = "s"
columns = { user = "user", item = "item", time = "time" }
[popularity]
[item_neighbors]
n_neighbors = 5
[als]
n_factors = 4
iterations = 2
[top_k]
k = 3
exclude_seen = false
[output]
url = "s3://shop/out/"
delta = true
[[output.vectors]]
of = "item_factors"
type = "flat_ip"
"#;

/// Users and items that leave traces in every table.
fn log() -> Vec<u8> {
    let rows = 0..200_i64;
    let users: ArrayRef =
        Arc::new(StringArray::from_iter_values(rows.clone().map(|row| format!("u{}", row % 17))));
    let items: ArrayRef = Arc::new(StringArray::from_iter_values(
        rows.clone().map(|row| format!("i{}", row * row % 13)),
    ));
    let times: ArrayRef =
        Arc::new(Int64Array::from_iter_values(rows.map(|row| 1_700_000_000 + row * 3_600)));
    let batch = [("user", users), ("item", items), ("time", times)];
    let batch = RecordBatch::try_from_iter(batch).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

pub(super) fn world() -> (World, IoRuntime) {
    let (world, runtime) = (World::new(), IoRuntime::new().unwrap());
    let key = Key::from("log/a.parquet");
    let put = world.objects.put(&key, log().into());
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(put).unwrap();
    (world, runtime)
}

fn run_over(runtime: &IoRuntime, store: FaultStore, run_id: &str) -> Result<Outcome> {
    runtime.insert_bucket("s3://shop", Arc::new(store));
    attempts::run_on(runtime.clone(), request(SPEC, run_id)).0
}

pub(super) fn request(spec: &str, run_id: &str) -> Request {
    let spec = job::load(spec, "small.toml", &BTreeMap::new(), &[]).unwrap();
    Request {
        spec,
        base: PathBuf::new(),
        flags: PlanFlags::default(),
        threads: 1,
        workers: 1,
        publish: true,
        force: false,
        state: StateUse::default(),
        unsafe_single_writer: false,
        checkpoints_by_default: false,
        clock: || 1_790_000_000_000_000,
        run_id: run_id.to_owned(),
        observer: Arc::new(Silent),
        carried: None,
        cluster: None,
    }
}

/// The path of a file without the run that wrote it, be it `run` or an earlier one.
pub(super) fn place(path: &str, run: &str) -> String {
    let is_place = |part: &&str| !part.starts_with("run_id=") && !part.starts_with("logical_date=");
    path.split('/').filter(is_place).collect::<Vec<_>>().join("/").replace(run, "")
}

/// The tables of the run that readers see, without the run's id in their paths.
pub(super) fn published_tables(world: &World, when: &str) -> BTreeMap<String, Vec<u8>> {
    let seen = objects(&world.objects, "out");
    let found = violations(&seen, "s3://shop/out/");
    assert!(found.is_empty(), "{when}: {found:#?}");
    let current: Value = serde_json::from_slice(&seen["current.json"]).unwrap();
    let manifest: Value =
        serde_json::from_slice(&seen[current["manifest"].as_str().unwrap()]).unwrap();
    let run = current["run_id"].as_str().unwrap();
    let files = manifest["files"].as_array().unwrap().iter();
    let files = files.map(|file| file["path"].as_str().unwrap());
    files.map(|path| (place(path, run), seen[path].clone())).collect()
}

#[test]
fn a_run_killed_at_any_request_shows_readers_nothing_false_and_the_next_one_the_same_bytes() {
    let (calm, runtime) = world();
    let store = FaultStore::new(&calm, |_| None);
    run_over(&runtime, store.clone(), "r0").unwrap();
    let wanted = published_tables(&calm, "without a fault");
    let n_calls = store.calls();
    assert!(n_calls > 40 && wanted.len() > 10, "{n_calls} calls, {} files", wanted.len());
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        for number in 0..n_calls {
            let when = format!("{fault:?} at call {number} of {n_calls}");
            let (world, runtime) = world();
            let dying =
                FaultStore::new(&world, move |call| (call.number == number).then_some(fault));
            let died = run_over(&runtime, dying, "r1");
            // Only a probe that stays behind is no reason to stop.
            let code = died.as_ref().map_or_else(exit_code, |_| 0);
            assert!(matches!(code, 0 | 75), "{when}: {died:?}");
            let found = violations(&objects(&world.objects, "out"), "s3://shop/out/");
            assert!(found.is_empty(), "{when}: {found:#?}");
            let next = FaultStore::new(&world, |_| None);
            run_over(&runtime, next, "r2").unwrap_or_else(|error| panic!("{when}: {error:#}"));
            assert!(published_tables(&world, &when) == wanted, "{when}: other bytes");
        }
    }
}

#[test]
fn a_run_that_is_published_already_costs_few_requests_and_no_data() {
    let (world, runtime) = world();
    let quiet = || FaultStore::new(&world, |_| None);
    run_over(&runtime, quiet(), "r0").unwrap();
    // A long log, by withdrawing and publishing again.
    for round in 0..10 {
        runtime.insert_bucket("s3://shop", Arc::new(quiet()));
        let output = Output::open(&runtime, "s3://shop/out/", std::path::Path::new("")).unwrap();
        let manifest = output.read_manifest(&output.read_current().unwrap().unwrap()).unwrap();
        let run_id = format!("again{round}");
        let path = RunPath::new(jiff::civil::date(2026, 11, 22), &run_id);
        let nonce = run_id.clone();
        let earlier = EarlierRun { generation: 1, run_id: "r0".to_owned() };
        let unchanged_since = Some(earlier);
        let manifest = Manifest { run_id, nonce, unchanged_since, ..manifest };
        output.publish(&path, &manifest, "2026-11-23T00:00:00Z", true).unwrap();
    }
    let store = FaultStore::new(&world, |call| {
        let is_data = call.kind == "get" && call.path.ends_with(".parquet");
        assert!(!is_data, "{call:?}");
        None
    });
    let outcome = run_over(&runtime, store.clone(), "r2").unwrap();
    assert!(matches!(outcome, Outcome::AlreadyPublished { .. }));
    assert!(store.calls() <= 20, "{} requests", store.calls());
}
