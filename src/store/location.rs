//! From a url, as the user wrote it, to a store and what to list in it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use glob::{MatchOptions, Pattern};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};

use super::bucket::BucketUrl;
use super::error::{ListError, UrlError};
use super::runtime::IoRuntime;

/// A place to read from: one file, a folder, or the files that a pattern names.
///
/// Keys are relative to the folder before the first wildcard, so they do not change with the
/// machine's folders above it.
#[derive(Clone, Debug)]
pub struct Location {
    pub(super) runtime: IoRuntime,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) what: What,
    /// Whether it lies on a local disk, which answers at once.
    pub(super) is_on_disk: bool,
    url: String,
    /// The url up to where keys start: empty or ending in `/`.
    folder_url: String,
}

/// What of a store's folder a url names.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// One file, by its key.
    File(String),
    /// Every file below.
    Folder,
    /// The files whose key matches or, `folders`, those below a folder that matches.
    Glob { pattern: Pattern, folders: bool },
}

impl Location {
    /// Opens `url`: a path, absolute or relative to `base`, a `file://` url, or one of an object
    /// store (`s3://`, `gs://`, `az://`).
    ///
    /// A path that exists is taken as it is, even if its name holds `*`, `?` or `[`. Otherwise
    /// these are wildcards that do not cross `/`, and `**` is any number of folders. A pattern
    /// that ends in `/` names folders and means every file below them; one that does not names
    /// files. In an object store they are always wildcards, and what ends in `/` is a folder.
    ///
    /// # Errors
    /// [`ListError::NoInput`] when there is no such file or folder; [`ListError::Url`].
    pub fn open(runtime: &IoRuntime, url: &str, base: &Path) -> Result<Self, ListError> {
        match BucketUrl::parse(url)? {
            Some(bucket) => Self::in_bucket(runtime, url, &bucket),
            None => Self::on_disk(runtime, url, base),
        }
    }

    fn on_disk(runtime: &IoRuntime, url: &str, base: &Path) -> Result<Self, ListError> {
        let path = local_path(url)?;
        let full = base.join(&path);
        match std::fs::metadata(&full) {
            Ok(found) if found.is_dir() => Self::folder(runtime, url, &full),
            Ok(_) => Self::file(runtime, url, &full),
            Err(error) if !means_absent(error.kind()) => {
                Err(ListError::Io { url: url.into(), source: error })
            }
            Err(_) if path.contains(WILDCARDS) => Self::glob(runtime, url, &path, base),
            Err(_) => Err(no_input(url, "no such file or folder; check the path")),
        }
    }

    fn in_bucket(runtime: &IoRuntime, url: &str, bucket: &BucketUrl) -> Result<Self, ListError> {
        let store = runtime.bucket(bucket)?;
        let path = bucket.path.as_str();
        let (what, folder, folder_url) = if path.contains(WILDCARDS) {
            let folder = fixed_folder(path);
            let bucket_bytes = url.len() - path.len();
            (glob_of(url, &path[folder.len()..])?, folder, &url[..bucket_bytes + folder.len()])
        } else {
            let key = bucket.folder_key(path)?;
            let is_folder = path.is_empty() || path.ends_with('/');
            if is_folder || !exists(runtime, &store, url, &key)? {
                return Ok(Self::within(runtime, prefixed(store, key), false, url));
            }
            let name_at = path.rfind('/').map_or(0, |slash| slash + 1);
            let what = What::File(path[name_at..].to_owned());
            (what, &path[..name_at], &url[..url.len() - (path.len() - name_at)])
        };
        let store = prefixed(store, bucket.folder_key(folder)?);
        let (runtime, url) = (runtime.clone(), url.to_owned());
        let folder_url = folder_url.to_owned();
        Ok(Self { runtime, store, what, is_on_disk: false, url, folder_url })
    }

    /// A folder of a store that is open already.
    pub(super) fn within(
        runtime: &IoRuntime,
        store: Arc<dyn ObjectStore>,
        is_on_disk: bool,
        url: &str,
    ) -> Self {
        let (runtime, url) = (runtime.clone(), url.to_owned());
        let folder_url = with_slash(&url);
        Self { runtime, store, what: What::Folder, is_on_disk, url, folder_url }
    }

    /// The same place with one file only, in memory and of a version of its own.
    pub(super) fn holding(&self, key: &str, bytes: Bytes) -> Option<Self> {
        let store = InMemory::new();
        let put = async { store.put(&Key::parse(key)?, bytes.into()).await };
        self.runtime.wait(put).ok()?;
        Some(Self { store: Arc::new(store), ..self.clone() })
    }

    /// The url as the user wrote it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The url of the object `key`, in the user's own terms.
    pub(super) fn url_of(&self, key: &str) -> String {
        format!("{}{key}", self.folder_url)
    }

    fn folder(runtime: &IoRuntime, url: &str, full: &Path) -> Result<Self, ListError> {
        Ok(Self::within(runtime, local_store(runtime, url, full)?, true, url))
    }

