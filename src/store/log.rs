//! The commit log: which run readers see is a function of it, not of who wrote last.

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;

/// The run that readers see: `current.json`, the mirror of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// Position in the log, from 1.
    pub generation: u64,
    /// The day the run stands for.
    pub logical_date: String,
    /// The run.
    pub run_id: String,
    /// Its manifest, relative to the output.
    pub manifest: String,
    /// When it was committed, RFC 3339, by the clock of the publisher.
    pub published_at: String,
    /// The attempt's own mark.
    pub nonce: String,
    /// Hex digest of the manifest.
    pub manifest_sha256: String,
}

/// One generation: `_log/00000000000000000042.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The run that is published, or withdrawn.
    #[serde(flatten)]
    pub run: Current,
    /// As in the manifest.
    pub fingerprint: String,
    /// The generation that this entry withdraws; absent in a publication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdraws: Option<u64>,
    /// Runs whose files this entry gives up; empty in a publication. They are deleted after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collects: Vec<String>,
    /// Whether the tables of this run are kept in Delta logs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delta: bool,
}

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Readers see it.
    Current,
    /// Readers would see it if newer ones were withdrawn.
    Standing,
    /// An entry withdrew it.
    Withdrawn,
    /// Its files are given up.
    Collected,
    /// The entry itself withdraws another.
    Withdrawal,
    /// The entry itself gives up the files of others.
    Collection,
}

impl LogEntry {
    /// The publication of `manifest`; its generation is settled by the commit.
    pub(super) fn publication(
        manifest: &Manifest,
        path: &str,
        sha256: &str,
        published_at: &str,
    ) -> Self {
        let run = Current {
            generation: 0,
            logical_date: manifest.logical_date.clone(),
            run_id: manifest.run_id.clone(),
            manifest: path.to_owned(),
            published_at: published_at.to_owned(),
            nonce: manifest.nonce.clone(),
            manifest_sha256: sha256.to_owned(),
        };
        let fingerprint = manifest.fingerprint.clone();
        Self { run, fingerprint, withdraws: None, collects: Vec::new(), delta: manifest.delta }
    }

    fn is_publication(&self) -> bool {
        self.withdraws.is_none() && self.collects.is_empty()
    }
}

/// `current.json`: what readers see, and up to which entry of the log that was worked out.
///
/// The second makes the object's bytes new with every entry. Otherwise a writer that slept through
/// a publication and a rollback would find the version it remembers, and put an old state back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mirror {
    #[serde(flatten)]
    pub(super) run: Current,
    /// Newest generation of the log at that time.
    #[serde(default)]
    pub(super) log_generation: u64,
}

/// All generations, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log(Vec<LogEntry>);

impl Log {
    /// Orders `entries` by generation.
    pub(super) fn new(mut entries: Vec<LogEntry>) -> Self {
        entries.sort_unstable_by_key(|entry| entry.run.generation);
        Self(entries)
    }

    /// The generations, oldest first.
    pub fn entries(&self) -> &[LogEntry] {
        &self.0
    }

    /// The run that readers see: the newest generation of the newest logical date that is not
    /// withdrawn. So a day can be corrected behind a newer one.
    pub fn current(&self) -> Option<&Current> {
        let standing = self.publications().filter(|entry| self.stands(entry));
        let newest = standing.max_by(|a, b| {
            let (a, b) = (&a.run, &b.run);
            (&a.logical_date, a.generation).cmp(&(&b.logical_date, b.generation))
        });
        newest.map(|entry| &entry.run)
    }

    /// The newest run of the newest day before `logical_date` that is not withdrawn.
    pub fn last_before(&self, logical_date: &str) -> Option<&Current> {
        let standing =
            self.publications().filter(|entry| self.stands(entry)).map(|entry| &entry.run);
        let earlier = standing.filter(|run| run.logical_date.as_str() < logical_date);
        earlier.max_by_key(|run| (&run.logical_date, run.generation))
    }

    /// The newest standing publication with this fingerprint: the run is done already.
    pub fn find_published(&self, fingerprint: &str) -> Option<&LogEntry> {
        self.with_fingerprint(fingerprint).rfind(|entry| self.stands(entry))
    }

