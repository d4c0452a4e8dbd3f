//! What a run leaves in memory for the next one of the same job.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::pair_counts::KeptPairs;

/// Handed from run to run in one process, as by a backfill. Nothing that is published depends on it.
#[derive(Default)]
pub struct Carried(Mutex<BTreeMap<(usize, usize), KeptPairs>>);

impl Carried {
    /// Takes what a worker of so many left.
    pub(super) fn take(&self, index: usize, peers: usize) -> Option<KeptPairs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(index, peers))
    }

    /// Leaves it for the next run, in place of all that runs of other numbers of workers left.
    pub(super) fn put(&self, index: usize, peers: usize, kept: KeptPairs) {
        let mut carried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        carried.retain(|&(_, of), _| of == peers);
        carried.insert((index, peers), kept);
    }
}
