//! Incremental runs beside full ones, over logs that grow, change and lose files.
//!
//! `TIDEMILL_INCREMENTAL=0..5000` runs other seeds than those of every test run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use futures::FutureExt;
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use parquet::arrow::ArrowWriter;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::changes_tests::{assert_changes_lead, current_manifest, without_changes};
use super::crash_tests::{place, published_tables, request};
use super::*;
use crate::store::faults::{Fault, FaultStore, World};
use crate::store::witness::objects;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TIDEMILL_INCREMENTAL") else { return 0..200 };
    let (first, end) = text.split_once("..").expect("TIDEMILL_INCREMENTAL is first..end");
    first.parse().unwrap()..end.parse().unwrap()
}

const EPOCH_S: i64 = 1_700_000_000;
const DAY_S: i64 = 86_400;
const EVENTS: [&str; 5] = ["view", "buy", "return", "hide", "unlisted"];

/// A row as a log may hold it, some of it unusable.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) user: Option<i64>,
    pub(super) item: Option<i64>,
    time: Option<i64>,
    event: &'static str,
    value: Option<f64>,
    id: Option<i64>,
}

impl Row {
    pub(super) fn random(rng: &mut ChaCha8Rng, day: i64) -> Self {
        let unusual = |rng: &mut ChaCha8Rng| rng.random_bool(0.02);
        let late = if rng.random_bool(0.1) { rng.random_range(0..20) } else { 0 };
        let second = rng.random_range(0..DAY_S);
        // Some instants come often, so that ties have to be broken.
        let second = if rng.random_bool(0.5) { second / 40_000 * 40_000 } else { second };
        let user = rng.random_range(0..12i64);
        let item = rng.random_range(0..10i64);
        Self {
            user: (!unusual(rng)).then_some(user * user),
            item: (!unusual(rng)).then_some(item),
            time: (!unusual(rng)).then_some(EPOCH_S + (day - late) * DAY_S + second),
            event: EVENTS[[0, 0, 0, 0, 1, 1, 1, 2, 3, 4][rng.random_range(0..10usize)]],
            value: match rng.random_range(0..30) {
                0 => None,
                1 => Some(f64::NAN),
                2 => Some(-1.0),
                3 => Some(0.0),
                n => Some(f64::from(n % 4)),
            },
            id: rng.random_bool(0.3).then(|| rng.random_range(0..40)),
        }
    }
}

/// A job over such rows, with or without each of the keys that look at all events of a user.
fn spec(rng: &mut ChaCha8Rng) -> String {
    let mut spec = String::from(
        "name = \"days\"\nshards = 4\n[limits]\nreject_share_max = 0.9\n\
         [incremental]\nshare_files = true\n[popularity]\n[debias]\n[item_neighbors]\nn_neighbors = 4\n\
         [[events]]\nurl = \"s3://shop/log/\"\ntime_unit = \"s\"\n",
    );
    let maybe = |rng: &mut ChaCha8Rng, text: &'static str| match rng.random_bool(0.5) {
        true => text,
        false => "",
    };
    let (value, id) = (maybe(rng, ", value = \"value\""), maybe(rng, ", id = \"id\""));
    spec.push_str(&format!(
        "columns = {{ user = \"user\", item = \"item\", time = \"time\", event = \"event\"{value}{id} }}\n\
         [events.weights]\nview = 1.0\n"
    ));
    spec.push_str(match (value, rng.random_range(0..3)) {
        ("", _) | (_, 0) => "buy = 3.0\n",
        (_, 1) => "buy = { weight = 3.0, value = \"log1p\", value_max = 2 }\n",
        _ => "buy = { weight = 3.0, value = \"linear\", negative = \"undo\" }\n",
    });
    spec.push_str(maybe(rng, "return = { undoes = \"buy\" }\n"));
    spec.push_str(maybe(rng, "hide = { excludes_item = true }\n"));
    spec.push_str("[history]\n");
    spec.push_str(maybe(rng, "window_days = 5\n"));
    spec.push_str(maybe(rng, "half_life_days = 3\n"));
    spec.push_str(maybe(rng, "interactions_per_user_max = 4\n"));
    spec.push_str(maybe(rng, "users_per_item_min = 3\n"));
    if rng.random_bool(0.1) {
        spec.push_str("[als]\nn_factors = 4\niterations = 1\n");
    }
    spec.push_str("[top_k]\nk = 3\n");
    spec.push_str(maybe(rng, "exclude_seen = [\"view\"]\n"));
    spec.push_str(maybe(rng, "exclude_seen_days = 6\n"));
    for (of, what) in [("user", "users"), ("item", "items")] {
        if rng.random_bool(0.3) {
            spec.push_str(&format!(
                "[delete.{what}]\nurl = \"s3://shop/{what}.parquet\"\ncolumn = \"{of}\"\n"
            ));
        }
    }
    spec.push_str("[output]\nurl = \"s3://shop/out/\"\n");
    spec
}

