//! Why a run stops, as the exit code of its process.

use std::fmt;

use anyhow::anyhow;

use super::planning::BadFile;
use crate::cluster::ClusterError;
use crate::dataflow::AgreeError;
use crate::job::SpecError;
use crate::store::{ListError, PublishError, ReadError, UrlError};

/// Exit codes, after sysexits: the table that schedulers map.
pub mod code {
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// The data cannot be used, or a gate failed.
    pub const BAD_DATA: u8 = 65;
    /// There is no input.
    pub const NO_INPUT: u8 = 66;
    /// A service that the run needs did not answer when it began.
    pub const UNAVAILABLE: u8 = 69;
    /// Something that must never happen.
    pub const INTERNAL: u8 = 70;
    /// The same was published and withdrawn, or another attempt owns the run's name.
    pub const FENCED: u8 = 73;
    /// A local disk failed.
    pub const LOCAL_IO: u8 = 74;
    /// Try again later: a store did not answer, or input is not there yet.
    pub const TEMPORARY: u8 = 75;
    /// A permission is missing.
    pub const DENIED: u8 = 77;
    /// The spec or the store cannot be used.
    pub const CONFIG: u8 = 78;

    /// A word for a code, as reports have it.
    pub fn name(code: u8) -> &'static str {
        match code {
            0 => "ok",
            USAGE => "usage",
            BAD_DATA => "bad_data",
            NO_INPUT => "no_input",
            UNAVAILABLE => "unavailable",
            FENCED => "fenced",
            LOCAL_IO => "local_io",
            TEMPORARY => "temporary",
            DENIED => "denied",
            CONFIG => "config",
            _ => "internal",
        }
    }

    /// Whether the same run may succeed later without anybody's help.
    pub fn is_retryable(code: u8) -> bool {
        matches!(code, UNAVAILABLE | INTERNAL | LOCAL_IO | TEMPORARY)
    }
}

/// An error that knows its exit code.
#[derive(Debug)]
pub struct Refused {
    /// One of [`code`].
    pub code: u8,
    error: anyhow::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.chain().nth(1)
    }
}

impl Refused {
    pub(super) fn with_code(code: u8, error: impl Into<anyhow::Error>) -> anyhow::Error {
        anyhow!(Self { code, error: error.into() })
    }

    /// The command line is wrong.
    pub fn usage(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self::with_code(code::USAGE, error)
    }

    /// The data cannot be used.
    pub fn bad_data(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self::with_code(code::BAD_DATA, error)
    }

    /// There is no input.
    pub fn no_input(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self::with_code(code::NO_INPUT, error)
    }

    /// The same run may succeed later.
    pub fn temporary(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self::with_code(code::TEMPORARY, error)
    }

    /// The spec asks for something that cannot be.
    pub fn config(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self::with_code(code::CONFIG, error)
    }

    /// Weights so large that their sums would not be exact.
    pub fn too_heavy() -> anyhow::Error {
        Self::bad_data(anyhow!(
            "event weights are too large to be summed exactly; lower events.weights or set value_max"
        ))
    }
}

/// The exit code for an error: that of the first cause that has one.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(code::INTERNAL)
}

/// Whether an input was replaced after it was planned.
pub(super) fn is_replaced(error: &anyhow::Error) -> bool {
    let is_replaced = |error: &ReadError| matches!(error, ReadError::Replaced { .. });
    error.chain().any(|cause| cause.downcast_ref::<ReadError>().is_some_and(is_replaced))
}

/// The file of an input that is damaged, and how.
pub(super) fn damaged_file(error: &anyhow::Error) -> Option<BadFile> {
    if error.chain().any(|cause| cause.is::<PublishError>()) {
        return None;
    }
    let error = error.chain().find_map(|cause| cause.downcast_ref::<ReadError>())?;
    let url = error.damaged_file()?.to_owned();
    Some(BadFile { url, reason: error.to_string() })
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<Refused>() {
        return Some(error.code);
    }
    if let Some(error) = cause.downcast_ref::<AgreeError>() {
        return Some(error.code);
    }
    if let Some(error) = cause.downcast_ref::<ListError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<ReadError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<PublishError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<UrlError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<ClusterError>() {
        return Some(if error.is_temporary() { code::TEMPORARY } else { code::CONFIG });
    }
    if cause.is::<SpecError>() {
        return Some(code::CONFIG);
    }
    if cause.is::<crate::job::plan::PlanError>() {
        return Some(code::CONFIG);
    }
    if cause.is::<crate::schema::ColumnError>() {
        return Some(code::BAD_DATA);
    }
    None
}
