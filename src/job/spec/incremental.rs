//! The section about runs that read only what changed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a run keeps the rows that it read for the next one, which then reads new and changed files only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Incremental {
    /// A run goes on from the newest generation whose state fits: rows of files that are as they were
    /// come from there, those of files that changed or are gone are taken back, and only new and
    /// changed files are read. Where no state fits, or it is not what was written, all files are read. Up
    /// to 65,536 items, where many of them share users and `limits.memory_bytes_max` has room, the numbers
    /// of users of all pairs of items are kept as well (4 bits a pair for a typical shop): neighbors with
    /// `weights = "binary"` are made from these, and only pairs of users with another history are
    /// counted. The results are those of a full run, byte for byte.
    #[schemars(example = false)]
    pub enabled: bool,
    /// Beside each table but `rejects` and those of factors (they change entirely with each fit), a run
    /// publishes a table `<table>_changes` of what is different since the generation that readers saw when
    /// it started, which the manifest names in `changes_since`: whole rows to put in, and keys to take
    /// out. A copy of the tables that stands at that generation is brought up to this run by them;
    /// `schemas/` has the statements for warehouses. There is none where nothing was published yet, where
    /// the number of shards or the columns of a table were others, or where the earlier files cannot be read;
    /// a warning says so. Ids of `[delete]` are in no file, so none of their rows is taken out
    /// either: delete those by the list that you gave.
    #[schemars(example = false)]
    pub changes: bool,
    /// A table file that is as it was in that generation is not written again: the manifest lists the
    /// earlier one, and `tidemill gc` keeps it as long as a run does. For readers that load the files that
    /// are listed, or the Delta tables, and never the folder of a run, which no longer holds all of them.
    #[schemars(example = true)]
    pub share_files: bool,
}

impl Default for Incremental {
    fn default() -> Self {
        Self { enabled: true, changes: true, share_files: false }
    }
}
