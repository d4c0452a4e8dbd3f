use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use futures::FutureExt;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use tempfile::TempDir;

use super::faults::{FaultStore, World};
use super::reader::fetch_as_stored;
use super::*;

/// `n` rows of a number, a string and a float.
fn batch(n: usize) -> RecordBatch {
    let names = (0..n).map(|row| format!("name {row}"));
    RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from_iter_values(0..n as i64)) as ArrayRef),
        ("name", Arc::new(StringArray::from_iter_values(names))),
        ("x", Arc::new(Float64Array::from_iter_values((0..n).map(|row| row as f64 / 3.0)))),
    ])
    .unwrap()
}

/// A Parquet file with `n` rows in row groups of `group`.
fn parquet(n: usize, group: usize) -> Vec<u8> {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
    encode(&batch(n), properties)
}

fn encode(batch: &RecordBatch, properties: WriterProperties) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

/// Files on disk, opened as an input.
struct Input {
    _folder: TempDir,
    location: Location,
    files: Vec<InputFile>,
}

fn input(files: &[(&str, &[u8])]) -> Input {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let runtime = IoRuntime::new().unwrap();
    let location = Location::open(&runtime, folder.path().to_str().unwrap(), Path::new("/"));
    let location = location.unwrap();
    let files = list_inputs(&location).unwrap().files;
    Input { _folder: folder, location, files }
}

fn path(input: &Input) -> &str {
    &input.files[0].url
}

#[test]
fn footers_come_in_the_order_of_the_files() {
    let files: Vec<_> = (1..=20).map(|n| (format!("{n:02}.parquet"), parquet(n, 7))).collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let input = input(&files);
    let footers = footers(&input.location, &input.files).unwrap();
    let rows: Vec<_> = footers.iter().map(Footer::n_rows).collect();
    assert_eq!(rows, (1..=20).collect::<Vec<_>>());
    assert_eq!((footers[19].n_row_groups(), footers[19].row_group_rows(2)), (3, 6));
    assert_eq!(footers[0].schema().field(1).name(), "name");
}

#[test]
fn files_that_are_no_whole_parquet_are_told_apart() {
    let whole = parquet(1000, 500);
    let mut corrupt = whole.clone();
    let footer_at = whole.len() - 200;
    corrupt[footer_at..footer_at + 150].fill(0xFF);
    let cases: [(&[u8], &str); 5] = [
        (b"", "is empty (0 bytes)"),
        (b"user,item\n1,2\n", "is not a Parquet file"),
        (b"PA", "is not a Parquet file"),
        (&whole[..whole.len() / 2], "is truncated"),
        (&corrupt, "the footer of"),
    ];
    for (bytes, part) in cases {
        let input = input(&[("a.parquet", bytes)]);
        let error = footer(&input.location, &input.files[0]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(part) && message.contains(path(&input)), "{message}");
        assert_eq!(error.exit_code(), 65);
    }
}

#[test]
fn only_the_projected_columns_are_read() {
    let bytes = parquet(150_000, 100_000);
    let intact = input(&[("a.parquet", &bytes)]);
    let footer = footer(&intact.location, &intact.files[0]).unwrap();
    // Damage to every page of "name" must not matter to who reads "x" and "n".
    let (start, length) = footer.metadata().row_group(0).column(1).byte_range();
    let mut damaged = bytes.clone();
    damaged[start as usize..(start + length) as usize].fill(0xAB);
    let input = input(&[("a.parquet", &damaged)]);
    let (location, file) = (&input.location, &input.files[0]);
    let batches = read_row_group(location, file, &footer, 0, &["x", "n"]).unwrap();
    let batches: Vec<_> = batches.map(Result::unwrap).collect();
    let rows: Vec<_> = batches.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(rows, [BATCH_ROWS, 100_000 - BATCH_ROWS]);
    assert_eq!(batches[0].schema().fields().len(), 2);
    assert_eq!(batches[1].column(0).as_primitive::<Int64Type>().value(0), BATCH_ROWS as i64);

    let mut names = match read_row_group(location, file, &footer, 0, &["name"]) {
        Ok(names) => names,
        Err(error) => panic!("refused early: {error}"),
    };
    let error = names.next().unwrap().unwrap_err();
    assert!(error.to_string().starts_with("row group 0 of \""), "{error}");
    assert!(matches!(error, ReadError::CorruptRowGroup { .. }) && error.exit_code() == 65);
    assert!(names.next().is_none(), "ends after the first error");
}

