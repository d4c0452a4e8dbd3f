//! Rows of the logs as stored state knows them.

use serde::{Deserialize, Serialize};

/// One row that counts, with users and items by the append-only keys of the stored state.
///
/// The order of the fields is the order of rows in a stored run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogRow {
    /// Key of the user within the shard.
    pub user: u32,
    /// Key of the item.
    pub item: u32,
    /// When, in microseconds since 1970; 0 in a log without times.
    pub time_us: i64,
    /// Which kind of event: an index into the plan's kinds.
    pub kind: u8,
    /// Bits of the mapped value.
    pub value_bits: u32,
    /// Low and high half of the digest of the event id, 0 without one.
    pub digest: [u64; 2],
    /// Number of the file that it was read from.
    pub file: u32,
}
