//! Models and tables in their order.

use rayon::prelude::*;

use super::*;
use crate::job::spec::{Als, Fallback, ItemNeighbors, Ranker, TopK};
use crate::kernels::CandidateLists;
use crate::kernels::debias::DebiasWeights;
use als::Factors;
use earlier_lists::EarlierLists;
use lists::{FactorRanker, ListInputs};
use models::{PopularityModel, SegmentPopularity};
use pair_counts::Found;

/// Checkpoint of the neighbor lists.
const NEIGHBORS: &str = "item-neighbors";

/// A history item speaks for this many times `n_neighbors` candidates at most: the most similar ones
/// that have it as a neighbor. Without a bound, a popular item of a large catalog speaks for most of it.
/// On MovieLens 100K the precision at 10 moves by less than .0006 between this bound and none, for 20
/// to 200 neighbors.
const CANDIDATES_PER_NEIGHBOR: usize = 3;

/// What all tables are made from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) tables: &'a Tables<'a>,
    pub(super) counts: &'a ScanCounts,
    pub(super) prepared: &'a Prepared,
    pub(super) segments: &'a Segments,
    pub(super) facts: &'a ItemFacts,
    /// Where the fit of the factors begins, if not always from scratch.
    pub(super) warm: Option<&'a WarmStart>,
    /// What this process may come to hold, without what it keeps for the next run.
    pub(super) memory_bytes_bound: u64,
}

/// Models of the items that are made in passing.
struct ItemModels {
    popularity: PopularityModel,
    by_segment: Vec<SegmentPopularity>,
    debias: Option<DebiasWeights>,
}

/// Every model and table in its order.
pub(super) fn write_all(
    worker: &mut Worker<'_>,
    sources: Sources<'_>,
    state: Option<&mut StateManifest>,
) -> Result<(Vec<PublishedFile>, ListCounts)> {
    let spec = &worker.job.plan.spec;
    let mut files = Vec::new();
    let models = worker.stage("popularity", None, |_| {
        let popularity = PopularityModel::of_all(sources.prepared);
        let by_segment = models::by_segment(sources.prepared, sources.segments.names.len());
        let debias = models::debias(spec, &popularity);
        Ok(ItemModels { popularity, by_segment, debias })
    })?;
    let place = (sources.tables.output, sources.tables.path);
    let (written, ()) = worker.written(place, "write popularity", None, |worker| {
        Ok((popularity_tables(worker, sources, &models)?, ()))
    })?;
    files.extend(written);
    let neighbors = match &spec.item_neighbors {
        Some(section) => neighbors(worker, sources, section, state, &mut files)?,
        None => None,
    };
    let factors = match &spec.als {
        Some(section) => Some(factors(worker, sources, section, &mut files)?),
        None => None,
    };
    let counts = match &spec.top_k {
        Some(top_k) => lists(worker, sources, top_k, &models, (neighbors, factors), &mut files)?,
        None => ListCounts::default(),
    };
    Ok((gather_files(worker, files)?, counts))
}

/// The tables of counts: of users everywhere, of items on the first process.
fn popularity_tables(
    worker: &mut Worker<'_>,
    sources: Sources<'_>,
    models: &ItemModels,
) -> Result<Vec<PublishedFile>> {
    let Sources { tables, prepared, segments, .. } = sources;
    let (spec, n_shards) = (&worker.job.plan.spec, worker.job.plan.n_shards);
    let users = || tables.users(prepared, segments, n_shards);
    if worker.shell.index != 0 {
        return worker.pool.install(users);
    }
    let of_items = || item_tables(spec, sources, models);
    let (users, of_items) = worker.pool.install(|| rayon::join(users, of_items));
    Ok([users?, of_items?].concat())
}

/// Those that the first process writes.
fn item_tables(
    spec: &Spec,
    sources: Sources<'_>,
    models: &ItemModels,
) -> Result<Vec<PublishedFile>> {
    let Sources { tables, counts, prepared, segments, facts, .. } = sources;
    let popularity = || -> Result<Vec<PublishedFile>> {
        let Some(section) = &spec.popularity else { return Ok(Vec::new()) };
        let prior = section.trend_prior;
        let mut files = tables.item_popularity(prepared, &models.popularity, prior)?;
        if spec.users.is_some() {
            let by_segment = &models.by_segment;
            files.extend(tables.item_popularity_by_segment(prepared, segments, by_segment, prior)?);
        }
        Ok(files)
    };
    let (items, popularity) = rayon::join(|| tables.items(prepared, facts), popularity);
    let mut files = [tables.rejects(counts)?, items?, popularity?].concat();
    if let Some(weights) = &models.debias {
        files.extend(tables.debias_weights(prepared, weights)?);
    }
    Ok(files)
}