/// Who and what is to be gone.
type Lists = [Vec<i64>; 2];

/// Adds to the lists of what is to be gone; now and then somebody is to be there again.
fn change_lists(rng: &mut ChaCha8Rng, [users, items]: &mut Lists, day: i64) {
    if rng.random_bool(0.4) {
        users.extend(Row::random(rng, day).user);
    }
    if rng.random_bool(0.2) {
        items.extend(Row::random(rng, day).item);
    }
    if rng.random_bool(0.1) {
        users.pop();
    }
}

fn put_lists(world: &World, lists: &Lists, has_text: bool) {
    for (ids, (of, prefix)) in lists.iter().zip([("user", "u"), ("item", "i")]) {
        let column: ArrayRef = match has_text {
            true => Arc::new(StringArray::from_iter_values(
                ids.iter().map(|id| format!("{prefix}{id}")),
            )),
            false => Arc::new(Int64Array::from_iter_values(ids.iter().copied())),
        };
        let batch = RecordBatch::try_from_iter([(of, column)]).unwrap();
        put_object(world, &format!("{of}s.parquet"), parquet(&batch, 100));
    }
}

/// A list of users or of items, at `<of>s.parquet`.
pub(super) fn put_ids(world: &World, of: &str, ids: &[i64]) {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(ids.iter().copied()));
    let batch = RecordBatch::try_from_iter([(of, column)]).unwrap();
    put_object(world, &format!("{of}s.parquet"), parquet(&batch, 100));
}

fn parquet(batch: &RecordBatch, group_rows: usize) -> Vec<u8> {
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(group_rows))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn put_object(world: &World, key: &str, bytes: Vec<u8>) {
    let put = world.objects.put(&Key::from(key), bytes.into()).now_or_never();
    put.expect("a store in memory never waits").unwrap();
}

pub(super) type Log = BTreeMap<String, Vec<Row>>;

/// A file of the log; row groups of a few rows, ids as text in some logs.
fn file(rows: &[Row], has_text: bool, group_rows: usize) -> Vec<u8> {
    let ids = |of: fn(&Row) -> Option<i64>, prefix: &str| -> ArrayRef {
        let ids = rows.iter().map(of);
        match has_text {
            true => {
                Arc::new(StringArray::from_iter(ids.map(|id| id.map(|id| format!("{prefix}{id}")))))
            }
            false => Arc::new(Int64Array::from_iter(ids)),
        }
    };
    let events = StringArray::from_iter_values(rows.iter().map(|row| row.event));
    let values = Float64Array::from_iter(rows.iter().map(|row| row.value));
    let times = Int64Array::from_iter(rows.iter().map(|row| row.time));
    let columns: [(&str, ArrayRef); 6] = [
        ("user", ids(|row| row.user, "u")),
        ("item", ids(|row| row.item, "i")),
        ("time", Arc::new(times)),
        ("event", Arc::new(events)),
        ("value", Arc::new(values)),
        ("id", ids(|row| row.id, "e")),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.map(|(name, column)| (name, column, true)),
    );
    let batch = batch.unwrap();
    parquet(&batch, group_rows)
}

