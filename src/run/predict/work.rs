//! Units of work of the busiest process in each stage.

use super::unit_costs::Cost;
use super::{Cluster, Sizes, StageName};
use crate::job::plan::Plan;
use crate::job::spec::{Als, Ranker, VectorsOf};
use crate::kernels::als::{Solver, stride};
use crate::run::tables::ITEMS_PER_PART;
use crate::run::{prepare, scan};

/// How many units of which cost, as far as one thread would do them one after the other.
pub(super) type Work = Vec<(Cost, f64)>;

/// Bytes that a core's own cache holds, about.
const CACHE_BYTES: f64 = (2 << 20) as f64;

/// Share of so many bytes that a core's cache does not hold.
fn far(bytes: f64) -> f64 {
    (1.0 - CACHE_BYTES / bytes.max(1.0)).max(0.0)
}

/// Files with one part per shard.
pub(super) fn tables_of_users(plan: &Plan) -> usize {
    let vectors = plan.spec.output.vectors.iter();
    let of_users = vectors.filter(|vectors| vectors.of == VectorsOf::UserFactors).count();
    let spec = &plan.spec;
    1 + spec.als.as_ref().map_or(0, |_| 1 + of_users) + usize::from(spec.top_k.is_some())
}

/// The work of a stage on the process that has most of it.
pub(super) fn of(
    stage: StageName,
    plan: &Plan,
    sizes: &Sizes,
    cluster: Cluster,
    efficiency: f64,
) -> Work {
    let shards = prepare::shards_of(plan.n_shards, cluster.processes).max().unwrap_or(0);
    let share = f64::from(shards) / f64::from(plan.n_shards.max(1));
    let busiest = Busiest { plan, sizes, cluster, efficiency, shards: shards as usize, share };
    match stage {
        StageName::Scan => busiest.scan(),
        StageName::Shuffle => busiest.shuffle(),
        StageName::Histories => busiest.histories(),
        StageName::WritePopularity => busiest.popularity(),
        StageName::ItemNeighbors => busiest.item_neighbors(),
        StageName::WriteNeighbors => busiest.write_neighbors(),
        StageName::Als => plan.spec.als.as_ref().map_or(Vec::new(), |als| busiest.als(als)),
        StageName::WriteFactors => {
            plan.spec.als.as_ref().map_or(Vec::new(), |als| busiest.write_factors(als))
        }
        StageName::TopKLists => busiest.top_k_lists(),
        StageName::Publish => vec![(Cost::PublishedFile, busiest.files())],
    }
}

/// The process with the most shards; rows and items are dealt evenly anyway.
struct Busiest<'a> {
    plan: &'a Plan,
    sizes: &'a Sizes,
    cluster: Cluster,
    efficiency: f64,
    shards: usize,
    /// Its share of the users.
    share: f64,
}