/// The neighbors of every item; returned by candidate where lists read them.
fn neighbors(
    worker: &mut Worker<'_>,
    sources: Sources<'_>,
    section: &ItemNeighbors,
    state: Option<&mut StateManifest>,
    files: &mut Vec<PublishedFile>,
) -> Result<Option<CandidateLists>> {
    let Sources { tables, prepared, .. } = sources;
    let (pool, n_items) = (worker.pool, prepared.item_ids.len());
    let restored = worker.restore_stage("item neighbors", NEIGHBORS, |sealed| {
        parts::read_all_neighbors(sealed, pool, n_items)
    });
    let lists = match restored {
        Some(lists) => {
            if let Some(state) = state {
                pair_counts::leave(worker.job, state);
            }
            lists
        }
        None => {
            let total = Some((n_items as u64, "items"));
            let Found { lists, kept, told } = worker.stage("item neighbors", total, |worker| {
                let found = compute_neighbors(worker, sources, section);
                let found = worker.agree(found)?;
                let (share, lists) = (Share::of(worker), &found.lists);
                worker.save(NEIGHBORS, |saving| parts::save_neighbors(&share, saving, lists));
                Ok(found)
            })?;
            worker.report("item neighbors", told);
            if let Some(kept) = kept {
                worker.stage("keep pair counts", None, |worker| {
                    let (output, dictionary) = (tables.output, &prepared.dictionary);
                    output.settled(pair_counts::keep(worker, output, kept, dictionary, state))
                })?;
            }
            lists
        }
    };
    let place = (tables.output, tables.path);
    let (written, ()) = worker.written(place, "write neighbors", None, |worker| {
        Ok((tables.item_neighbors(worker, prepared, &lists)?, ()))
    })?;
    files.extend(written);
    let read = worker.job.plan.spec.candidates().item_neighbors.is_some();
    let n_max = CANDIDATES_PER_NEIGHBOR * section.n_neighbors;
    Ok(read.then(|| CandidateLists::new(&lists, n_max)))
}

/// The lists of all items, from counts of pairs that are kept where there is room for them.
fn compute_neighbors(
    worker: &mut Worker<'_>,
    sources: Sources<'_>,
    section: &ItemNeighbors,
) -> Result<Found> {
    let Sources { tables, prepared, memory_bytes_bound, .. } = sources;
    let found =
        pair_counts::neighbors(worker, tables.output, prepared, section, memory_bytes_bound)?;
    match found {
        Some(found) => Ok(found),
        None => {
            let lists = models::neighbors(worker, prepared, section)?;
            Ok(Found { lists, kept: None, told: Map::new() })
        }
    }
}

/// The factors of users and items, in tables and in vector files.
fn factors(
    worker: &mut Worker<'_>,
    sources: Sources<'_>,
    section: &Als,
    files: &mut Vec<PublishedFile>,
) -> Result<Factors> {
    let Sources { tables, prepared, warm, .. } = sources;
    let iterations = warm.map_or(section.iterations, |warm| warm.iterations(section));
    let section = &Als { iterations, ..section.clone() };
    let n_users = prepared.shards.iter().map(|shard| shard.n_users() as u64).sum();
    let total = match warm.is_some_and(WarmStart::folds_in) {
        true => (n_users, "users"),
        false => (iterations as u64, "iterations"),
    };
    let factors = worker.stage("als", Some(total), |worker| {
        als::factors(worker, prepared, section, warm.map(|warm| (warm, tables.output)))
    })?;
    worker.report("als", factors.report.clone());
    let place = (tables.output, tables.path);
    let (written, ()) = worker.written(place, "write factors", None, |worker| {
        Ok((write_factors(worker, sources, &factors)?, ()))
    })?;
    files.extend(written);
    Ok(factors)
}