/// What a day does to a log.
fn change(rng: &mut ChaCha8Rng, log: &mut Log, day: i64) {
    let rows = |rng: &mut ChaCha8Rng, n: usize| -> Vec<Row> {
        let n = rng.random_range(1..n);
        (0..n).map(|_| Row::random(rng, day)).collect()
    };
    if !rng.random_bool(0.2) {
        let new = rows(rng, 60);
        log.insert(format!("day-{day}.parquet"), new);
    }
    let names: Vec<String> = log.keys().cloned().collect();
    let Some(name) = names.get(rng.random_range(0..names.len().max(1))) else { return };
    match rng.random_range(0..8) {
        // Written again, with other rows, fewer, or the same in another order.
        0 => log.get_mut(name).unwrap().extend(rows(rng, 10)),
        1 => log.get_mut(name).unwrap().retain(|_| rng.random_bool(0.7)),
        2 => log.get_mut(name).unwrap().shuffle(rng),
        3 => drop(log.remove(name)),
        // The same file twice.
        4 => drop(log.insert(format!("copy-{day}.parquet"), log[name].clone())),
        // A person who asks to be forgotten, by whoever keeps the log.
        5 => {
            let user = Row::random(rng, day).user;
            log.values_mut().for_each(|rows| rows.retain(|row| row.user != user));
        }
        _ => {}
    }
}

/// The log as it is now, in place of what was there.
pub(super) fn put(world: &World, log: &Log, has_text: bool, group_rows: usize) {
    let at_once = "a store in memory never waits";
    let there = objects(&world.objects, "log");
    for key in there.keys().filter(|key| !log.contains_key(*key)) {
        let key = Key::from(format!("log/{key}"));
        world.objects.delete(&key).now_or_never().expect(at_once).unwrap();
    }
    for (name, rows) in log {
        let bytes = file(rows, has_text, group_rows);
        // Written again, a file has another version, whatever it holds.
        if there.get(name) == Some(&bytes) {
            continue;
        }
        put_object(world, &format!("log/{name}"), bytes);
    }
}

pub(super) fn run_on(world: &World, runtime: &IoRuntime, request: Request) -> Result<Outcome> {
    runtime.insert_bucket("s3://shop", Arc::new(FaultStore::new(world, |_| None)));
    attempts::run_on(runtime.clone(), request).0
}

/// The stages that tell how a run came to its rows.
pub(super) fn told(outcome: &Outcome, stage: &str, key: &str) -> Option<Value> {
    let Outcome::Published { manifest, .. } = outcome else { return None };
    let stage = manifest.stages.iter().find(|found| found.name == stage)?;
    stage.more.get(key).cloned()
}

