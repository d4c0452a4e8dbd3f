//! The outcome of a stage, the same on every worker.

use std::error::Error;
use std::fmt;

use bytes::Bytes;

use crate::types::one_line;

/// The error all workers agreed on: that of the lowest worker that failed.
///
/// `worker`, `code` and `message` are equal on all workers. It displays as the original error on
/// the worker where that happened, and as `process 2 failed: ...` on the others.
#[derive(Debug)]
pub struct AgreeError {
    /// The worker whose error this is.
    pub worker: usize,
    /// The code that worker gave it, for example the exit code of the process.
    pub code: u8,
    /// The error and its sources: [`one_line`].
    pub message: String,
    /// The error itself, with its sources, on the worker where it happened.
    pub own: Option<Box<dyn Error + Send + Sync>>,
}

impl fmt::Display for AgreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.own {
            Some(own) => own.fmt(f),
            None => write!(f, "process {} failed: {}", self.worker, self.message),
        }
    }
}

impl Error for AgreeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.own.as_ref()?.source()
    }
}

/// What one worker tells the others about its failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) message: String,
}

impl Failure {
    /// Describes an error by its code and its line.
    pub(super) fn new(code: u8, error: &(dyn Error + 'static)) -> Self {
        Failure { code, message: one_line(error) }
    }

    /// The code, then the message. Never empty: empty stands for success.
    pub(super) fn encode(&self) -> Bytes {
        [&[self.code], self.message.as_bytes()].concat().into()
    }

    /// The inverse of `encode`; `None` for success.
    pub(super) fn decode(status: &[u8]) -> Option<Self> {
        let (&code, message) = status.split_first()?;
        Some(Failure { code, message: String::from_utf8_lossy(message).into_owned() })
    }
}
