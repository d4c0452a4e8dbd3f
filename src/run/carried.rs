//! What a run leaves in memory for the next one of the same job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::Worker;
use super::pair_counts::KeptPairs;

/// Handed from run to run in one process, as by a backfill. Nothing that is published depends on it.
#[derive(Default)]
pub struct Carried {
    kept: Mutex<BTreeMap<Place, KeptPairs>>,
    /// By number of threads, number of workers and which of them.
    pools: Mutex<BTreeMap<[usize; 3], Arc<ThreadPool>>>,
}

/// Whose it is: workers, number of shards, and which of the workers.
type Place = (usize, u32, usize);

fn place(worker: &Worker<'_>) -> Place {
    (worker.shell.peers, worker.job.plan.n_shards, worker.shell.index)
}

impl Carried {
    /// The threads of a worker for its kernels, the same in each run: an allocator keeps memory by thread,
    /// and what threads that are gone leave behind is of little use to others.
    pub(super) fn pool(
        &self,
        threads: usize,
        (peers, index): (usize, usize),
    ) -> Result<Arc<ThreadPool>, ThreadPoolBuildError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let key = [threads, peers, index];
        if let Some(pool) = pools.get(&key) {
            return Ok(pool.clone());
        }
        let pool = Arc::new(pool(threads)?);
        pools.insert(key, pool.clone());
        Ok(pool)
    }

    /// Takes what a worker of the last run left, if that had as many, and as many shards.
    pub(super) fn take(&self, worker: &Worker<'_>) -> Option<KeptPairs> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&place(worker))
    }

    /// Leaves it for the next run, in place of all that runs of other numbers left.
    pub(super) fn put(&self, worker: &Worker<'_>, kept: KeptPairs) {
        let mut carried = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (peers, n_shards, _) = place(worker);
        carried.retain(|&(of, shards, _), _| (of, shards) == (peers, n_shards));
        carried.insert(place(worker), kept);
    }
}

/// Threads for kernels.
pub(super) fn pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(threads).build()
}
