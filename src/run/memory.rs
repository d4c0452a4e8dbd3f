//! How much memory a run will need: from the plan, and again once users and items are known.

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::als::ITEM_SUMS_BYTES;
use super::predict::{self, Cluster};
use super::prepare::Prepared;
use super::{Refused, prepare, scan};
use crate::job::plan::{FilePlan, Plan};
use crate::job::spec::{HistoryWeights, ItemNeighbors};
use crate::kernels::als::item_sums::ITEMS_PER_TASK;
use crate::kernels::als::stride;
use crate::kernels::cosine::pair_counts::Differences;
use crate::kernels::item_totals::apart_bytes;
use crate::store::{BYTES_BEHIND_MAX, is_on_disk};
use crate::types::IdType;

/// Peak memory of a process by stage, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryEstimate {
    /// What the process needs before it holds a row: code, threads, buffers of readers.
    pub base_bytes: u64,
    /// Packed rows while they are read and dealt to shards.
    pub scan_bytes: u64,
    /// Packed rows on their way to the owners of their shards.
    pub shuffle_bytes: u64,
    /// Histories, seen sets and the rows still packed while they are built.
    pub histories_bytes: u64,
    /// Histories and files being encoded.
    pub popularity_bytes: u64,
    /// Histories, the gathered copy of those of all processes, the same sorted by item and by user, and
    /// the neighbor lists.
    pub item_neighbors_bytes: u64,
    /// Histories, the neighbor lists and files being encoded.
    pub write_neighbors_bytes: u64,
    /// Histories, neighbor lists, confidences by user and by item, factors and the sums of a chunk of
    /// items.
    pub als_bytes: u64,
    /// Histories, neighbor lists and their transpose, factors, accumulators and files being encoded.
    pub top_k_bytes: u64,
    /// The largest of the stages.
    pub peak_bytes: u64,
}

impl MemoryEstimate {
    fn stages_mut(&mut self) -> [&mut u64; 8] {
        [
            &mut self.scan_bytes,
            &mut self.shuffle_bytes,
            &mut self.histories_bytes,
            &mut self.popularity_bytes,
            &mut self.item_neighbors_bytes,
            &mut self.write_neighbors_bytes,
            &mut self.als_bytes,
            &mut self.top_k_bytes,
        ]
    }
}

/// How much there is of what processes hold.
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

    /// What the process with the most shards holds of it: all items, and its share of the rest.
    fn of_largest(self, plan: &Plan, processes: usize) -> Self {
        let shards = prepare::shards_of(plan.n_shards, processes).max().unwrap_or(0);
        let share = |size: u64| {
            let share = u128::from(size) * u128::from(shards) / u128::from(plan.n_shards.max(1));
            share as u64 + u64::from(processes > 1)
        };
        Self {
            rows: share(self.rows),
            users: share(self.users),
            pairs: share(self.pairs),
            items: self.items,
        }
    }
}

/// What a process holds: its own, and what it gathers of all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Rows that it reads.
    pub(super) rows_read: u64,
    /// What it owns after the shuffle.
    pub(super) own: Sizes,
    /// What all processes own together.
    pub(super) all: Sizes,
}

impl Held {
    fn of_largest(plan: &Plan, all: Sizes, processes: usize) -> Self {
        // Of a sample, the share of a process is that of its rows.
        let read = scan::rows_by_process(plan, processes).into_iter().max().unwrap_or(0);
        let whole: u64 = scan::rows_by_process(plan, 1).into_iter().sum();
        let rows_read = u128::from(all.rows) * u128::from(read) / u128::from(whole.max(1));
        Self { rows_read: rows_read as u64, own: all.of_largest(plan, processes), all }
    }
}

/// The peak memory of each process of a run, as far as the plan tells.
///
/// Rows are those of the footers of the files that are read, and of a sample of users its share.
/// Nothing is known of users and items yet: both are taken for a tenth of the rows. The run looks
/// again once it knows them, before the models begin.
pub fn predicted_memory(plan: &Plan, cluster: Cluster) -> MemoryEstimate {
    estimate(plan, Held::of_largest(plan, Sizes::assumed(plan), cluster.processes), cluster)
}