#[test]
fn an_incremental_run_publishes_the_bytes_of_a_full_one() {
    let runtime = IoRuntime::new().unwrap();
    let (mut n_runs, mut n_updates, mut n_changes, mut n_counted) = (0, 0, 0, 0);
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (spec, has_text) = (spec(&mut rng), rng.random_bool(0.5));
        let group_rows = rng.random_range(3..50);
        let full_spec = spec.replace("[incremental]\nshare_files = true\n", "");
        let (world, mut log, mut lists) = (World::new(), Log::new(), Lists::default());
        let carried = Arc::new(Carried::default());
        for day in 0..rng.random_range(2..6) {
            change(&mut rng, &mut log, day);
            if log.is_empty() {
                continue;
            }
            put(&world, &log, has_text, group_rows);
            change_lists(&mut rng, &mut lists, day);
            put_lists(&world, &lists, has_text);
            let date = jiff::civil::date(2023, 11, 15).checked_add(jiff::Span::new().days(day));
            let date = rng.random_bool(0.7).then(|| date.unwrap().to_string());
            let of_day = |spec: &str, run: &str, workers| Request {
                workers,
                flags: PlanFlags { date: date.clone(), ..PlanFlags::default() },
                ..request(spec, &format!("{run}{day}"))
            };
            let before = current_manifest(&world);
            let workers = [1, 3][rng.random_range(0..2usize)];
            let when = format!("seed {seed}, day {day}, {workers} workers, date {date:?}");
            // As in a backfill on some days, alone on others.
            let carried = rng.random_bool(0.7).then(|| carried.clone());
            let request = Request { carried, ..of_day(&spec, "r", workers) };
            let incremental = run_on(&world, &runtime, request);
            let other = World::new();
            put(&other, &log, has_text, group_rows);
            put_lists(&other, &lists, has_text);
            let full = run_on(&other, &runtime, of_day(&full_spec, "r", 1));
            match (incremental, full) {
                (
                    Ok(Outcome::Published { manifest, current }),
                    Ok(Outcome::Published { manifest: of_full, .. }),
                ) => {
                    let outcome = Outcome::Published { manifest: manifest.clone(), current };
                    let state = newest_state_in(&world, &manifest);
                    assert_gone(&world, &state, &spec, &lists, has_text, &when);
                    if let Some(before) = &before {
                        let is_gone =
                            |column: &str, id: &str| is_gone(column, id, &spec, &lists, has_text);
                        n_changes +=
                            assert_changes_lead(&world, before, &manifest, &is_gone, &when);
                    }
                    let seen = run_files(&world, &manifest);
                    let wanted = run_files(&other, &of_full);
                    let different: Vec<_> =
                        wanted.keys().filter(|key| seen.get(*key) != wanted.get(*key)).collect();
                    assert!(seen == wanted, "{when}: other bytes in {different:?}\n{spec}");
                    n_runs += 1;
                    let updated = told(&outcome, "state", "shards_rewritten");
                    n_updates += usize::from(updated.is_some_and(|n| n != json!(4)));
                    let pairs = told(&outcome, "item neighbors", "pairs");
                    n_counted += usize::from(pairs == Some(json!("updated")));
                }
                (Ok(Outcome::AlreadyPublished { .. }), Ok(_)) => {}
                (Err(error), Err(of_full)) => {
                    assert_eq!(exit_code(&error), exit_code(&of_full), "{when}: {error:#}");
                }
                (incremental, full) => panic!("{when}: {incremental:?} beside {full:?}"),
            }
        }
    }
    let n_seeds = seeds().count();
    assert!(n_runs > n_seeds && n_updates > n_seeds / 2, "{n_runs} runs, {n_updates} updates");
    assert!(n_changes > 20 * n_seeds, "{n_changes} changes");
    assert!(n_counted > n_seeds / 4, "counts of pairs were brought up to date in {n_counted} runs");
}

/// Whether an id of a column is on the lists of what is to be gone.
fn is_gone(column: &str, id: &str, spec: &str, lists: &Lists, has_text: bool) -> bool {
    let (list, prefix, name) = match column {
        "user_id" => (&lists[0], "u", "[delete.users]"),
        _ => (&lists[1], "i", "[delete.items]"),
    };
    let as_listed = |gone: &i64| match has_text {
        true => format!("{prefix}{gone}"),
        false => gone.to_string(),
    };
    spec.contains(name) && list.iter().any(|gone| as_listed(gone) == id)
}

/// The tables of a run but those of changes, without the run's id in their paths.
fn run_files(world: &World, manifest: &Manifest) -> BTreeMap<String, Vec<u8>> {
    let seen = objects(&world.objects, "out");
    let files = manifest.files.iter().filter(|file| !file.table.ends_with("_changes"));
    let files = files.map(|file| &file.path);
    files.map(|path| (place(path, &manifest.run_id), seen[path].clone())).collect()
}

/// A job of two days, which every seed below goes through.
pub(super) fn two_days() -> (String, Log, Log) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let spec = loop {
        let spec = spec(&mut rng);
        if !spec.contains("[delete") {
            break spec;
        }
    };
    let rows = |rng: &mut ChaCha8Rng, day| (0..300).map(|_| Row::random(rng, day)).collect();
    let before = Log::from([("day-0.parquet".to_owned(), rows(&mut rng, 0))]);
    let mut after = before.clone();
    after.insert("day-1.parquet".to_owned(), (0..6).map(|_| Row::random(&mut rng, 1)).collect());
    (spec, before, after)
}

