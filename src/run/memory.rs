//! How much memory a run will need, from the plan alone.

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::Refused;
use crate::job::plan::{FilePlan, Plan};
use crate::types::IdType;

/// Peak memory by stage, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryEstimate {
    /// What the process needs before it holds a row: code, threads, buffers of readers.
    pub base_bytes: u64,
    /// Packed rows while they are read and dealt to shards.
    pub scan_bytes: u64,
    /// Histories, seen sets and the rows still packed while they are built.
    pub histories_bytes: u64,
    /// Histories, their gathered copy, its transpose and the neighbor lists.
    pub item_neighbors_bytes: u64,
    /// Histories, neighbor lists, accumulators and files being encoded.
    pub top_k_bytes: u64,
    /// The largest of the stages.
    pub peak_bytes: u64,
}

/// Bounds the peak memory of a run in one process.
///
/// Rows are those of the footers of the files that are read, and of a sample of users its share.
/// Nothing is known of users and items before the dictionary is, so every row is taken for a pair of
/// its own, and items for at most a tenth of the rows.
pub fn predicted_memory(plan: &Plan, threads: usize) -> MemoryEstimate {
    let rows = rows_held(plan);
    let items = (rows / 10).clamp(1, 50_000_000);
    let threads = threads as u64;
    let text = |id_type: IdType| if id_type.is_int() { 0 } else { 16 };
    let id_bytes = plan.sources.iter().any(|source| source.columns.id.is_some());
    let row_bytes = 14 + text(plan.user_id_type) + if id_bytes { 12 } else { 0 };
    let item_bytes = 80 + 2 * text(plan.item_id_type);
    let largest_group = plan
        .sources
        .iter()
        .flat_map(|source| &source.files)
        .flat_map(|file| &file.row_groups)
        .map(|group| group.bytes)
        .max()
        .unwrap_or(0);
    let base_bytes = (96 << 20) + threads * (largest_group / 2 + (48 << 20));
    let scan_bytes = base_bytes + rows * row_bytes + items * item_bytes;
    let pairs_bytes = 16 * rows;
    let shard_rows = (rows / u64::from(plan.n_shards)).max(1);
    let histories_bytes = base_bytes
        + items * item_bytes
        + pairs_bytes
        + rows * row_bytes / 4
        + threads * shard_rows.min(rows) * 100;
    let neighbors = plan.spec.item_neighbors.as_ref().map_or(0, |section| {
        let listed = (items * section.n_neighbors as u64).min(rows * 20);
        12 * listed
    });
    let item_neighbors_bytes =
        base_bytes + items * item_bytes + pairs_bytes + 8 * rows + neighbors + threads * 4 * items;
    let k = plan.spec.top_k.as_ref().map_or(0, |top_k| top_k.k as u64);
    let users_per_shard = shard_rows / 4;
    let top_k_bytes = base_bytes
        + items * item_bytes
        + pairs_bytes
        + neighbors
        + threads * (12 * items + 20 * k * users_per_shard.min(65_536));
    let stages = [scan_bytes, histories_bytes, item_neighbors_bytes, top_k_bytes];
    let peak_bytes = stages.into_iter().max().unwrap_or(0);
    MemoryEstimate {
        base_bytes,
        scan_bytes,
        histories_bytes,
        item_neighbors_bytes,
        top_k_bytes,
        peak_bytes,
    }
}

/// Rows that are held at once, at most.
fn rows_held(plan: &Plan) -> u64 {
    /// Users differ in their rows, so a sample of them may hold more than its share.
    const SLACK: f64 = 1.25;
    let rows: u64 = plan.sources.iter().flat_map(|source| &source.files).map(FilePlan::rows).sum();
    match plan.sample_users {
        Some(share) => rows.min((rows as f64 * share * SLACK).ceil() as u64),
        None => rows,
    }
}

/// Refuses a plan whose bound is over `limits.memory_bytes_max`.
pub(super) fn check(plan: &Plan, threads: usize) -> Result<()> {
    let (needed, allowed) =
        (predicted_memory(plan, threads).peak_bytes, plan.spec.limits.memory_bytes_max.0);
    if needed <= allowed {
        return Ok(());
    }
    Err(Refused::config(anyhow!(
        "the run may need {} MiB of memory and limits.memory_bytes_max is {} MiB; raise it, or \
         read less (history.window_days with partition_date, --sample-users)",
        needed.div_ceil(1 << 20),
        allowed >> 20
    )))
}