impl Busiest<'_> {
    /// So much work in `n_tasks` equal tasks on the threads of the pool.
    fn in_tasks(&self, work: f64, n_tasks: usize) -> f64 {
        let (threads, n_tasks) = (self.cluster.threads.max(1), n_tasks.max(1));
        let speedup = 1.0 + (threads - 1) as f64 * self.efficiency;
        let longest = n_tasks.div_ceil(threads) as f64 / n_tasks as f64;
        work * longest.max(1.0 / speedup)
    }

    /// So much work that falls into many small tasks.
    fn spread(&self, work: f64) -> f64 {
        self.in_tasks(work, usize::MAX / 2)
    }

    /// What the users of this process are of it.
    fn own(&self, of_all: u64) -> f64 {
        of_all as f64 * self.share
    }

    /// An equal part.
    fn part(&self, of_all: f64) -> f64 {
        of_all / self.cluster.processes as f64
    }

    fn text_users(&self) -> f64 {
        f64::from(u8::from(!self.plan.user_id_type.is_int()))
    }

    fn text_items(&self) -> f64 {
        f64::from(u8::from(!self.plan.item_id_type.is_int()))
    }

    fn scan(&self) -> Work {
        let by_process = scan::rows_by_process(self.plan, self.cluster.processes);
        let rows = by_process.into_iter().max().unwrap_or(0) as f64;
        let groups = scan::splits(self.plan).len().div_ceil(self.cluster.processes);
        let rows = self.in_tasks(rows, groups);
        vec![
            (Cost::ScanRow, rows),
            (Cost::ScanTextId, rows * (self.text_users() + self.text_items())),
        ]
    }

    /// One thread recodes the rows that leave the process, and sorts the dictionary.
    fn shuffle(&self) -> Work {
        let leaving = self.part(self.sizes.packed_bytes as f64) * (1.0 - self.share);
        vec![(Cost::ShuffleByte, leaving), (Cost::DictionaryItem, self.sizes.items as f64)]
    }

    fn histories(&self) -> Work {
        let rows = self.in_tasks(self.own(self.sizes.rows), self.shards);
        vec![
            (Cost::HistoryRow, rows),
            (Cost::HistoryTextRow, rows * self.text_users()),
            (Cost::HistoryItem, self.sizes.items as f64),
        ]
    }

    /// Users shard by shard, then on the first process the tables of items.
    fn popularity(&self) -> Work {
        let spec = &self.plan.spec;
        let Sizes { items, items_eligible, segment_items, .. } = *self.sizes;
        let popularity = spec.popularity.as_ref().map_or(0, |_| items_eligible + segment_items);
        let debias = spec.debias.as_ref().map_or(0, |_| items_eligible);
        let of_items = (items + popularity + debias) as f64;
        let users = self.in_tasks(self.own(self.sizes.users), self.shards);
        vec![
            (Cost::TableRow, of_items + users),
            (Cost::TableTextId, of_items * self.text_items() + users * self.text_users()),
            (Cost::File, 4.0 + self.in_tasks(self.shards as f64, self.shards)),
        ]
    }

    /// Gathering and turning round is for one thread, counting for all.
    fn item_neighbors(&self) -> Work {
        let Sizes { pairs, pairs_squared, neighbors, .. } = *self.sizes;
        vec![
            (Cost::GatheredPair, pairs as f64),
            (Cost::PairProduct, self.spread(self.part(pairs_squared))),
            (Cost::Neighbor, self.spread(self.part(neighbors as f64))),
        ]
    }

    fn item_parts(&self) -> usize {
        (self.sizes.items_eligible as usize).div_ceil(ITEMS_PER_PART).max(1)
    }

    fn write_neighbors(&self) -> Work {
        let n_parts = self.item_parts();
        let mine = n_parts.div_ceil(self.cluster.processes);
        let rows = self.sizes.neighbors as f64 * mine as f64 / n_parts as f64;
        let rows = self.in_tasks(rows, mine);
        vec![(Cost::NeighborRow, rows), (Cost::NeighborTextRow, rows * self.text_items())]
    }

    /// Both halves and the loss walk over all pairs, to rows of the other side that are far where a
    /// core's cache does not hold them; each row multiplies a Gram matrix per step; sums of items are
    /// handed around by one thread.
    fn als(&self, section: &Als) -> Work {
        let Sizes { items_eligible, pairs, users, iterations, .. } = *self.sizes;
        let width = stride(section.n_factors) as f64;
        let (pairs, users, items) = (self.own(pairs), self.own(users), items_eligible as f64);
        let (products, of_pair, of_row) = match section.solver() {
            Solver::ConjugateGradient { steps } => {
                let products = steps as f64 + 1.0;
                (products, (2.0 * products + 0.5) * width, (products + 1.0) * width * width)
            }
            Solver::Cholesky => (1.0, 1.5 * width * width, width * width * (1.0 + width / 3.0)),
        };
        let far = (far(4.0 * width * users) + far(4.0 * width * items)) / 2.0;
        let iterations = iterations as f64;
        let (pair_factors, rows) = (iterations * pairs * of_pair, users + self.part(items));
        vec![
            (Cost::AlsPair, pairs),
            (Cost::AlsPairFactor, self.spread(pair_factors)),
            (Cost::AlsFarFactor, self.spread(pair_factors * far)),
            (Cost::AlsRowFactor, self.spread(iterations * rows * of_row)),
            (Cost::AlsItemFactor, iterations * items * width * products),
        ]
    }

    fn write_factors(&self, section: &Als) -> Work {
        let vectors = |of| self.plan.spec.output.vectors.iter().filter(|v| v.of == of).count();
        let n_factors = section.n_factors as f64;
        let users = self.own(self.sizes.users) * n_factors;
        let users = users * (1 + vectors(VectorsOf::UserFactors)) as f64;
        let items = self.sizes.items_eligible as f64 * n_factors;
        let n_files = 1 + vectors(VectorsOf::ItemFactors);
        let longest = n_files.div_ceil(self.cluster.processes);
        let items = self.in_tasks(items * longest as f64, longest.max(self.item_parts()));
        vec![
            (Cost::WrittenFactor, self.in_tasks(users, self.shards) + items),
            (Cost::File, self.in_tasks(self.files_of_factors(), self.shards)),
        ]
    }

    fn files_of_factors(&self) -> f64 {
        (self.shards * (tables_of_users(self.plan) - 2)).max(1) as f64
    }

    fn top_k_lists(&self) -> Work {
        let Some(top_k) = &self.plan.spec.top_k else { return Vec::new() };
        let spec = &self.plan.spec;
        let Sizes { users, pairs, items_eligible, .. } = *self.sizes;
        let (users, pairs, items) = (self.own(users), self.own(pairs), items_eligible as f64);
        let rankers: Vec<Ranker> = spec.candidates().rankers().map(|(ranker, _)| ranker).collect();
        let runs = |ranker| rankers.contains(&ranker);
        let mut work = Vec::new();
        if let Some(als) = spec.als.as_ref().filter(|_| runs(Ranker::Als)) {
            let width = als.n_factors as f64;
            work.push((Cost::Score, self.spread(users * items * width)));
            if top_k.because {
                let explained = users * width * width * width / 6.0 + pairs * width * width / 2.0;
                work.push((Cost::Explained, self.spread(explained)));
            }
        }
        if let Some(of) = spec.item_neighbors.as_ref().filter(|_| runs(Ranker::ItemNeighbors)) {
            // Most of a history are popular items, which are neighbors of more than they have.
            let proposed = (2.0 * of.n_neighbors as f64).min(items);
            work.push((Cost::Candidate, self.spread(pairs * proposed)));
        }
        let proposed = match rankers.as_slice() {
            [_] if !top_k.debias => top_k.k,
            _ => top_k.n_candidates(),
        };
        let combined = users * (proposed * rankers.len()) as f64;
        work.push((Cost::Combined, self.spread(combined)));
        let rows = users * (top_k.k as f64).min(items);
        // Of few shards the users are computed side by side, and written by one thread.
        let many = self.shards >= 2 * self.cluster.threads;
        let rows = if many { self.in_tasks(rows, self.shards) } else { rows };
        work.push((Cost::ListRow, rows));
        work.push((Cost::ListTextRow, rows * self.text_users().max(self.text_items())));
        work
    }

    /// Files of all processes: the first process looks at each of them.
    fn files(&self) -> f64 {
        (self.plan.n_shards as usize * tables_of_users(self.plan) + 6) as f64
    }
}