    /// The standing publication of this run, or of a later attempt of it: `<run_id>-2`.
    pub fn find_run(&self, run_id: &str) -> Option<&LogEntry> {
        let is_attempt = |rest: &str| {
            let number = rest.strip_prefix('-').unwrap_or("x");
            rest.is_empty() || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        };
        let is_of = |name: &str| name.strip_prefix(run_id).is_some_and(is_attempt);
        self.publications().find(|entry| is_of(&entry.run.run_id) && self.stands(entry))
    }

    /// The newest withdrawn publication with this fingerprint, if none stands: publishing it again
    /// takes a decision.
    pub fn find_withdrawn(&self, fingerprint: &str) -> Option<&LogEntry> {
        match self.find_published(fingerprint) {
            Some(_) => None,
            None => self.with_fingerprint(fingerprint).rfind(|entry| self.is_withdrawn(entry)),
        }
    }

    /// What became of an entry of this log.
    pub fn standing(&self, entry: &LogEntry) -> Standing {
        match () {
            () if entry.withdraws.is_some() => Standing::Withdrawal,
            () if !entry.collects.is_empty() => Standing::Collection,
            () if self.is_collected(&entry.run.run_id) => Standing::Collected,
            () if self.is_withdrawn(entry) => Standing::Withdrawn,
            () if self.current() == Some(&entry.run) => Standing::Current,
            () => Standing::Standing,
        }
    }

    /// Whether the files of a run are given up.
    pub fn is_collected(&self, run_id: &str) -> bool {
        self.0.iter().any(|entry| entry.collects.iter().any(|collected| collected == run_id))
    }

    /// Whether some run of the log has its tables in Delta logs.
    pub(super) fn uses_delta(&self) -> bool {
        self.0.iter().any(|entry| entry.delta)
    }

    /// The newest generation, 0 before the first.
    pub(super) fn generation(&self) -> u64 {
        self.0.last().map_or(0, |entry| entry.run.generation)
    }

    /// The first generation that should be there and is not.
    pub(super) fn gap(&self) -> Option<u64> {
        let numbered = (1..).zip(&self.0);
        numbered.into_iter().find(|(number, entry)| entry.run.generation != *number).map(|(n, _)| n)
    }

    /// The generation after the newest.
    pub(super) fn next_generation(&self) -> u64 {
        self.generation() + 1
    }

    /// The entries that published a run, oldest first.
    pub fn publications(&self) -> impl DoubleEndedIterator<Item = &LogEntry> {
        self.0.iter().filter(|entry| entry.is_publication())
    }

    fn stands(&self, entry: &LogEntry) -> bool {
        !self.is_withdrawn(entry) && !self.is_collected(&entry.run.run_id)
    }

    fn with_fingerprint(&self, fingerprint: &str) -> impl DoubleEndedIterator<Item = &LogEntry> {
        self.publications().filter(move |entry| entry.fingerprint == fingerprint)
    }

    fn is_withdrawn(&self, entry: &LogEntry) -> bool {
        self.0.iter().any(|other| other.withdraws == Some(entry.run.generation))
    }
}

/// Where a generation lies, relative to the output.
pub(super) fn entry_path(generation: u64) -> String {
    format!("_log/{generation:020}.json")
}

/// The generation that lies at `path`, or `None` for any other file.
pub(super) fn entry_generation(path: &str) -> Option<u64> {
    let digits = path.strip_prefix("_log/")?.strip_suffix(".json")?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok())?
}

/// A snapshot of all entries up to one: derived, so that a long log is read in a few requests.
pub(super) const SNAPSHOT_EVERY: u64 = 8;

/// Where the snapshot up to a generation lies.
pub(super) fn snapshot_path(generation: u64) -> String {
    format!("_log/{generation:020}.snapshot.json")
}

/// The generation of the snapshot at `path`, or `None` for any other file.
pub(super) fn snapshot_generation(path: &str) -> Option<u64> {
    let stem = path.strip_suffix(".snapshot.json")?;
    entry_generation(&format!("{stem}.json"))
}