#[test]
fn a_missing_column_is_an_error_that_lists_the_others() {
    let input = input(&[("a.parquet", &parquet(3, 3))]);
    let error = read_all(&input.location, &input.files[0], Some(&["user"])).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("has no column \"user\"; its columns are \"n\", \"name\", \"x\"")
    );
}

#[test]
fn all_rows_of_a_small_file() {
    let input = input(&[("a.parquet", &parquet(10, 4))]);
    let batches = read_all(&input.location, &input.files[0], None).unwrap();
    assert_eq!(arrow::compute::concat_batches(&batch(0).schema(), &batches).unwrap(), batch(10));
    let empty = self::input(&[("a.parquet", &parquet(0, 4))]);
    assert!(read_all(&empty.location, &empty.files[0], None).unwrap().is_empty());
}

#[test]
fn no_columns_still_count_rows() {
    let input = input(&[("a.parquet", &parquet(10, 10))]);
    let batches = read_all(&input.location, &input.files[0], Some(&[])).unwrap();
    assert_eq!(n_rows(&batches), 10);
}

#[test]
fn a_file_that_changed_since_it_was_listed_is_not_read() {
    let input = input(&[("a.parquet", &parquet(10, 10))]);
    let (location, file) = (&input.location, &input.files[0]);
    let footer = footer(location, file).unwrap();
    fs::write(path(&input), parquet(11, 11)).unwrap();
    let errors = |file: &InputFile| {
        let rows = read_row_group(location, file, &footer, 0, &["n"]);
        [self::footer(location, file).err(), rows.err()].map(Option::unwrap)
    };
    let by_size = InputFile { etag: None, ..file.clone() };
    for error in errors(file).into_iter().chain(errors(&by_size)) {
        assert!(matches!(error, ReadError::Replaced { .. }), "{error}");
        assert_eq!(error.exit_code(), 75);
    }
    fs::remove_file(path(&input)).unwrap();
    assert!(errors(file).iter().all(|error| matches!(error, ReadError::Replaced { .. })));
}

#[test]
fn a_decompression_bomb_is_refused_unopened() {
    let text = "a".repeat(100 << 20);
    let column = Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let rows = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        .build();
    let input = input(&[("a.parquet", &encode(&rows, properties))]);
    let error = read_all(&input.location, &input.files[0], None).unwrap_err();
    assert!(matches!(error, ReadError::TooLarge { .. }), "{error}");
}

fn n_rows(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is damaged, reading ends in rows or in an error that names the file.
    #[test]
    fn damage_never_panics(at in 0.0..1.0_f64, with in any::<[u8; 3]>(), cut in 0_usize..3) {
        let mut bytes = parquet(300, 100);
        let at = (at * (bytes.len() - 3) as f64) as usize;
        bytes[at..at + 3].copy_from_slice(&with);
        bytes.truncate(bytes.len() - cut / 2);
        let input = input(&[("a.parquet", &bytes)]);
        let read = read_all(&input.location, &input.files[0], None);
        match read.map(|batches| n_rows(&batches)) {
            Ok(rows) => prop_assert_eq!(rows, 300),
            Err(error) => prop_assert!(error.to_string().contains(path(&input))),
        }
    }
}

/// Texts come as dictionaries where a row group has nothing else, and hold the same.
#[test]
fn texts_come_as_they_are_stored() {
    let names = StringArray::from_iter_values((0..5_000).map(|row| format!("name {}", row % 7)));
    let plain = StringArray::from_iter_values((0..5_000).map(|row| format!("text {row}")));
    let batch = RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from_iter_values(0..5_000)) as ArrayRef),
        ("name", Arc::new(names)),
        ("text", Arc::new(plain)),
    ]);
    // The dictionary of the second half of the texts is full before all of them are written.
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(2_500))
        .set_dictionary_page_size_limit(4 << 10)
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(64);
    let file = encode(&batch.unwrap(), properties.build());
    let input = input(&[("a.parquet", &file)]);
    let (location, file) = (&input.location, &input.files[0]);
    let footer = footer(location, file).unwrap();
    let columns = ["n", "name", "text"];
    for row_group in 0..2 {
        let plainly = read_row_group(location, file, &footer, row_group, &columns).unwrap();
        let stored = fetch_as_stored(location, file, &footer, row_group, &columns, BATCH_ROWS);
        let stored = location.runtime.wait(stored);
        for (plain, stored) in plainly.zip(stored.unwrap()) {
            let (plain, stored) = (plain.unwrap(), stored.unwrap());
            assert!(stored.column(1).as_any_dictionary_opt().is_some(), "few names");
            assert!(stored.column(2).as_any_dictionary_opt().is_none(), "many texts");
            for column in 0..3 {
                let (plain, stored) = (plain.column(column), stored.column(column));
                assert_eq!(plain, &arrow::compute::cast(stored, plain.data_type()).unwrap());
            }
        }
    }
}

