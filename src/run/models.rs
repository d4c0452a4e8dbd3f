//! Item-sized models: popularity, debiasing weights, item neighbors. Held whole by every process.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use super::prepare::Prepared;
use super::{Refused, Worker};
use crate::job::spec::{Counted, HistoryWeights, ItemNeighbors, Spec};
use crate::kernels::codec::{decode_histories, encode_histories};
use crate::kernels::cosine::{self, Interactions, Ranked};
use crate::kernels::debias::{self, DebiasWeights};
use crate::kernels::item_totals::{ItemSum, sum_of};
use crate::kernels::{KernelError, NeighborLists, popularity};
use crate::types::ItemIdx;

/// Sums of the items kept, and what follows from them.
pub(super) struct PopularityModel {
    /// Sums by item index.
    pub(super) sums: Vec<ItemSum>,
    /// Rank of each item, from 1.
    pub(super) ranks: Vec<u32>,
    /// Items by popularity, with their share of the most popular one.
    pub(super) shares: Vec<(ItemIdx, f32)>,
}

impl PopularityModel {
    fn new(sums: Vec<ItemSum>) -> Self {
        let affinities: Vec<i64> = sums.iter().map(|sum| sum.affinity).collect();
        let ranks = popularity::ranks(&popularity::order(&affinities));
        Self { ranks, shares: popularity::shares(&affinities), sums }
    }

    /// Popularity of all users.
    pub(super) fn of_all(prepared: &Prepared) -> Self {
        let kept = (0..prepared.dictionary.len())
            .filter(|&rank| prepared.idx_of_rank[rank] != u32::MAX)
            .map(|rank| sum_of(&prepared.sums, rank));
        Self::new(kept.collect())
    }
}

/// Popularity within one segment: only the items that its users have.
pub(super) struct SegmentPopularity {
    /// The items, ascending, with their sums and ranks.
    pub(super) items: Vec<(ItemIdx, ItemSum, u32)>,
    /// Items by popularity in the segment, with their share of the most popular one.
    pub(super) shares: Vec<(ItemIdx, f32)>,
}

/// Popularity of each segment, in the order of the segments' names.
pub(super) fn by_segment(prepared: &Prepared, n_segments: usize) -> Vec<SegmentPopularity> {
    let mut items: BTreeMap<u32, Vec<(ItemIdx, ItemSum)>> = BTreeMap::new();
    for (&(segment, rank), sum) in &prepared.segment_sums {
        let idx = prepared.idx_of_rank[rank as usize];
        if idx != u32::MAX {
            items.entry(segment).or_default().push((ItemIdx(idx), *sum));
        }
    }
    (0..n_segments as u32)
        .map(|segment| SegmentPopularity::new(items.remove(&segment).unwrap_or_default()))
        .collect()
}

impl SegmentPopularity {
    /// `items` come in the order of their indices.
    fn new(items: Vec<(ItemIdx, ItemSum)>) -> Self {
        let affinities: Vec<i64> = items.iter().map(|(_, sum)| sum.affinity).collect();
        let ranks = popularity::ranks(&popularity::order(&affinities));
        let shares = popularity::shares(&affinities)
            .into_iter()
            .map(|(place, share)| (items[place.index()].0, share))
            .collect();
        let with_rank = |((item, sum), rank): ((ItemIdx, ItemSum), u32)| (item, sum, rank);
        Self { items: items.into_iter().zip(ranks).map(with_rank).collect(), shares }
    }
}

/// Propensities, IPS weights and discounts of the items kept.
pub(super) fn debias(spec: &Spec, model: &PopularityModel) -> Option<DebiasWeights> {
    let section = spec.debias.as_ref()?;
    let popularity: Vec<i64> = model
        .sums
        .iter()
        .map(|sum| match section.popularity {
            Counted::Users => sum.users,
            Counted::Events => sum.events,
        })
        .collect();
    let params = debias::Params {
        propensity_exponent: section.propensity_exponent,
        propensity_min: section.propensity_min,
    };
    Some(debias::weights(&popularity, &params))
}

