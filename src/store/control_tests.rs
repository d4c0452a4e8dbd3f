//! Control files with their bytes and values changed at random: whatever they say, nobody panics,
//! nobody waits for ever, and nothing outside of the output changes.
//!
//! `TIDEMILL_MUTANTS=0..100000` runs other seeds than those of every test run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use jiff::civil::date;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::mutant_tests::mutate;
use super::publish_tests::manifest;
use super::table_writer::sha256_hex;
use super::witness::objects;
use super::*;

const NOW: &str = "2026-11-23T01:02:03Z";
const NOW_US: i64 = 1_795_395_723_000_000;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TIDEMILL_MUTANTS") else { return 0..1_000 };
    let (first, end) = text.split_once("..").expect("TIDEMILL_MUTANTS is first..end");
    first.parse().unwrap()..end.parse().unwrap()
}

fn publish(output: &Output, run: &str) -> Result<Published, PublishError> {
    let path = RunPath::new(date(2026, 11, 22), run);
    let rows = Arc::new(Int64Array::from_iter_values(0..9)) as ArrayRef;
    let rows = RecordBatch::try_from_iter([("n", rows)]).unwrap();
    let mut file = TableFile::new("items", &rows.schema(), &["n"]).unwrap();
    file.write(&rows).unwrap();
    let file = put_file(output, &path.table_part("items", 0, 1), file.finish().unwrap())?;
    let manifest =
        Manifest { files: vec![file], delta: true, ..manifest(date(2026, 11, 22), run, run) };
    output.publish(&path, &manifest, NOW, false)
}

/// An output with ten generations, a rollback among them, and something beside it.
fn sound() -> BTreeMap<String, Vec<u8>> {
    let (store, runtime) = (Arc::new(InMemory::new()), IoRuntime::new().unwrap());
    runtime.insert_bucket("s3://shop", store.clone());
    let output = Output::open(&runtime, "s3://shop/out/", Path::new("")).unwrap();
    for number in 0..9 {
        publish(&output, &format!("r{number}")).unwrap();
    }
    output.withdraw(None, NOW, "a rollback").unwrap();
    runtime.wait(store.put(&Key::from("beside/precious.txt"), "precious".into())).unwrap();
    objects(&store, "")
}

/// Values that are not what one would expect.
fn odd(rng: &mut ChaCha8Rng) -> Value {
    let texts =
        ["", "..", "../beside/precious.txt", "/beside/precious.txt", "a//b", "tables", "\0"];
    match rng.random_range(0..9) {
        0 => json!(null),
        1 => json!(u64::MAX),
        2 => json!(i64::MIN),
        3 => json!(-1.5e300),
        4 => json!([]),
        5 => json!({}),
        6 => json!(rng.random_bool(0.5)),
        7 => json!("s3://shop/beside/precious.txt"),
        _ => json!(texts[rng.random_range(0..texts.len())]),
    }
}

/// Changes one value, or takes it out.
fn change(value: &mut Value, rng: &mut ChaCha8Rng) {
    let go_on = rng.random_bool(0.9);
    match value {
        Value::Object(map) if go_on && !map.is_empty() => {
            let key = map.keys().nth(rng.random_range(0..map.len())).unwrap().clone();
            match rng.random_range(0..12) {
                0 => drop(map.remove(&key)),
                _ => change(&mut map[&key], rng),
            }
        }
        Value::Array(values) if go_on && !values.is_empty() => {
            let at = rng.random_range(0..values.len());
            match rng.random_range(0..12) {
                0 => drop(values.remove(at)),
                1 => values.push(values[at].clone()),
                _ => change(&mut values[at], rng),
            }
        }
        value => *value = odd(rng),
    }
}

fn mutated(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    // Lists of urls and Delta logs are lines; of the latter each is JSON.
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut value) if rng.random_bool(0.7) => {
            (0..rng.random_range(1..3)).for_each(|_| change(&mut value, rng));
            value.to_string().into_bytes()
        }
        _ if rng.random_bool(0.1) => vec![b'['; 100_000],
        _ => {
            mutate(&mut bytes, rng);
            bytes
        }
    }
}

/// Everything that is done with an output; errors are what is expected.
fn use_all(output: &Output, run: &str) -> Vec<PublishError> {
    let rules = CollectionRules { keep: 1, grace_us: -1, now_us: NOW_US };
    let mut errors = Vec::new();
    let mut note = |result: Result<(), PublishError>| errors.extend(result.err());
    if let Ok(log) = output.read_log() {
        for entry in log.entries() {
            note(output.read_manifest(&entry.run).map(|manifest| {
                let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
                let rows: u64 = manifest.files.iter().map(|file| file.rows).sum();
                assert!(bytes > 0 || rows < 1 << 60);
            }));
            note(output.verify(&entry.run, &|_| {}).map(drop));
        }
    }
    note(output.follow_log().map(drop));
    note(output.repair().map(drop));
    note(output.plan_collection(&rules).map(drop));
    note(publish(output, run).map(drop));
    note(output.withdraw(None, NOW, "another rollback").map(drop));
    note(output.collect(&rules, NOW, "a collection").map(drop));
    errors
}

#[test]
fn control_files_that_lie_do_no_harm() {
    let sound = sound();
    let is_control = |path: &&String| !path.ends_with(".parquet") && path.starts_with("out/");
    let control: Vec<&String> = sound.keys().filter(is_control).collect();
    assert!(control.len() > 40, "{control:?}");
    let runtime = IoRuntime::new().unwrap();
    let mut n_refused = 0;
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut files = sound.clone();
        let path = control[rng.random_range(0..control.len())];
        let bytes = mutated(&sound[path], &mut rng);
        if path.ends_with("_manifest.json") && rng.random_bool(0.8) {
            // Who may write a manifest may write the log that vouches for it.
            let (old, new) = (sha256_hex(&sound[path]), sha256_hex(&bytes));
            for (path, bytes) in &mut files {
                if path.contains("/_log/") || path.ends_with("current.json") {
                    *bytes = String::from_utf8_lossy(bytes).replace(&old, &new).into_bytes();
                }
            }
        }
        files.insert(path.clone(), bytes);
        if rng.random_bool(0.1) {
            // The last version that a number has room for.
            let last = format!("out/tables/items/_delta_log/{}.json", u64::MAX);
            files.insert(last, sound[path].clone());
        }
        let store = Arc::new(InMemory::new());
        for (path, bytes) in files {
            let path = Key::parse(path).unwrap();
            runtime.wait(store.put(&path, bytes.into())).unwrap();
        }
        runtime.insert_bucket("s3://shop", store.clone());
        let output = Output::open(&runtime, "s3://shop/out/", Path::new("")).unwrap();
        let errors = use_all(&output, "a-new-run");
        n_refused += usize::from(!errors.is_empty());
        for error in errors {
            let text = error.to_string();
            assert_ne!(error.exit_code(), 70, "seed {seed}: {text}");
            let is_of_an_object = matches!(
                error,
                PublishError::Corrupt { .. }
                    | PublishError::Changed { .. }
                    | PublishError::Store { .. }
            );
            assert!(!is_of_an_object || text.contains("s3://shop/out/"), "seed {seed}: {text}");
        }
        let left = objects(&store, "");
        let outside: Vec<&String> = left.keys().filter(|path| !path.starts_with("out/")).collect();
        assert_eq!(outside, ["beside/precious.txt"], "seed {seed}");
        assert_eq!(left["beside/precious.txt"], b"precious", "seed {seed}");
    }
    assert!(n_refused > 100, "{n_refused} of the seeds made an error");
}
