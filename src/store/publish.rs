//! The commit: a create-only generation in the log, then its mirror.
//!
//! A write whose outcome is unknown is read back and told by its nonce. Nothing is ever cleaned
//! up here: what looks like a failed write may be the one that readers already see.

use std::fs::File;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{Error as StoreError, ObjectStoreExt};

use super::error::PublishError;
use super::log::{Current, LogEntry, entry_path};
use super::manifest::{Manifest, RunPath};
use super::output::{Output, io_error, to_json};
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
enum Created {
    Ours,
    Theirs,
}

impl Output {
    /// Publishes a run whose files are all written: checks them, writes the manifest at `path`,
    /// appends a generation to the log and brings `current.json` up to it.
    ///
    /// Readers see the run from the moment the generation exists, or never. `published_at` is now,
    /// RFC 3339. `force` publishes even what is published or withdrawn already.
    ///
    /// # Errors
    /// [`PublishError::UnknownOutcome`] leaves everything as it is: the same call, in this process
    /// or another, finds out. After any other error the run is not published, except when writing
    /// `current.json` fails: [`Output::mirror_current`] repairs that.
    pub fn publish(
        &self,
        path: &RunPath,
        manifest: &Manifest,
        published_at: &str,
        force: bool,
    ) -> Result<Published, PublishError> {
        self.check_files(&manifest.files)?;
        let (path, bytes) = (path.manifest(), to_json(manifest));
        if let Created::Theirs = self.create_object(&path, &bytes)? {
            return Err(PublishError::RunTaken { path: self.url_of(&path) });
        }
        let sha256 = sha256_hex(&bytes);
        let entry = LogEntry::publication(manifest, &path, &sha256, published_at);
        let published = self.append(entry, force)?;
        self.mirror_current()?;
        Ok(published)
    }

    /// Adds `entry` as the next generation, whichever that turns out to be.
    ///
    /// Losing a race means that another publisher made progress, so that is tried without end.
    fn append(&self, mut entry: LogEntry, force: bool) -> Result<Published, PublishError> {
        loop {
            let log = self.read_log()?;
            // A reply that was lost on the way, even to an earlier process: told by the nonce.
            let ours = |other: &&LogEntry| other.run.nonce == entry.run.nonce;
            if let Some(entry) = log.entries().iter().find(ours) {
                return Ok(Published::New(entry.run.clone()));
            }
            if !force {
                if let Some(other) = log.find_published(&entry.fingerprint) {
                    return Ok(Published::Already(other.run.clone()));
                }
                if let Some(other) = log.find_withdrawn(&entry.fingerprint) {
                    return Err(PublishError::Withdrawn { generation: other.run.generation });
                }
            }
            entry.run.generation = log.next_generation();
            let path = entry_path(entry.run.generation);
            if let Created::Ours = self.create_object(&path, &to_json(&entry))? {
                return Ok(Published::New(entry.run));
            }
        }
    }

    /// Creates an object and finds out, come what may, whether it is ours: the bytes hold a nonce.
    fn create_object(&self, path: &str, bytes: &Bytes) -> Result<Created, PublishError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let Err(error) = self.put_new(path, bytes) else { return Ok(Created::Ours) };
            // A store may even answer "exists" to a write of ours that it applied before.
            match self.get(path) {
                Ok(Some(found)) if found == *bytes => return Ok(Created::Ours),
                Ok(Some(_)) => return Ok(Created::Theirs),
                Ok(None) => last = Some(error),
                Err(_) => return Err(self.unknown(path, error)),
            }
        }
        // Seen to be absent every time, and a local disk has no requests still on their way.
        Err(self.store_error(path, last.expect("at least one attempt was made")))
    }

    fn unknown(&self, path: &str, source: StoreError) -> PublishError {
        PublishError::UnknownOutcome { path: self.url_of(path), source }
    }

    /// Writes `current.json` if it is not what the log says. Any process may call this at any time.
    ///
    /// It never goes backwards: a lock is held from reading the log to writing the mirror.
    ///
    /// # Errors
    /// As [`Output::read_log`], and [`PublishError::Io`] when the lock cannot be taken.
    pub fn mirror_current(&self) -> Result<Option<Current>, PublishError> {
        const MIRROR: &str = "current.json";
        let _lock = self.lock()?;
        let current = self.read_current()?;
        let found = self.get(MIRROR)?;
        match current.as_ref().map(to_json) {
            Some(bytes) if found.as_ref() != Some(&bytes) => self.put(MIRROR, bytes)?,
            None if found.is_some() => self.delete(MIRROR)?,
            _ => {}
        }
        Ok(current)
    }

    fn delete(&self, path: &str) -> Result<(), PublishError> {
        let deleted = self.runtime.wait(self.store.delete(&Key::from(path)));
        deleted.map_err(|source| self.store_error(path, source))
    }

    /// Waits for the lock on the mirror; it ends with the returned file, or with the process.
    fn lock(&self) -> Result<File, PublishError> {
        let folder = self.folder.join("_log");
        let path = folder.join(".lock");
        let locked = std::fs::create_dir_all(folder).and_then(|()| {
            let file = File::options().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        });
        locked.map_err(|source| io_error(&path.to_string_lossy(), source))
    }
}