/// The same where sizes are known, or believed to be.
pub(super) fn predicted_of_sizes(
    plan: &Plan,
    sizes: &predict::Sizes,
    cluster: Cluster,
) -> MemoryEstimate {
    let &predict::Sizes { rows, items, users, pairs, .. } = sizes;
    let all = Sizes { rows, items, users, pairs };
    estimate(plan, Held::of_largest(plan, all, cluster.processes), cluster)
}

/// Buffers of what is on its way, with several processes: the window of slices of both sides, and the
/// copies that the wire makes.
const EXCHANGE_BYTES: u64 = 96 << 20;

/// Input that is asked for ahead, and files that are written behind, where stores take their time.
fn bytes_on_the_way(plan: &Plan) -> u64 {
    let (spec, sources) = (&plan.spec, &plan.sources);
    let is_output_far = !is_on_disk(&spec.output.url);
    let is_input_far = sources.iter().any(|source| !is_on_disk(&source.url)) || is_output_far;
    let read = if is_input_far { spec.store.read_bytes_in_flight_max.0 } else { 0 };
    read + if is_output_far { BYTES_BEHIND_MAX } else { 0 }
}

fn estimate(plan: &Plan, held: Held, cluster: Cluster) -> MemoryEstimate {
    let Held { rows_read, own, all } = held;
    let Sizes { rows, items, users, pairs } = own;
    let threads = cluster.threads as u64;
    // What only several processes hold.
    let alone = cluster.processes == 1;
    let shared = |bytes: u64| if alone { 0 } else { bytes };
    let text = |id_type: IdType| if id_type.is_int() { 0 } else { 16 };
    let id_bytes = plan.sources.iter().any(|source| source.columns.id.is_some());
    let row_bytes = 14 + text(plan.user_id_type) + if id_bytes { 12 } else { 0 };
    let files = plan.sources.iter().flat_map(|source| &source.files);
    let groups = files.flat_map(|file| &file.row_groups).map(|group| group.bytes);
    let largest_group = groups.max().unwrap_or(0);
    let base_bytes = (96 << 20)
        + threads * (largest_group / 2 + (48 << 20))
        + shared(EXCHANGE_BYTES)
        + bytes_on_the_way(plan);
    let known = base_bytes + items * (80 + 2 * text(plan.item_id_type));
    let scan_bytes = known + rows_read * row_bytes;
    // The dictionary is merged from the parts of all processes.
    let merged = shared(items * (16 + 2 * text(plan.item_id_type)));
    let shuffle_bytes = known + merged + rows_read.max(rows) * row_bytes;
    let held = known + 16 * pairs + users * (48 + 2 * text(plan.user_id_type));
    let shard_rows = (all.rows / u64::from(plan.n_shards)).max(1);
    // Sums of items are reduced and gathered.
    let sums = shared(items * 112);
    // Each thread adds to sums of its own where those are not too many.
    let apart = apart_bytes(items as usize, cluster.threads) as u64;
    let histories_bytes =
        held + sums + apart + rows * row_bytes / 4 + threads * shard_rows.min(rows) * 100;
    // Beside a file, rows of the earlier one and those of both that differ.
    let files = if plan.spec.tells_changes() { 3 } else { 1 };
    let popularity_bytes = held + threads * TABLE_ROWS * 64 * files;
    let neighbors = plan.spec.item_neighbors.as_ref();
    let (gathered, listed) = neighbors.map_or((0, 0), |of| neighbor_sizes(of, all, cluster));
    let of_neighbors = |bytes: u64| if neighbors.is_some() { bytes } else { 0 };
    let lists = 12 * listed + shared(14 * listed);
    let item_neighbors_bytes = of_neighbors(held + gathered + lists);
    let held = held + 12 * listed;
    let write_neighbors_bytes = of_neighbors(held + 8 * listed + threads * TABLE_ROWS * 64 * files);
    let row = plan.spec.als.as_ref().map_or(0, |als| 4 * stride(als.n_factors) as u64);
    let chunk = ITEM_SUMS_BYTES.min(items * row);
    let encoded = threads * 3 * row * TABLE_ROWS;
    let als_bytes = match row {
        0 => 0,
        row => {
            let tile = ITEMS_PER_TASK as u64 * row * (3 + u64::from(plan.n_shards.ilog2()));
            let sums = 5 * chunk + shared(4 * chunk) + threads * tile;
            // The fixed side in 16 bits as well; the users' go before their factors are copied.
            let factors = row * (items + 2 * users) + row / 2 * items;
            held + 26 * pairs + 16 * items + factors + sums + encoded
        }
    };
    let factors = if row == 0 { 0 } else { 4 * pairs + row * (2 * items + users) };
    let k = plan.spec.top_k.as_ref().map_or(0, |top_k| top_k.k as u64);
    let users_at_once = (all.users / u64::from(plan.n_shards)).clamp(1, TABLE_ROWS);
    // Lists of a shard that stay, with a group of their rows.
    let stay = plan.spec.als.as_ref().is_some_and(|als| als.warm_iterations == Some(0));
    let stay =
        if stay { 12 * k * (all.users / u64::from(plan.n_shards)) + 64 * TABLE_ROWS } else { 0 };
    let top_k_bytes = held
        + 8 * listed
        + factors
        + threads * (12 * items + 20 * k * users_at_once * files + stay);
    // An allocator holds more than is in use: peaks of one job varied by a third from run to run, most
    // on a machine that was busy with others.
    let with_slack = |bytes: u64| bytes + bytes.saturating_sub(base_bytes) / 2;
    let mut estimate = MemoryEstimate {
        base_bytes,
        scan_bytes,
        shuffle_bytes,
        histories_bytes,
        popularity_bytes,
        item_neighbors_bytes,
        write_neighbors_bytes,
        als_bytes,
        top_k_bytes,
        peak_bytes: 0,
    };
    let mut peak_bytes = 0;
    for stage in estimate.stages_mut() {
        *stage = with_slack(*stage);
        peak_bytes = peak_bytes.max(*stage);
    }
    MemoryEstimate { peak_bytes, ..estimate }
}

