//! How much memory a run will need: from the plan, and again once users and items are known.

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::Refused;
use super::als::ITEM_SUMS_BYTES;
use crate::job::plan::{FilePlan, Plan};
use crate::kernels::als::stride;
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
    /// Histories, neighbor lists, confidences by user and by item, factors and the sums of a chunk of
    /// items.
    pub als_bytes: u64,
    /// Histories, neighbor lists and their transpose, factors, accumulators and files being encoded.
    pub top_k_bytes: u64,
    /// The largest of the stages.
    pub peak_bytes: u64,
}

/// How much there is of what a process holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Rows between scan and histories.
    pub(super) rows: u64,
    /// Distinct items.
    pub(super) items: u64,
    /// Distinct users.
    pub(super) users: u64,
    /// Pairs of a user and an item.
    pub(super) pairs: u64,
}

impl Sizes {
    /// Of a plan: every row is taken for a pair of its own, and users and items for a tenth of the rows.
    fn assumed(plan: &Plan) -> Self {
        let rows = rows_held(plan);
        let owners = (rows / 10).max(1);
        Self { rows, items: owners, users: owners, pairs: rows }
    }
}

/// The peak memory of a run in one process, as far as the plan tells.
///
/// Rows are those of the footers of the files that are read, and of a sample of users its share.
/// Nothing is known of users and items yet: both are taken for a tenth of the rows. The run looks
/// again once it knows them, before the models begin.
pub fn predicted_memory(plan: &Plan, threads: usize) -> MemoryEstimate {
    estimate(plan, Sizes::assumed(plan), threads)
}

fn estimate(plan: &Plan, sizes: Sizes, threads: usize) -> MemoryEstimate {
    let Sizes { rows, items, users, pairs } = sizes;
    let threads = threads as u64;
    let text = |id_type: IdType| if id_type.is_int() { 0 } else { 16 };
    let id_bytes = plan.sources.iter().any(|source| source.columns.id.is_some());
    let row_bytes = 14 + text(plan.user_id_type) + if id_bytes { 12 } else { 0 };
    let files = plan.sources.iter().flat_map(|source| &source.files);
    let groups = files.flat_map(|file| &file.row_groups).map(|group| group.bytes);
    let largest_group = groups.max().unwrap_or(0);
    let base_bytes = (96 << 20) + threads * (largest_group / 2 + (48 << 20));
    let known = base_bytes + items * (80 + 2 * text(plan.item_id_type));
    let scan_bytes = known + rows * row_bytes;
    let held = known + 16 * pairs + users * (48 + 2 * text(plan.user_id_type));
    let shard_rows = (rows / u64::from(plan.n_shards)).max(1);
    let histories_bytes = held + rows * row_bytes / 4 + threads * shard_rows.min(rows) * 100;
    let listed = plan.spec.item_neighbors.as_ref().map_or(0, |section| {
        let most = pairs.saturating_mul(20);
        (items * section.n_neighbors as u64).min(most)
    });
    let item_neighbors_bytes = held + 8 * pairs + 12 * listed + threads * 4 * items;
    let held = held + 12 * listed;
    let row = plan.spec.als.as_ref().map_or(0, |als| 4 * stride(als.n_factors) as u64);
    let chunk = ITEM_SUMS_BYTES.min(items * row);
    let encoded = threads * 3 * row * TABLE_ROWS;
    let als_bytes = match row {
        0 => 0,
        row => held + 12 * pairs + 8 * items + row * (items + 2 * users) + 5 * chunk + encoded,
    };
    let factors = if row == 0 { 0 } else { 4 * pairs + row * (2 * items + users) };
    let k = plan.spec.top_k.as_ref().map_or(0, |top_k| top_k.k as u64);
    let users_at_once = (users / u64::from(plan.n_shards)).clamp(1, TABLE_ROWS);
    let top_k_bytes = held + 8 * listed + factors + threads * (12 * items + 20 * k * users_at_once);
    // An allocator holds more than is in use: peaks varied by a fifth from run to run.
    let held = |bytes: u64| bytes + bytes.saturating_sub(base_bytes) / 4;
    let stages = [scan_bytes, histories_bytes, item_neighbors_bytes, als_bytes, top_k_bytes];
    let stages = stages.map(held);
    let peak_bytes = stages.into_iter().max().unwrap_or(0);
    let [scan_bytes, histories_bytes, item_neighbors_bytes, als_bytes, top_k_bytes] = stages;
    MemoryEstimate {
        base_bytes,
        scan_bytes,
        histories_bytes,
        item_neighbors_bytes,
        als_bytes,
        top_k_bytes,
        peak_bytes,
    }
}

/// Rows of a part that is encoded at once.
const TABLE_ROWS: u64 = 65_536;

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

/// Refuses a plan that may need more than `limits.memory_bytes_max`.
pub(super) fn check(plan: &Plan, threads: usize) -> Result<()> {
    check_estimate(plan, predicted_memory(plan, threads)).map(drop)
}

/// Refuses a run that needs more than `limits.memory_bytes_max`, now that its sizes are known;
/// returns the bound.
pub(super) fn check_again(plan: &Plan, sizes: Sizes, threads: usize) -> Result<MemoryEstimate> {
    check_estimate(plan, estimate(plan, sizes, threads))
}

fn check_estimate(plan: &Plan, estimate: MemoryEstimate) -> Result<MemoryEstimate> {
    let (needed, allowed) = (estimate.peak_bytes, plan.spec.limits.memory_bytes_max.0);
    if needed <= allowed {
        return Ok(estimate);
    }
    Err(Refused::config(anyhow!(
        "the run may need {} MiB of memory and limits.memory_bytes_max is {} MiB; raise it, or \
         read less (history.window_days with partition_date, --sample-users)",
        needed.div_ceil(1 << 20),
        allowed >> 20
    )))
}
