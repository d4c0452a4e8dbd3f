//! Logs made in code, runs of the real binary, and what they published.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{concat_batches, take_record_batch};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};
use tidemill::job;
use tidemill::run::{Outcome, PlanFlags, Request, Silent, StateUse, run};

/// A folder for one test.
pub(crate) struct Sandbox(tempfile::TempDir);

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a spec that reads `log.parquet` (or `log/`) and publishes to `out/`.
    pub(crate) fn spec(&self, text: &str) -> PathBuf {
        let path = self.path("job.toml");
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn write(&self, name: &str, batch: &RecordBatch) {
        write_parquet(&self.path(name), batch, 1 << 20);
    }

    /// The binary in this folder, without what the machine says about clouds.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
        for (name, _) in std::env::vars_os() {
            let is_cloud = |prefix: &&str| name.to_string_lossy().starts_with(prefix);
            if ["AWS_", "GOOGLE_", "AZURE_"].iter().any(is_cloud) {
                command.env_remove(name);
            }
        }
        command.current_dir(self.0.path()).args(args);
        command
    }

    /// Runs the binary in this folder.
    pub(crate) fn tidemill(&self, args: &[&str]) -> Output {
        self.tidemill_in(&[], args)
    }

    /// Runs the binary in this folder with more in its environment.
    pub(crate) fn tidemill_in(
        &self,
        environment: &[(&'static str, String)],
        args: &[&str],
    ) -> Output {
        let environment = environment.iter().map(|(name, value)| (name, value));
        self.command(args).envs(environment).output().unwrap()
    }

    /// Runs `job.toml`, which must work, and gives the outcome as JSON.
    pub(crate) fn run(&self, more: &[&str]) -> Value {
        let output = self.tidemill(&[&["run", "job.toml", "--json"], more].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a spec inside this process on so many workers; gives the outcome as [`Self::run`] does.
    pub(crate) fn run_on_workers(&self, spec: &str, as_of: Option<&str>, workers: usize) -> Value {
        let outcome = run(Request {
            spec: job::load(spec, "job.toml", &BTreeMap::new(), &[]).unwrap(),
            base: self.path(""),
            flags: PlanFlags { as_of: as_of.map(str::to_owned), ..PlanFlags::default() },
            threads: 1,
            workers,
            publish: true,
            force: true,
            state: StateUse::default(),
            unsafe_single_writer: false,
            checkpoints_by_default: false,
            clock: || 1_790_000_000_000_000,
            run_id: format!("with-{workers}-workers"),
            observer: Arc::new(Silent),
            carried: None,
            cluster: None,
        });
        let Outcome::Published { manifest, .. } = outcome.unwrap() else { panic!("not published") };
        json!({ "manifest": manifest })
    }

    /// Runs `job.toml`, which must be refused with `code` in one line that holds all of `words`,
    /// and nothing published.
    pub(crate) fn refused(&self, code: i32, words: &[&str], more: &[&str]) {
        let output = self.tidemill(&[&["run", "job.toml", "--json"], more].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        for word in words {
            assert!(errors[0].contains(word), "{word:?} is not in {stderr}");
        }
        assert!(!self.path("out/current.json").exists(), "something is published");
        assert!(!self.path("out/_log").exists(), "something is committed");
    }

    /// All rows of a table of the run that `outcome` tells of.
    pub(crate) fn table(&self, outcome: &Value, table: &str) -> RecordBatch {
        let files = outcome["manifest"]["files"].as_array().unwrap();
        let batches: Vec<RecordBatch> = files
            .iter()
            .filter(|file| file["table"] == table)
            .flat_map(|file| read_parquet(&self.path("out").join(file["path"].as_str().unwrap())))
            .collect();
        concat_batches(&batches[0].schema(), &batches).unwrap()
    }
}

pub(crate) fn read_parquet(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = reader.schema().clone();
    let mut batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    batches
}

pub(crate) fn write_parquet(path: &Path, batch: &RecordBatch, row_group_rows: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

pub(crate) fn batch(columns: &[(&str, ArrayRef)]) -> RecordBatch {
    let columns = columns.iter().map(|(name, array)| (*name, Arc::clone(array), true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// The rows of `batch` in an order that only `seed` decides.
pub(crate) fn shuffled(batch: &RecordBatch, seed: u64) -> RecordBatch {
    let key = |row: &u32| (u64::from(*row) + 1).wrapping_mul(seed | 1).rotate_left(29);
    let mut rows: Vec<u32> = (0..batch.num_rows() as u32).collect();
    rows.sort_by_key(|row| key(row).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    take_record_batch(batch, &arrow::array::UInt32Array::from(rows)).unwrap()
}

/// Digests of a run's files by table and part: without the run id of their paths, and without tables of
/// changes, which tell of another run.
pub(crate) fn digests(manifest: &Value) -> BTreeMap<(String, String), String> {
    let files = manifest["files"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let is_whole = |file: &&Value| !text(&file["table"]).ends_with("_changes");
    files
        .iter()
        .filter(is_whole)
        .map(|file| {
            let path = text(&file["path"]);
            let part = path.rsplit('/').next().unwrap().to_owned();
            ((text(&file["table"]), part), text(&file["sha256"]))
        })
        .collect()
}

/// A column as text; nulls as "null".
pub(crate) fn column(batch: &RecordBatch, name: &str) -> Vec<String> {
    use arrow::array::AsArray;
    use arrow::datatypes::DataType;
    let array = batch.column_by_name(name).unwrap();
    let text = arrow::compute::cast(array, &DataType::Utf8).unwrap();
    let text = text.as_string::<i32>();
    (0..text.len())
        .map(|row| if text.is_null(row) { "null".to_owned() } else { text.value(row).to_owned() })
        .collect()
}
