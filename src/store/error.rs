//! What can go wrong between us and a store, and the exit code of each.
//!
//! 65 bad data, 66 no input, 70 internal, 73 fenced, 74 local input or output, 75 try again,
//! 77 denied, 78 wrong configuration.

use std::error::Error;
use std::io;

use parquet::errors::ParquetError;

use crate::schema::vectors::LayoutError;

/// A url that this version cannot open.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// The scheme is not one of ours.
    #[error(
        "\"{url}\" has the scheme \"{scheme}\", and there is no store for it; give a path, or a url \
         of \"file://\", \"s3://\", \"gs://\" or \"az://\""
    )]
    Scheme {
        /// The url as written.
        url: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// The url is malformed.
    #[error("\"{url}\" is not a usable url: {reason}")]
    Malformed {
        /// The url as written.
        url: String,
        /// What is wrong with it and what to write.
        reason: String,
    },
    /// There is no client for the store as it is configured.
    #[error("cannot set up a client for \"{url}\"; check the environment and [store]")]
    Client {
        /// The bucket.
        url: String,
        /// The cause.
        source: object_store::Error,
    },
}

impl UrlError {
    /// The exit code of the process that fails with this error.
    pub fn exit_code(&self) -> u8 {
        78
    }
}

/// Why an input could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// See [`UrlError`].
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Nothing to read.
    #[error("no input at \"{url}\": {reason}")]
    NoInput {
        /// The url as written.
        url: String,
        /// What is missing or was skipped, and what to do.
        reason: String,
    },
    /// An object whose name cannot be used.
    #[error("\"{url}\" holds the key {key:?}, {reason}; rename it or keep it elsewhere")]
    OddKey {
        /// The url as written.
        url: String,
        /// The key, as far as it can be told.
        key: String,
        /// What is odd about it.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot open \"{url}\"")]
    Io {
        /// The url as written.
        url: String,
        /// The cause.
        source: io::Error,
    },
    /// The store refused.
    #[error("cannot list \"{url}\"")]
    Store {
        /// The url as written.
        url: String,
        /// The cause.
        source: object_store::Error,
    },
}

impl ListError {
    /// The exit code of the process that fails with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url(error) => error.exit_code(),
            Self::NoInput { .. } => 66,
            Self::OddKey { .. } => 65,
            Self::Io { source, .. } => io_exit_code(source),
            Self::Store { source, .. } => io_exit_code(source),
        }
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file holds nothing at all.
    #[error(
        "\"{url}\" is empty (0 bytes), so its writer did not finish; write it again or remove it"
    )]
    Empty {
        /// The file.
        url: String,
    },
    /// The file is something else.
    #[error("\"{url}\" is not a Parquet file; convert it or keep it out of the log")]
    NotParquet {
        /// The file.
        url: String,
    },
    /// The file starts as Parquet and ends early.
    #[error("\"{url}\" is truncated: it starts as Parquet but has no footer; copy it again")]
    Truncated {
        /// The file.
        url: String,
    },
    /// The footer makes no sense.
    #[error("the footer of \"{url}\" is corrupt; copy the file again or write it again")]
    CorruptFooter {
        /// The file.
        url: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A row group makes no sense.
    #[error("row group {row_group} of \"{url}\" is corrupt; copy the file again or write it again")]
    CorruptRowGroup {
        /// The file.
        url: String,
        /// The row group, from 0.
        row_group: usize,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A row group that would not fit, refused before it is decoded.
    #[error(
        "row group {row_group} of \"{url}\" declares {bytes} bytes from {compressed} compressed, \
         more than this program unpacks at once; write the file with smaller row groups"
    )]
    TooLarge {
        /// The file.
        url: String,
        /// The row group, from 0.
        row_group: usize,
        /// Declared bytes of the columns that are read.
        bytes: u64,
        /// Their compressed bytes.
        compressed: u64,
    },
    /// The file is no flat vector file.
    #[error("vector file \"{url}\" cannot be searched")]
    NotFlat {
        /// The file.
        url: String,
        /// The cause.
        source: LayoutError,
    },
    /// A column that is not in the file.
    #[error("\"{url}\" has no column \"{column}\"; its columns are {found}")]
    NoColumn {
        /// The file.
        url: String,
        /// The column asked for.
        column: String,
        /// The columns of the file.
        found: String,
    },
    /// The object is no longer the one that was planned.
    #[error("\"{url}\" was replaced or removed after the run was planned; run again")]
    Replaced {
        /// The file.
        url: String,
        /// The cause.
        source: object_store::Error,
    },
    /// The store refused.
    #[error("cannot read \"{url}\"")]
    Store {
        /// The file.
        url: String,
        /// The cause.
        source: object_store::Error,
    },
}

