use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use jiff::civil::{Date, date};
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::faults::{Fault, FaultStore, World};
use super::*;

const NOW: &str = "2026-11-23T01:02:03Z";
const SUNDAY: Date = date(2026, 11, 22);
const SATURDAY: Date = date(2026, 11, 21);

fn output(folder: &Path) -> Output {
    Output::create(&IoRuntime::new().unwrap(), "out/", folder).unwrap()
}

pub(super) fn manifest(logical_date: Date, run_id: &str, fingerprint: &str) -> Manifest {
    Manifest {
        format: FORMAT,
        run_id: run_id.to_owned(),
        logical_date: logical_date.to_string(),
        as_of: "2026-11-23T00:00:00Z".to_owned(),
        spec_sha256: "5bec".to_owned(),
        input: vec![ManifestInput { key: "log/a.parquet".into(), bytes: 7, etag: None }],
        fingerprint: fingerprint.to_owned(),
        code_version: "0.1.0".to_owned(),
        instruction_set: "avx2".to_owned(),
        embedding_space_id: None,
        shards: 1,
        files: Vec::new(),
        counts: json!({"events": 3, "filtered": {"no_user": 1}}).as_object().unwrap().clone(),
        gates: Vec::new(),
        stages: vec![Stage { name: "scan".into(), seconds: 0.5, more: Default::default() }],
        delta: false,
        state: None,
        changes_since: None,
        unchanged_since: None,
        fit_start: None,
        nonce: format!("nonce of {run_id}"),
    }
}

fn publish(output: &Output, day: Date, run: &str, fingerprint: &str) -> Published {
    let manifest = manifest(day, run, fingerprint);
    output.publish(&RunPath::new(day, run), &manifest, NOW, false).unwrap()
}

fn generation(published: &Published) -> u64 {
    match published {
        Published::New(run) | Published::Already(run) => run.generation,
    }
}

fn json_at(folder: &Path, path: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join("out").join(path)).unwrap()).unwrap()
}

fn current_run(output: &Output) -> String {
    output.read_current().unwrap().unwrap().run_id
}

fn withdraw(output: &Output, generation: u64) {
    output.withdraw(Some(generation), NOW, &format!("withdraws {generation}")).unwrap();
}

#[test]
fn files_lie_where_readers_expect_them_with_the_fields_they_rely_on() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    let path = RunPath::new(SUNDAY, "r1");
    let numbers = Arc::new(Int64Array::from_iter_values(0..5)) as ArrayRef;
    let rows = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let mut table = TableFile::new("items", &rows.schema(), &["n"]).unwrap();
    table.write(&rows).unwrap();
    let part = path.table_part("items", 17, 64);
    let file = put_file(&output, &part, table.finish().unwrap()).unwrap();
    assert_eq!(
        file.path,
        "tables/items/logical_date=2026-11-22/run_id=r1/part-00017-of-00064.parquet"
    );
    output.put(&path.file("_report.json"), "{}".into()).unwrap();
    let manifest = Manifest { files: vec![file], ..manifest(SUNDAY, "r1", "f1") };
    let published = output.publish(&path, &manifest, NOW, false).unwrap();
    assert!(matches!(published, Published::New(_)) && generation(&published) == 1);

    let current = json_at(folder.path(), "current.json");
    let names: Vec<_> = current.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "generation logical_date run_id manifest published_at nonce manifest_sha256 \
                    log_generation";
    assert_eq!(names.join(" "), expected);
    assert_eq!(current["manifest"], "runs/2026-11-22/r1/_manifest.json");
    let entry = json_at(folder.path(), "_log/00000000000000000001.json");
    assert_eq!(entry["fingerprint"], "f1");
    assert!(entry.get("withdraws").is_none());
    let written = json_at(folder.path(), "runs/2026-11-22/r1/_manifest.json");
    let names: Vec<_> = written.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "format run_id logical_date as_of spec_sha256 input fingerprint code_version \
                    instruction_set embedding_space_id shards files counts stages nonce";
    assert_eq!(names.join(" "), expected);

    let run = output.read_current().unwrap().unwrap();
    assert_eq!(output.read_manifest(&run).unwrap(), manifest);
    let files = output.table_files(&manifest, "items");
    assert_eq!(read_all(&output.location(), &files[0], None).unwrap(), [rows]);
    assert!(files[0].url.starts_with("out/tables/items/"), "{}", files[0].url);
}