/// A world with a log, of which a run has published.
fn world_after(runtime: &IoRuntime, spec: &str, log: &Log, run: &str) -> World {
    let world = World::new();
    put(&world, log, false, 100);
    run_on(&world, runtime, request(spec, run)).unwrap();
    world
}

#[test]
fn an_incremental_run_killed_at_any_request_is_made_up_for_by_the_next() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    let first_day = || {
        let world = world_after(&runtime, &spec, &before, "r0");
        put(&world, &after, false, 100);
        world
    };
    let outcome = assert_made_up_for(&runtime, &spec, first_day, (1, 1));
    assert_eq!(told(&outcome, "state", "shards_rewritten"), Some(json!(0)));
}

/// Kills the second run at every so many requests, before and after one in turn, and holds what the next one
/// publishes on `workers` against the outcome without a fault, which is returned. `first_day` is the world
/// before the second run.
pub(super) fn assert_made_up_for(
    runtime: &IoRuntime,
    spec: &str,
    first_day: impl Fn() -> World,
    (every, workers): (usize, usize),
) -> Outcome {
    let calm = first_day();
    let store = FaultStore::new(&calm, |_| None);
    runtime.insert_bucket("s3://shop", Arc::new(store.clone()));
    let outcome = attempts::run_on(runtime.clone(), request(spec, "r1")).0.unwrap();
    let (wanted, n_calls) = (published_tables(&calm, "without a fault"), store.calls());
    for number in (0..n_calls).step_by(every) {
        let fault = [Fault::CrashBefore, Fault::CrashAfter][number as usize % 2];
        let when = format!("{fault:?} at call {number} of {n_calls}");
        let world = first_day();
        let dying = FaultStore::new(&world, move |call| (call.number == number).then_some(fault));
        runtime.insert_bucket("s3://shop", Arc::new(dying));
        let died = attempts::run_on(runtime.clone(), request(spec, "r1")).0;
        let code = died.as_ref().map_or_else(exit_code, |_| 0);
        assert!(matches!(code, 0 | 75), "{when}: {died:?}");
        run_on(&world, runtime, Request { workers, ..request(spec, "r2") }).unwrap();
        assert!(published_tables(&world, &when) == wanted, "{when}: other bytes");
    }
    outcome
}

#[test]
fn files_that_are_as_they_were_are_not_read() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    let world = world_after(&runtime, &spec, &before, "r0");
    put(&world, &after, false, 100);
    let store = FaultStore::new(&world, |call| {
        // A footer is read to check the columns, rows are not.
        assert!(call.kind != "get" || !call.path.contains("state/r1"), "{call:?}");
        None
    });
    runtime.insert_bucket("s3://shop", Arc::new(store));
    let outcome = attempts::run_on(runtime.clone(), request(&spec, "r1")).0.unwrap();
    let Outcome::Published { manifest, .. } = &outcome else { panic!("{outcome:?}") };
    let state = manifest.state.clone().unwrap();
    let seen = objects(&world.objects, "out");
    let state: crate::store::StateManifest = serde_json::from_slice(&seen[&state.path]).unwrap();
    let (old, new): (Vec<_>, Vec<_>) =
        state.parts.iter().partition(|part| part.file.path.starts_with("state/r0/"));
    assert!(old.len() > 4 && !new.is_empty(), "{state:#?}");
    let n_new: u64 = new.iter().map(|part| part.log_rows()).sum();
    assert!((1..=6).contains(&n_new), "{n_new} new rows");
}