/// Files of 10, 20 and 30 rows in a bucket, and the store that counts requests.
fn in_a_bucket() -> (World, FaultStore, Location, Vec<InputFile>) {
    let (world, runtime) = (World::new(), IoRuntime::new().unwrap());
    for n in [10, 20, 30] {
        let key = Key::from(format!("log/{n}.parquet"));
        let put = world.objects.put_opts(&key, parquet(n, 7).into(), Default::default());
        runtime.wait(put).unwrap();
    }
    let store = FaultStore::new(&world, |_| None);
    runtime.insert_bucket("s3://shop", Arc::new(store.clone()));
    let location = Location::open(&runtime, "s3://shop/log/", Path::new("")).unwrap();
    let files = list_inputs(&location).unwrap().files;
    (world, store, location, files)
}

#[test]
fn a_file_that_was_fetched_ahead_is_asked_for_once() {
    let (world, store, location, files) = in_a_bucket();
    let plainly: Vec<_> =
        files.iter().map(|file| read_all(&location, file, None).unwrap()).collect();
    let before = store.calls();
    let ahead = FilesAhead::new(&location, &files);
    for (file, plainly) in files.iter().zip(plainly).rev() {
        let (location, held) = ahead.open(file);
        assert_eq!(read_all(&location, &held, None).unwrap(), plainly);
        assert_eq!(location.url_of(&held.key), file.url);
    }
    assert_eq!(store.calls() - before, 3);
    // Once it is taken, it is read where it is.
    let (location, file) = ahead.open(&files[0]);
    read_all(&location, &file, None).unwrap();
    assert!(store.calls() - before > 3);

    let gone = Key::from("log/20.parquet");
    world.objects.delete(&gone).now_or_never().unwrap().unwrap();
    let ahead = FilesAhead::new(&location, &files);
    for file in &files {
        let (location, file) = ahead.open(file);
        let read = read_all(&location, &file, None);
        match file.key.as_str() {
            "20.parquet" => assert!(matches!(read, Err(ReadError::Replaced { .. })), "{read:?}"),
            _ => drop(read.unwrap()),
        }
    }
}

#[test]
fn row_groups_that_were_fetched_ahead_are_those_of_the_files() {
    let (_world, store, location, files) = in_a_bucket();
    let open: Vec<OpenFile> =
        files.iter().map(|file| OpenFile::new(&location, file.clone())).collect();
    let (mut requests, mut plainly) = (Vec::new(), Vec::new());
    for (file, open) in files.iter().zip(&open) {
        let footer = footer(&location, file).unwrap();
        for row_group in 0..footer.n_row_groups() {
            let columns = ["n", "x"];
            let rows = read_row_group(&location, file, &footer, row_group, &columns).unwrap();
            plainly.push(rows.collect::<Result<Vec<_>, _>>().unwrap());
            let (file, columns) = (open.clone(), columns.map(str::to_owned).to_vec());
            requests.push(RowGroupRequest { file, row_group, columns, bytes: 100 });
        }
    }
    let before = store.calls();
    let row_groups = RowGroups::new(&location.runtime, requests, BATCH_ROWS);
    for (place, plainly) in plainly.iter().enumerate() {
        let rows = row_groups.take(place).unwrap().collect::<Result<Vec<_>, _>>();
        assert_eq!(rows.unwrap(), *plainly, "row group {place}");
    }
    let n_footers = files.len();
    assert_eq!(store.calls() - before, (n_footers + plainly.len()) as u64, "one footer per file");
}