#[test]
fn a_published_fingerprint_is_found_and_not_published_twice() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    assert_eq!(output.find_published("f1").unwrap(), None);
    publish(&output, SUNDAY, "r1", "f1");
    assert_eq!(output.find_published("f1").unwrap().unwrap().run_id, "r1");
    let again = publish(&output, SUNDAY, "r2", "f1");
    assert!(matches!(&again, Published::Already(run) if run.run_id == "r1"));
    assert_eq!(output.read_log().unwrap().entries().len(), 1);
    let forced = manifest(SUNDAY, "r3", "f1");
    let forced = output.publish(&RunPath::new(SUNDAY, "r3"), &forced, NOW, true).unwrap();
    assert_eq!(generation(&forced), 2);
    assert_eq!(current_run(&output), "r3");
}

#[test]
fn current_is_a_function_of_the_log() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    let seen = || json_at(folder.path(), "current.json")["run_id"].as_str().unwrap().to_owned();
    publish(&output, SATURDAY, "sat", "f1");
    publish(&output, SUNDAY, "sun", "f2");
    assert_eq!((current_run(&output), seen()), ("sun".into(), "sun".into()));
    publish(&output, SATURDAY, "sat2", "f3");
    assert_eq!((current_run(&output), seen()), ("sun".into(), "sun".into()), "yesterday corrected");
    publish(&output, SUNDAY, "sun2", "f4");
    assert_eq!(seen(), "sun2");
    withdraw(&output, 4);
    assert_eq!(seen(), "sun");
    withdraw(&output, 2);
    assert_eq!(seen(), "sat2");

    let refused = manifest(SUNDAY, "sun3", "f4");
    let path = RunPath::new(SUNDAY, "sun3");
    let error = output.publish(&path, &refused, NOW, false).unwrap_err();
    assert!(matches!(error, PublishError::Withdrawn { generation: 4 }), "{error}");
    assert_eq!(error.exit_code(), 73);
    output.publish(&path, &refused, NOW, true).unwrap();
    assert_eq!(seen(), "sun3");
}

#[test]
fn the_mirror_is_repaired_and_removed_with_the_last_run() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    assert_eq!(output.follow_log().unwrap(), None);
    publish(&output, SUNDAY, "r1", "f1");
    let mirror = folder.path().join("out/current.json");
    let written = fs::read(&mirror).unwrap();
    fs::write(&mirror, "{").unwrap();
    publish(&output, SUNDAY, "r2", "f1");
    assert_eq!(fs::read(&mirror).unwrap(), written, "a run that finds itself published repairs it");
    withdraw(&output, 1);
    assert!(!mirror.exists());
}

#[test]
fn racing_publishers_get_one_generation_each_without_gaps() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 10;
    let folder = TempDir::new().unwrap();
    let generations: Vec<u64> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let output = output(folder.path());
                let round = move |round| {
                    let run = format!("{thread}-{round}");
                    let day = if round % 2 == 0 { SATURDAY } else { SUNDAY };
                    generation(&publish(&output, day, &run, &run))
                };
                scope.spawn(move || (0..ROUNDS).map(round).collect::<Vec<_>>())
            })
            .collect();
        publishers.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut sorted = generations;
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=THREADS * ROUNDS).collect::<Vec<_>>());
    let current = output(folder.path()).read_current().unwrap().unwrap();
    assert_eq!(json_at(folder.path(), "current.json")["generation"], current.generation);
    assert_eq!(current.logical_date, "2026-11-22");
}