/// All users' histories end to end, gathered from their owners.
struct AllHistories {
    offsets: Vec<u64>,
    items: Vec<ItemIdx>,
    affinities: Option<Vec<i64>>,
}

fn gather(worker: &mut Worker<'_>, prepared: &Prepared, weighted: bool) -> AllHistories {
    let n_pairs: usize = prepared.shards.iter().map(|shard| shard.affinities.len()).sum();
    let (mut offsets, mut items, mut affinities) = (vec![0], Vec::new(), weighted.then(Vec::new));
    if worker.shell.peers == 1 {
        items.reserve_exact(n_pairs);
        for shard in &prepared.shards {
            let start = items.len() as u64;
            items.extend_from_slice(&shard.interactions.items);
            offsets.extend(shard.interactions.ends.iter().map(|&end| start + u64::from(end)));
            if let Some(affinities) = &mut affinities {
                affinities.extend_from_slice(&shard.affinities);
            }
        }
        return AllHistories { offsets, items, affinities };
    }
    let mut coded = Vec::new();
    for shard in &prepared.shards {
        coded.extend_from_slice(&encode_histories(shard, weighted));
    }
    for part in worker.shell.collectives.all_gather(coded.into()) {
        decode_histories(&part, &mut offsets, &mut items, affinities.as_mut());
    }
    AllHistories { offsets, items, affinities }
}

/// The refusal of an item whose pair products could wrap.
fn too_large(prepared: &Prepared, error: KernelError) -> anyhow::Error {
    let KernelError::SquaredAffinities { item } = error;
    Refused::bad_data(anyhow!(
        "the squared affinities of item \"{}\" sum to 2^63 or more; lower events.weights, set \
         value_max, or set item_neighbors.weights = \"binary\"",
        prepared.item_ids.get(item.index())
    ))
}

/// The pairs of all processes, sorted for counting; what was gathered is let go.
fn ranked(worker: &mut Worker<'_>, prepared: &Prepared, weighted: bool) -> Result<Ranked> {
    let all = gather(worker, prepared, weighted);
    let interactions = Interactions {
        offsets: &all.offsets,
        items: &all.items,
        affinities: all.affinities.as_deref(),
        n_items: prepared.item_ids.len(),
    };
    let ranked = worker.pool.install(|| Ranked::new(&interactions));
    ranked.map_err(|error| too_large(prepared, error))
}

/// Rows computed between two steps of the progress bar.
const ROWS_PER_STEP: usize = 4_096;

/// Neighbors of every item, in every process.
///
/// Each process computes a range of rows; the lists are gathered.
pub(super) fn neighbors(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    section: &ItemNeighbors,
) -> Result<NeighborLists> {
    let weighted = section.weights == HistoryWeights::Affinity;
    let ranked = ranked(worker, prepared, weighted)?;
    let n_items = ranked.n_items();
    let params = cosine::Params {
        n_neighbors: section.n_neighbors,
        shrinkage: section.shrinkage,
        support_min: section.users_per_pair_min,
        affinity_unit: if weighted { prepared.calendar.decay.unit() } else { 1.0 },
    };
    let (index, peers) = (worker.shell.index, worker.shell.peers);
    let (start, end) = (n_items * index / peers, n_items * (index + 1) / peers);
    let mut mine = NeighborLists::default();
    for from in (start..end).step_by(ROWS_PER_STEP) {
        let rows = from..end.min(from + ROWS_PER_STEP);
        let n_rows = rows.len() as u64;
        mine.append(worker.pool.install(|| cosine::neighbors(rows, &ranked, &params)));
        worker.job.observer.advance(n_rows);
    }
    if peers == 1 {
        return Ok(mine);
    }
    let mut lists = NeighborLists::default();
    for part in worker.shell.collectives.all_gather(mine.encode().into()) {
        lists.append(NeighborLists::decode(&part));
    }
    Ok(lists)
}