#[test]
fn state_of_another_format_has_files_and_is_not_read() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, _) = two_days();
    let world = world_after(&runtime, &spec, &before, "r0");
    let output = Output::open(&runtime, "s3://shop/out/", std::path::Path::new("")).unwrap();
    let now = newest_state(&output);
    let mut older = serde_json::to_value(&now).unwrap();
    older["format"] = json!(2);
    for part in older["parts"].as_array_mut().unwrap() {
        part.as_object_mut().unwrap().remove("log_rows");
    }
    let bytes = older.to_string().into_bytes();
    let state = crate::store::StateRef {
        path: "runs/older/_state.json".to_owned(),
        sha256: sha256_hex(&bytes),
        meaning: now.meaning.clone(),
    };
    put_object(&world, &format!("out/{}", state.path), bytes);
    let files = output.state_files(&state).unwrap();
    assert!(files.iter().map(|found| &found.file).eq(now.parts.iter().map(|part| &part.file)));
    assert!(["items", "users", "rows"].iter().all(|kind| files.iter().any(|of| of.kind == *kind)));
    let error = format!("{:?}", output.read_state(&state).unwrap_err());
    assert!(error.contains("format 2"), "{error}");
}

/// One file that grows, as many exports are.
#[test]
fn a_log_whose_files_were_written_anew_is_read_whole() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, mut after) = two_days();
    let new = after.remove("day-1.parquet").unwrap();
    after.values_mut().for_each(|rows| rows.extend(new.clone()));
    let wanted = {
        let world = world_after(&runtime, &spec, &after, "r1");
        published_tables(&world, "a full run")
    };
    for workers in [1, 3] {
        let world = world_after(&runtime, &spec, &before, "r0");
        put(&world, &after, false, 100);
        let outcome = run_on(&world, &runtime, Request { workers, ..request(&spec, "r1") });
        let outcome = outcome.unwrap();
        assert_eq!(told(&outcome, "state", "shards_rewritten"), Some(json!(4)));
        // Pairs are told apart by their histories, wherever these come from.
        assert_eq!(told(&outcome, "item neighbors", "pairs"), Some(json!("updated")));
        let found = without_changes(published_tables(&world, "a file that grew"));
        assert!(found == wanted, "other bytes");
    }
}

#[test]
fn a_state_that_is_damaged_or_of_another_meaning_is_read_anew() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    let wanted = {
        let world = world_after(&runtime, &spec, &after, "r1");
        published_tables(&world, "a full run")
    };
    // Rows are there without the counts of pairs.
    let of_pairs = ["/pair-items", "/pair-users-00000", "/pair-counts-00000"];
    let of_rows = ["/rows-00001", "/users-00000", "/items", "/_state.json"];
    let damages: [fn(&mut Vec<u8>); 2] = [
        |bytes| *bytes = vec![7; 50],
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        },
    ];
    let files = of_rows.into_iter().chain(of_pairs);
    for (file, damage) in files.flat_map(|file| damages.map(|damage| (file, damage))) {
        let world = world_after(&runtime, &spec, &before, "r0");
        put(&world, &after, false, 100);
        let mut seen = objects(&world.objects, "out");
        let found = seen.iter_mut().find(|(path, _)| {
            let is_state = path.starts_with("state/") || path.ends_with("_state.json");
            is_state && path.contains(file)
        });
        let (path, bytes) = found.unwrap();
        damage(bytes);
        let key = Key::from(format!("out/{path}"));
        world.objects.put(&key, bytes.clone().into()).now_or_never().unwrap().unwrap();
        let outcome = run_on(&world, &runtime, request(&spec, "r1")).unwrap();
        let is_of_pairs = of_pairs.contains(&file);
        let reads_all = told(&outcome, "state", "shards_rewritten") == Some(json!(4));
        assert_eq!(reads_all, !is_of_pairs, "{file}");
        let way = told(&outcome, "item neighbors", "pairs").unwrap();
        assert!(!is_of_pairs || way == json!("counted"), "{file}: {way}");
        assert!(without_changes(published_tables(&world, file)) == wanted, "{file}: other bytes");
    }
    let other = spec.replace("view = 1.0", "view = 2.0");
    let world = world_after(&runtime, &other, &before, "r0");
    put(&world, &after, false, 100);
    let outcome = run_on(&world, &runtime, request(&spec, "r1")).unwrap();
    assert_eq!(told(&outcome, "state", "shards_rewritten"), Some(json!(4)));
    assert!(without_changes(published_tables(&world, "another meaning")) == wanted, "other bytes");
}