#[test]
fn racing_publishers_of_one_fingerprint_publish_it_once() {
    let folder = TempDir::new().unwrap();
    let published: Vec<_> = thread::scope(|scope| {
        let publisher = |run: usize| {
            let output = output(folder.path());
            scope.spawn(move || publish(&output, SUNDAY, &run.to_string(), "same"))
        };
        let publishers: Vec<_> = (0..6).map(publisher).collect();
        publishers.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(published.iter().all(|published| generation(published) == 1));
    assert_eq!(published.iter().filter(|p| matches!(p, Published::New(_))).count(), 1);
}

/// An output in memory whose first creations in the log have these faults.
fn output_with(faults: &'static [Fault]) -> Output {
    let (runtime, world) = (IoRuntime::new().unwrap(), World::new());
    let n_entries = std::sync::atomic::AtomicUsize::new(0);
    let store = FaultStore::new(&world, move |call| {
        let is_entry = call.kind == "put" && call.path.starts_with("out/_log/");
        let number = || n_entries.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if is_entry { faults.get(number()).copied() } else { None }
    });
    runtime.insert_bucket("s3://shop", Arc::new(store));
    Output::open(&runtime, "s3://shop/out/", Path::new("")).unwrap()
}

#[test]
fn unknown_outcomes_are_read_back() {
    use Fault::*;
    let cases: [&[Fault]; 6] = [
        &[ReplyLost],
        &[AppliedThenRefused],
        &[NotApplied],
        &[Conflict],
        &[Late],
        &[NotApplied, NotApplied, ReplyLost],
    ];
    for faults in cases {
        let output = output_with(faults);
        let published = publish(&output, SUNDAY, "r1", "f1");
        assert!(matches!(published, Published::New(_)), "{faults:?}");
        assert_eq!(output.read_log().unwrap().entries().len(), 1, "{faults:?}");
    }
    let output = output_with(&[NotApplied; 5]);
    let run = manifest(SUNDAY, "r1", "f1");
    let path = RunPath::new(SUNDAY, "r1");
    let error = output.publish(&path, &run, NOW, false).unwrap_err();
    assert!(matches!(error, PublishError::UnknownOutcome { .. }), "{error}");
    assert_eq!(error.exit_code(), 75, "{error}");
    assert_eq!(output.read_current().unwrap(), None);
    output.publish(&path, &run, NOW, false).unwrap();
}

#[test]
fn entries_that_are_known_are_not_read_again() {
    let (world, runtime) = (World::new(), IoRuntime::new().unwrap());
    let store = FaultStore::new(&world, |_| None);
    runtime.insert_bucket("s3://shop", Arc::new(store.clone()));
    let open = || Output::open(&runtime, "s3://shop/out/", Path::new("")).unwrap();
    let (output, other) = (open(), open());
    for run in 0..20 {
        let (run, fingerprint) = (format!("r{run}"), format!("f{run}"));
        let publisher = if run.len() == 2 { &output } else { &other };
        publish(publisher, SUNDAY, &run, &fingerprint);
        let log = output.read_log().unwrap();
        let before = store.calls();
        assert_eq!(output.read_log().unwrap(), log);
        assert_eq!(store.calls() - before, 1, "a listing");
        assert_eq!(output.read_log_entries().unwrap(), log);
        assert_eq!(log.current().unwrap().run_id, run);
    }
    // Nobody writes an entry twice; who did would not be overlooked.
    let path = Key::from(format!("out/{}", super::log::entry_path(20)));
    let bytes = runtime.wait(async { world.objects.get(&path).await.unwrap().bytes().await });
    let text = String::from_utf8(bytes.unwrap().to_vec()).unwrap().replace("r19", "r77");
    runtime.wait(world.objects.put(&path, text.into())).unwrap();
    assert_eq!(output.read_current().unwrap().unwrap().run_id, "r77");
}

#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let safe = output_with(&[]);
    safe.probe("p1").unwrap();
    let folder = TempDir::new().unwrap();
    output(folder.path()).probe("p1").unwrap();
    assert!(!folder.path().join("out/_probe/p1").exists(), "the probe is cleaned up");
}

#[test]
fn a_run_whose_files_are_not_as_written_is_not_published() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    let path = RunPath::new(SUNDAY, "r1");
    let part = path.table_part("items", 0, 1);
    output.put(&part, "abc".into()).unwrap();
    let (table, sha256) = ("items".to_owned(), String::new());
    let file = PublishedFile { path: part, table, bytes: 4, rows: 1, sha256 };
    let manifest = Manifest { files: vec![file], ..manifest(SUNDAY, "r1", "f1") };
    let error = output.publish(&path, &manifest, NOW, false).unwrap_err();
    assert!(matches!(error, PublishError::WrongSize { expected: 4, found: 3, .. }), "{error}");

    let part = path.table_part("users", 0, 1);
    let rows = Arc::new(Int64Array::from_iter_values(0..5)) as ArrayRef;
    let rows = RecordBatch::try_from_iter([("n", rows)]).unwrap();
    let mut table = TableFile::new("users", &rows.schema(), &["n"]).unwrap();
    table.write(&rows).unwrap();
    let written = put_file(&output, &part, table.finish().unwrap()).unwrap();
    let error = |file: &PublishedFile| {
        let manifest = Manifest { files: vec![file.clone()], ..manifest.clone() };
        output.publish(&path, &manifest, NOW, false).unwrap_err()
    };
    let other_rows = error(&PublishedFile { rows: 6, ..written.clone() });
    assert!(matches!(other_rows, PublishError::WrongRows { expected: 6, found: 5, .. }));
    output.put(&part, vec![b'x'; written.bytes as usize].into()).unwrap();
    let unreadable = error(&written);
    assert!(matches!(unreadable, PublishError::Unreadable { .. }), "{unreadable}");
    assert_eq!((other_rows.exit_code(), unreadable.exit_code()), (74, 74));
    assert_eq!(output.read_current().unwrap(), None);
}

