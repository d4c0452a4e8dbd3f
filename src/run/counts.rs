//! What became of the rows of the log: used, filtered, rejected, by reason and place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Rows of one row group that were rejected for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// How many.
    pub count: u64,
    /// Row number in the file of the first one, from 0.
    pub first_row: u64,
}

/// Counts of the scan, of one process or added up over all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanCounts {
    /// Rows read.
    pub rows: u64,
    /// Row groups read.
    pub row_groups: u64,
    /// Bytes of the rows that go on, packed.
    #[serde(default)]
    pub packed_bytes: u64,
    /// Rows that do not count although nothing is wrong with them.
    pub filtered: BTreeMap<String, u64>,
    /// Rows that cannot be used: by (url, row group, reason).
    #[serde(with = "as_pairs")]
    pub rejected: BTreeMap<(String, u32, String), Rejected>,
    /// Event types without a weight, and their rows.
    pub unlisted_events: BTreeMap<String, u64>,
    /// Oldest time, `i64::MAX` for none.
    pub oldest_us: i64,
    /// Newest time before a given `as_of`, `i64::MIN` for none.
    pub newest_us: i64,
}

impl Default for ScanCounts {
    fn default() -> Self {
        Self::new()
    }
}

impl ScanCounts {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self {
            rows: 0,
            row_groups: 0,
            packed_bytes: 0,
            filtered: BTreeMap::new(),
            rejected: BTreeMap::new(),
            unlisted_events: BTreeMap::new(),
            oldest_us: i64::MAX,
            newest_us: i64::MIN,
        }
    }

    /// Counts a row that does not count.
    pub fn filter(&mut self, reason: &str, count: u64) {
        add(&mut self.filtered, reason, count);
    }

    /// Counts rows of one row group that cannot be used, the first of them in `first_row` of the file.
    pub fn reject(&mut self, place: (String, u32, String), count: u64, first_row: u64) {
        let rejected = self.rejected.entry(place).or_insert(Rejected { count: 0, first_row });
        rejected.count += count;
        rejected.first_row = rejected.first_row.min(first_row);
    }

    /// Adds what another process or thread counted.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.row_groups += other.row_groups;
        self.packed_bytes += other.packed_bytes;
        other.filtered.iter().for_each(|(reason, count)| add(&mut self.filtered, reason, *count));
        for (event, count) in &other.unlisted_events {
            add(&mut self.unlisted_events, event, *count);
        }
        for (place, rejected) in &other.rejected {
            self.reject(place.clone(), rejected.count, rejected.first_row);
        }
        self.oldest_us = self.oldest_us.min(other.oldest_us);
        self.newest_us = self.newest_us.max(other.newest_us);
    }

    /// Rejected rows by reason.
    pub fn rejected_by_reason(&self) -> BTreeMap<String, u64> {
        let mut by_reason = BTreeMap::new();
        for ((_, _, reason), rejected) in &self.rejected {
            add(&mut by_reason, reason, rejected.count);
        }
        by_reason
    }

    /// What the scan alone knows, in the terms of the manifest.
    pub fn as_json(&self) -> Map<String, Value> {
        let counts = json!({
            "rows": self.rows,
            "rows_filtered": self.filtered,
            "rows_rejected": self.rejected_by_reason(),
            "unlisted_events": self.unlisted_events,
        });
        let Value::Object(counts) = counts else { unreachable!("counts are an object") };
        counts
    }

    /// All rejected rows.
    pub fn n_rejected(&self) -> u64 {
        self.rejected.values().map(|rejected| rejected.count).sum()
    }

    /// All filtered rows.
    pub fn n_filtered(&self) -> u64 {
        self.filtered.values().sum()
    }
}

fn add(counts: &mut BTreeMap<String, u64>, key: &str, count: u64) {
    if count == 0 {
        return;
    }
    match counts.get_mut(key) {
        Some(sum) => *sum += count,
        None => {
            counts.insert(key.to_owned(), count);
        }
    }
}

/// JSON has no maps with compound keys.
mod as_pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Rejected;

    type Map = BTreeMap<(String, u32, String), Rejected>;

    pub(super) fn serialize<S: Serializer>(map: &Map, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Map, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}
