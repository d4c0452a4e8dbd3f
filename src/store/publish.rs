//! The commit: a create-only generation in the log.
//!
//! A write whose outcome is unknown is read back and told by its nonce. Nothing is ever cleaned
//! up here: what looks like a failed write may be the one that readers already see.

use bytes::Bytes;
use object_store::{Error as StoreError, PutMode, UpdateVersion};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::collect::run_of;
use super::error::PublishError;
use super::log::{Current, Log, LogEntry, entry_path};
use super::manifest::{Manifest, RunPath};
use super::output::{OBJECTS_AT_ONCE, Output, to_json};
use super::table_writer::sha256_hex;

/// Times that a write without a known outcome is tried before giving up.
const ATTEMPTS: usize = 5;

/// What came of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// A new generation, which holds this run.
    New(Current),
    /// The same input and spec are published already, by this generation; ours was not added.
    Already(Current),
}

/// What a create-only write turned out to be.
pub(super) enum Created {
    Ours,
    Theirs,
}

impl Output {
    /// Finds out whether the store refuses what it must: an object that exists, and a version that
    /// is not there. `name` is of this run only.
    ///
    /// # Errors
    /// [`PublishError::UnsafeStore`] where it does not; [`PublishError::Store`].
    pub fn probe(&self, name: &str) -> Result<(), PublishError> {
        let path = format!("_probe/{name}");
        let (first, second) = (Bytes::from(format!("1 {name}")), Bytes::from(format!("2 {name}")));
        let refused = |problem| {
            let url = self.url().to_owned();
            Err(PublishError::UnsafeStore { url, problem })
        };
        if let Created::Theirs = self.create_object(&path, &first)? {
            return refused("mixes up objects");
        }
        if self.put_new(&path, &second).is_ok() || self.get(&path)?.as_ref() != Some(&first) {
            return refused("overwrites objects that must only be created");
        }
        // A local disk has no versions; its outputs are guarded by a lock instead.
        if self.folder.is_none() {
            let e_tag = Some(format!("\"{}\"", "0".repeat(32)));
            let stale = UpdateVersion { e_tag, version: Some("1".to_owned()) };
            let put = self.put_if(&path, &second, PutMode::Update(stale));
            let replaced = self.runtime.wait(put);
            if replaced.is_ok() || self.get(&path)?.as_ref() != Some(&first) {
                return refused("replaces versions that are not there");
            }
        }
        if let Err(error) = self.delete(&path) {
            tracing::debug!(%error, "the probe stays");
        }
        Ok(())
    }

    /// Publishes a run whose files are all begun: waits for them, checks them, writes the manifest at `path`,
    /// appends a generation to the log and brings up to it what follows the log.
    ///
    /// Readers see the run from the moment the generation exists, or never. `published_at` is now,
    /// RFC 3339. `force` publishes even what is published or withdrawn already.
    ///
    /// # Errors
    /// [`PublishError::UnknownOutcome`] leaves everything as it is: the same call, in this process
    /// or another, finds out. After any other error the run is not published, except when writing
    /// `current.json` fails: [`Output::follow_log`] repairs that.
    pub fn publish(
        &self,
        path: &RunPath,
        manifest: &Manifest,
        published_at: &str,
        force: bool,
    ) -> Result<Published, PublishError> {
        self.settle()?;
        // Told before their files are missed; and once more behind the last word of the log.
        if manifest.files_of_others().next().is_some()
            && let Some(run_id) = given_up(manifest, &self.read_log()?)
        {
            return Err(PublishError::UnchangedGone { run_id });
        }
        self.check_files(&manifest.files)?;
        let lists = manifest.tables().into_iter().map(|(table, files)| async move {
            self.put_all(&path.table_manifest(table), self.url_lines(&files)).await
        });
        self.runtime.wait_for_all(OBJECTS_AT_ONCE, lists)?;
        let (path, mut bytes) = (path.manifest(), to_json(manifest));
        if let Created::Theirs = self.create_object(&path, &bytes)? {
            bytes = self.manifest_of_earlier_life(&path, manifest)?;
        }
        let sha256 = sha256_hex(&bytes);
        let entry = LogEntry::publication(manifest, &path, &sha256, published_at);
        let settled = |log: &Log, entry: &LogEntry| {
            if log.is_collected(&entry.run.run_id) {
                return Err(PublishError::Collected { run_id: entry.run.run_id.clone() });
            }
            // Once it is in the log that this run lists them, gc keeps them.
            if let Some(run_id) = given_up(manifest, log) {
                return Err(PublishError::UnchangedGone { run_id });
            }
            if force {
                return Ok(None);
            }
            if let Some(other) = log.find_withdrawn(&entry.fingerprint) {
                return Err(PublishError::Withdrawn { generation: other.run.generation });
            }
            Ok(log.find_published(&entry.fingerprint).map(|other| other.run.clone()))
        };
        let published = match self.append(entry, settled)? {
            Appended::New(entry) => Published::New(entry.run),
            Appended::Settled(run) => Published::Already(run),
        };
        self.follow_log()?;
        Ok(published)
    }