#[test]
fn a_run_id_is_used_once() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    publish(&output, SUNDAY, "r1", "f1");
    let other = Manifest { nonce: "other".into(), ..manifest(SUNDAY, "r1", "f2") };
    let error = output.publish(&RunPath::new(SUNDAY, "r1"), &other, NOW, false).unwrap_err();
    assert!(matches!(error, PublishError::RunTaken { .. }), "{error}");
}

#[test]
fn a_run_that_died_after_its_manifest_is_published_by_its_next_life() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    let (path, first) = (RunPath::new(SUNDAY, "r1"), manifest(SUNDAY, "r1", "f1"));
    output.put(&path.manifest(), serde_json::to_vec(&first).unwrap().into()).unwrap();
    let again = Manifest { stages: Vec::new(), as_of: "later".into(), ..first.clone() };
    let published = output.publish(&path, &again, NOW, false).unwrap();
    let Published::New(run) = &published else { panic!("{published:?}") };
    assert_eq!(output.read_manifest(run).unwrap(), first, "what was written stays");
    assert_eq!(generation(&output.publish(&path, &again, NOW, false).unwrap()), 1);
}

#[test]
fn control_files_that_were_changed_are_refused() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    publish(&output, SUNDAY, "r1", "f1");
    let run = output.read_current().unwrap().unwrap();
    fs::write(folder.path().join("out").join(&run.manifest), "{}").unwrap();
    let error = output.read_manifest(&run).unwrap_err();
    assert!(matches!(error, PublishError::Changed { .. }), "{error}");
    let log = folder.path().join("out/_log");
    fs::write(log.join("notes.txt"), "not an entry").unwrap();
    output.read_log().unwrap();
    fs::copy(log.join("00000000000000000001.json"), log.join("00000000000000000002.json")).unwrap();
    let error = output.read_log().unwrap_err();
    assert!(error.to_string().contains("out/_log/00000000000000000002.json"), "{error}");
    assert_eq!(error.exit_code(), 65);
}

#[test]
fn entries_may_gain_fields() {
    let folder = TempDir::new().unwrap();
    let output = output(folder.path());
    publish(&output, SUNDAY, "r1", "f1");
    let path = folder.path().join("out/_log/00000000000000000001.json");
    let mut entry = json_at(folder.path(), "_log/00000000000000000001.json");
    entry["later"] = json!([1]);
    fs::write(path, entry.to_string()).unwrap();
    assert_eq!(current_run(&output), "r1");
}

#[test]
fn an_output_on_a_disk_is_a_folder() {
    let folder = TempDir::new().unwrap();
    let runtime = IoRuntime::new().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for (url, code) in [("hdfs://shop/recs/", 78), ("s3:///recs/", 78), ("file/", 74), ("file", 74)]
    {
        let error = Output::create(&runtime, url, folder.path()).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
    }
    assert_eq!(Output::open(&runtime, "file", folder.path()).unwrap_err().exit_code(), 78);
    assert_eq!(Output::open(&runtime, "none", folder.path()).unwrap_err().exit_code(), 74);
    assert!(!folder.path().join("none").exists(), "reading makes no folders");
}
