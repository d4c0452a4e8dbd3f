//! The folder a job publishes to: objects in, objects out.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::behind::WriteBehind;
use super::bucket::BucketUrl;
use super::error::{PublishError, UrlError};
use super::list::{InputFile, list_all};
use super::location::{Location, local_path, prefixed};
use super::log::{
    Current, Log, LogEntry, SNAPSHOT_EVERY, entry_generation, entry_path, snapshot_generation,
    snapshot_path,
};
use super::manifest::{Manifest, PublishedFile};
use super::reader::load_footer;
use super::runtime::IoRuntime;
use super::table_writer::{EncodedFile, sha256_hex};

/// Small objects asked for at a time.
pub(super) const OBJECTS_AT_ONCE: usize = 32;

/// Objects of a store that are larger are sent in parts of this size, so that a failure costs a part.
const PART_BYTES: usize = 8 << 20;

/// Parts on their way at a time.
pub(super) const PARTS_AT_ONCE: usize = 4;

/// The place a job publishes to. Paths given to it are relative to its url.
#[derive(Clone, Debug)]
pub struct Output {
    pub(super) runtime: IoRuntime,
    pub(super) store: Arc<dyn ObjectStore>,
    /// The folder on the local disk, where a lock can be held; none in an object store, which has
    /// conditional writes instead.
    pub(super) folder: Option<PathBuf>,
    /// Files on their way.
    pub(super) behind: Arc<WriteBehind>,
    known_log: Arc<Mutex<Option<KnownLog>>>,
    url: String,
}

/// The log as it was read before.
#[derive(Debug)]
pub(super) struct KnownLog {
    entries: Vec<LogEntry>,
    /// Of the newest entry.
    version: String,
}

/// The version of an entry of the log, if it is listed and has one.
fn version_of(listed: &[ObjectMeta], generation: u64) -> Option<String> {
    let path = entry_path(generation);
    let entry = listed.iter().find(|object| object.location.as_ref() == path)?;
    entry.e_tag.clone()
}

/// An object and the version of it that was read.
pub(super) type Versioned = (Bytes, UpdateVersion);

impl Output {
    /// Opens the folder `url`, absolute or relative to `base`, and makes it if it is not there.
    ///
    /// What is written is on the disk (fsync of file and folder) before the write returns.
    ///
    /// # Errors
    /// [`PublishError::Url`] and [`PublishError::Io`].
    pub fn create(runtime: &IoRuntime, url: &str, base: &Path) -> Result<Self, PublishError> {
        if BucketUrl::parse(url)?.is_none() {
            let folder = base.join(local_path(url)?);
            std::fs::create_dir_all(&folder).map_err(|source| io_error(url, source))?;
        }
        Self::open(runtime, url, base)
    }

