//! The folder a job publishes to: objects in, objects out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{PublishError, UrlError};
use super::list::InputFile;
use super::location::{Location, local_path};
use super::log::{Current, Log, LogEntry, entry_generation};
use super::manifest::{FORMAT, Manifest, PublishedFile};
use super::runtime::IoRuntime;
use super::table_writer::{EncodedFile, sha256_hex};

/// Small objects asked for at a time.
const OBJECTS_AT_ONCE: usize = 16;

/// The place a job publishes to. Paths given to it are relative to its url.
#[derive(Clone, Debug)]
pub struct Output {
    pub(super) runtime: IoRuntime,
    pub(super) store: Arc<dyn ObjectStore>,
    /// The folder on the local disk, where a lock can be held.
    pub(super) folder: PathBuf,
    url: String,
}

impl Output {
    /// Opens the folder `url`, absolute or relative to `base`, and makes it if it is not there.
    ///
    /// What is written is on the disk (fsync of file and folder) before the write returns.
    ///
    /// # Errors
    /// [`PublishError::Url`] and [`PublishError::Io`].
    pub fn create(runtime: &IoRuntime, url: &str, base: &Path) -> Result<Self, PublishError> {
        let folder = base.join(local_path(url)?);
        std::fs::create_dir_all(&folder).map_err(|source| io_error(url, source))?;
        Self::open(runtime, url, base)
    }

    /// Opens a folder that is there already, to read what was published.
    ///
    /// # Errors
    /// [`PublishError::Url`] and [`PublishError::Io`].
    pub fn open(runtime: &IoRuntime, url: &str, base: &Path) -> Result<Self, PublishError> {
        let folder = base.join(local_path(url)?);
        let found = std::fs::metadata(&folder).map_err(|source| io_error(url, source))?;
        if !found.is_dir() {
            let reason = "an output is a folder, and this is a file".to_owned();
            return Err(UrlError::Malformed { url: url.to_owned(), reason }.into());
        }
        let store = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|source| PublishError::Store { path: url.to_owned(), source })?
            .with_fsync(true);
        let (runtime, url) = (runtime.clone(), url.to_owned());
        Ok(Self { runtime, store: Arc::new(store), folder, url })
    }

    /// The url as the user wrote it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `path` in the user's own terms, for messages and summaries.
    pub fn url_of(&self, path: &str) -> String {
        self.location().url_of(path)
    }

    /// The output as a place to read from: what [`Output::table_files`] lists is read there.
    pub fn location(&self) -> Location {
        Location::within(&self.runtime, self.store.clone(), &self.url)
    }

    /// Writes one file of a run that is neither table nor manifest, such as `_report.json`.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn put(&self, path: &str, bytes: Bytes) -> Result<(), PublishError> {
        let written = self.runtime.wait(async { self.store.put(&key(path)?, bytes.into()).await });
        written.map(drop).map_err(|source| self.store_error(path, source))
    }

    /// Reads a small file, or `None` where there is none.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn get(&self, path: &str) -> Result<Option<Bytes>, PublishError> {
        match self.runtime.wait(self.fetch(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.store_error(path, source)),
        }
    }

    /// The log as it is now: the authority on what is published.
    ///
    /// # Errors
    /// [`PublishError::Store`], and [`PublishError::Corrupt`] for an entry that does not parse.
    pub fn read_log(&self) -> Result<Log, PublishError> {
        let entries = self.runtime.wait(async {
            let listed = self.store.list(Some(&key("_log")?));
            let paths: Vec<_> = listed.map_ok(|object| object.location).try_collect().await?;
            let paths = paths.into_iter().filter(|path| entry_generation(path.as_ref()).is_some());
            let fetches = paths.map(|path| async move {
                let bytes = self.fetch(path.as_ref()).await?;
                Ok((path, bytes))
            });
            stream::iter(fetches).buffer_unordered(OBJECTS_AT_ONCE).try_collect::<Vec<_>>().await
        });
        let entries = entries.map_err(|source| self.store_error("_log/", source))?;
        let parse = |(path, bytes): (Key, Bytes)| self.parse_entry(path.as_ref(), &bytes);
        entries.into_iter().map(parse).collect::<Result<_, _>>().map(Log::new)
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
        if manifest.format > FORMAT {
            let source = format!("it has format {}, newer than {FORMAT}", manifest.format).into();
            return Err(PublishError::Corrupt { path: self.url_of(path), source });
        }
        Ok(manifest)
    }

    /// The files of one table of a run, to be read at [`Output::location`].
    pub fn table_files(&self, manifest: &Manifest, table: &str) -> Vec<InputFile> {
        let files = manifest.files.iter().filter(|file| file.table == table);
        files.map(|file| self.input_file(file)).collect()
    }

    fn input_file(&self, file: &PublishedFile) -> InputFile {
        InputFile {
            key: file.path.clone(),
            url: self.url_of(&file.path),
            bytes: file.bytes,
            etag: None,
            last_modified: 0,
            partitions: BTreeMap::new(),
        }
    }

    /// Holds the size of every file against what was written.
    pub(super) fn check_files(&self, files: &[PublishedFile]) -> Result<(), PublishError> {
        let heads = stream::iter(files.iter().map(|file| async move {
            let found = self.store.head(&key(&file.path)?).await?;
            Ok((file, found.size))
        }));
        let sizes = heads.buffered(OBJECTS_AT_ONCE).try_collect::<Vec<_>>();
        let sizes = self.runtime.wait(sizes);
        for (file, found) in sizes.map_err(|source| self.store_error("tables/", source))? {
            if found != file.bytes {
                let path = self.url_of(&file.path);
                return Err(PublishError::WrongSize { path, expected: file.bytes, found });
            }
        }
        Ok(())
    }

    /// Writes an object that must not exist.
    pub(super) fn put_new(&self, path: &str, bytes: &Bytes) -> object_store::Result<()> {
        let (payload, options) = (bytes.clone().into(), PutMode::Create.into());
        let put = async { self.store.put_opts(&key(path)?, payload, options).await };
        self.runtime.wait(put).map(drop)
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

    fn parse<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, PublishError> {
        serde_json::from_slice(bytes).map_err(|error| PublishError::Corrupt {
            path: self.url_of(path),
            source: error.into(),
        })
    }

    async fn fetch(&self, path: &str) -> object_store::Result<Bytes> {
        self.store.get(&key(path)?).await?.bytes().await
    }
}

/// Writes a finished table file to `path`, which no other run uses ([`RunPath::table_part`]).
///
/// [`RunPath::table_part`]: super::RunPath::table_part
///
/// # Errors
/// [`PublishError::Store`].
pub fn put_file(
    output: &Output,
    path: &str,
    file: EncodedFile,
) -> Result<PublishedFile, PublishError> {
    let EncodedFile { table, bytes, rows, sha256 } = file;
    let n_bytes = bytes.len() as u64;
    output.put(path, bytes)?;
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