/// Bytes of the histories of all processes, coded and decoded, sorted by user and by item, and of the
/// accumulators of all threads; and the number of entries of all lists, at most.
fn neighbor_sizes(section: &ItemNeighbors, all: Sizes, cluster: Cluster) -> (u64, u64) {
    // Codes are narrower in small catalogs, and what was gathered is let go before lists are made.
    let (pair, coded, cell) = match section.weights {
        HistoryWeights::Binary => (12, 3, 5),
        HistoryWeights::Affinity => (36, 7, 16),
    };
    let coded = if cluster.processes == 1 { 0 } else { coded * all.pairs + 9 * all.users };
    let numbers = 56 * all.items + 20 * all.users;
    let cells = cluster.threads as u64 * cell * all.items.max(1 << 16);
    let most = all.pairs.saturating_mul(20);
    let listed = (all.items * section.n_neighbors as u64).min(most);
    (pair * all.pairs + coded + numbers + cells, listed)
}

/// What counts of pairs take beside the counts themselves, while a process of so many threads keeps them:
/// histories in codes, before and after, and what changes between them, sorted by item.
pub(super) fn kept_pairs_bytes(prepared: &Prepared, threads: usize) -> u64 {
    let pairs = prepared.shards.iter().map(|shard| shard.affinities.len() as u64).sum::<u64>();
    let cells = BLOCK_ROWS * prepared.item_ids.len() as u64 + (1 << 16);
    6 * pairs + 10 * pairs.min(Differences::CODES_AT_ONCE as u64) + threads as u64 * cells
}

/// Rows whose pairs a thread counts at once.
const BLOCK_ROWS: u64 = 64;

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

/// Refuses a plan of which a process may need more than `limits.memory_bytes_max`.
pub(super) fn check(plan: &Plan, cluster: Cluster) -> Result<()> {
    check_estimate(plan, predicted_memory(plan, cluster)).map(drop)
}

/// Refuses a run of which this process needs more than `limits.memory_bytes_max`, now that sizes are
/// known; returns the bound.
pub(super) fn check_again(plan: &Plan, held: Held, cluster: Cluster) -> Result<MemoryEstimate> {
    check_estimate(plan, estimate(plan, held, cluster))
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
