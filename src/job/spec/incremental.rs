//! The section about runs that read only what changed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a run keeps the rows that it read for the next one, which then reads new and changed files only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Incremental {
    /// A run goes on from the newest generation whose state fits: rows of files that are as they were
    /// come from there, those of files that changed or are gone are taken back, and only new and
    /// changed files are read. Where no state fits, all files are read. The results are those of a
    /// full run, byte for byte.
    #[schemars(example = false)]
    pub enabled: bool,
}

impl Default for Incremental {
    fn default() -> Self {
        Self { enabled: true }
    }
}
