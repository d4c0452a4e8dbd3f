use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use clap::{CommandFactory, Parser};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use super::generate::{GenerateArgs, generate};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: GenerateArgs,
}

/// This command made the data in `jobs/quickstart`; after a change that is meant, run it again.
const QUICKSTART: &str =
    "tidemill generate jobs/quickstart --users 600 --items 300 --events 20000 --force";

fn args(flags: &str) -> GenerateArgs {
    let words = ["generate"].into_iter().chain(flags.split_whitespace());
    Cli::try_parse_from(words).unwrap().args
}

fn args_in(folder: &Path, flags: &str) -> GenerateArgs {
    GenerateArgs { out_folder: folder.to_owned(), ..args(&format!("unused {flags}")) }
}

/// Every file below `folder` by its relative path, with the digest of its bytes.
fn digests(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut digests = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let digest = format!("{:x}", Sha256::digest(fs::read(&path).unwrap()));
                digests.insert(path.strip_prefix(folder).unwrap().to_owned(), digest);
            }
        }
    }
    digests
}

fn generated(flags: &str) -> BTreeMap<PathBuf, String> {
    let folder = tempfile::tempdir().unwrap();
    generate(&args_in(folder.path(), flags)).unwrap();
    digests(folder.path())
}

fn read(path: PathBuf) -> RecordBatch {
    let file = fs::File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = reader.schema().clone();
    let batches: Result<Vec<_>, _> = reader.build().unwrap().collect();
    concat_batches(&schema, &batches.unwrap()).unwrap()
}

#[test]
fn arguments_are_well_formed() {
    Cli::command().debug_assert();
    for wrong in
        ["", "x --users 0", "x --items 0", "x --days 0", "x --end 2026-02-30", "x --files 0"]
    {
        let words = ["generate"].into_iter().chain(wrong.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "{wrong}");
    }
}

#[test]
fn quickstart_data_is_what_its_command_makes() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/quickstart");
    let flags = QUICKSTART.strip_prefix("tidemill generate jobs/quickstart").unwrap();
    let made = generated(flags);
    let mut n_bytes = 0;
    for (table, digest) in &made {
        let bytes = fs::read(committed.join(table)).unwrap();
        n_bytes += bytes.len();
        assert_eq!(&format!("{:x}", Sha256::digest(bytes)), digest, "{table:?}: run {QUICKSTART}");
    }
    assert_eq!(made.len(), 3);
    assert!(n_bytes < 400_000, "{n_bytes} bytes");
}

#[test]
fn arguments_decide_the_bytes() {
    let flags = "--users 300 --items 100 --events 200000 --files 2";
    let first = generated(flags);
    assert_eq!(generated(flags), first);
    let other = generated(&format!("{flags} --seed 8"));
    assert!(first.iter().all(|(table, digest)| other[table] != *digest));
}

#[test]
fn files_and_row_groups_cut_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let flags = "--users 300 --items 100 --events 200001 --ids int";
    generate(&args_in(&folder.path().join("one"), flags)).unwrap();
    let cut = format!("{flags} --files 3 --row-group-rows 30000");
    generate(&args_in(&folder.path().join("three"), &cut)).unwrap();
    let whole = read(folder.path().join("one/events.parquet"));
    let parts: Vec<RecordBatch> = (0..3)
        .map(|part| {
            read(folder.path().join(format!("three/events/part-0000{part}-of-00003.parquet")))
        })
        .collect();
    assert!(parts.iter().all(|part| part.num_rows() == 66_667));
    assert_eq!(concat_batches(&whole.schema(), &parts).unwrap(), whole);
    let event_ids = whole["event_id"].as_any().downcast_ref::<Int64Array>().unwrap();
    assert!(event_ids.values().iter().copied().eq(1..=200_001));
}

#[test]
fn every_event_is_of_a_listed_user_and_item() {
    let folder = tempfile::tempdir().unwrap();
    generate(&args_in(folder.path(), "--users 70000 --items 100 --events 1000")).unwrap();
    let strings = |table: &str, column: &str| {
        let batch = read(folder.path().join(table));
        let strings = batch[column].as_any().downcast_ref::<StringArray>().unwrap().clone();
        strings.iter().map(|id| id.unwrap().to_owned()).collect::<Vec<_>>()
    };
    let users = strings("users.parquet", "user_id");
    let items = strings("items.parquet", "item_id");
    assert_eq!((users.len(), items.len()), (70_000, 100));
    assert_eq!((users[0].as_str(), users[69_999].as_str()), ("u000000001", "u000070000"));
    assert_eq!((items[0].as_str(), items[99].as_str()), ("i000000001", "i000000100"));
    assert!(users.is_sorted() && items.is_sorted());
    assert!(strings("events.parquet", "user_id").iter().all(|id| users.binary_search(id).is_ok()));
    assert!(strings("events.parquet", "item_id").iter().all(|id| items.binary_search(id).is_ok()));
}

#[test]
fn earlier_tables_are_kept_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    generate(&args_in(folder.path(), "--events 100 --files 4")).unwrap();
    let before = digests(folder.path());
    let error = generate(&args_in(folder.path(), "--events 100 --seed 8")).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("part-00000-of-00004.parquet") && text.contains("--force"), "{text}");
    assert!(!text.contains('\n'));
    assert_eq!(digests(folder.path()), before);
    generate(&args_in(folder.path(), "--events 100 --seed 8 --force")).unwrap();
    let tables: Vec<_> = digests(folder.path()).into_keys().collect();
    assert_eq!(tables, ["events.parquet", "items.parquet", "users.parquet"].map(PathBuf::from));
}

#[test]
fn empty_log_and_file_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let summary = generate(&args_in(folder.path(), "--events 0")).unwrap();
    assert!(summary.starts_with("0 events of 1,000 users and 500 items: 3 files, "), "{summary}");
    assert_eq!(read(folder.path().join("events.parquet")).num_rows(), 0);
    let error = generate(&args_in(&folder.path().join("items.parquet"), "")).unwrap_err();
    assert!(!format!("{error:#}").contains('\n'));
    assert!(generate(&args_in(folder.path(), "--end 9999-12-31 --force")).is_err());
}