    fn file(runtime: &IoRuntime, url: &str, full: &Path) -> Result<Self, ListError> {
        let odd = || malformed(url, "its file name is not valid UTF-8; rename the file");
        let key = full.file_name().and_then(|name| name.to_str()).ok_or_else(odd)?.to_owned();
        let folder = full.parent().unwrap_or(Path::new("/"));
        let store = local_store(runtime, url, folder)?;
        let folder_url = url[..url.rfind('/').map_or(0, |slash| slash + 1)].to_owned();
        let (runtime, url) = (runtime.clone(), url.to_owned());
        let what = What::File(key);
        Ok(Self { runtime, store, what, is_on_disk: true, url, folder_url })
    }

    fn glob(runtime: &IoRuntime, url: &str, path: &str, base: &Path) -> Result<Self, ListError> {
        let fixed = fixed_folder(path);
        let folder = base.join(fixed);
        if !folder.is_dir() {
            return Err(no_input(url, &format!("no folder \"{fixed}\"; check the path")));
        }
        Ok(Self {
            runtime: runtime.clone(),
            store: local_store(runtime, url, &folder)?,
            what: glob_of(url, &path[fixed.len()..])?,
            is_on_disk: true,
            url: url.to_owned(),
            folder_url: fixed_folder(url).to_owned(),
        })
    }
}

impl What {
    /// Whether `key` is named.
    pub(super) fn names(&self, key: &str) -> bool {
        match self {
            Self::File(name) => name == key,
            Self::Folder => true,
            Self::Glob { pattern, folders: false } => pattern.matches_with(key, GLOB),
            Self::Glob { pattern, folders: true } => {
                key.match_indices('/').any(|(slash, _)| pattern.matches_with(&key[..slash], GLOB))
            }
        }
    }

    /// Whether the user spelled out how the names end, so that any ending is meant as it stands.
    pub(super) fn names_ending(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Folder | Self::Glob { folders: true, .. } => false,
            Self::Glob { pattern, .. } => {
                let tail = pattern.as_str().rsplit(WILDCARDS).next().unwrap_or_default();
                tail.contains('.')
            }
        }
    }
}

fn glob_of(url: &str, pattern: &str) -> Result<What, ListError> {
    let folders = pattern.ends_with('/');
    let pattern = Pattern::new(pattern.trim_end_matches('/'))
        .map_err(|error| malformed(url, &format!("{error}; correct the pattern")))?;
    Ok(What::Glob { pattern, folders })
}

/// Whether there is an object of that name; folders are no objects.
fn exists(
    runtime: &IoRuntime,
    store: &Arc<dyn ObjectStore>,
    url: &str,
    key: &Key,
) -> Result<bool, ListError> {
    match runtime.wait(store.head(key)) {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(source) => Err(ListError::Store { url: url.to_owned(), source }),
    }
}

/// What lies below `folder` of a store.
pub(super) fn prefixed(store: Arc<dyn ObjectStore>, folder: Key) -> Arc<dyn ObjectStore> {
    match folder.as_ref() {
        "" => store,
        _ => Arc::new(PrefixStore::new(store, folder)),
    }
}

const WILDCARDS: [char; 4] = ['*', '?', '[', ']'];

const GLOB: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The path on the local disk that `url` names.
pub(super) fn local_path(url: &str) -> Result<String, UrlError> {
    let bad = |reason: &str| UrlError::Malformed { url: url.into(), reason: reason.into() };
    if url.is_empty() {
        return Err(bad("it is empty; write a path or a \"file://\" url"));
    }
    match url.split_once("://") {
        None => Ok(url.to_owned()),
        Some(("file", path)) => {
            let path = path.strip_prefix("localhost").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(bad("a \"file://\" url holds an absolute path: file:///folder/"));
            }
            percent_decode(path).ok_or_else(|| bad("its escapes are not valid UTF-8"))
        }
        Some((scheme, _)) => {
            Err(UrlError::Scheme { url: url.to_owned(), scheme: scheme.to_owned() })
        }
    }
}

/// The store rooted at an existing folder of the local disk: keys cannot lead out of it.
fn local_store(
    runtime: &IoRuntime,
    url: &str,
    folder: &Path,
) -> Result<Arc<dyn ObjectStore>, ListError> {
    // `a.parquet` relative to an empty base has the parent "", which is the working folder.
    let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.into() };
    let store = LocalFileSystem::new_with_prefix(folder)
        .map_err(|source| ListError::Store { url: url.to_owned(), source })?;
    Ok(runtime.metered(Arc::new(store)))
}

/// Decodes `%41`; anything else after a `%` stands for itself. `None` if not UTF-8 afterwards.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let hex = |at: usize| text.as_bytes().get(at).and_then(|&b| (b as char).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let byte = text.as_bytes()[at];
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

/// `path` up to and with the last `/` before the first wildcard.
fn fixed_folder(path: &str) -> &str {
    let wildcard = path.find(WILDCARDS).unwrap_or(path.len());
    &path[..path[..wildcard].rfind('/').map_or(0, |slash| slash + 1)]
}

fn with_slash(url: &str) -> String {
    if url.ends_with('/') { url.to_owned() } else { format!("{url}/") }
}

fn means_absent(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}

fn no_input(url: &str, reason: &str) -> ListError {
    ListError::NoInput { url: url.to_owned(), reason: reason.to_owned() }
}

fn malformed(url: &str, reason: &str) -> ListError {
    UrlError::Malformed { url: url.to_owned(), reason: reason.to_owned() }.into()
}