    /// The manifest that a process of the same run wrote before it died: it differs in times, and in
    /// no file.
    fn manifest_of_earlier_life(
        &self,
        path: &str,
        manifest: &Manifest,
    ) -> Result<Bytes, PublishError> {
        let bytes = self.get(path)?;
        let found = bytes.as_ref().and_then(|found| serde_json::from_slice(found).ok());
        let lasting = |manifest: &Manifest| Manifest {
            as_of: String::new(),
            stages: Vec::new(),
            gates: Vec::new(),
            ..manifest.clone()
        };
        let is_same = |found: &Manifest| lasting(found) == lasting(manifest);
        match (bytes, found.filter(is_same)) {
            (Some(bytes), Some(_)) => Ok(bytes),
            _ => Err(PublishError::RunTaken { path: self.url_of(path) }),
        }
    }

    /// Adds `entry` as the next generation, whichever that turns out to be, unless `settled` finds
    /// in the log as it is then that there is nothing to add.
    ///
    /// Losing a race means that another publisher made progress, so that is tried without end.
    pub(super) fn append<T>(
        &self,
        mut entry: LogEntry,
        settled: impl Fn(&Log, &LogEntry) -> Result<Option<T>, PublishError>,
    ) -> Result<Appended<T>, PublishError> {
        loop {
            let log = self.read_log()?;
            // A reply that was lost on the way, even to an earlier process: told by the nonce.
            let ours = |other: &&LogEntry| other.run.nonce == entry.run.nonce;
            if let Some(entry) = log.entries().iter().find(ours) {
                return Ok(Appended::New(Box::new(entry.clone())));
            }
            if let Some(found) = settled(&log, &entry)? {
                return Ok(Appended::Settled(found));
            }
            entry.run.generation = log.next_generation();
            let path = entry_path(entry.run.generation);
            if let Created::Ours = self.create_object(&path, &to_json(&entry))? {
                return Ok(Appended::New(Box::new(entry)));
            }
        }
    }

    /// Creates an object and finds out, come what may, whether it is ours: the bytes hold a nonce.
    pub(super) fn create_object(&self, path: &str, bytes: &Bytes) -> Result<Created, PublishError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let Err(error) = self.put_new(path, bytes) else { return Ok(Created::Ours) };
            // A store may even answer "exists" to a write of ours that it applied before, and to
            // one that met another in flight and was not applied.
            match self.get(path) {
                Ok(Some(found)) if found == *bytes => return Ok(Created::Ours),
                Ok(Some(_)) => return Ok(Created::Theirs),
                Ok(None) => last = Some(error),
                Err(_) => return Err(self.unknown(path, error)),
            }
        }
        let error = last.expect("at least one attempt was made");
        match self.folder {
            // Seen to be absent every time, and a local disk has no requests still on their way.
            Some(_) => Err(self.store_error(path, error)),
            None => Err(self.unknown(path, error)),
        }
    }

    /// Writes `value` to a path of this run, unless a process of the same run did so before: gives what
    /// that one wrote.
    ///
    /// # Errors
    /// [`PublishError::Store`], [`PublishError::UnknownOutcome`]; [`PublishError::Corrupt`] for what is
    /// there and is none.
    pub fn put_once<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        value: T,
    ) -> Result<T, PublishError> {
        match self.create_object(path, &to_json(&value))? {
            Created::Ours => Ok(value),
            Created::Theirs => self.parse(path, &self.get(path)?.unwrap_or_default()),
        }
    }

    fn unknown(&self, path: &str, source: StoreError) -> PublishError {
        PublishError::UnknownOutcome { path: self.url_of(path), source }
    }
}

/// A run whose files the manifest lists, and which the log gives up.
fn given_up(manifest: &Manifest, log: &Log) -> Option<String> {
    let other = manifest.files_of_others().next()?;
    match &manifest.unchanged_since {
        Some(earlier) => log.is_collected(&earlier.run_id).then(|| earlier.run_id.clone()),
        // A process of this run listed them, and its successor found no earlier generation.
        None => run_of(&other.path).map(str::to_owned),
    }
}

/// What came of adding an entry.
pub(super) enum Appended<T> {
    /// It is in the log, with its generation.
    New(Box<LogEntry>),
    /// There was nothing to add.
    Settled(T),
}
