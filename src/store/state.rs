//! Stored state: the rows of the logs as of one generation, in files that later generations share.
//!
//! A run's manifest names its `_state.json`, which lists the files; so what belongs to a generation is
//! settled by the same commit as its tables. Files are immutable and never shared by name: each lies
//! below the run that wrote it, `state/<run id>/`, and stays as long as a kept run lists it.

use std::collections::{BTreeMap, BTreeSet};

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::FutureExt;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::ahead::Ahead;
use super::error::PublishError;
use super::log::{Log, LogEntry, Standing};
use super::manifest::{PublishedFile, RunPath, is_plain};
use super::output::{Output, put_file, to_json};
use super::table_writer::{TableFile, batches, sha256_hex};
use crate::types::IdType;

/// The format of state that this version writes, and the only one it reads: other state is rebuilt.
pub const STATE_FORMAT: u32 = 4;

/// The folder of stored state.
pub(super) const STATE: &str = "state";

/// What a manifest says of the state of its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRef {
    /// The `_state.json` of the run.
    pub path: String,
    /// Hex digest of that file.
    pub sha256: String,
    /// Digest of all that decides what the rows mean.
    pub meaning: String,
}

/// The state of one generation: `_state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateManifest {
    /// [`STATE_FORMAT`].
    pub format: u32,
    /// Digest of all that decides what the rows mean, but the number of shards.
    pub meaning: String,
    /// Number of logical shards.
    pub shards: u32,
    /// In which type users come.
    pub user_id_type: IdType,
    /// In which type items come.
    pub item_id_type: IdType,
    /// Keys of items given so far.
    pub n_items: u32,
    /// Keys of users given so far, by shard.
    pub n_users: Vec<u32>,
    /// Marks of users and items whose rows were left out, sorted: digests that only this program's runs
    /// over the same log compare, and no ids.
    pub left_out: Vec<u64>,
    /// The input files whose rows are there, by number; a number is given once.
    pub inputs: Vec<StateInput>,
    /// The files, in the order in which they were written.
    pub parts: Vec<StatePart>,
}

/// One input file whose rows the state holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateInput {
    /// The number that its rows carry.
    pub number: u32,
    /// Position of its log in the spec.
    pub log: u32,
    /// The file's url in the user's own terms.
    pub url: String,
    /// Size.
    pub bytes: u64,
    /// Version.
    pub etag: Option<String>,
    /// What became of the rows that are not in the state, as the reader of the logs counts them.
    pub counts: serde_json::Value,
}

/// What a file of the state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StateKind {
    /// Keys and ids of items.
    Items,
    /// Keys and ids of the users of a shard.
    Users {
        /// The shard.
        shard: u32,
    },
    /// A sorted run of rows of a shard, in packed blocks.
    Rows {
        /// The shard.
        shard: u32,
        /// How many, those that it takes back included.
        log_rows: u64,
        /// Whether it takes rows of earlier runs back.
        takes_back: bool,
    },
    /// Numbers and ids of the items whose pairs were counted.
    PairItems {
        /// One above the largest number that was given.
        n_codes: u32,
    },
    /// Users of a shard, with the histories that the counts are of.
    PairUsers {
        /// The shard.
        shard: u32,
    },
    /// Numbers of users of pairs of items: every so many-th group of rows, as there are shards.
    PairCounts {
        /// The first of them.
        shard: u32,
    },
}

/// A file of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePart {
    /// What it holds.
    #[serde(flatten)]
    pub kind: StateKind,
    /// Where it is.
    #[serde(flatten)]
    pub file: PublishedFile,
    /// XXH3 of its bytes in hex, which every reader holds against them: it is far faster than SHA-256.
    pub xxh3: String,
}

/// What can be said of state, whatever version wrote it.
#[derive(Deserialize)]
struct OfAnyFormat {
    format: u32,
    parts: Vec<StateFile>,
}

/// What can be said of one of its files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StateFile {
    /// The name of its [`StateKind`].
    pub kind: String,
    /// Where it is.
    #[serde(flatten)]
    pub file: PublishedFile,
}

impl StatePart {
    /// Whether it holds rows of a shard.
    pub fn is_rows_of(&self, wanted: u32) -> bool {
        matches!(self.kind, StateKind::Rows { shard, .. } if shard == wanted)
    }

    /// The shard that it is of.
    pub fn shard(&self) -> Option<u32> {
        use StateKind::{Items, PairCounts, PairItems, PairUsers, Rows, Users};
        match self.kind {
            Items | PairItems { .. } => None,
            Users { shard } | Rows { shard, .. } | PairUsers { shard } | PairCounts { shard } => {
                Some(shard)
            }
        }
    }

