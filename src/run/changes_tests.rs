//! Changes, put to the tables of the earlier generation as a warehouse would.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::FutureExt;
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::changes::{Beside, Changes};
use super::crash_tests::{place, published_tables, request};
use super::side::Deleted;
use super::state_tests::{Log, put, run_on, two_days};
use super::*;
use crate::schema::changes::KeyRange;
use crate::schema::{IdRows, ItemNeighborRows, tables};
use crate::store::faults::{Fault, FaultStore, World};
use crate::store::witness::objects;
use crate::store::{EarlierRun, TableFile, put_file};
use crate::types::{IdType, Ids};

/// Rows as text, by key.
type Rows = BTreeMap<Vec<String>, Vec<Option<String>>>;

/// The manifest of the run that readers see.
pub(super) fn current_manifest(world: &World) -> Option<Manifest> {
    let seen = objects(&world.objects, "out");
    let current: Value = serde_json::from_slice(seen.get("current.json")?).unwrap();
    let manifest = current["manifest"].as_str().unwrap();
    Some(serde_json::from_slice(&seen[manifest]).unwrap())
}

/// What is no table of changes.
pub(super) fn without_changes(mut tables: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    tables.retain(|path, _| !path.contains("_changes/"));
    tables
}

/// The rows of a table in the order of its files, each column as text.
pub(super) fn rows(
    seen: &BTreeMap<String, Vec<u8>>,
    manifest: &Manifest,
    table: &str,
) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    for file in manifest.files.iter().filter(|file| file.table == table) {
        let bytes = bytes::Bytes::from(seen[&file.path].clone());
        let batches = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        for batch in batches {
            rows.extend(texts(&batch.unwrap()));
        }
    }
    rows
}

fn texts(batch: &RecordBatch) -> Vec<Vec<Option<String>>> {
    let options = FormatOptions::default();
    let plain = |column: &ArrayRef| match column.data_type() {
        DataType::Timestamp(..) => arrow::compute::cast(column, &DataType::Int64).unwrap(),
        _ => column.clone(),
    };
    let columns: Vec<ArrayRef> = batch.columns().iter().map(plain).collect();
    let columns: Vec<_> = columns
        .iter()
        .map(|column| (column, ArrayFormatter::try_new(column.as_ref(), &options).unwrap()))
        .collect();
    let value = |(column, text): &(&ArrayRef, ArrayFormatter<'_>), row| {
        (!column.is_null(row)).then(|| text.value(row).to_string())
    };
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|column| value(column, row)).collect())
        .collect()
}

fn by_key(rows: Vec<Vec<Option<String>>>, n_keys: usize) -> Rows {
    let n_rows = rows.len();
    let key = |row: &Vec<Option<String>>| row[..n_keys].iter().flatten().cloned().collect();
    let by_key: Rows = rows.into_iter().map(|row| (key(&row), row)).collect();
    assert_eq!(by_key.len(), n_rows, "a key is there twice");
    by_key
}

/// Puts changes to rows: no row may be put in that is there already, and none taken out that is not.
fn apply(rows: &mut Rows, changes: Vec<Vec<Option<String>>>, n_keys: usize, when: &str) {
    for mut change in changes {
        let what = change.remove(0);
        let key: Vec<String> = change[..n_keys].iter().flatten().cloned().collect();
        if what.as_deref() == Some("upsert") {
            let row = change.clone();
            assert_ne!(rows.insert(key, change), Some(row), "{when}: a row is as it was");
            continue;
        }
        assert_eq!(what.as_deref(), Some("delete"), "{when}");
        assert!(change[n_keys..].iter().all(Option::is_none), "{when}: {change:?}");
        assert!(rows.remove(&key).is_some(), "{when}: {key:?} was not there");
    }
}