    /// Opens a folder that is there already, to read what was published. In an object store every
    /// folder is there.
    ///
    /// # Errors
    /// [`PublishError::Url`] and [`PublishError::Io`].
    pub fn open(runtime: &IoRuntime, url: &str, base: &Path) -> Result<Self, PublishError> {
        if let Some(bucket) = BucketUrl::parse(url)? {
            let folder = bucket.folder_key(&bucket.path)?;
            let store = prefixed(runtime.bucket(&bucket)?, folder);
            return Ok(Self::new(runtime, store, None, url));
        }
        let folder = base.join(local_path(url)?);
        let found = std::fs::metadata(&folder).map_err(|source| io_error(url, source))?;
        if !found.is_dir() {
            let reason = "an output is a folder, and this is a file".to_owned();
            return Err(UrlError::Malformed { url: url.to_owned(), reason }.into());
        }
        let store = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|source| PublishError::Store { path: url.to_owned(), source })?
            .with_fsync(true);
        let store = runtime.metered(Arc::new(store));
        Ok(Self::new(runtime, store, Some(folder), url))
    }

    fn new(
        runtime: &IoRuntime,
        store: Arc<dyn ObjectStore>,
        folder: Option<PathBuf>,
        url: &str,
    ) -> Self {
        let (runtime, url) = (runtime.clone(), url.to_owned());
        let (behind, known_log) = (Arc::default(), Arc::default());
        Self { runtime, store, folder, behind, known_log, url }
    }

    /// The same place, whose writes are waited for by themselves.
    pub(super) fn apart(&self) -> Self {
        Self { behind: Arc::default(), ..self.clone() }
    }

    /// The url as the user wrote it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `path` in the user's own terms, for messages and summaries.
    pub fn url_of(&self, path: &str) -> String {
        self.location().url_of(path)
    }

    /// `path` as a url that other programs open from anywhere: absolute, with a scheme.
    pub fn absolute_url_of(&self, path: &str) -> String {
        match &self.folder {
            None => self.url_of(path),
            Some(folder) => {
                let folder = folder.canonicalize().unwrap_or_else(|_| folder.clone());
                format!("file://{}", folder.join(path).display())
            }
        }
    }

    /// The output as a place to read from: what [`Output::table_files`] lists is read there.
    pub fn location(&self) -> Location {
        Location::within(&self.runtime, self.store.clone(), self.folder.is_some(), &self.url)
    }

    /// Writes one file of a run that is neither table nor manifest, such as `_report.json`.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn put(&self, path: &str, bytes: Bytes) -> Result<(), PublishError> {
        self.runtime.wait(self.put_all(path, bytes))
    }

    pub(super) async fn put_all(&self, path: &str, bytes: Bytes) -> Result<(), PublishError> {
        let in_parts = self.folder.is_none() && bytes.len() > 2 * PART_BYTES;
        let put = async {
            let path = key(path)?;
            match in_parts {
                true => self.put_in_parts(&path, bytes).await,
                false => self.store.put(&path, bytes.into()).await.map(drop),
            }
        };
        put.await.map_err(|source| self.store_error(path, source))
    }

    /// Writes a small file, and gives up after `patience`.
    ///
    /// # Errors
    /// [`PublishError::Store`]; [`PublishError::Io`] when it took too long.
    pub fn put_within(
        &self,
        path: &str,
        bytes: Bytes,
        patience: Duration,
    ) -> Result<(), PublishError> {
        let written = self.runtime.wait(async {
            let path = key(path)?;
            let put = self.store.put(&path, bytes.into());
            Ok(tokio::time::timeout(patience, put).await)
        });
        match written {
            Ok(Ok(put)) => put.map(drop).map_err(|source| self.store_error(path, source)),
            Ok(Err(_)) => Err(io_error(&self.url_of(path), ErrorKind::TimedOut.into())),
            Err(source) => Err(self.store_error(path, source)),
        }
    }

    async fn put_in_parts(&self, path: &Key, bytes: Bytes) -> object_store::Result<()> {
        let mut upload = self.store.put_multipart(path).await?;
        let starts = (0..bytes.len()).step_by(PART_BYTES);
        let parts: Vec<_> = starts
            .map(|start| {
                let end = bytes.len().min(start + PART_BYTES);
                upload.put_part(bytes.slice(start..end).into())
            })
            .collect();
        let sent = stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<Vec<()>>();
        match sent.await {
            Ok(_) => {
                let completed = upload.complete().await.map(drop);
                self.settle_upload(path, bytes.len() as u64, completed).await
            }
            Err(error) => {
                // What cannot be taken back now is left to the bucket's lifecycle rules.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    /// What became of an upload: a client that lost the reply to its completion asks again, and is
    /// told that there is no such upload. Names are used once, so what is there is ours.
    pub(super) async fn settle_upload(
        &self,
        path: &Key,
        bytes: u64,
        completed: object_store::Result<()>,
    ) -> object_store::Result<()> {
        let Err(error) = completed else { return Ok(()) };
        match self.store.head(path).await {
            Ok(found) if found.size == bytes => Ok(()),
            _ => Err(error),
        }
    }

    /// Reads a small file, or `None` where there is none.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn get(&self, path: &str) -> Result<Option<Bytes>, PublishError> {
        self.runtime.wait(self.get_all(path))
    }

    pub(super) async fn get_all(&self, path: &str) -> Result<Option<Bytes>, PublishError> {
        Ok(self.get_with_version(path).await?.map(|(bytes, _)| bytes))
    }

    /// The same with the version, to replace exactly that one.
    pub(super) async fn get_with_version(
        &self,
        path: &str,
    ) -> Result<Option<Versioned>, PublishError> {
        let get = async {
            let found = self.store.get(&key(path)?).await?;
            let (e_tag, version) = (found.meta.e_tag.clone(), found.meta.version.clone());
            Ok((found.bytes().await?, UpdateVersion { e_tag, version }))
        };
        match get.await {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.store_error(path, source)),
        }
    }

    /// The log as it is now: the authority on what is published.
    ///
    /// Takes one listing, and at first the newest snapshot; then the entries after what is known. Entries
    /// never change.
    ///
    /// # Errors
    /// [`PublishError::Store`], and [`PublishError::Corrupt`] for an entry that does not parse or is
    /// missing in the middle.
    pub fn read_log(&self) -> Result<Log, PublishError> {
        let listed = self.list("_log")?;
        let known = match self.known_log(&listed) {
            Some(known) => known,
            None => {
                let paths = listed.iter().map(|object| object.location.as_ref());
                let newest = paths.filter_map(snapshot_generation).max();
                let known = newest.map(|generation| self.snapshot(generation)).transpose()?;
                known.flatten().unwrap_or_default()
            }
        };
        let log = self.log_after(known, &listed)?;
        let version = version_of(&listed, log.generation());
        let known = version.map(|version| KnownLog { entries: log.entries().to_vec(), version });
        *self.known_log.lock().expect("no thread panics with the lock") = known;
        Ok(log)
    }

    /// The entries that were read before, if the newest of them is there as it was.
    fn known_log(&self, listed: &[ObjectMeta]) -> Option<Vec<LogEntry>> {
        let known = self.known_log.lock().expect("no thread panics with the lock");
        let KnownLog { entries, version } = known.as_ref()?;
        let now = version_of(listed, entries.len() as u64)?;
        (now == *version).then(|| entries.clone())
    }

    /// The log from its entries alone, no matter what snapshots say.
    ///
    /// # Errors
    /// As [`Output::read_log`].
    pub fn read_log_entries(&self) -> Result<Log, PublishError> {
        self.log_after(Vec::new(), &self.list("_log")?)
    }

    fn log_after(&self, known: Vec<LogEntry>, listed: &[ObjectMeta]) -> Result<Log, PublishError> {
        let first = known.len() as u64 + 1;
        let newer = |path: &&str| entry_generation(path).is_some_and(|found| found >= first);
        let paths = listed.iter().map(|object| object.location.as_ref());
        let fetches = paths.filter(newer).map(|path| async move {
            let bytes = self.fetch(path).await?;
            Ok((path, bytes))
        });
        let fetched = self.runtime.wait_for_all(OBJECTS_AT_ONCE, fetches);
        let mut entries = known;
        for (path, bytes) in fetched.map_err(|source| self.store_error("_log/", source))? {
            entries.push(self.parse_entry(path, &bytes)?);
        }
        let log = Log::new(entries);
        match log.gap() {
            None => Ok(log),
            Some(generation) => Err(PublishError::Corrupt {
                path: self.url_of("_log/"),
                source: format!("generation {generation} is missing").into(),
            }),
        }
    }

    /// The entries of a snapshot; `None` where it is not what it should be, as it is only derived.
    fn snapshot(&self, generation: u64) -> Result<Option<Vec<LogEntry>>, PublishError> {
        let Some(bytes) = self.get(&snapshot_path(generation))? else { return Ok(None) };
        let entries: Option<Vec<LogEntry>> = serde_json::from_slice(&bytes).ok();
        let is_whole = |entries: &Vec<LogEntry>| {
            let log = Log::new(entries.clone());
            log.gap().is_none() && log.generation() == generation
        };
        Ok(entries.filter(is_whole))
    }

    /// Writes a snapshot when it is time for one. It is only derived, so a failure costs requests.
    pub(super) fn write_snapshot(&self, log: &Log) {
        let generation = log.generation() / SNAPSHOT_EVERY * SNAPSHOT_EVERY;
        if generation == 0 {
            return;
        }
        let upto = &log.entries()[..generation as usize];
        if let Err(error) = self.put_new(&snapshot_path(generation), &to_json(&upto)) {
            tracing::debug!(%error, generation, "no snapshot of the log");
        }
    }

    /// The objects below `folder`, which is relative to the output.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>, PublishError> {
        let listed = self.runtime.wait(async { list_all(&self.store, Some(&key(folder)?)).await });
        let mut listed = listed.map_err(|source| self.store_error(folder, source))?;
        listed.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(listed)
    }

    /// The run that readers see, from the log.
    ///
    /// # Errors
    /// As [`Output::read_log`].
    pub fn read_current(&self) -> Result<Option<Current>, PublishError> {
        Ok(self.read_log()?.current().cloned())
    }

    /// The standing publication with this fingerprint, if the run is done already.
    ///
    /// # Errors
    /// As [`Output::read_log`].
    pub fn find_published(&self, fingerprint: &str) -> Result<Option<Current>, PublishError> {
        Ok(self.read_log()?.find_published(fingerprint).map(|entry| entry.run.clone()))
    }

    /// The manifest of a published run, checked against the digest in its commit.
    ///
    /// # Errors
    /// [`PublishError::Changed`], [`PublishError::Corrupt`], [`PublishError::Store`].
    pub fn read_manifest(&self, run: &Current) -> Result<Manifest, PublishError> {
        let path = run.manifest.as_str();
        let fetched = self.runtime.wait(self.fetch(path));
        let bytes = fetched.map_err(|source| self.store_error(path, source))?;
        if sha256_hex(&bytes) != run.manifest_sha256 {
            return Err(PublishError::Changed { path: self.url_of(path) });
        }
        let manifest: Manifest = self.parse(path, &bytes)?;
        match manifest.problem() {
            None => Ok(manifest),
            Some(problem) => {
                Err(PublishError::Corrupt { path: self.url_of(path), source: problem.into() })
            }
        }
    }

    /// The files of one table of a run, to be read at [`Output::location`].
    pub fn table_files(&self, manifest: &Manifest, table: &str) -> Vec<InputFile> {
        let files = manifest.files.iter().filter(|file| file.table == table);
        files.map(|file| self.input_file(file)).collect()
    }

    /// A file of a run, to be read at [`Output::location`].
    pub fn input_file(&self, file: &PublishedFile) -> InputFile {
        InputFile {
            key: file.path.clone(),
            url: self.url_of(&file.path),
            bytes: file.bytes,
            etag: None,
            last_modified: 0,
            partitions: BTreeMap::new(),
        }
    }

    /// Holds every file against what was written: tables by their footers, others by their size.
    ///
    /// # Errors
    /// [`PublishError::WrongRows`], [`PublishError::WrongSize`], [`PublishError::Unreadable`],
    /// [`PublishError::Store`].
    pub fn check_files(&self, files: &[PublishedFile]) -> Result<(), PublishError> {
        let location = self.location();
        let checks = files.iter().map(|file| self.check_file(&location, file));
        self.runtime.wait_for_all(OBJECTS_AT_ONCE, checks).map(drop)
    }

    async fn check_file(
        &self,
        location: &Location,
        file: &PublishedFile,
    ) -> Result<(), PublishError> {
        if !file.path.ends_with(".parquet") {
            return self.check_size(file).await;
        }
        let path = || self.url_of(&file.path);
        match load_footer(location, &self.input_file(file)).await {
            Ok(footer) if footer.n_rows() == file.rows => Ok(()),
            Ok(footer) => {
                let (expected, found) = (file.rows, footer.n_rows());
                Err(PublishError::WrongRows { path: path(), expected, found })
            }
            Err(error) => {
                self.check_size(file).await?;
                Err(PublishError::Unreadable { path: path(), source: Box::new(error) })
            }
        }
    }

    async fn check_size(&self, file: &PublishedFile) -> Result<(), PublishError> {
        let head = async { self.store.head(&key(&file.path)?).await };
        let found = head.await.map_err(|source| self.store_error(&file.path, source))?.size;
        if found != file.bytes {
            let path = self.url_of(&file.path);
            return Err(PublishError::WrongSize { path, expected: file.bytes, found });
        }
        Ok(())
    }

    /// Writes an object that must not exist.
    pub(super) fn put_new(&self, path: &str, bytes: &Bytes) -> object_store::Result<()> {
        self.runtime.wait(self.put_if(path, bytes, PutMode::Create))
    }

    /// Writes an object under a condition.
    pub(super) async fn put_if(
        &self,
        path: &str,
        bytes: &Bytes,
        mode: PutMode,
    ) -> object_store::Result<()> {
        self.store.put_opts(&key(path)?, bytes.clone().into(), mode.into()).await.map(drop)
    }

    /// Removes an object; that it is not there is no error.
    pub(super) fn delete(&self, path: &str) -> Result<(), PublishError> {
        match self.runtime.wait(async { self.store.delete(&key(path)?).await }) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.store_error(path, source)),
        }
    }

    pub(super) fn parse_entry(&self, path: &str, bytes: &[u8]) -> Result<LogEntry, PublishError> {
        let entry: LogEntry = self.parse(path, bytes)?;
        if entry_generation(path) != Some(entry.run.generation) {
            let source = format!("it claims to be generation {}", entry.run.generation).into();
            return Err(PublishError::Corrupt { path: self.url_of(path), source });
        }
        Ok(entry)
    }

    pub(super) fn store_error(&self, path: &str, source: object_store::Error) -> PublishError {
        PublishError::Store { path: self.url_of(path), source }
    }

    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: &[u8],
    ) -> Result<T, PublishError> {
        serde_json::from_slice(bytes).map_err(|error| PublishError::Corrupt {
            path: self.url_of(path),
            source: error.into(),
        })
    }

    async fn fetch(&self, path: &str) -> object_store::Result<Bytes> {
        self.store.get(&key(path)?).await?.bytes().await
    }
}

/// Writes a finished table file to `path`, which no other run uses ([`RunPath::table_part`]). It is there
/// once [`Output::settle`] says so.
///
/// [`RunPath::table_part`]: super::RunPath::table_part
///
/// # Errors
/// [`PublishError::Store`], also of a file that was begun before.
pub fn put_file(
    output: &Output,
    path: &str,
    file: EncodedFile,
) -> Result<PublishedFile, PublishError> {
    let EncodedFile { table, bytes, rows, sha256 } = file;
    let n_bytes = bytes.len() as u64;
    output.put_behind(path, bytes)?;
    Ok(PublishedFile { path: path.to_owned(), table, bytes: n_bytes, rows, sha256 })
}

/// `value` as JSON for people and programs: keys in the order of the struct, a line break at the
/// end.
pub(super) fn to_json(value: &impl Serialize) -> Bytes {
    let mut json = serde_json::to_vec_pretty(value).expect("string keys and finite numbers only");
    json.push(b'\n');
    json.into()
}

pub(super) fn io_error(path: &str, source: std::io::Error) -> PublishError {
    PublishError::Io { path: path.to_owned(), source }
}

fn key(path: &str) -> object_store::Result<Key> {
    Ok(Key::parse(path)?)
}
