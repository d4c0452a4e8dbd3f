//! Payload bytes that processes send to each other, as the stages of a run send them.
//!
//! With N processes, a gathered byte is sent N − 1 times, a byte dealt to owners (N − 1) / N times. What
//! an agreed status and single numbers take is left out.

use serde_json::json;

use super::{Sizes, StageName};
use crate::job::plan::Plan;
use crate::job::spec::{Als, HistoryWeights};
use crate::kernels::als::Solver;
use crate::kernels::als::item_sums::{Term, width};
use crate::kernels::als::stride;
use crate::kernels::als::tree::aligned_subtrees;
use crate::run::{prepare, scan};
use crate::store::Stage;

/// Bytes that each process sends, by stage.
pub(super) struct BytesSent(Vec<(StageName, Vec<f64>)>);

impl BytesSent {
    /// Of one stage, by process; nothing for a stage that sends nothing.
    pub(super) fn of(&self, stage: StageName) -> &[f64] {
        self.0.iter().find(|(of, _)| *of == stage).map_or(&[], |(_, sent)| sent)
    }
}

/// What one process has to do with everything.
struct Process<'a> {
    plan: &'a Plan,
    sizes: &'a Sizes,
    index: usize,
    peers: usize,
    /// Its shards.
    shards: std::ops::Range<u32>,
    /// Share of the rows that it reads.
    read: f64,
}

/// What every process sends in every stage.
pub(super) fn bytes_sent(plan: &Plan, sizes: &Sizes, peers: usize) -> BytesSent {
    if peers == 1 {
        return BytesSent(Vec::new());
    }
    let rows = scan::rows_by_process(plan, peers);
    let all_rows = rows.iter().sum::<u64>().max(1) as f64;
    let mut first = 0;
    let owned = prepare::shards_of(plan.n_shards, peers).map(|n_shards| {
        let shards = first..first + n_shards;
        first = shards.end;
        shards
    });
    let read = rows.iter().map(|&rows| rows as f64 / all_rows);
    let processes: Vec<Process<'_>> = owned
        .zip(read)
        .enumerate()
        .map(|(index, (shards, read))| Process { plan, sizes, index, peers, shards, read })
        .collect();
    let of_stage =
        |stage| (stage, processes.iter().map(|process| process.sends_in(stage)).collect());
    BytesSent(StageName::of(plan).map(of_stage).collect())
}

