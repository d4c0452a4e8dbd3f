//! Listing, reading, writing and publication: the only layer that opens URLs.
//!
//! It never knows what a column means. Callers are plain threads: every function here blocks, and
//! what is asynchronous underneath runs on one small [`IoRuntime`] that is handed around.
//!
//! - stores: local disks, S3, Google Cloud Storage and Azure, by the url; [`StoreOptions`],
//!   [`StoreCounts`]
//! - in: [`Location`] (a url), [`list_inputs`], [`footers`], [`read_row_group`], [`read_all`]; ahead of
//!   their use where a store takes its time: [`RowGroups`], [`FilesAhead`]
//! - vectors: [`VectorWriter`] and [`VectorFile`] stream, a part or a block at a time
//! - out: [`TableFile`] (the same rows give the same bytes), [`Output`], [`RunPath`], [`put_file`],
//!   which [`Output::settled`] waits for
//! - commit: [`Manifest`], [`Output::publish`], [`Log`], [`Current`]; [`Output::follow_log`]
//! - restart: [`CheckpointFolder`], [`Seal`]
//! - incremental runs: [`StateManifest`], [`Output::find_state`]
//! - care: [`Output::withdraw`], [`Output::verify`], [`Output::collect`]

mod ahead;
mod behind;
mod bucket;
mod checkpoint;
mod collect;
mod delta;
mod error;
mod follow;
mod http;
mod list;
mod location;
mod log;
mod manifest;
mod meter;
mod object;
mod output;
mod publish;
mod read_ahead;
mod reader;
mod renewed;
mod runtime;
mod state;
mod table_writer;
mod vector_reader;
mod vector_writer;
mod verify;
mod withdraw;

pub use behind::BYTES_BEHIND_MAX;
pub use bucket::is_on_disk;
pub use checkpoint::{CHECKPOINT_FORMAT, CheckpointFolder, CheckpointPart, Seal};
pub use collect::{Collection, CollectionRules, Purge, Removed};
pub use error::{ListError, PublishError, ReadError, UrlError};
pub use list::{InputFile, Listing, list_inputs};
pub use location::Location;
pub use log::{Current, Log, LogEntry, Standing};
pub use manifest::{
    EarlierRun, FORMAT, FitStart, Gate, Manifest, ManifestInput, PublishedFile, RunPath, Stage,
};
pub use meter::StoreCounts;
pub use output::{Output, put_file};
pub use publish::Published;
pub use read_ahead::{FilesAhead, OpenFile, RowGroupRequest, RowGroups};
pub use reader::{Footer, RowGroupReader, footer, footers, read_all, read_row_group};
pub use runtime::{IoRuntime, StoreOptions};
pub use state::{
    STATE_FORMAT, StateFile, StateInput, StateKind, StateManifest, StatePart, StateParts, StateRef,
};
pub use table_writer::{BATCH_ROWS, EncodedFile, TableFile};
pub use vector_reader::{VectorBlock, VectorFile};
pub use vector_writer::VectorWriter;
pub use verify::Verification;

#[cfg(test)]
mod collect_tests;
#[cfg(test)]
mod control_tests;
#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod mutant_tests;
#[cfg(test)]
mod publish_tests;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod table_writer_tests;
#[cfg(test)]
mod vector_tests;
#[cfg(test)]
pub(crate) mod witness;
