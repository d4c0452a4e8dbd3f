//! Unit costs from runs that were measured.

use super::unit_costs::{COSTS, UnitCosts};
use super::work::{self, Work};
use super::{Cluster, Sizes, StageName};
use crate::job::plan::Plan;
use crate::store::Stage;

/// A run in one process whose stages were timed.
pub struct Measured {
    /// What it did.
    pub plan: Plan,
    /// How much there was.
    pub sizes: Sizes,
    /// Threads of its pool.
    pub threads: usize,
    /// The stages, with their seconds.
    pub stages: Vec<Stage>,
}

/// Stages of which all threads have a share.
const PARALLEL: [StageName; 3] = [StageName::ItemNeighbors, StageName::Als, StageName::TopKLists];

/// Shorter stages count less: their seconds are mostly noise.
const SECONDS_MIN: f64 = 0.03;

/// What it costs to move a unit cost away from the one that comes with the crate by all of its value,
/// beside a stage that is predicted at twice its time: costs that the runs do not tell apart stay.
const ANCHOR: f64 = 0.05;

/// Rounds of coordinate descent; some costs are told apart by few of the runs.
const ROUNDS: usize = 20_000;

impl Measured {
    fn seconds(&self, name: StageName) -> Option<f64> {
        let stage = self.stages.iter().find(|stage| stage.name == name.name())?;
        Some(stage.seconds)
    }

    fn work(&self, efficiency: f64) -> impl Iterator<Item = (f64, Work)> {
        let cluster = Cluster { processes: 1, threads: self.threads };
        StageName::of(&self.plan).filter_map(move |stage| {
            let work = work::of(stage, &self.plan, &self.sizes, cluster, efficiency);
            Some((self.seconds(stage)?, work))
        })
    }
}

/// What a second thread adds, from the same job on one thread and on several.
fn parallel_efficiency(one: &Measured, several: &Measured) -> f64 {
    let seconds =
        |of: &Measured| PARALLEL.iter().filter_map(|&stage| of.seconds(stage)).sum::<f64>();
    let (alone, together) = (seconds(one), seconds(several));
    if several.threads < 2 || alone <= 0.0 || together <= 0.0 {
        return 0.9;
    }
    ((alone / together - 1.0) / (several.threads - 1) as f64).clamp(0.0, 1.0)
}

/// Unit costs that fit the stages of all runs best, in relative terms, none below 0, and near those of
/// the crate where the runs leave it open; and what another thread adds. `one` and `several` are two runs of the same job.
///
/// # Panics
/// If there are no such runs.
pub fn fitted(runs: &[Measured], (one, several): (usize, usize)) -> (Vec<(String, f64)>, f64) {
    let efficiency = parallel_efficiency(&runs[one], &runs[several]);
    let rows: Vec<(f64, Work)> = runs.iter().flat_map(|run| run.work(efficiency)).collect();
    let mut ns = [0.0; COSTS.len()];
    let weighted = |seconds: f64, work: &Work| -> [f64; COSTS.len()] {
        let mut row = [0.0; COSTS.len()];
        let weight = 1.0 / seconds.max(SECONDS_MIN);
        work.iter().for_each(|&(cost, units)| row[cost as usize] += units * 1e-9 * weight);
        row
    };
    let mut matrix: Vec<[f64; COSTS.len()]> =
        rows.iter().map(|(seconds, work)| weighted(*seconds, work)).collect();
    // What is left of each measured stage.
    let mut rest: Vec<f64> =
        rows.iter().map(|(seconds, _)| seconds / seconds.max(SECONDS_MIN)).collect();
    let anchors = UnitCosts::shipped();
    for (cost, (name, _)) in COSTS.iter().enumerate() {
        if let Some(&anchor) = anchors.ns.get(*name).filter(|anchor| **anchor > 0.0) {
            let mut row = [0.0; COSTS.len()];
            row[cost] = ANCHOR.sqrt() / anchor;
            matrix.push(row);
            rest.push(ANCHOR.sqrt());
        }
    }
    for _ in 0..ROUNDS {
        for cost in 0..ns.len() {
            let squares: f64 = matrix.iter().map(|row| row[cost] * row[cost]).sum();
            if squares == 0.0 {
                continue;
            }
            let along: f64 = matrix.iter().zip(&rest).map(|(row, rest)| row[cost] * rest).sum();
            let step = (along / squares).max(-ns[cost]);
            ns[cost] += step;
            matrix.iter().zip(&mut rest).for_each(|(row, rest)| *rest -= step * row[cost]);
        }
    }
    let named = COSTS.iter().zip(ns).map(|((name, _), ns)| ((*name).to_owned(), ns));
    (named.collect(), efficiency)
}
