//! What the stages of a run took, from the run itself.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Cluster, Report, Sizes};
use crate::job::plan::Plan;
use crate::job::spec::{Als, Ranker};
use crate::kernels::als::Solver;
use crate::store::{Manifest, Stage};

/// What a run took, stage by stage.
///
/// Seconds are those of process 0. So are the processor's seconds, the bytes read and written, and the
/// memory: those of the other processes are in nobody's profile. Bytes sent to peers and work are of
/// all processes.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// Name of the job.
    pub name: String,
    /// As in the report: `published`, `failed` and so on.
    pub outcome: &'static str,
    /// On how many processes and threads.
    pub cluster: Cluster,
    /// The instruction set in use.
    pub instruction_set: String,
    /// From the start to the end of the run, what is between stages too.
    pub seconds: f64,
    /// Most memory that process 0 ever held; null where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// The stages that ended, in the order they ran, as the report has them:
    ///
    /// * `seconds`, `cpu_seconds` of all threads, `memory_bytes` at the end of the stage,
    ///   `memory_bytes_peak` of the process until then;
    /// * `bytes_read` and `bytes_written` of objects in stores, `bytes_moved` between processes;
    /// * `work` and its `work_unit`: `flop`, `additions` or `rows`; absent where a stage has no loop
    ///   that it is made of, where it went on from a checkpoint, and in runs that failed;
    /// * of `als`, `iteration_seconds` and `loss` of each iteration.
    pub stages: Vec<Stage>,
}

impl Profile {
    /// The profile of the run that a report tells of.
    pub fn new(report: &Report, cluster: Cluster) -> Self {
        Self {
            name: report.name.clone(),
            outcome: report.outcome,
            cluster,
            instruction_set: report.instruction_set.clone(),
            seconds: report.seconds,
            peak_memory_bytes: report.peak_memory_bytes,
            stages: report.stages.clone(),
        }
    }

    /// Seconds that no stage accounts for.
    pub fn seconds_between(&self) -> f64 {
        let of_stages: f64 = self.stages.iter().map(|stage| stage.seconds).sum();
        (self.seconds - of_stages).max(0.0)
    }
}

/// Sets the work that stages have done beside what they took, now that sizes are known.
pub(super) fn note_work(stages: &mut [Stage], plan: &Plan, manifest: &Manifest, sizes: &Sizes) {
    for stage in stages.iter_mut() {
        let resumed = stage.more.contains_key("resumed");
        let work = match stage.name.as_str() {
            "scan" => Some((sizes.rows_read as f64, "rows")),
            "shuffle" => Some((sizes.rows as f64, "rows")),
            "histories" if !resumed => Some((sizes.rows as f64, "rows")),
            "item neighbors" if !resumed => Some((sizes.pairs_squared, "additions")),
            "als" => plan.spec.als.as_ref().and_then(|als| of_als(als, stage, sizes)),
            "top-k lists" if !resumed => of_lists(plan, manifest, sizes),
            _ => None,
        };
        if let Some((work, unit)) = work {
            stage.more.insert("work".to_owned(), json!(work));
            stage.more.insert("work_unit".to_owned(), json!(unit));
        }
    }
}

/// FLOP of the iterations that this run did itself: two to a multiplication with its addition.
fn of_als(section: &Als, stage: &Stage, sizes: &Sizes) -> Option<(f64, &'static str)> {
    let number = |key: &str| stage.more.get(key).and_then(Value::as_f64);
    let iterations = stage.more.get("iteration_seconds")?.as_array()?.len();
    let fit = Fit {
        users: number("users")?,
        items: sizes.items_eligible as f64,
        pairs: number("pairs")?,
        plain: number("pairs_plain")?,
        n_factors: section.n_factors as f64,
    };
    Some((iterations as f64 * fit.flop(section.solver()), "flop"))
}

/// The sizes of a fit.
struct Fit {
    users: f64,
    items: f64,
    pairs: f64,
    /// Those of them that products with A leave out.
    plain: f64,
    n_factors: f64,
}

impl Fit {
    /// FLOP of one iteration: both halves, and a score per pair for the loss.
    fn flop(&self, solver: Solver) -> f64 {
        let Self { users, items, pairs, plain, n_factors: n } = *self;
        let rows = users + items;
        // Of a symmetric matrix, one triangle.
        let triangle = n * (n + 1.0);
        let grams = rows * triangle;
        let loss = 2.0 * n * pairs;
        let (of_pair, of_row) = match solver {
            // The residual and each step are a score and a sum per pair, and a product with the Gram
            // matrix per row.
            Solver::ConjugateGradient { steps } => {
                let products = steps as f64 + 1.0;
                (products * 4.0 * n, products * 2.0 * n * n)
            }
            // An outer product per pair; a factorization and two substitutions per row.
            Solver::Cholesky => (triangle + 2.0 * n, n * n * n / 3.0 + 2.0 * n * n),
        };
        // A plain pair is added to the right-hand side and to nothing else.
        let of_pairs = (pairs - plain) * of_pair + plain * 2.0 * n;
        2.0 * of_pairs + rows * of_row + grams + loss
    }
}

/// Where factors rank, the product of all users with all items, as if no item could be skipped; else
/// the rows that were written.
fn of_lists(plan: &Plan, manifest: &Manifest, sizes: &Sizes) -> Option<(f64, &'static str)> {
    let spec = &plan.spec;
    let ranks = spec.candidates().rankers().any(|(ranker, _)| ranker == Ranker::Als);
    match spec.als.as_ref().filter(|_| ranks) {
        Some(als) => {
            let scores = sizes.users as f64 * sizes.items_eligible as f64;
            Some((2.0 * scores * als.n_factors as f64, "flop"))
        }
        None => Some((manifest.counts.get("list_rows")?.as_f64()?, "rows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pairs_of_an_iteration_count_most() {
        // 15.1 M pairs, 64 factors, three steps: 31 GFLOP in the two halves' pairs alone.
        let fit = Fit {
            users: 138_000.0,
            items: 27_000.0,
            pairs: 15_131_870.0,
            plain: 0.0,
            n_factors: 64.0,
        };
        let pairs_alone = Fit { users: 0.0, items: 0.0, ..fit };
        let steps = Solver::ConjugateGradient { steps: 3 };
        assert_eq!(pairs_alone.flop(steps), 15_131_870.0 * 64.0 * (2.0 * 16.0 + 2.0));
        assert!((38e9..41e9).contains(&fit.flop(steps)), "{}", fit.flop(steps));
        let all_plain = Fit { plain: pairs_alone.pairs, ..pairs_alone };
        assert_eq!(all_plain.flop(steps), 15_131_870.0 * 64.0 * (2.0 * 2.0 + 2.0));
        // Exact solutions take an outer product per pair instead.
        assert!(fit.flop(Solver::Cholesky) > 3.0 * fit.flop(steps));
    }
}
