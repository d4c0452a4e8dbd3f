//! Parquet files with bytes changed, cut and added at random: each is read, or refused by name.
//!
//! `TIDEMILL_MUTANTS=0..100000` runs other seeds than those of every test run.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::Int32Type;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reader::fetch_as_stored;
use super::*;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TIDEMILL_MUTANTS") else { return 0..5_000 };
    let (first, end) = text.split_once("..").expect("TIDEMILL_MUTANTS is first..end");
    first.parse().unwrap()..end.parse().unwrap()
}

/// A log with most of what writers do: nulls, dictionaries, lists, both page versions, all codecs.
fn sound_files() -> Vec<Vec<u8>> {
    let rows = 0..500_i64;
    let users = rows.clone().map(|row| (row % 11 != 0).then(|| format!("user {}", row % 37)));
    let lists = rows.clone().map(|row| Some((0..row % 4).map(|item| Some(item as i32))));
    let columns: [(&str, ArrayRef); 5] = [
        ("user", Arc::new(users.collect::<StringArray>())),
        ("item", Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| row * 7919)))),
        ("value", Arc::new(Float64Array::from_iter_values(rows.clone().map(|row| row as f64)))),
        ("time", Arc::new(TimestampMicrosecondArray::from_iter_values(rows.map(|row| row << 20)))),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::LZ4_RAW,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ];
    let versions = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0];
    let file = |(codec, version)| {
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_writer_version(version)
            .set_max_row_group_row_count(Some(200))
            .build();
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    let pairs = codecs.into_iter().flat_map(|codec| versions.map(|version| (codec, version)));
    pairs.map(file).collect()
}

pub(super) fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            return;
        }
        // Half of the changes go to the footer, where a byte decides most.
        let start = if rng.random_bool(0.5) { bytes.len() * 3 / 4 } else { 0 };
        let at = rng.random_range(start..bytes.len());
        match rng.random_range(0..8) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = [0, 0x7f, 0x80, 0xff][rng.random_range(0..4)],
            3 => drop(bytes.drain(at..(at + rng.random_range(1..9)).min(bytes.len()))),
            4 => bytes.insert(at, rng.random()),
            5 => bytes.truncate(at.max(1)),
            6 => {
                let end = (at + rng.random_range(1..64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = rng.random_range(0..bytes.len());
                bytes.splice(to..to, part);
            }
            _ => bytes[at..].reverse(),
        }
    }
}

/// Reads all that can be read.
fn read(location: &Location, file: &InputFile) -> Result<usize, ReadError> {
    let footer = footer(location, file)?;
    let names: Vec<String> =
        footer.schema().fields().iter().map(|field| field.name().clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut rows = 0;
    for row_group in 0..footer.n_row_groups() {
        let fetch = fetch_as_stored(location, file, &footer, row_group, &names, 100);
        for batch in location.runtime.wait(fetch)? {
            rows += batch?.num_rows();
        }
    }
    Ok(rows)
}

#[test]
fn mutated_files_are_read_or_refused_by_name() {
    let (sound, runtime) = (sound_files(), IoRuntime::new().unwrap());
    let store = Arc::new(InMemory::new());
    runtime.insert_bucket("s3://shop", store.clone());
    let location = Location::open(&runtime, "s3://shop/log/", Path::new("")).unwrap();
    let (mut n_read, mut n_refused) = (0_u64, 0_u64);
    for seed in seeds() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = sound[rng.random_range(0..sound.len())].clone();
        mutate(&mut bytes, &mut rng);
        let key = Key::from("log/mutant.parquet");
        let put = store.put_opts(&key, bytes.into(), Default::default());
        runtime.wait(put).unwrap();
        let file = list_inputs(&location).unwrap().files.remove(0);
        match read(&location, &file) {
            Ok(_) => n_read += 1,
            Err(error) => {
                n_refused += 1;
                assert_eq!(error.exit_code(), 65, "seed {seed}: {error}");
                assert!(error.to_string().contains("s3://shop/log/mutant.parquet"), "{error}");
            }
        }
    }
    assert!(n_refused > n_read && n_read > 0, "{n_read} read, {n_refused} refused");
}
