//! What a run leaves in memory for the next one of the same job.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Worker;
use super::pair_counts::KeptPairs;

/// Handed from run to run in one process, as by a backfill. Nothing that is published depends on it.
#[derive(Default)]
pub struct Carried(Mutex<BTreeMap<Place, KeptPairs>>);

/// Whose it is: workers, number of shards, and which of the workers.
type Place = (usize, u32, usize);

fn place(worker: &Worker<'_>) -> Place {
    (worker.shell.peers, worker.job.plan.n_shards, worker.shell.index)
}

impl Carried {
    /// Takes what a worker of the last run left, if that had as many, and as many shards.
    pub(super) fn take(&self, worker: &Worker<'_>) -> Option<KeptPairs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&place(worker))
    }

    /// Leaves it for the next run, in place of all that runs of other numbers left.
    pub(super) fn put(&self, worker: &Worker<'_>, kept: KeptPairs) {
        let mut carried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (peers, n_shards, _) = place(worker);
        carried.retain(|&(of, shards, _), _| (of, shards) == (peers, n_shards));
        carried.insert(place(worker), kept);
    }
}
