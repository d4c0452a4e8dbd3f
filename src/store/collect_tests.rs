//! Files of earlier runs that later ones list: gc and purge keep them as long as, and no longer than, one does.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use jiff::civil::{Date, date};

use super::faults::{Call, Fault, FaultStore, World};
use super::publish_tests::manifest;
use super::witness::{objects, violations};
use super::*;

const NOW: &str = "2026-11-23T01:02:03Z";
const URL: &str = "s3://shop/out/";
const DAY: Date = date(2026, 11, 22);

fn open(world: &World, script: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) -> Output {
    let runtime = IoRuntime::new().unwrap();
    runtime.insert_bucket("s3://shop", Arc::new(FaultStore::new(world, script)));
    Output::open(&runtime, URL, Path::new("")).unwrap()
}

fn calm(world: &World) -> Output {
    open(world, |_| None)
}

/// Writes two tables, with the users of another run in the place of its own.
fn write(output: &Output, run: &str, users_of: Option<&str>) -> Manifest {
    let path = RunPath::new(DAY, run);
    let write = |table: &str| {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..run.len() as i64));
        let rows = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let mut file = TableFile::new(table, &rows.schema(), &["n"]).unwrap();
        file.write(&rows).unwrap();
        put_file(output, &path.table_part(table, 0, 1), file.finish().unwrap()).unwrap()
    };
    let mut files = vec![write("items")];
    let mut unchanged_since = None;
    match users_of {
        None => files.push(write("users")),
        Some(other) => {
            let log = output.read_log().unwrap();
            let entry = log.publications().find(|entry| entry.run.run_id == other).unwrap();
            let earlier = output.read_manifest(&entry.run).unwrap().files;
            files.extend(earlier.into_iter().filter(|file| file.table == "users"));
            let generation = entry.run.generation;
            unchanged_since = Some(EarlierRun { generation, run_id: other.to_owned() });
        }
    }
    Manifest { files, delta: true, unchanged_since, ..manifest(DAY, run, run) }
}

fn publish(output: &Output, run: &str, users_of: Option<&str>) -> Result<Current, PublishError> {
    publish_written(output, &write(output, run, users_of))
}

fn publish_written(output: &Output, manifest: &Manifest) -> Result<Current, PublishError> {
    let path = RunPath::new(DAY, &manifest.run_id);
    match output.publish(&path, manifest, NOW, false)? {
        Published::New(current) | Published::Already(current) => Ok(current),
    }
}

fn collect(output: &Output, nonce: &str) -> Result<Collection, PublishError> {
    let rules = CollectionRules { keep: 1, grace_us: 0, now_us: i64::MAX / 2 };
    output.collect(&rules, NOW, nonce)
}

/// The tables of a run that are there, after a look at everything.
fn left_of(world: &World, run: &str) -> Vec<String> {
    let seen = objects(&world.objects, "out");
    let found = violations(&seen, URL);
    assert!(found.is_empty(), "{found:#?}");
    let of_run = seen.keys().filter(|path| path.contains(&format!("run_id={run}/")));
    of_run.map(|path| path.split('/').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn a_file_stays_as_long_as_a_run_lists_it() {
    let world = World::new();
    let output = calm(&world);
    publish(&output, "r0", None).unwrap();
    publish(&output, "r1", Some("r0")).unwrap();
    publish(&output, "r2", Some("r1")).unwrap();
    let done = collect(&output, "first").unwrap();
    assert_eq!(done.published_runs, ["r0", "r1"]);
    assert_eq!(left_of(&world, "r0"), ["users"]);
    let again = collect(&output, "again").unwrap();
    assert_eq!((again.published_runs.len(), again.objects), (0, 0), "{again:?}");
    let run = output.read_current().unwrap().unwrap();
    assert_eq!(output.verify(&run, &|_| ()).unwrap().problems, [""; 0]);
    // The generation that lists it goes, and so does the file.
    publish(&output, "r3", None).unwrap();
    collect(&output, "second").unwrap();
    assert_eq!(left_of(&world, "r0"), [""; 0]);
    assert_eq!(left_of(&world, "r3"), ["items", "users"]);
}

#[test]
fn a_purge_takes_files_that_runs_before_it_left_and_none_that_others_list() {
    let world = World::new();
    let output = calm(&world);
    publish(&output, "r0", None).unwrap();
    publish(&output, "r1", Some("r0")).unwrap();
    let purge = |run: &str| {
        output.purge(&BTreeSet::from([run.to_owned()]), NOW, &format!("purges {run}")).unwrap()
    };
    purge("r0");
    assert_eq!(left_of(&world, "r0"), ["users"]);
    publish(&output, "r2", None).unwrap();
    let gone = purge("r1").objects;
    assert!(gone.iter().any(|object| object.path.contains("run_id=r0/")), "{gone:?}");
    assert_eq!(left_of(&world, "r0"), [""; 0]);
}

#[test]
fn a_run_that_is_published_while_gc_gives_up_its_files_keeps_them() {
    let world = World::new();
    let output = calm(&world);
    publish(&output, "r0", None).unwrap();
    publish(&output, "r1", None).unwrap();
    let other = world.clone();
    let is_done = AtomicBool::new(false);
    let gc = open(&world, move |call| {
        // Just before the entry that gives up r0.
        let is_entry = call.kind == "put" && call.path.contains("_log/");
        if is_entry && !is_done.swap(true, Ordering::SeqCst) {
            let publisher = calm(&other);
            let published = thread::spawn(move || publish(&publisher, "r2", Some("r0")).unwrap());
            assert_eq!(published.join().unwrap().generation, 3);
        }
        None
    });
    let done = collect(&gc, "a collection").unwrap();
    assert_eq!(done.generation, Some(4));
    assert_eq!(left_of(&world, "r0"), ["users"]);
    let run = output.read_current().unwrap().unwrap();
    assert_eq!(run.run_id, "r2");
    assert_eq!(output.verify(&run, &|_| ()).unwrap().problems, [""; 0]);
}

#[test]
fn a_run_that_comes_after_gc_gave_up_its_files_is_refused() {
    let world = World::new();
    let output = calm(&world);
    publish(&output, "r0", None).unwrap();
    publish(&output, "r1", None).unwrap();
    // A collection that dies when its entry is there and its files are too.
    let written = write(&output, "r4", Some("r0"));
    let gc = open(&world, |call| (call.kind == "delete").then_some(Fault::CrashBefore));
    collect(&gc, "a collection").unwrap_err();
    assert_eq!(left_of(&world, "r0"), ["items", "users"]);
    let refused = publish(&output, "r2", Some("r0")).unwrap_err();
    assert!(matches!(refused, PublishError::UnchangedGone { .. }), "{refused}");
    assert_eq!(refused.exit_code(), 75);
    publish(&output, "r3", Some("r1")).unwrap();
    collect(&output, "the rest").unwrap();
    // Nor where the files are gone by now.
    let refused = publish_written(&output, &written).unwrap_err();
    assert!(matches!(refused, PublishError::UnchangedGone { .. }), "{refused}");
    assert_eq!(left_of(&world, "r0"), [""; 0]);
    assert_eq!(left_of(&world, "r1"), ["users"]);
}