    /// Rows of the logs that it holds.
    pub fn log_rows(&self) -> u64 {
        match self.kind {
            StateKind::Rows { log_rows, .. } => log_rows,
            _ => 0,
        }
    }

    /// Whether it holds users of a shard.
    pub fn is_users_of(&self, wanted: u32) -> bool {
        self.kind == StateKind::Users { shard: wanted }
    }

    /// Whether it belongs to the counts of pairs.
    pub fn is_of_pairs(&self) -> bool {
        use StateKind::{PairCounts, PairItems, PairUsers};
        matches!(self.kind, PairItems { .. } | PairUsers { .. } | PairCounts { .. })
    }

    /// Where a run writes such a part.
    pub fn path(kind: StateKind, run_id: &str) -> String {
        let name = match kind {
            StateKind::Items => "items".to_owned(),
            StateKind::Users { shard } => format!("users-{shard:05}"),
            StateKind::Rows { shard, .. } => format!("rows-{shard:05}"),
            StateKind::PairItems { .. } => "pair-items".to_owned(),
            StateKind::PairUsers { shard } => format!("pair-users-{shard:05}"),
            StateKind::PairCounts { shard } => format!("pair-counts-{shard:05}"),
        };
        format!("{STATE}/{run_id}/{name}.parquet")
    }
}

impl StateManifest {
    /// What cannot be in a state that this program wrote.
    fn problem(&self) -> Option<String> {
        if self.n_users.len() != self.shards as usize {
            return Some("it does not count the users of each shard".to_owned());
        }
        let odd = odd_path(self.parts.iter().map(|part| &part.file));
        if odd.is_some() {
            return odd;
        }
        let mut numbers = BTreeSet::new();
        let repeats = self.inputs.iter().any(|input| !numbers.insert(input.number));
        repeats.then(|| "a file is there twice".to_owned())
    }

    /// Rows in all runs, those that take rows back included.
    pub fn stored_rows(&self) -> u64 {
        self.parts.iter().map(StatePart::log_rows).sum()
    }

    /// Bytes of the counts of pairs, with their items and histories.
    pub fn bytes_of_pairs(&self) -> u64 {
        self.parts.iter().filter(|part| part.is_of_pairs()).map(|part| part.file.bytes).sum()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.file.bytes).sum()
    }
}

/// What is wrong with the path of one of the files of a state.
fn odd_path<'f>(mut files: impl Iterator<Item = &'f PublishedFile>) -> Option<String> {
    let odd = files.find(|file| {
        let inside = file.path.strip_prefix("state/").and_then(|path| path.split_once('/'));
        !inside.is_some_and(|(run, name)| is_plain(run) && is_plain(name))
    });
    odd.map(|file| format!("it has a file {:?}", file.path))
}