/// The state of the newest generation.
fn newest_state(output: &Output) -> crate::store::StateManifest {
    let manifest = output.read_manifest(&output.read_current().unwrap().unwrap()).unwrap();
    output.read_state(&manifest.state.unwrap()).unwrap()
}

#[test]
fn old_state_goes_when_no_kept_run_needs_it_and_is_compacted_and_rebuilt_on_demand() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    let world = world_after(&runtime, &spec, &before, "r0");
    put(&world, &after, false, 100);
    run_on(&world, &runtime, request(&spec, "r1")).unwrap();
    let wanted = without_changes(published_tables(&world, "two days"));
    let output = Output::open(&runtime, "s3://shop/out/", std::path::Path::new("")).unwrap();
    let state = newest_state(&output);
    let runs = |state: &crate::store::StateManifest| -> std::collections::BTreeSet<String> {
        state.parts.iter().map(|part| part.file.path.split('/').nth(1).unwrap().into()).collect()
    };
    assert_eq!(runs(&state).len(), 2);
    let check = |state: &crate::store::StateManifest| {
        let check = check_state(&output, state, &|_| ()).unwrap();
        assert_eq!(check.problems, [""; 0]);
        assert_eq!(output.verify_state(state, &|_| ()), [""; 0]);
        check
    };
    let checked = check(&state);
    let collect = |now_us| {
        let rules = crate::store::CollectionRules { keep: 1, grace_us: 0, now_us };
        output.collect(&rules, "2026-11-23T00:00:00Z", &format!("gc at {now_us}")).unwrap()
    };
    // What r1 took over from r0 stays.
    collect(i64::MAX / 2);
    assert_eq!(check(&newest_state(&output)), checked);
    for (from, run) in [(StateUse::Compact, "r2"), (StateUse::Rebuild, "r3")] {
        let request = Request { force: true, state: from, ..request(&spec, run) };
        run_on(&world, &runtime, request).unwrap();
        assert!(without_changes(published_tables(&world, run)) == wanted, "{run}: other bytes");
        let state = newest_state(&output);
        let of_shard = |shard| state.parts.iter().filter(|part| part.is_rows_of(shard)).count();
        assert!((0..4).all(|shard| of_shard(shard) == 1), "{state:#?}");
        assert_eq!(check(&state).rows, checked.rows);
    }
    assert_eq!(runs(&newest_state(&output)), ["r3".to_owned()].into());
    collect(i64::MAX / 2 + 1);
    let left = objects(&world.objects, "out/state");
    assert!(left.keys().all(|path| path.starts_with("r3/")), "{:?}", left.keys());
    check(&newest_state(&output));
}

fn newest_state_in(world: &World, manifest: &Manifest) -> crate::store::StateManifest {
    let seen = objects(&world.objects, "out");
    serde_json::from_slice(&seen[&manifest.state.as_ref().unwrap().path]).unwrap()
}

/// No file of a state names a user or an item that is to be gone.
fn assert_gone(
    world: &World,
    state: &crate::store::StateManifest,
    spec: &str,
    lists: &Lists,
    has_text: bool,
    when: &str,
) {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let seen = objects(&world.objects, "out");
    for part in &state.parts {
        let column = match part.kind {
            crate::store::StateKind::Users { .. } | crate::store::StateKind::PairUsers { .. } => {
                "user_id"
            }
            crate::store::StateKind::Items | crate::store::StateKind::PairItems { .. } => "item_id",
            crate::store::StateKind::Rows { .. } | crate::store::StateKind::PairCounts { .. } => {
                continue;
            }
        };
        let bytes = bytes::Bytes::from(seen[&part.file.path].clone());
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        for batch in reader.map(Result::unwrap) {
            let ids = arrow::compute::cast(
                batch.column_by_name("id").unwrap(),
                &arrow::datatypes::DataType::Utf8,
            );
            let ids = ids.unwrap();
            for id in arrow::array::AsArray::as_string::<i32>(&ids).iter().flatten() {
                let is_gone = is_gone(column, id, spec, lists, has_text);
                assert!(!is_gone, "{when}: {id} is in {part:?}");
            }
        }
    }
}
