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
        Self { run, fingerprint: manifest.fingerprint.clone(), withdraws: None }
    }
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
        let standing = self.publications().filter(|entry| !self.is_withdrawn(entry));
        let newest = standing.max_by(|a, b| {
            let (a, b) = (&a.run, &b.run);
            (&a.logical_date, a.generation).cmp(&(&b.logical_date, b.generation))
        });
        newest.map(|entry| &entry.run)
    }

    /// The newest standing publication with this fingerprint: the run is done already.
    pub fn find_published(&self, fingerprint: &str) -> Option<&LogEntry> {
        self.with_fingerprint(fingerprint).rfind(|entry| !self.is_withdrawn(entry))
    }

    /// The newest withdrawn publication with this fingerprint, if none stands: publishing it again
    /// takes a decision.
    pub fn find_withdrawn(&self, fingerprint: &str) -> Option<&LogEntry> {
        match self.find_published(fingerprint) {
            Some(_) => None,
            None => self.with_fingerprint(fingerprint).next_back(),
        }
    }

    /// The generation after the newest.
    pub(super) fn next_generation(&self) -> u64 {
        self.0.last().map_or(1, |entry| entry.run.generation + 1)
    }

    fn publications(&self) -> impl DoubleEndedIterator<Item = &LogEntry> {
        self.0.iter().filter(|entry| entry.withdraws.is_none())
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