/// Brings the tables of `before` up to `after` by the changes of the latter, and by what `[delete]` lists
/// (`is_gone`: whether it has an id of a column), which no change may name. Gives the number of changes.
pub(super) fn assert_changes_lead(
    world: &World,
    before: &Manifest,
    after: &Manifest,
    is_gone: &dyn Fn(&str, &str) -> bool,
    when: &str,
) -> usize {
    let since = after.changes_since.as_ref().expect("there was a generation before");
    assert_eq!(since.run_id, before.run_id, "{when}");
    let seen = objects(&world.objects, "out");
    let mut n_changes = 0;
    let n_files = |table: &str| after.files.iter().filter(|file| file.table == table).count();
    for table in tables::ALL {
        let (when, name) = (format!("{when}: {}", table.name), table.changes_name());
        if !tables::has_changes(table) {
            assert_eq!(n_files(&name), 0, "{when}");
            continue;
        }
        assert_eq!(n_files(&name), n_files(table.name), "{when}");
        let n_keys = table.key.len();
        let mut found = by_key(rows(&seen, before, table.name), n_keys);
        let changes = rows(&seen, after, &name);
        n_changes += changes.len();
        for (at, name) in table.key.iter().enumerate().filter(|(_, name)| name.ends_with("_id")) {
            let told =
                |change: &Vec<Option<String>>| is_gone(name, change[at + 1].as_ref().unwrap());
            assert!(!changes.iter().any(told), "{when}: somebody who is gone is told");
        }
        apply(&mut found, changes, n_keys, &when);
        for (at, name) in table.key.iter().enumerate().filter(|(_, name)| name.ends_with("_id")) {
            found.retain(|key, _| !is_gone(name, &key[at]));
        }
        let wanted = by_key(rows(&seen, after, table.name), n_keys);
        assert!(found == wanted, "{when}: {found:#?} for {wanted:#?}");
    }
    n_changes
}

/// A store where the first day is published, and the second is there to be read.
fn second_day(runtime: &IoRuntime, spec: &str, [before, after]: [&Log; 2]) -> World {
    let world = World::new();
    put(&world, before, false, 100);
    run_on(&world, runtime, request(spec, "r0")).unwrap();
    put(&world, after, false, 100);
    world
}

fn put_file_of(world: &World, path: &str, bytes: Vec<u8>) {
    let key = Key::from(format!("out/{path}"));
    world.objects.put(&key, bytes.into()).now_or_never().unwrap().unwrap();
}

fn tables_of_changes(manifest: &Manifest) -> Vec<&str> {
    let mut tables: Vec<&str> = manifest.files.iter().map(|file| file.table.as_str()).collect();
    tables.retain(|table| table.ends_with("_changes"));
    tables.dedup();
    tables
}

#[test]
fn changes_are_the_same_bytes_on_any_number_of_workers_and_threads() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    for shape in ["", "shape = \"lists\"\n"] {
        let spec = spec.replace("[top_k]\n", &format!("[top_k]\n{shape}")) + "delta = true\n";
        let mut wanted = None;
        for (workers, threads) in [(1, 1), (2, 1), (3, 3)] {
            let world = second_day(&runtime, &spec, [&before, &after]);
            let earlier = current_manifest(&world).unwrap();
            let request = Request { workers, threads, ..request(&spec, "r1") };
            run_on(&world, &runtime, request).unwrap();
            let when = format!("{workers} workers");
            let found = published_tables(&world, &when);
            let wanted = wanted.get_or_insert_with(|| found.clone());
            assert!(found == *wanted, "{when}: other bytes");
            let manifest = current_manifest(&world).unwrap();
            let nobody = |_: &str, _: &str| false;
            let n = assert_changes_lead(&world, &earlier, &manifest, &nobody, &when);
            let n_rows: u64 = earlier.files.iter().map(|file| file.rows).sum();
            assert!(0 < n && n < n_rows as usize, "{n} changes of {n_rows} rows");
            assert_shares(&world, &manifest);
        }
    }
}

/// Files of equal bytes are listed where the earlier run wrote them, and nowhere else.
fn assert_shares(world: &World, manifest: &Manifest) {
    let seen = objects(&world.objects, "out");
    let is_of = |file: &&PublishedFile, run: &str| file.path.contains(&format!("run_id={run}/"));
    let shared: Vec<_> = manifest.files.iter().filter(|file| is_of(file, "r0")).collect();
    assert!(shared.iter().any(|file| file.table == "users"), "{shared:?}");
    assert_eq!(manifest.unchanged_since.as_ref().unwrap().run_id, "r0");
    for file in manifest.files.iter().filter(|file| is_of(file, "r1")) {
        let earlier = seen.get(&file.path.replace("run_id=r1/", "run_id=r0/"));
        let is_new = earlier.is_none_or(|bytes| *bytes != seen[&file.path]);
        assert!(is_new || file.table.ends_with("_changes"), "{file:?} is there twice");
    }
    for file in shared {
        assert!(!seen.contains_key(&file.path.replace("run_id=r0/", "run_id=r1/")), "{file:?}");
    }
}