impl ReadError {
    /// The file that is damaged, where it is the file and not the way to it.
    pub fn damaged_file(&self) -> Option<&str> {
        match self {
            Self::Empty { url }
            | Self::NotParquet { url }
            | Self::Truncated { url }
            | Self::CorruptFooter { url, .. }
            | Self::CorruptRowGroup { url, .. }
            | Self::TooLarge { url, .. } => Some(url),
            _ => None,
        }
    }

    /// The exit code of the process that fails with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Replaced { .. } => 75,
            Self::Store { source, .. } => io_exit_code(source),
            _ => 65,
        }
    }
}

/// Why a run could not be published, or a published run not be read.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// See [`UrlError`].
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The file system refused.
    #[error("cannot use \"{path}\"")]
    Io {
        /// The file or folder.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The store refused.
    #[error("cannot read or write \"{path}\"")]
    Store {
        /// The object.
        path: String,
        /// The cause.
        source: object_store::Error,
    },
    /// A table does not encode.
    #[error("cannot encode table \"{table}\" as Parquet")]
    Encode {
        /// The table.
        table: String,
        /// The cause.
        source: ParquetError,
    },
    /// A vector with a value that no search can use.
    #[error(
        "value {column} of row {row} of \"{path}\" is NaN or infinite; raise the model's \
         regularization or lower its event weights"
    )]
    NotFinite {
        /// The vector file.
        path: String,
        /// The row, from 0.
        row: usize,
        /// The place in the row, from 0.
        column: usize,
    },
    /// A file of the run is not the one that was written.
    #[error("\"{path}\" has {found} bytes where {expected} were written; run again")]
    WrongSize {
        /// The file.
        path: String,
        /// Bytes written.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A table of the run is not the one that was written.
    #[error("\"{path}\" has {found} rows where {expected} were written; run again")]
    WrongRows {
        /// The file.
        path: String,
        /// Rows written.
        expected: u64,
        /// Rows found.
        found: u64,
    },
    /// Another attempt owns the run id.
    #[error("\"{path}\" exists already and is not ours; publish under a new run id")]
    RunTaken {
        /// The manifest.
        path: String,
    },
    /// Readers see what was to be removed.
    #[error(
        "\"{path}\" points to a run that is to be removed; publish another one first, by running the job"
    )]
    InUse {
        /// What points there.
        path: String,
    },
    /// The same input and spec were published and withdrawn.
    #[error(
        "generation {generation} held the same input and spec and was withdrawn; \
         use --force to publish it again"
    )]
    Withdrawn {
        /// The generation that was withdrawn.
        generation: u64,
    },
    /// Nobody knows whether the write arrived.
    #[error(
        "cannot tell whether \"{path}\" was written; delete nothing and run again, \
         which finds out"
    )]
    UnknownOutcome {
        /// The object.
        path: String,
        /// The cause.
        source: object_store::Error,
    },
    /// A control file that does not parse.
    #[error("\"{path}\" is not a file this version understands; restore it or upgrade")]
    Corrupt {
        /// The control file.
        path: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A store on which two runs could both believe that they published.
    #[error(
        "the store of \"{url}\" {problem}, so two runs could overwrite each other; use a store with \
         conditional writes, or --unsafe-single-writer if nothing else ever writes there"
    )]
    UnsafeStore {
        /// The output.
        url: String,
        /// What it did.
        problem: &'static str,
    },
    /// The run was taken for dead.
    #[error(
        "run {run_id} was removed by gc before it was published; run again, and let gc wait for \
         longer than a run takes (--grace-hours)"
    )]
    Collected {
        /// The run.
        run_id: String,
    },
    /// Files that a run lists in the place of its own may go at any time.
    #[error(
        "files of run {run_id}, which are listed as they were, were given up by gc meanwhile; run again"
    )]
    UnchangedGone {
        /// The run that wrote them, or listed them.
        run_id: String,
    },
    /// There is no such generation, or nothing to withdraw in it.
    #[error("generation {generation} {problem}; \"tidemill runs\" lists them")]
    NoSuchGeneration {
        /// The generation asked for.
        generation: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of the run cannot be read back.
    #[error("\"{path}\" was written and cannot be read")]
    Unreadable {
        /// The file.
        path: String,
        /// The cause.
        source: Box<ReadError>,
    },
    /// Others keep changing it.
    #[error("\"{path}\" is changed by others all the time; run again")]
    Contended {
        /// The object.
        path: String,
    },
    /// A manifest, or a file that one lists, that is not the one that was committed.
    #[error("\"{path}\" was changed after its commit; restore it or withdraw the generation")]
    Changed {
        /// The object.
        path: String,
    },
}

