//! What follows the log: `current.json`, the tables' manifests, Delta logs.
//!
//! All of it is worked out from the log, so any process may bring it up to date at any time, and
//! repairs what one that died has left. `current.json` comes last: whoever finds it up to date
//! need not look at the rest.

use std::collections::BTreeSet;
use std::fs::File;

use bytes::Bytes;
use object_store::{Error as StoreError, PutMode};

use super::error::PublishError;
use super::log::{Current, Log, Mirror};
use super::manifest::{Manifest, PublishedFile};
use super::output::{Output, Versioned, io_error, to_json};

/// The mirror of the log for readers.
const MIRROR: &str = "current.json";

/// Times that an object that others change as well is written before giving up.
const ATTEMPTS: usize = 64;

impl Output {
    /// Brings `current.json` and all else that follows the log up to it, and returns what readers
    /// see. Costs three requests where nothing is to be done.
    ///
    /// Nothing goes backwards: an object is replaced only in the version that was read before the
    /// log, or, on a local disk, under a lock.
    ///
    /// # Errors
    /// As [`Output::read_log`]; [`PublishError::Io`] when the lock cannot be taken;
    /// [`PublishError::Contended`].
    pub fn follow_log(&self) -> Result<Option<Current>, PublishError> {
        let _lock = self.lock()?;
        let found = self.get(MIRROR)?;
        let log = self.read_log()?;
        match found == mirror_of(&log) {
            true => Ok(log.current().cloned()),
            false => self.bring_up(&log),
        }
    }

    /// The same, looking at everything: a request that arrived long after its sender gave up may
    /// have changed what was up to date before.
    ///
    /// # Errors
    /// As [`Output::follow_log`].
    pub fn repair(&self) -> Result<Option<Current>, PublishError> {
        let _lock = self.lock()?;
        self.bring_up(&self.read_log()?)
    }

    fn bring_up(&self, log: &Log) -> Result<Option<Current>, PublishError> {
        self.write_snapshot(log);
        let run = log.current().map(|run| self.read_manifest(run)).transpose()?;
        self.follow_with_tables(run.as_ref())?;
        if log.uses_delta() {
            self.follow_with_delta(run.as_ref())?;
        }
        let log = self.follow(MIRROR, |log| Ok(mirror_of(log)))?;
        Ok(log.current().cloned())
    }

    /// The fixed place of each table's list of files: `manifests/<table>/manifest`.
    fn follow_with_tables(&self, run: Option<&Manifest>) -> Result<(), PublishError> {
        let listed = self.list("manifests")?;
        let mut tables: BTreeSet<String> = listed
            .iter()
            .filter_map(|object| object.location.as_ref().split('/').nth(1).map(str::to_owned))
            .collect();
        tables.extend(run.iter().flat_map(|run| run.tables().into_keys().map(str::to_owned)));
        for table in tables {
            self.follow(&format!("manifests/{table}/manifest"), |log| {
                let Some(current) = log.current() else { return Ok(Some(Bytes::new())) };
                let newer;
                let run = match run.filter(|run| run.run_id == current.run_id) {
                    Some(run) => run,
                    None => {
                        newer = self.read_manifest(current)?;
                        &newer
                    }
                };
                // Empty rather than gone: replacing can be made conditional, deleting cannot.
                let files = run.tables().remove(table.as_str()).unwrap_or_default();
                Ok(Some(self.url_lines(&files)))
            })?;
        }
        Ok(())
    }

    /// Files as urls, one per line: what Hive calls symlinks and BigQuery a file set.
    pub(super) fn url_lines(&self, files: &[&PublishedFile]) -> Bytes {
        let lines = files.iter().map(|file| self.absolute_url_of(&file.path) + "\n");
        lines.collect::<String>().into()
    }

    /// Makes the object at `path` what `wanted` says of the log: absent for `None`.
    fn follow(
        &self,
        path: &str,
        wanted: impl Fn(&Log) -> Result<Option<Bytes>, PublishError>,
    ) -> Result<Log, PublishError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let found = self.get_versioned(path)?;
            let log = self.read_log()?;
            let wanted = wanted(&log)?;
            if found.as_ref().map(|(bytes, _)| bytes) == wanted.as_ref() {
                return Ok(log);
            }
            // Whatever comes of it, the next round looks: a lost reply is a write all the same.
            last = self.replace(path, found, wanted).err().or(last);
        }
        Err(match last {
            Some(source) => self.store_error(path, source),
            None => PublishError::Contended { path: self.url_of(path) },
        })
    }

    fn replace(
        &self,
        path: &str,
        found: Option<Versioned>,
        wanted: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let Some(bytes) = wanted else {
            // Deleting cannot be made conditional; the next round puts back what is then wanted.
            let _ = self.delete(path);
            return Ok(());
        };
        let mode = match (self.folder.is_some(), found) {
            (true, _) => PutMode::Overwrite,
            (false, Some((_, version))) => PutMode::Update(version),
            (false, None) => PutMode::Create,
        };
        match self.put_if(path, &bytes, mode) {
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(()),
            result => result,
        }
    }

    /// Waits for the lock on what follows the log; it ends with the returned file, or with the
    /// process. None in an object store.
    fn lock(&self) -> Result<Option<File>, PublishError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let folder = folder.join("_log");
        let path = folder.join(".lock");
        let locked = std::fs::create_dir_all(folder).and_then(|()| {
            let file = File::options().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        });
        locked.map(Some).map_err(|source| io_error(&path.to_string_lossy(), source))
    }
}

fn mirror_of(log: &Log) -> Option<Bytes> {
    let run = log.current()?.clone();
    Some(to_json(&Mirror { run, log_generation: log.generation() }))
}
