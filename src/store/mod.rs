//! Listing, reading, writing and publication: the only layer that opens URLs.
//!
//! It never knows what a column means. Callers are plain threads: every function here blocks, and
//! what is asynchronous underneath runs on one small [`IoRuntime`] that is handed around.
//!
//! - in: [`Location`] (a url), [`list_inputs`], [`footers`], [`read_row_group`], [`read_all`]
//! - vectors: [`VectorWriter`] and [`VectorFile`] stream, a part or a block at a time
//! - out: [`TableFile`] (the same rows give the same bytes), [`Output`], [`RunPath`], [`put_file`]
//! - commit: [`Manifest`], [`Output::publish`], [`Log`], [`Current`]
//!
//! Local disks only so far; other schemes are refused by name.

mod error;
mod list;
mod location;
mod log;
mod manifest;
mod object;
mod output;
mod publish;
mod reader;
mod runtime;
mod table_writer;
mod vector_reader;
mod vector_writer;

pub use error::{ListError, PublishError, ReadError, UrlError};
pub use list::{InputFile, Listing, list_inputs};
pub use location::Location;
pub use log::{Current, Log, LogEntry};
pub use manifest::{FORMAT, Manifest, ManifestInput, PublishedFile, RunPath, Stage};
pub use output::{Output, put_file};
pub use publish::Published;
pub use reader::{Footer, RowGroupReader, footer, footers, read_all, read_row_group};
pub use runtime::IoRuntime;
pub use table_writer::{BATCH_ROWS, EncodedFile, TableFile};
pub use vector_reader::{VectorBlock, VectorFile};
pub use vector_writer::VectorWriter;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod publish_tests;
#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod table_writer_tests;
#[cfg(test)]
mod vector_tests;
