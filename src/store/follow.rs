//! What follows the log: `current.json`, the tables' manifests, Delta logs.
//!
//! All of it is worked out from the log, so any process may bring it up to date at any time, and
//! repairs what one that died has left. `current.json` comes last: whoever finds it up to date
//! need not look at the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{Error as StoreError, ObjectStoreExt, PutMode};

use super::error::PublishError;
use super::log::{Current, Log, Mirror};
use super::manifest::{Manifest, PublishedFile};
use super::output::{OBJECTS_AT_ONCE, Output, Versioned, io_error, to_json};

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
        let log = self.follow(vec![MIRROR.to_owned()], |log, _| Ok(vec![mirror_of(log)]))?;
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
        let place = |table: String| (format!("manifests/{table}/manifest"), table);
        let lists: BTreeMap<String, String> = tables.into_iter().map(place).collect();
        self.follow(lists.keys().cloned().collect(), |log, paths| {
            let Some(current) = log.current() else {
                return Ok(vec![Some(Bytes::new()); paths.len()]);
            };
            let newer;
            let run = match run.filter(|run| run.run_id == current.run_id) {
                Some(run) => run,
                None => {
                    newer = self.read_manifest(current)?;
                    &newer
                }
            };
            let files = run.tables();
            // Empty rather than gone: replacing can be made conditional, deleting cannot.
            let of_table = |table: &str| files.get(table).map_or(&[][..], Vec::as_slice);
            let lines = paths.iter().map(|path| Some(self.url_lines(of_table(&lists[path]))));
            Ok(lines.collect())
        })?;
        Ok(())
    }

    /// Files as urls, one per line: what Hive calls symlinks and BigQuery a file set.
    pub(super) fn url_lines(&self, files: &[&PublishedFile]) -> Bytes {
        let lines = files.iter().map(|file| self.absolute_url_of(&file.path) + "\n");
        lines.collect::<String>().into()
    }

    /// Makes the objects at `paths` what `wanted` says of the log: absent for `None`.
    fn follow(
        &self,
        mut paths: Vec<String>,
        wanted: impl Fn(&Log, &[String]) -> Result<Vec<Option<Bytes>>, PublishError>,
    ) -> Result<Log, PublishError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let found = paths.iter().map(|path| self.get_with_version(path));
            let found = self.runtime.wait_for_all(OBJECTS_AT_ONCE, found)?;
            let log = self.read_log()?;
            let wanted = wanted(&log, &paths)?;
            let is_behind = |(found, wanted): &(Option<Versioned>, Option<Bytes>)| {
                found.as_ref().map(|(bytes, _)| bytes) != wanted.as_ref()
            };
            let mut behind: Vec<_> = paths.into_iter().zip(found.into_iter().zip(wanted)).collect();
            behind.retain(|(_, pair)| is_behind(pair));
            if behind.is_empty() {
                return Ok(log);
            }
            // Whatever comes of it, the next round looks: a lost reply is a write all the same.
            let replaced = behind.iter().map(|(path, (found, wanted))| async move {
                let replaced = self.replace(path, found.as_ref(), wanted.as_ref()).await;
                Ok::<_, PublishError>(replaced.err().map(|error| (path.clone(), error)))
            });
            let replaced = self.runtime.wait_for_all(OBJECTS_AT_ONCE, replaced)?;
            let failed = replaced.into_iter().flatten().next();
            paths = behind.into_iter().map(|(path, _)| path).collect();
            last = failed.or(last);
        }
        Err(match last {
            Some((path, source)) => self.store_error(&path, source),
            None => PublishError::Contended { path: self.url_of(&paths[0]) },
        })
    }

    async fn replace(
        &self,
        path: &str,
        found: Option<&Versioned>,
        wanted: Option<&Bytes>,
    ) -> Result<(), StoreError> {
        let Some(bytes) = wanted else {
            // Deleting cannot be made conditional; the next round puts back what is then wanted.
            let _ = self.store.delete(&Key::parse(path)?).await;
            return Ok(());
        };
        let mode = match (self.folder.is_some(), found) {
            (true, _) => PutMode::Overwrite,
            (false, Some((_, version))) => PutMode::Update(version.clone()),
            (false, None) => PutMode::Create,
        };
        match self.put_if(path, bytes, mode).await {
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
