//! What a run will take, before it runs: memory, bytes on the wire and seconds, stage by stage.
//!
//! | part | what it says |
//! |---|---|
//! | [`Sizes`] | how much there is: from hints, the last run, or assumptions |
//! | `network` | bytes that each process sends, as the stages send them |
//! | `work` | units of work of the busiest process |
//! | [`UnitCosts`] | what a unit takes on a machine: measured, in a file that comes with the crate |
//! | [`fitted`] | unit costs from runs that were measured |
//!
//! A run holds the bytes that its stages moved against the same formulas, with the sizes it found.

use std::path::Path;

use serde::Serialize;

use super::memory::{self, MemoryEstimate, predicted_memory};
use super::one_line;
use crate::job::plan::Plan;
use crate::store::IoRuntime;

mod fit;
mod network;
#[cfg(test)]
mod paper_tests;
mod sizes;
#[cfg(test)]
mod tests;
mod unit_costs;
mod work;

pub use fit::{Measured, fitted};
pub use sizes::{Hints, Sizes, SizesFrom};
pub use unit_costs::{COSTS, UnitCosts};

pub(super) use network::note_predicted;

/// The processes of a run, all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// How many.
    pub processes: usize,
    /// Threads of each one's pool.
    pub threads: usize,
}

/// A stage that is predicted; the names are those of the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StageName {
    Scan,
    Shuffle,
    Histories,
    WritePopularity,
    ItemNeighbors,
    WriteNeighbors,
    Als,
    WriteFactors,
    TopKLists,
    Publish,
}

impl StageName {
    /// The stages of a run, in order.
    fn of(plan: &Plan) -> impl Iterator<Item = Self> {
        let spec = &plan.spec;
        let (neighbors, als) = (spec.item_neighbors.is_some(), spec.als.is_some());
        let stages = [
            (Self::Scan, true),
            (Self::Shuffle, true),
            (Self::Histories, true),
            (Self::WritePopularity, true),
            (Self::ItemNeighbors, neighbors),
            (Self::WriteNeighbors, neighbors),
            (Self::Als, als),
            (Self::WriteFactors, als),
            (Self::TopKLists, spec.top_k.is_some()),
            (Self::Publish, true),
        ];
        stages.into_iter().filter_map(|(stage, runs)| runs.then_some(stage))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Shuffle => "shuffle",
            Self::Histories => "histories",
            Self::WritePopularity => "write popularity",
            Self::ItemNeighbors => "item neighbors",
            Self::WriteNeighbors => "write neighbors",
            Self::Als => "als",
            Self::WriteFactors => "write factors",
            Self::TopKLists => "top-k lists",
            Self::Publish => "publish",
        }
    }
}

/// What one stage will take.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StagePrediction {
    /// Its name in the manifest.
    pub name: &'static str,
    /// Most memory of a process, a bound.
    pub memory_bytes: u64,
    /// Bytes that the busiest process sends.
    pub bytes_sent: u64,
    /// Bytes that all processes send.
    pub bytes_sent_total: u64,
    /// Until the slowest process is done.
    pub seconds: f64,
}

/// What a run will take.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// On how many processes.
    pub cluster: Cluster,
    /// How much there is.
    pub sizes: Sizes,
    /// Where that comes from.
    pub sizes_from: SizesFrom,
    /// The machine whose unit costs these are.
    pub machine: String,
    /// The stages in order.
    pub stages: Vec<StagePrediction>,
    /// The largest of the stages.
    pub memory_bytes: u64,
    /// The sum of the stages.
    pub bytes_sent: u64,
    /// The sum of the stages.
    pub bytes_sent_total: u64,
    /// The sum of the stages.
    pub seconds: f64,
}

/// Predicts a run of `plan`.
///
/// Memory is a bound for one process, bytes are those of the collectives' payloads, seconds are what
/// the units of work take on the machine that `costs` were measured on. Time spent waiting for a
/// store is not in it.
pub fn predict(
    plan: &Plan,
    (sizes, sizes_from): (Sizes, SizesFrom),
    cluster: Cluster,
    costs: &UnitCosts,
) -> Prediction {
    let memory = memory_of(plan, &sizes, &sizes_from, cluster);
    let sent = network::bytes_sent(plan, &sizes, cluster.processes);
    let stage = |stage: StageName| {
        let sent = sent.of(stage);
        let busiest = sent.iter().copied().fold(0.0, f64::max);
        let work = work::of(stage, plan, &sizes, cluster, costs.parallel_efficiency);
        let nanoseconds = costs.sum(&work) + costs.exchange_byte_ns * busiest;
        StagePrediction {
            name: stage.name(),
            memory_bytes: memory_in(stage, &memory),
            bytes_sent: busiest as u64,
            bytes_sent_total: sent.iter().sum::<f64>() as u64,
            seconds: nanoseconds / 1e9,
        }
    };
    let stages: Vec<StagePrediction> = StageName::of(plan).map(stage).collect();
    let sum = |of: fn(&StagePrediction) -> u64| stages.iter().map(of).sum();
    Prediction {
        cluster,
        sizes,
        sizes_from,
        machine: costs.to_string(),
        memory_bytes: memory.peak_bytes,
        bytes_sent: sum(|stage| stage.bytes_sent),
        bytes_sent_total: sum(|stage| stage.bytes_sent_total),
        seconds: stages.iter().map(|stage| stage.seconds).sum(),
        stages,
    }
}

/// The bound that a run holds against its limit where nothing is known, else that of the sizes.
fn memory_of(plan: &Plan, sizes: &Sizes, from: &SizesFrom, cluster: Cluster) -> MemoryEstimate {
    match from {
        SizesFrom::Assumptions => predicted_memory(plan, cluster),
        SizesFrom::Hints { .. } | SizesFrom::LastRun { .. } => {
            memory::predicted_of_sizes(plan, sizes, cluster)
        }
    }
}

/// What a stage holds; those that only write hold what the stage before them left.
fn memory_in(stage: StageName, memory: &MemoryEstimate) -> u64 {
    match stage {
        StageName::Scan => memory.scan_bytes,
        StageName::Shuffle => memory.shuffle_bytes,
        StageName::Histories => memory.histories_bytes,
        StageName::WritePopularity | StageName::Publish => memory.popularity_bytes,
        StageName::ItemNeighbors => memory.item_neighbors_bytes,
        StageName::WriteNeighbors => memory.write_neighbors_bytes,
        StageName::Als | StageName::WriteFactors => memory.als_bytes,
        StageName::TopKLists => memory.top_k_bytes,
    }
}

/// The sizes that a prediction starts from: hints first, then the last run that readers see, then
/// assumptions. A log or a manifest that cannot be read is no last run.
pub fn sizes(runtime: &IoRuntime, plan: &Plan, base: &Path, hints: Hints) -> (Sizes, SizesFrom) {
    let last = sizes::of_last_run(runtime, plan, base).unwrap_or_else(|error| {
        tracing::warn!(error = one_line(error.as_ref()), "the last run is not looked at");
        None
    });
    sizes::hinted(plan, last, hints)
}