impl Process<'_> {
    fn sends_in(&self, stage: StageName) -> f64 {
        match stage {
            StageName::Scan => self.plan(),
            StageName::Shuffle => self.dictionary() + self.rows(),
            StageName::Histories => self.item_totals(),
            StageName::ItemNeighbors => self.histories() + self.neighbors(),
            StageName::Als => self.plan.spec.als.as_ref().map_or(0.0, |als| self.als(als)),
            StageName::Publish => self.files() + self.items_listed(),
            StageName::WritePopularity
            | StageName::WriteNeighbors
            | StageName::WriteFactors
            | StageName::TopKLists => 0.0,
        }
    }

    /// Handed to all others.
    fn gathered(&self, bytes: f64) -> f64 {
        bytes * (self.peers - 1) as f64
    }

    /// Its range of so many values that the processes share out.
    fn own(&self, n_values: u64) -> f64 {
        let (n, index, peers) = (n_values as u128, self.index as u128, self.peers as u128);
        (n * (index + 1) / peers - n * index / peers) as f64
    }

    /// `Collectives::all_reduce_sum`: a range per process, then all of them with a word each.
    fn reduced(&self, n_values: u64) -> f64 {
        let own = self.own(n_values);
        8.0 * (n_values as f64 - own) + self.gathered(8.0 * (own + 1.0))
    }

    /// Share of the users, and of all that is theirs.
    fn users(&self) -> f64 {
        f64::from(self.shards.len() as u32) / f64::from(self.plan.n_shards.max(1))
    }

    /// The first process hands out the plan.
    fn plan(&self) -> f64 {
        match self.index {
            0 => self.gathered(serde_json::to_vec(self.plan).map_or(0.0, |plan| plan.len() as f64)),
            _ => 0.0,
        }
    }

    /// Ids that it saw go to the owners of their hashes; then each owner's ids to all.
    fn dictionary(&self) -> f64 {
        let Sizes { rows, items, item_id_bytes, .. } = *self.sizes;
        let seen = present(rows as f64 * self.read, items as f64);
        let (n, all) = (self.peers as f64, item_id_bytes as f64);
        all * seen * (n - 1.0) / n + self.gathered(all / n)
    }

    /// Packed rows to the owners of their shards.
    fn rows(&self) -> f64 {
        self.sizes.packed_bytes as f64 * self.read * (1.0 - self.users())
    }

    /// Five sums and two times per item, and what segments say.
    fn item_totals(&self) -> f64 {
        let Sizes { items, segment_items, pairs, .. } = *self.sizes;
        let times = 16.0 * (items as f64 - self.own(items)) + self.gathered(16.0 * self.own(items));
        let of_segments = present(pairs as f64 * self.users(), segment_items as f64);
        self.reduced(5 * items) + times + self.gathered(48.0 * segment_items as f64 * of_segments)
    }

    /// The coded histories of its users.
    fn histories(&self) -> f64 {
        let section = self.plan.spec.item_neighbors.as_ref();
        let weighted = section.is_some_and(|of| of.weights == HistoryWeights::Affinity);
        self.gathered(self.sizes.coded_bytes(weighted) * self.users())
    }

    /// Lists of its range of items: a word per item, three numbers per neighbor.
    fn neighbors(&self) -> f64 {
        let Sizes { items_eligible, neighbors, .. } = *self.sizes;
        let own = self.own(items_eligible);
        let share = own / items_eligible.max(1) as f64;
        self.gathered(8.0 + 8.0 * own + 12.0 * neighbors as f64 * share)
    }

    /// Per iteration, sums of items to the owners of their ranges, what the owners make of them to
    /// all, the Gram matrix of the users, and the loss by shard; before, how many users items have.
    fn als(&self, section: &Als) -> f64 {
        let Sizes { items_eligible, iterations, .. } = *self.sizes;
        let subtrees = aligned_subtrees(self.shards.start, self.shards.end);
        let row = 4 * stride(section.n_factors);
        let (term, n_sums) = match section.solver() {
            Solver::ConjugateGradient { steps } => (Term::Product, steps as f64 + 1.0),
            Solver::Cholesky => (Term::Normal, 1.0),
        };
        let sum = 4.0 * width(term, section.n_factors) as f64;
        let others = items_eligible as f64 - self.own(items_eligible);
        let sums: f64 = subtrees.iter().map(|of| others * (1.0 + sum * self.with_users(of))).sum();
        let rows = self.gathered(row as f64 * self.own(items_eligible));
        let gram = 4 + 8 * section.n_factors * stride(section.n_factors);
        let gram = self.gathered((subtrees.len() * gram) as f64);
        let loss = self.gathered(32.0 * self.shards.len() as f64);
        let per_iteration = n_sums * (sums + rows) + gram + loss;
        2.0 * self.reduced(items_eligible) + iterations as f64 * per_iteration
    }

    /// Share of the items that a user in some shards has: without one, no sum is sent.
    fn with_users(&self, shards: &std::ops::Range<u32>) -> f64 {
        let share = f64::from(shards.end - shards.start) / f64::from(self.plan.n_shards);
        present(self.sizes.pairs as f64 * share, self.sizes.items_eligible as f64)
    }

    /// Names, sizes and digests of its files.
    fn files(&self) -> f64 {
        const ENTRY_BYTES: f64 = 280.0;
        let of_users = super::work::tables_of_users(self.plan) * self.shards.len();
        self.gathered(ENTRY_BYTES * of_users as f64)
    }

    /// A byte per item that says whether a list has it.
    fn items_listed(&self) -> f64 {
        let lists = self.plan.spec.top_k.is_some() && !self.shards.is_empty();
        if lists { self.gathered(self.sizes.items_eligible as f64) } else { 0.0 }
    }
}

/// Share of `n_kinds` that is seen among `n` draws, if all are as likely.
fn present(n: f64, n_kinds: f64) -> f64 {
    if n_kinds > 0.0 { 1.0 - (-n / n_kinds).exp() } else { 0.0 }
}

/// Sets the prediction beside the bytes that stages moved, now that sizes are known.
pub(in crate::run) fn note_predicted(
    stages: &mut [Stage],
    plan: &Plan,
    sizes: &Sizes,
    peers: usize,
) {
    let predicted = bytes_sent(plan, sizes, peers);
    for name in StageName::of(plan) {
        let bytes = predicted.of(name).iter().sum::<f64>() as u64;
        if let Some(stage) = stages.iter_mut().find(|stage| stage.name == name.name()) {
            stage.more.insert("bytes_moved_predicted".to_owned(), json!(bytes));
        }
    }
}