#[test]
fn a_run_without_an_earlier_one_of_its_kind_tells_no_changes() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    let changed = |from: &str, to: &str| {
        let world = second_day(&runtime, &spec.replace(from, to), [&before, &after]);
        assert_eq!(current_manifest(&world).unwrap().changes_since, None, "nothing was there");
        run_on(&world, &runtime, request(&spec, "r1")).unwrap();
        current_manifest(&world).unwrap()
    };
    let found = changed("shards = 4", "shards = 2");
    assert_eq!((found.changes_since.as_ref(), tables_of_changes(&found).len()), (None, 0));
    // A table that is new has none; the others have.
    let found = changed("[debias]\n", "");
    assert!(found.changes_since.is_some());
    let told = tables_of_changes(&found);
    assert!(told.contains(&"items_changes") && !told.contains(&"debias_weights_changes"));
    let off = spec.replace("[incremental]\n", "[incremental]\nchanges = false\n");
    let world = second_day(&runtime, &spec, [&before, &after]);
    run_on(&world, &runtime, request(&off, "r1")).unwrap();
    let found = current_manifest(&world).unwrap();
    assert_eq!((found.changes_since.as_ref(), tables_of_changes(&found).len()), (None, 0));
    assert!(found.state.is_some() && found.unchanged_since.is_some());
    let alone = spec.replace("share_files = true\n", "");
    let world = second_day(&runtime, &spec, [&before, &after]);
    run_on(&world, &runtime, request(&alone, "r1")).unwrap();
    let found = current_manifest(&world).unwrap();
    assert!(found.changes_since.is_some() && found.unchanged_since.is_none());
    assert!(found.files.iter().all(|file| file.path.contains("r1/")));
    // Ids of another type are other columns.
    let world = World::new();
    put(&world, &before, true, 100);
    run_on(&world, &runtime, request(&spec, "r0")).unwrap();
    put(&world, &after, false, 100);
    run_on(&world, &runtime, request(&spec, "r1")).unwrap();
    let found = current_manifest(&world).unwrap();
    assert_eq!((found.changes_since.as_ref(), tables_of_changes(&found).len()), (None, 0));
}

#[test]
fn a_table_whose_earlier_files_cannot_be_read_goes_without_changes() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    for workers in [1, 3] {
        let world = second_day(&runtime, &spec, [&before, &after]);
        let earlier = current_manifest(&world).unwrap();
        for file in earlier.files.iter().filter(|file| file.table == "users") {
            put_file_of(&world, &file.path, vec![7; file.bytes as usize]);
        }
        let request = Request { workers, ..request(&spec, "r1") };
        run_on(&world, &runtime, request).unwrap();
        let found = current_manifest(&world).unwrap();
        let told = tables_of_changes(&found);
        assert!(!told.contains(&"users_changes"), "{told:?}");
        let others = ["items_changes", "item_neighbors_changes", "user_top_k_changes"];
        assert!(others.iter().all(|other| told.contains(other)), "{told:?}");
    }
}

#[test]
fn a_run_that_goes_on_starts_from_the_generation_that_it_started_from() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, after) = two_days();
    let calm = second_day(&runtime, &spec, [&before, &after]);
    let store = FaultStore::new(&calm, |_| None);
    runtime.insert_bucket("s3://shop", Arc::new(store.clone()));
    attempts::run_on(runtime.clone(), request(&spec, "r1")).0.unwrap();
    let wanted = published_tables(&calm, "calm");
    let n_calls = store.calls();
    let mut n_later = 0;
    for (number, checkpoints) in (0..n_calls).step_by(3).zip([false, true].into_iter().cycle()) {
        let when = format!("a crash at call {number} of {n_calls}");
        let world = second_day(&runtime, &spec, [&before, &after]);
        let dying = FaultStore::new(&world, move |call| {
            (call.number == number).then_some(Fault::CrashAfter)
        });
        runtime.insert_bucket("s3://shop", Arc::new(dying));
        let of_run = |run: &str| Request {
            checkpoints_by_default: checkpoints,
            force: true,
            ..request(&spec, run)
        };
        drop(attempts::run_on(runtime.clone(), of_run("r1")).0);
        let is_settled = objects(&world.objects, "out")
            .keys()
            .any(|path| path.ends_with("r1/_changes_since.json"));
        // A manifest that is there names the state that the run went on from, so it cannot be followed.
        let is_over =
            objects(&world.objects, "out").keys().any(|path| path.ends_with("r1/_manifest.json"));
        if is_over {
            break;
        }
        run_on(&world, &runtime, of_run("other")).unwrap();
        run_on(&world, &runtime, of_run("r1")).unwrap_or_else(|error| panic!("{when}: {error:#}"));
        let seen = objects(&world.objects, "out");
        let path = seen.keys().find(|path| path.ends_with("r1/_manifest.json")).unwrap();
        let manifest: Manifest = serde_json::from_slice(&seen[path]).unwrap();
        let since = manifest.changes_since.unwrap();
        let from = if is_settled { (1, "r0") } else { (2, "other") };
        assert_eq!((since.generation, since.run_id.as_str()), from, "{when}");
        if is_settled {
            let files = manifest.files.iter().map(|file| &file.path);
            let found: BTreeMap<String, Vec<u8>> =
                files.map(|path| (place(path, "r1"), seen[path].clone())).collect();
            assert!(found == wanted, "{when}: other bytes");
            n_later += 1;
        }
    }
    assert!(n_later > 10, "{n_later} crashes after the generation was settled");
}