impl PublishError {
    /// The exit code of the process that fails with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url(error) => error.exit_code(),
            Self::Io { source, .. } => io_exit_code(source),
            Self::Store { source, .. } => io_exit_code(source),
            Self::Encode { .. } => 70,
            Self::RunTaken { .. } | Self::Withdrawn { .. } | Self::InUse { .. } => 73,
            Self::WrongSize { .. } | Self::WrongRows { .. } => 74,
            // Denied is denied, also where an earlier attempt may still arrive.
            Self::UnknownOutcome { source, .. } if io_exit_code(source) == 77 => 77,
            Self::UnknownOutcome { .. }
            | Self::Collected { .. }
            | Self::UnchangedGone { .. }
            | Self::Contended { .. } => 75,
            Self::Unreadable { source, .. } => match **source {
                // What is wrong with a file of our own is no fault of the data.
                ReadError::Store { .. } => source.exit_code(),
                _ => 74,
            },
            Self::UnsafeStore { .. } => 78,
            Self::NoSuchGeneration { .. } => 66,
            Self::NotFinite { .. } | Self::Corrupt { .. } | Self::Changed { .. } => 65,
        }
    }
}

/// 77 where the cause is a refused permission, 78 where there is no such bucket, 75 where an object
/// store did not answer as it should even after retries, 74 on a local disk.
fn io_exit_code(error: &(dyn Error + 'static)) -> u8 {
    use object_store::Error::{Generic, PermissionDenied, Unauthenticated};
    let mut cause = Some(error);
    let mut code = 74;
    while let Some(error) = cause {
        match error.downcast_ref::<object_store::Error>() {
            Some(PermissionDenied { .. } | Unauthenticated { .. }) => return 77,
            Some(Generic { store, .. }) if *store != "LocalFileSystem" => code = 75,
            _ => {}
        }
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return 77;
        }
        match error.to_string() {
            text if REFUSALS.iter().any(|word| text.contains(word)) => return 77,
            text if text.contains("NoSuchBucket") => return 78,
            _ => cause = error.source(),
        }
    }
    code
}

/// How a refusal is told that comes as a text only: error codes of S3 and its token service with a
/// status other than 401 and 403, and what credentials are asked of.
const REFUSALS: [&str; 7] = [
    "ExpiredToken",
    "InvalidToken",
    "InvalidIdentityToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "401 Unauthorized",
    "403 Forbidden",
];
