//! Which files an input has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use super::error::ListError;
use super::location::{Location, What, percent_decode};

/// One file of an input, as it was when it was listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Path below the folder that the url fixes: what the location opens, and the sort order.
    pub key: String,
    /// The file in the user's own terms: unique over all inputs, and what messages say.
    pub url: String,
    /// Size.
    pub bytes: u64,
    /// The version that was listed; reading any other is an error. Absent: only the size is held.
    pub etag: Option<String>,
    /// Microseconds since 1970 UTC.
    pub last_modified: i64,
    /// The values of hive-style folders (`dt=2026-11-22/`), percent-decoded, by name.
    ///
    /// Folders that the url itself names count. Hive's mark for null comes as it is written.
    pub partitions: BTreeMap<String, String>,
}

/// The files of an input, and how many were passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// At least one, in order of `key`.
    pub files: Vec<InputFile>,
    /// Files with a `_` or `.` before their name or that of a folder above.
    pub n_hidden: usize,
    /// Files that do not end in `.parquet` or `.parq`.
    pub n_other_ending: usize,
}

/// Lists the files of an input, at any depth, in order of their keys.
///
/// Takes what ends in `.parquet` or `.parq`; a single file, or a pattern that spells out another
/// ending, is taken as it is. Names that start with `_` or `.` are control files and are skipped
/// at every level, as Spark and Hive do.
///
/// # Errors
/// [`ListError::NoInput`] when nothing is left; [`ListError::OddKey`] for a name that no store
/// addresses safely: listing never stops silently.
pub fn list_inputs(location: &Location) -> Result<Listing, ListError> {
    let mut listing = Listing { files: Vec::new(), n_hidden: 0, n_other_ending: 0 };
    for object in objects(location)? {
        let key = object.location.as_ref();
        if !location.what.names(key) {
            continue;
        }
        let single = matches!(location.what, What::File(_));
        if !single && key.split('/').any(|name| name.starts_with(['_', '.'])) {
            listing.n_hidden += 1;
        } else if !location.what.names_ending() && !is_parquet_name(key) {
            listing.n_other_ending += 1;
        } else {
            listing.files.push(input_file(location, &object)?);
        }
    }
    if listing.files.is_empty() {
        return Err(nothing_found(location, &listing));
    }
    listing.files.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(listing)
}

fn objects(location: &Location) -> Result<Vec<ObjectMeta>, ListError> {
    let listed = location.runtime.wait(async {
        match &location.what {
            What::File(key) => {
                let path = Path::parse(key)?;
                Ok(vec![location.store.head(&path).await?])
            }
            What::Folder | What::Glob { .. } => list_all(&location.store, None).await,
        }
    });
    listed.map_err(|error| list_error(location, error))
}

/// Times that a listing is begun anew.
const LISTINGS: u32 = 5;

/// Pause before the second time, doubled from then on. Tests kill processes thousands of times.
const FIRST_PAUSE_MS: u64 = if cfg!(test) { 0 } else { 50 };

/// All objects below `prefix`. A listing whose reply breaks off is begun anew, which the client does
/// for requests that fail before their reply begins only.
pub(super) async fn list_all(
    store: &Arc<dyn ObjectStore>,
    prefix: Option<&Path>,
) -> object_store::Result<Vec<ObjectMeta>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match store.list(prefix).try_collect().await {
            Err(object_store::Error::Generic { .. }) if attempt < LISTINGS => {
                tokio::time::sleep(Duration::from_millis(FIRST_PAUSE_MS << attempt)).await;
            }
            listed => return listed,
        }
    }
}

fn list_error(location: &Location, error: object_store::Error) -> ListError {
    use object_store::path::Error::{BadSegment, EmptySegment, NonUnicode};
    let url = location.url().to_owned();
    match error {
        object_store::Error::InvalidPath { source } => {
            let key = match &source {
                EmptySegment { path } | BadSegment { path, .. } | NonUnicode { path, .. } => {
                    path.clone()
                }
                other => other.to_string(),
            };
            odd_key(location, &key, "which has empty, relative or unprintable parts")
        }
        source => ListError::Store { url, source },
    }
}

fn odd_key(location: &Location, key: &str, reason: &str) -> ListError {
    let url = location.url().to_owned();
    ListError::OddKey { url, key: key.to_owned(), reason: reason.to_owned() }
}

fn is_parquet_name(key: &str) -> bool {
    key.ends_with(".parquet") || key.ends_with(".parq")
}

fn input_file(location: &Location, object: &ObjectMeta) -> Result<InputFile, ListError> {
    let key = object.location.as_ref();
    let url = location.url_of(key);
    let partitions = partitions(&url)
        .ok_or_else(|| odd_key(location, key, "whose escapes are not valid UTF-8"))?;
    Ok(InputFile {
        key: key.to_owned(),
        url,
        bytes: object.size,
        etag: object.e_tag.clone(),
        last_modified: object.last_modified.timestamp_micros(),
        partitions,
    })
}

/// The `name=value` folders of `url`, the file's own name aside; the innermost wins.
fn partitions(url: &str) -> Option<BTreeMap<String, String>> {
    let (folders, _) = url.rsplit_once('/').unwrap_or_default();
    folders
        .split('/')
        .filter_map(|folder| folder.split_once('='))
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| Some((percent_decode(name)?, percent_decode(value)?)))
        .collect()
}

fn nothing_found(location: &Location, listing: &Listing) -> ListError {
    let (hidden, other) = (listing.n_hidden, listing.n_other_ending);
    let mut reason = match &location.what {
        What::Glob { folders: false, .. } => {
            "no file matches (a pattern that names folders ends in \"/\")".to_owned()
        }
        What::Glob { folders: true, .. } => "no Parquet file in a folder that matches".to_owned(),
        What::File(_) | What::Folder => "no file ends in .parquet or .parq".to_owned(),
    };
    if hidden + other > 0 {
        reason += &format!(
            "; skipped {hidden} with a name or folder that starts with \"_\" or \".\" \
             and {other} with another ending"
        );
    }
    ListError::NoInput { url: location.url().to_owned(), reason: reason + "; check the url" }
}