/// This process's files of factors.
fn write_factors(
    worker: &Worker<'_>,
    sources: Sources<'_>,
    factors: &Factors,
) -> Result<Vec<PublishedFile>> {
    let Sources { tables, prepared, .. } = sources;
    let spec = &worker.job.plan.spec.output;
    let (index, peers) = (worker.shell.index, worker.shell.peers);
    let n_shards = worker.job.plan.n_shards;
    worker.pool.install(|| {
        let kept: Vec<u32> = (0..prepared.item_ids.len() as u32).collect();
        let items = factors.of_items(&prepared.item_ids, &kept);
        let mut files =
            vectors::item_files(tables, spec, &items, |number| number % peers == index)?;
        let of_shards: Result<Vec<Vec<PublishedFile>>> = prepared
            .shards
            .par_iter()
            .map(|shard| {
                let rows = 0..shard.n_users() as u32;
                let has_history = |&row: &u32| !shard.of(row as usize).0.is_empty();
                let kept: Vec<u32> = rows.filter(has_history).collect();
                let users = factors.of_users(shard, n_shards, &kept);
                vectors::user_files(tables, spec, &users)
            })
            .collect();
        files.extend(of_shards?.into_iter().flatten());
        Ok(files)
    })
}

/// What to recommend to each user, and to visitors.
fn lists(
    worker: &mut Worker<'_>,
    sources: Sources<'_>,
    top_k: &TopK,
    models: &ItemModels,
    (neighbors, factors): (Option<CandidateLists>, Option<Factors>),
    files: &mut Vec<PublishedFile>,
) -> Result<ListCounts> {
    let Sources { tables, prepared, segments, facts, .. } = sources;
    let job = worker.job;
    let spec = &job.plan.spec;
    let recommendable: Vec<bool> = (0..prepared.dictionary.len())
        .filter(|&rank| prepared.idx_of_rank[rank] != u32::MAX)
        .map(|rank| facts.recommendable[rank])
        .collect();
    let of_segments: Vec<_> = models.by_segment.iter().map(|of| of.shares.as_slice()).collect();
    let ranked = factors.as_ref().filter(|_| spec.candidates().als.is_some());
    let packed = ranked.map(|factors| (factors, factors.packed(worker.pool, &recommendable)));
    let debias = models.debias.as_ref().filter(|_| top_k.debias);
    let rankers: Vec<(Ranker, f64)> = spec.candidates().rankers().collect();
    let fallback = spec.fallback() == Fallback::Popularity;
    let stay = sources.warm.filter(|warm| warm.keeps_lists() && debias.is_none());
    let earlier = match (stay, ranked, rankers.as_slice()) {
        (Some(warm), Some(factors), [(Ranker::Als, _)]) => {
            let length_min = if fallback { top_k.k } else { 1 };
            let now = (recommendable.as_slice(), top_k.shape, length_min);
            let of = (warm, tables.output);
            let found = EarlierLists::find(worker, of, prepared, factors, now);
            Some(worker.agree(found)?)
        }
        _ => None,
    };
    let inputs = ListInputs {
        top_k,
        rankers,
        earlier,
        neighbors: neighbors.as_ref(),
        factors: packed.as_ref().map(|(model, packed)| FactorRanker { model, packed }),
        popularity: &models.popularity.shares,
        popularity_by_segment: &of_segments,
        recommendable: &recommendable,
        discounts: debias.map(|weights| weights.discount.as_slice()),
        fallback,
        affinity_unit: prepared.calendar.decay.unit(),
        scratches: ListInputs::scratches(job.threads, prepared.item_ids.len(), top_k.because),
    };
    let n_users = prepared.shards.iter().map(|shard| shard.n_users() as u64).sum();
    let write = |worker: &Worker<'_>| {
        let (mut files, counts) = tables.user_lists(worker, prepared, &inputs)?;
        if worker.shell.index == 0 && spec.popularity.is_some() {
            files.extend(tables.default_top_k(prepared, segments, &inputs)?);
        }
        Ok((files, counts))
    };
    let place = (tables.output, tables.path);
    let total = Some((n_users, "users"));
    let (written, counts) = worker.written(place, "top-k lists", total, |worker| {
        let written = write(worker);
        let (files, counts) = worker.agree(written)?;
        Ok((files, counts.over_processes(worker)?))
    })?;
    files.extend(written);
    Ok(counts)
}

/// The files of all processes, in the order of their paths.
fn gather_files(worker: &mut Worker<'_>, files: Vec<PublishedFile>) -> Result<Vec<PublishedFile>> {
    let encoded = serde_json::to_vec(&files).context("file entries cannot be written as JSON")?;
    let mut all: Vec<PublishedFile> = Vec::new();
    for part in worker.shell.collectives.all_gather(encoded.into()) {
        let files: Vec<PublishedFile> =
            serde_json::from_slice(&part).context("file entries of a peer cannot be read")?;
        all.extend(files);
    }
    all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(changes::only_whole(all))
}
