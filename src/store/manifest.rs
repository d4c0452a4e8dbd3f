//! The manifest of a run, and where the files of a run lie below the output.

use std::collections::BTreeMap;

use jiff::civil::Date;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::collect::run_of;
use super::list::InputFile;
use super::state::StateRef;

/// The format of manifests that this version writes, and the newest it reads.
pub const FORMAT: u32 = 1;

/// What a run read and published: `_manifest.json`.
///
/// Fields come in this order; later versions may add some and rename none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// One attempt at publication: a name that is never used again.
    pub run_id: String,
    /// The day the run stands for, `YYYY-MM-DD`.
    pub logical_date: String,
    /// The end of the history that counts, exclusive, RFC 3339.
    pub as_of: String,
    /// Hex digest of the resolved spec.
    pub spec_sha256: String,
    /// The frozen input.
    pub input: Vec<ManifestInput>,
    /// Hex digest of all that decides the bytes of the tables: equal means already published.
    pub fingerprint: String,
    /// Version of this crate.
    pub code_version: String,
    /// The instruction set that all processes used.
    pub instruction_set: String,
    /// Equal where vectors may be compared; null in a run without vectors.
    pub embedding_space_id: Option<String>,
    /// Number of logical shards.
    pub shards: u32,
    /// The files that are the run.
    pub files: Vec<PublishedFile>,
    /// Rows read, filtered, rejected and written, by reason.
    pub counts: Map<String, Value>,
    /// What had to hold before the run was published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<Gate>,
    /// The stages in the order they ran.
    pub stages: Vec<Stage>,
    /// Whether the tables are kept in Delta logs too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delta: bool,
    /// The rows of the logs that the next incremental run goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateRef>,
    /// The generation that the tables of changes start from; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes_since: Option<EarlierRun>,
    /// The generation whose files are listed in the place of equal ones of this run, which are nowhere
    /// else; absent where all files are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged_since: Option<EarlierRun>,
    /// Where the fit of the factors began; absent in a job whose fits all begin from scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit_start: Option<FitStart>,
    /// Unique to this attempt: it tells our own write from an equal one of somebody else.
    pub nonce: String,
}

/// A generation that a run was held against. A copy of its tables becomes that of the run by the changes
/// that the run tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierRun {
    /// The generation.
    pub generation: u64,
    /// Its run.
    pub run_id: String,
}

/// Where a fit of factors began, and what the next one has to know before it goes on from these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FitStart {
    /// Whose item factors were the starting values; absent from scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<EarlierRun>,
    /// Runs in a row that went on from the one before, this one among them; 0 from scratch.
    pub runs: usize,
    /// Hex digest of all of `[als]` that decides the meaning of factors.
    pub section_sha256: String,
    /// The lists of `[delete]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<ManifestInput>,
}

/// One input file, as it was when the plan was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestInput {
    /// The file's url in the user's own terms.
    pub key: String,
    /// Size.
    pub bytes: u64,
    /// Version.
    pub etag: Option<String>,
}

impl Manifest {
    /// What cannot be in a manifest that this program wrote: what it names is looked up, added up
    /// and turned into paths.
    pub(super) fn problem(&self) -> Option<String> {
        if self.format > FORMAT {
            return Some(format!("it has format {}, newer than {FORMAT}", self.format));
        }
        if !is_plain(&self.run_id) {
            return Some(format!("its run id is {:?}", self.run_id));
        }
        let odd = self.files.iter().find(|file| {
            let is_ours = file.path.starts_with("tables/") || file.path.starts_with("runs/");
            !is_ours || Key::parse(&file.path).is_err() || !is_plain(&file.table)
        });
        if let Some(file) = odd {
            return Some(format!("it has a file {:?} of table {:?}", file.path, file.table));
        }
        let sum = |of: fn(&PublishedFile) -> u64| {
            self.files.iter().map(of).try_fold(0_u64, u64::checked_add)
        };
        let sums = [sum(|file| file.bytes), sum(|file| file.rows)];
        sums.contains(&None).then(|| "its files are larger than any store".to_owned())
    }

    /// Files that an earlier run wrote.
    pub(super) fn files_of_others(&self) -> impl Iterator<Item = &PublishedFile> {
        self.files.iter().filter(|file| run_of(&file.path) != Some(&self.run_id))
    }

    /// The tables of the run with their files; vector files are none.
    pub(super) fn tables(&self) -> BTreeMap<&str, Vec<&PublishedFile>> {
        let mut tables: BTreeMap<&str, Vec<&PublishedFile>> = BTreeMap::new();
        for file in self.files.iter().filter(|file| file.path.starts_with("tables/")) {
            tables.entry(&file.table).or_default().push(file);
        }
        tables
    }
}

/// Letters, digits and what stands between them in names of ours, so that it can be part of a path.
pub(super) fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_plain)
}

impl From<&InputFile> for ManifestInput {
    fn from(file: &InputFile) -> Self {
        Self { key: file.url.clone(), bytes: file.bytes, etag: file.etag.clone() }
    }
}

/// One file of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedFile {
    /// Relative to the output.
    pub path: String,
    /// The table it is part of.
    pub table: String,
    /// Size.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Hex digest of the file.
    pub sha256: String,
}

/// Something that must hold before readers see a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// What is looked at, such as `catalog_coverage`.
    pub name: String,
    /// What was found.
    pub value: f64,
    /// Least value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Whether it passed; always true in a published run.
    pub passed: bool,
}

/// One stage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Wall clock.
    pub seconds: f64,
    /// What else the stage counts.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Where the files of one run lie, relative to the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPath {
    logical_date: String,
    run_id: String,
}

impl RunPath {
    /// The paths of run `run_id` of a day.
    ///
    /// # Panics
    /// If the id holds anything but ASCII letters, digits and `-`: it becomes a folder name.
    pub fn new(logical_date: Date, run_id: &str) -> Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        assert!(!run_id.is_empty() && run_id.chars().all(plain), "odd run id {run_id:?}");
        Self { logical_date: logical_date.to_string(), run_id: run_id.to_owned() }
    }

    /// The part of `table` that logical shard `part` of `n_parts` writes.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn table_part(&self, table: &str, part: u32, n_parts: u32) -> String {
        assert!(part < n_parts, "part {part} of {n_parts}");
        let Self { logical_date, run_id } = self;
        format!(
            "tables/{table}/logical_date={logical_date}/run_id={run_id}/\
             part-{part:05}-of-{n_parts:05}.parquet"
        )
    }

    /// The number of the part that lies at a path of [`RunPath::table_part`], of whatever run.
    pub fn part_of(path: &str) -> Option<u32> {
        let name = path.rsplit('/').next()?;
        name.strip_prefix("part-")?.split_once("-of-")?.0.parse().ok()
    }

    /// A file beside the tables: `_report.json`, `_plan.json`, `manifests/items.txt`.
    pub fn file(&self, name: &str) -> String {
        format!("runs/{}/{}/{name}", self.logical_date, self.run_id)
    }

    /// The files of a table, one url per line.
    pub fn table_manifest(&self, table: &str) -> String {
        self.file(&format!("manifests/{table}.txt"))
    }

    /// A vector file: `vectors/item_factors.npy`.
    pub fn vectors(&self, name: &str) -> String {
        self.file(&format!("vectors/{name}"))
    }

    /// The manifest.
    pub fn manifest(&self) -> String {
        self.file("_manifest.json")
    }
}
