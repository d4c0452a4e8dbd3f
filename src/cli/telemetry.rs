//! Who is told how a run went, beside the one who reads stderr: Kubernetes, Prometheus and
//! OpenLineage, where the environment asks for it. None of them can make a run fail.

use std::path::Path;
use std::time::Duration;

use crate::job::Spec;
use crate::run::{Outcome, Report};
use crate::store::IoRuntime;

mod open_lineage;
mod prometheus;
mod termination;

pub(super) use termination::{ended, refused};

/// What a run says of itself to others: once when it begins, once when it ends.
pub(super) struct Telemetry {
    lineage: Option<open_lineage::Lineage>,
}

/// For one message to one receiver.
const PATIENCE: Duration = Duration::from_secs(5);

impl Telemetry {
    /// For a run that is about to begin.
    pub(super) fn new(spec: &Spec, base: &Path, run_id: &str, date: Option<&str>) -> Self {
        Self { lineage: open_lineage::Lineage::from_environment(spec, base, run_id, date) }
    }

    /// Tells that it begins.
    pub(super) fn start(&self) {
        if let Some(lineage) = &self.lineage {
            lineage.start();
        }
    }

    /// Tells what came of it.
    pub(super) fn end(&self, report: &Report, outcome: Option<&Outcome>) {
        if let Some(lineage) = &self.lineage {
            lineage.end(report, outcome);
        }
        prometheus::tell(report);
        termination::ended(report);
    }
}

/// A variable of the environment that is set to something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Posts a message, and warns where it does not arrive. `url` may hold secrets, so it is not shown.
fn post(receiver: &str, url: &str, content_type: &str, token: Option<&str>, body: String) {
    let posted = IoRuntime::new().map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.post(url, content_type, token, body, PATIENCE).map_err(|error| error.to_string())
    });
    if let Err(error) = posted {
        tracing::warn!("{receiver} was not told: {error}");
    }
}

/// Warns where a file cannot be written.
fn warn(receiver: &str, path: &str, written: std::io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!("{receiver} was not told: \"{path}\" cannot be written: {error}");
    }
}