#[test]
fn who_vanished_is_found_in_the_changes_that_tell_it() {
    let runtime = IoRuntime::new().unwrap();
    let (spec, before, mut after) = two_days();
    let user = before.values().flatten().find_map(|row| row.user).unwrap();
    after.values_mut().for_each(|rows| rows.retain(|row| row.user != Some(user)));
    let world = second_day(&runtime, &spec, [&before, &after]);
    run_on(&world, &runtime, request(&spec, "r1")).unwrap();
    let output = Output::open(&runtime, "s3://shop/out/", Path::new("")).unwrap();
    let forgotten = Forgotten { users: [user.to_string()].into(), ..Forgotten::default() };
    let found = forget_check(&output, &forgotten, &|_| ()).unwrap();
    let of_second = found.holdings.iter().filter(|holding| holding.run_id.as_deref() == Some("r1"));
    let paths: Vec<&str> = of_second.map(|holding| holding.path.as_str()).collect();
    assert!(paths.iter().any(|path| path.starts_with("tables/users_changes/")), "{paths:?}");
    assert!(paths.iter().any(|path| path.starts_with("tables/user_top_k_changes/")), "{paths:?}");
    let in_tables = paths.iter().filter(|path| path.starts_with("tables/"));
    assert!(in_tables.clone().all(|path| path.contains("_changes/")), "{paths:?}");
    // One who stays is found where values stand beside a key that is another's, too.
    let item = after.values().flatten().find_map(|row| row.item).unwrap();
    let forgotten = Forgotten { items: [item.to_string()].into(), ..Forgotten::default() };
    let found = forget_check(&output, &forgotten, &|_| ()).unwrap();
    let is_in = |table: &str| found.holdings.iter().any(|holding| holding.path.contains(table));
    assert!(is_in("tables/user_top_k_changes/"), "{:#?}", found.holdings);
}

/// Rows of neighbors, by item and rank; few items, so that runs of them fall into one file or another.
type Neighbors = BTreeMap<(i64, i32), (f32, i64)>;

fn neighbors(rng: &mut ChaCha8Rng) -> Neighbors {
    let n = rng.random_range(0..60);
    let row = |rng: &mut ChaCha8Rng| {
        let score = [0.0, -0.0, 1.5, 2.5][rng.random_range(0..4usize)];
        (score, rng.random_range(0..3))
    };
    (0..n).map(|_| ((rng.random_range(0..30), rng.random_range(1..4)), row(rng))).collect()
}

fn neighbor_batch(rows: &Neighbors) -> RecordBatch {
    let ids = Ids::Int((0..30).collect());
    let items: Vec<u32> = rows.keys().map(|key| key.0 as u32).collect();
    let ids = |rows: &[u32]| IdRows { ids: &ids, rows: rows.to_vec() };
    let batch = ItemNeighborRows {
        item: ids(&items),
        rank: rows.keys().map(|key| key.1).collect(),
        neighbor: ids(&vec![7; items.len()]),
        score: rows.values().map(|row| row.0).collect(),
        support: rows.values().map(|row| row.1).collect(),
    };
    batch.into_batch(INTS).unwrap()
}

const INTS: IdTypes = IdTypes { user: IdType::Int64, item: IdType::Int64 };

