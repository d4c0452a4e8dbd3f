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
        "\"{url}\" has the scheme \"{scheme}\", and this version reads and writes local disks \
         only; give a path or a \"file://\" url"
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
    /// Another attempt owns the run id.
    #[error("\"{path}\" exists already and is not ours; publish under a new run id")]
    RunTaken {
        /// The manifest.
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
    /// A manifest that is not the one that was committed.
    #[error("\"{path}\" was changed after its commit; restore it or withdraw the generation")]
    Changed {
        /// The manifest.
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
            Self::RunTaken { .. } | Self::Withdrawn { .. } => 73,
            Self::WrongSize { .. } => 74,
            Self::UnknownOutcome { .. } => 75,
            Self::NotFinite { .. } | Self::Corrupt { .. } | Self::Changed { .. } => 65,
        }
    }
}

/// 77 where the cause is a refused permission, else 74: only local disks so far.
fn io_exit_code(error: &(dyn Error + 'static)) -> u8 {
    use object_store::Error::{PermissionDenied, Unauthenticated};
    let mut cause = Some(error);
    while let Some(error) = cause {
        let store = error.downcast_ref::<object_store::Error>();
        let io = error.downcast_ref::<io::Error>();
        if matches!(store, Some(PermissionDenied { .. } | Unauthenticated { .. }))
            || io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied)
        {
            return 77;
        }
        cause = error.source();
    }
    74
}