impl Output {
    /// Writes the state of a run beside its manifest.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn put_state(
        &self,
        path: &RunPath,
        state: &StateManifest,
    ) -> Result<StateRef, PublishError> {
        let (path, bytes) = (path.file("_state.json"), to_json(state));
        let sha256 = sha256_hex(&bytes);
        self.put(&path, bytes)?;
        Ok(StateRef { path, sha256, meaning: state.meaning.clone() })
    }

    /// The state that a manifest names.
    ///
    /// # Errors
    /// [`PublishError::Changed`], [`PublishError::Corrupt`], [`PublishError::Store`].
    pub fn read_state(&self, state: &StateRef) -> Result<StateManifest, PublishError> {
        let bytes = self.state_bytes(state)?;
        let OfAnyFormat { format, .. } = self.parse(&state.path, &bytes)?;
        let other = || format!("it has format {format}, not {STATE_FORMAT}");
        self.without_problem(state, (format != STATE_FORMAT).then(other))?;
        let read: StateManifest = self.parse(&state.path, &bytes)?;
        self.without_problem(state, read.problem()).map(|()| read)
    }

    /// The files of a state, whatever version wrote it.
    ///
    /// # Errors
    /// As of [`Output::read_state`], but for the format.
    pub fn state_files(&self, state: &StateRef) -> Result<Vec<StateFile>, PublishError> {
        let read: OfAnyFormat = self.parse(&state.path, &self.state_bytes(state)?)?;
        let odd = odd_path(read.parts.iter().map(|part| &part.file));
        self.without_problem(state, odd).map(|()| read.parts)
    }

    fn state_bytes(&self, state: &StateRef) -> Result<Bytes, PublishError> {
        let bytes = self.get(&state.path)?.filter(|bytes| sha256_hex(bytes) == state.sha256);
        bytes.ok_or_else(|| PublishError::Changed { path: self.url_of(&state.path) })
    }

    fn without_problem(
        &self,
        state: &StateRef,
        problem: Option<String>,
    ) -> Result<(), PublishError> {
        let Some(problem) = problem else { return Ok(()) };
        Err(PublishError::Corrupt { path: self.url_of(&state.path), source: problem.into() })
    }

    /// The newest generation with a state that `fits`; whether readers still see it does not matter,
    /// as a state depends on nothing but its input.
    ///
    /// Looks at the 16 newest publications at most.
    ///
    /// # Errors
    /// As [`Output::read_log`], [`Output::read_manifest`] and [`Output::read_state`].
    pub fn find_state(
        &self,
        log: &Log,
        fits: impl Fn(&StateRef, u32) -> bool,
    ) -> Result<Option<(LogEntry, StateManifest)>, PublishError> {
        let is_there = |entry: &&LogEntry| log.standing(entry) != Standing::Collected;
        let newest = log.publications().rev().filter(is_there).take(GENERATIONS_LOOKED_AT);
        for entry in newest {
            let manifest = self.read_manifest(&entry.run)?;
            if let Some(state) = manifest.state.filter(|state| fits(state, manifest.shards)) {
                return Ok(Some((entry.clone(), self.read_state(&state)?)));
            }
        }
        Ok(None)
    }

    /// Paths of all files that published runs need and do not own, of those runs which `is_kept` by their
    /// names: of state, and of tables that are as an earlier run wrote them.
    ///
    /// # Errors
    /// As [`Output::read_manifest`] and [`Output::state_files`].
    pub(super) fn files_needed(
        &self,
        log: &Log,
        is_kept: impl Fn(&str) -> bool,
    ) -> Result<BTreeSet<String>, PublishError> {
        let mut needed = BTreeSet::new();
        let is_there = |entry: &&LogEntry| {
            log.standing(entry) != Standing::Collected && is_kept(&entry.run.run_id)
        };
        for entry in log.publications().filter(is_there) {
            let manifest = self.read_manifest(&entry.run)?;
            needed.extend(manifest.files_of_others().map(|file| file.path.clone()));
            if let Some(state) = &manifest.state {
                let parts = self.state_files(state)?;
                needed.extend(parts.into_iter().map(|part| part.file.path));
            }
        }
        Ok(needed)
    }

    /// Writes a part. It is there once [`Output::settle`] says so.
    ///
    /// # Errors
    /// [`PublishError::Encode`]; [`PublishError::Store`], also of a file that was begun before.
    pub fn put_state_part(
        &self,
        kind: StateKind,
        run_id: &str,
        file: TableFile,
    ) -> Result<StatePart, PublishError> {
        let encoded = file.finish()?;
        let xxh3 = xxh3_hex(&encoded.bytes);
        let file = put_file(self, &StatePart::path(kind, run_id), encoded)?;
        Ok(StatePart { kind, file, xxh3 })
    }

    /// Some parts, which will be read shard by shard, those that are of none before.
    pub fn read_state_parts<'p>(
        &self,
        parts: impl IntoIterator<Item = &'p StatePart>,
    ) -> StateParts {
        let mut parts: Vec<&StatePart> = parts.into_iter().collect();
        parts.sort_by_key(|part| part.shard());
        let files: Vec<&PublishedFile> = parts.into_iter().map(|part| &part.file).collect();
        let places = files.iter().map(|file| file.path.clone()).zip(0..).collect();
        let bytes = files.iter().map(|file| file.bytes).collect();
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        let output = self.clone();
        let get = move |place: usize| {
            let (output, path) = (output.clone(), paths[place].clone());
            async move { output.get_all(&path).await }.boxed()
        };
        let files = Ahead::new(&self.runtime, self.folder.is_some(), bytes, get);
        StateParts { output: self.clone(), places, files }
    }
}

/// Parts of a state that are about to be read, each once.
#[derive(Debug)]
pub struct StateParts {
    output: Output,
    places: BTreeMap<String, usize>,
    files: Ahead<Result<Option<Bytes>, PublishError>>,
}

impl StateParts {
    /// The rows of a part, in batches of `n` at most, decoded as they are asked for. Holds the whole file.
    ///
    /// # Errors
    /// [`PublishError::Changed`] where it is not there or not what was written, [`PublishError::Store`].
    ///
    /// # Panics
    /// If the part is none of these, or was read before.
    pub fn batches<'p>(
        &self,
        part: &'p StatePart,
        n: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, PublishError>> + use<'p>, PublishError>
    {
        let path = &part.file.path;
        let bytes = self.files.take(self.places[path]).expect("a part is read once")?;
        let bytes = bytes.filter(|bytes| xxh3_hex(bytes) == part.xxh3);
        let bytes =
            bytes.ok_or_else(|| PublishError::Changed { path: self.output.url_of(path) })?;
        batches(&part.file.table, bytes, n)
    }
}

fn xxh3_hex(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// A job whose spec changed back and forth finds its state this many publications ago.
const GENERATIONS_LOOKED_AT: usize = 16;