/// The files of some rows, cut before some items.
fn files(rows: &Neighbors, cuts: &[i64]) -> Vec<crate::store::EncodedFile> {
    let table = &tables::ITEM_NEIGHBORS;
    let ends = cuts.iter().copied().chain([i64::MAX]);
    let starts = [i64::MIN].into_iter().chain(cuts.iter().copied());
    let of_part = |(start, end): (i64, i64)| {
        let inside = rows.iter().filter(|((item, _), _)| (start..end).contains(item));
        let mut file = TableFile::new(table.name, &table.arrow_schema(INTS), table.key).unwrap();
        let rows: Neighbors = inside.map(|(key, row)| (*key, *row)).collect();
        if !rows.is_empty() {
            file.write(&neighbor_batch(&rows)).unwrap();
        }
        file.finish().unwrap()
    };
    starts.zip(ends).map(of_part).collect()
}

fn cuts(rng: &mut ChaCha8Rng) -> Vec<i64> {
    let mut cuts: Vec<i64> = (0..rng.random_range(0..4)).map(|_| rng.random_range(0..30)).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[test]
fn changes_of_a_table_that_is_cut_elsewhere_are_those_of_the_whole_table() {
    let (world, runtime) = (World::new(), IoRuntime::new().unwrap());
    runtime.insert_bucket("s3://shop", Arc::new(FaultStore::new(&world, |_| None)));
    let output = Output::create(&runtime, "s3://shop/out/", Path::new("")).unwrap();
    let n_keys = tables::ITEM_NEIGHBORS.key.len();
    let spec = request(&two_days().0, "r").spec;
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (old, mut new) = (neighbors(&mut rng), neighbors(&mut rng));
        if rng.random_bool(0.7) {
            new.retain(|key, _| old.contains_key(key));
            let same = old.iter().filter(|_| rng.random_bool(0.8));
            new.extend(same.map(|(key, row)| (*key, *row)));
        }
        let gone: i64 = rng.random_range(0..60);
        new.retain(|(item, _), _| *item != gone);
        let path = RunPath::new(jiff::civil::date(2026, 11, 22), &format!("r{seed}"));
        let published = files(&old, &cuts(&mut rng));
        let n_parts = published.len() as u32;
        let published = (0..).zip(published).map(|(part, file)| {
            put_file(&output, &path.table_part("item_neighbors", part, n_parts), file).unwrap()
        });
        let published: Vec<_> = published.collect();
        output.settle().unwrap();
        let since = EarlierRun { generation: 1, run_id: "r".to_owned() };
        let items = [crate::types::IdRef::Int(gone).digest()].into();
        let deleted = Deleted { items, ..Deleted::default() };
        let changes = Changes::new(&output, &spec, (since, published), deleted, &[0]);
        let cuts = cuts(&mut rng);
        let bound = |at: usize| -> Option<Vec<ArrayRef>> {
            let item = Int64Array::from(vec![*cuts.get(at)?]);
            let rank = arrow::array::Int32Array::from(vec![i32::MIN]);
            Some(vec![Arc::new(item), Arc::new(rank)])
        };
        let mut told = Vec::new();
        for (part, file) in files(&new, &cuts).iter().enumerate() {
            let range = KeyRange { from: part.checked_sub(1).and_then(bound), until: bound(part) };
            let table = &tables::ITEM_NEIGHBORS;
            let made = changes.file(table, INTS, file, Beside::Range(&range)).unwrap();
            for batch in made.batches(10).unwrap() {
                told.extend(texts(&batch.unwrap()));
            }
        }
        let order: Vec<(i64, i32)> = told
            .iter()
            .map(|row| {
                (row[1].clone().unwrap().parse().unwrap(), row[2].clone().unwrap().parse().unwrap())
            })
            .collect();
        assert!(order.is_sorted_by(|a, b| a < b), "seed {seed}: {order:?}");
        assert!(order.iter().all(|(item, _)| *item != gone), "seed {seed}");
        let mut found = by_key(texts(&neighbor_batch(&old)), n_keys);
        apply(&mut found, told, n_keys, &format!("seed {seed}"));
        found.retain(|key, _| key[0] != gone.to_string());
        let wanted = by_key(texts(&neighbor_batch(&new)), n_keys);
        assert!(found == wanted, "seed {seed}: {found:#?} for {wanted:#?}");
    }
}
