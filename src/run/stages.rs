//! The stages of a run in their order.

use rayon::prelude::*;

use super::*;
use crate::job::spec::{Als, Fallback, ItemNeighbors, Ranker, TopK};
use crate::kernels::CandidateLists;
use crate::kernels::debias::DebiasWeights;
use crate::kernels::dictionary::encoded_len;
use crate::kernels::histories::Calendar;
use crate::kernels::item_totals::sum_of;
use crate::types::{DAY_US, Histories, Ids};
use als::Factors;
use checkpoint_parts::{self as parts, Share};
use earlier_lists::EarlierLists;
use lists::{FactorRanker, ListInputs};
use memory::Held;
use models::{PopularityModel, SegmentPopularity};
use pair_counts::Found;
use prepare::Prepared;
use side::{Deleted, ItemFacts, Segments};
use tables::{ListCounts, Tables};
use warm_start::WarmStart;

/// Checkpoint of what is read from the logs.
const HISTORIES: &str = "histories";

/// Checkpoint of the neighbor lists.
const NEIGHBORS: &str = "item-neighbors";

/// Everything from the scan to the commit.
pub(super) fn all(worker: &mut Worker<'_>, output: &Output, fingerprint: &str) -> Result<Outcome> {
    let job = worker.job;
    let deleted = side::deleted(job.runtime, &job.plan, &job.request.base);
    let deleted = worker.agree(deleted)?;
    let read_in = prepare_histories(worker, output, &deleted)?;
    let ReadIn { counts, prepared, segments, facts, mut state, memory_bytes_bound } = read_in;
    let date = logical_date(job, &counts)?;
    let as_of = rfc3339(as_of_us(job, &prepared.calendar));
    worker.note(|known| {
        known.logical_date = Some(date.to_string());
        known.as_of = Some(as_of);
    });
    check_rows(worker, output, date, prepared.rows_used)?;
    let path = RunPath::new(date, job.run_id);
    let ids = IdTypes { user: job.plan.user_id_type, item: job.plan.item_id_type };
    let has_times = job.plan.has_times();
    let changes = changes::settle(worker, output, &path, deleted)?;
    let warm = warm_start::settle(worker, output, (&path, date))?;
    let tables = Tables { output, path: &path, ids, has_times, changes: changes.as_ref() };
    let sources = Sources {
        tables: &tables,
        counts: &counts,
        prepared: &prepared,
        segments: &segments,
        facts: &facts,
        warm: warm.as_ref(),
        memory_bytes_bound,
    };
    let (files, lists) = write_all(worker, sources, state.as_mut())?;
    let summary = Summary { counts: &counts, prepared: &prepared, lists: &lists };
    let sums = summary.over_processes(worker)?;
    worker.note(|known| {
        known.counts = sums.clone();
        known.files = files.clone();
    });
    check_lists(worker, &prepared, &facts, &lists)?;
    let mut manifest = manifest(worker, date, fingerprint, &prepared.calendar, files, sums);
    if let Some(changes) = &changes {
        [manifest.changes_since, manifest.unchanged_since] = changes.since(&manifest.files);
    }
    if let Some(warm) = warm {
        manifest.embedding_space_id = warm.embedding_space_id().or(manifest.embedding_space_id);
        manifest.fit_start = Some(warm.start);
    }
    worker.account_for(0, &manifest)?;
    manifest.stages = worker.stages.clone();
    publish(worker, output, &path, (manifest, state))
}

/// What the inputs gave.
struct ReadIn {
    counts: ScanCounts,
    prepared: Prepared,
    segments: Segments,
    facts: ItemFacts,
    /// What the next run goes on from; none for a job that is not incremental.
    state: Option<StateManifest>,
    /// What this process may come to hold.
    memory_bytes_bound: u64,
}

/// Scan, dictionary, shuffle, histories; or what a run that died saved of them.
fn prepare_histories(
    worker: &mut Worker<'_>,
    output: &Output,
    deleted: &Deleted,
) -> Result<ReadIn> {
    let (job, pool) = (worker.job, worker.pool);
    let mine = prepare::owned_shards(worker);
    let restored = worker.restore_stage("histories", HISTORIES, |sealed| {
        parts::read_histories_of(sealed, job, pool, &mine)
    });
    let mut read_in = match restored {
        None => scan_and_prepare(worker, output, deleted)?,
        Some((counts, prepared, state)) => {
            check_counts(worker, &counts)?;
            let (facts, segments) = side_tables(worker, &prepared.dictionary)?;
            ReadIn { counts, prepared, segments, facts, state, memory_bytes_bound: 0 }
        }
    };
    check_not_empty(&read_in.prepared)?;
    read_in.memory_bytes_bound = check_memory(worker, &read_in.prepared)?;
    Ok(read_in)
}

/// Everything that reads the logs, and the state in their place.
fn scan_and_prepare(worker: &mut Worker<'_>, output: &Output, deleted: &Deleted) -> Result<ReadIn> {
    let job = worker.job;
    let (plan, runtime, base) = (&job.plan, job.runtime, job.request.base.as_path());
    let mut from = match job.state.is_some() {
        true => {
            worker.stage("load state", None, |worker| Ok(state::load(worker, output, deleted)))?
        }
        false => None,
    };
    let files = from.as_ref().map(|(base, _)| &base.files);
    let all_rows = || plan.sources.iter().flat_map(|s| &s.files).map(FilePlan::rows).sum();
    let n_rows = files.map_or_else(all_rows, |files| files.rows_to_read(plan));
    let mut scan = worker.stage("scan", Some((n_rows, "rows")), |worker| {
        let denied = side::denied_users(runtime, plan, base)?;
        prepare::scan(worker, (&denied, deleted), files)
    })?;
    if let Some((_, stored)) = &from {
        scan.count_stored(&stored.counts);
    }
    let mut counts = prepare::agree_on_counts(worker, prepare::counts(&scan));
    if let Some((base, _)) = &from {
        base.add_counts(&mut counts)?;
    }
    check_counts(worker, &counts)?;
    let (dictionary, shuffled, by_file) = worker.stage("shuffle", None, |worker| {
        let by_file = prepare::agree_on_file_counts(worker, &scan);
        let stored = from.as_ref().map(|(_, stored)| stored);
        let dictionary = prepare::dictionary(worker, &scan, stored);
        let stored = from.as_mut().map(|(_, stored)| stored);
        let shuffled = prepare::shuffle(worker, scan, &dictionary, stored);
        Ok((dictionary, shuffled, by_file))
    })?;
    let state = match from {
        None => None,
        Some(from) => {
            let (state, told) = worker.stage("state", None, |worker| {
                let of_logs = (&dictionary, &by_file);
                output.settled(state::save(worker, output, from, &shuffled, of_logs))
            })?;
            worker.report("state", told);
            Some(state)
        }
    };
    let (facts, segments) = side_tables(worker, &dictionary)?;
    let calendar = calendar(plan, &counts);
    let prepared = worker.stage("histories", Some((counts.rows, "rows")), |worker| {
        let segment_of = |user: crate::types::IdRef<'_>| segments.of(user);
        let segment_of: Option<&(dyn Fn(crate::types::IdRef<'_>) -> u32 + Sync)> =
            if plan.spec.users.is_some() { Some(&segment_of) } else { None };
        let prepared = prepare::histories(worker, shuffled, dictionary, calendar, segment_of);
        let prepared = worker.agree(prepared)?;
        let share = Share::of(worker);
        worker.save(HISTORIES, |saving| {
            parts::save_histories(&share, saving, (&counts, &state), &prepared)
        });
        Ok(prepared)
    })?;
    Ok(ReadIn { counts, prepared, segments, facts, state, memory_bytes_bound: 0 })
}

/// Refuses counts of the scan that no run may go on with.
fn check_counts(worker: &mut Worker<'_>, counts: &ScanCounts) -> Result<()> {
    let job = worker.job;
    let plan = &job.plan;
    worker.note(|known| known.counts = counts.as_json());
    check_rejects(plan, counts)?;
    let until_us = plan.as_of_us.unwrap_or(job.started_at_us);
    if plan.as_of_us.is_none() && counts.newest_us > until_us + DAY_US {
        let newest = rfc3339(counts.newest_us);
        let note = format!("the newest event is of {newest}, and as_of follows it; give --date");
        job.observer.note("scan", &note);
    }
    worker.pass(gates::newest_event(&plan.spec.gates, counts.newest_us, until_us))
}

/// What the spec says of items and users beside the logs.
fn side_tables(worker: &mut Worker<'_>, dictionary: &Ids) -> Result<(ItemFacts, Segments)> {
    let job = worker.job;
    let (plan, runtime, base) = (&job.plan, job.runtime, job.request.base.as_path());
    worker.stage("side tables", None, |worker| {
        let facts = side::items(runtime, plan, base, dictionary)?;
        let segments = side::segments(runtime, plan, base, &prepare::owned_shards(worker))?;
        Ok((facts, segments))
    })
}

/// Refuses an input of which too much cannot be used.
fn check_rejects(plan: &Plan, counts: &ScanCounts) -> Result<()> {
    let (rejected, rows) = (counts.n_rejected(), counts.rows);
    let allowed = plan.spec.limits.reject_share_max;
    if rows == 0 {
        return Err(Refused::no_input(anyhow!(
            "the logs hold no row: {}; check events.url",
            plan.sources.iter().map(|source| source.url.as_str()).collect::<Vec<_>>().join(", ")
        )));
    }
    if rejected as f64 <= allowed * rows as f64 {
        return Ok(());
    }
    let by_reason = counts.rejected_by_reason();
    let reasons: Vec<String> =
        by_reason.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let ((file, row_group, _), first) =
        counts.rejected.iter().next().expect("a rejected row has a place");
    Err(Refused::bad_data(anyhow!(
        "{rejected} of {rows} rows cannot be used ({}), first in row {} of \"{file}\" (row group \
         {row_group}), and limits.reject_share_max is {allowed}; repair the input or raise the limit",
        reasons.join(", "),
        first.first_row
    )))
}

/// Refuses a run whose models would need too much, now that users and items are known.
fn check_memory(worker: &mut Worker<'_>, prepared: &Prepared) -> Result<u64> {
    let shards = &prepared.shards;
    let pairs = |shard: &Histories| shard.interactions.items.len() + shard.dislikes.items.len();
    let own = memory::Sizes {
        rows: 0,
        items: prepared.dictionary.len() as u64,
        users: shards.iter().map(|shard| shard.n_users() as u64).sum(),
        pairs: shards.iter().map(|shard| pairs(shard) as u64).sum(),
    };
    let sums = vec![own.users as i64, own.pairs as i64];
    let sums = worker.shell.collectives.all_reduce_sum(sums)?;
    let all = memory::Sizes { users: sums[0] as u64, pairs: sums[1] as u64, ..own };
    let held = Held { rows_read: 0, own, all };
    let cluster = Cluster { processes: worker.shell.peers, threads: worker.job.threads };
    let bound = memory::check_again(&worker.job.plan, held, cluster);
    let bound = worker.agree(bound)?;
    let mut more = Map::new();
    more.insert("memory_bytes_bound".to_owned(), json!(bound.peak_bytes));
    worker.report("histories", more);
    Ok(bound.peak_bytes)
}

/// Holds the rows used against those of the last run. A sample has its own number of rows.
fn check_rows(worker: &mut Worker<'_>, output: &Output, date: Date, rows: u64) -> Result<()> {
    let plan = &worker.job.plan;
    let looked = match (worker.shell.index, plan.sample_users) {
        (0, None) => gates::rows_ratio(&plan.spec.gates, output, date, rows),
        _ => Ok(None),
    };
    // Only the first process looks, so the others are told.
    let passed = looked.and_then(|looked| worker.pass(looked));
    worker.agree(passed)
}

/// Looks at what the lists hold. Those of a sample hold fewer items.
fn check_lists(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    facts: &ItemFacts,
    lists: &ListCounts,
) -> Result<()> {
    let plan = &worker.job.plan;
    let ranks =
        (0..prepared.dictionary.len()).filter(|&rank| prepared.idx_of_rank[rank] != u32::MAX);
    let in_catalog: Vec<bool> = ranks.map(|rank| facts.in_catalog[rank]).collect();
    let n_catalog = if plan.sample_users.is_some() { 0 } else { facts.n_catalog };
    let looked = gates::lists(&plan.spec, lists, |item| in_catalog[item], n_catalog);
    worker.pass(looked)
}

/// Refuses to publish tables without a single item.
fn check_not_empty(prepared: &Prepared) -> Result<()> {
    if !prepared.item_ids.is_empty() {
        return Ok(());
    }
    let filtered = prepared.filtered;
    let reasons = filtered.by_reason();
    let reasons: Vec<String> = reasons
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    Err(Refused::no_input(anyhow!(
        "no item is left after all filters ({}); check the event types in events.weights, \
         history.window_days, history.users_per_item_min and as_of",
        if reasons.is_empty() { "no row counts".to_owned() } else { reasons.join(", ") }
    )))
}

/// When events count: `as_of` from the plan, else just after the newest event.
pub(super) fn calendar(plan: &Plan, counts: &ScanCounts) -> Calendar {
    let newest = (counts.newest_us != i64::MIN).then(|| counts.newest_us + 1);
    // A log without times has all its events at 0.
    let as_of_us = plan.as_of_us.or(newest).unwrap_or(1);
    plan.calendar(as_of_us, counts.oldest_us.min(as_of_us))
}

/// RFC 3339; `None` where there is no event with a time.
fn time_of(time_us: i64) -> Option<String> {
    (time_us != i64::MIN && time_us != i64::MAX).then(|| rfc3339(time_us))
}

/// The end of the history that counts; now for logs without times.
fn as_of_us(job: &Job<'_>, calendar: &Calendar) -> i64 {
    if job.plan.has_times() { calendar.as_of_us } else { job.started_at_us }
}

/// The day the result is for: the flag, else the day before `as_of`, else today.
fn logical_date(job: &Job<'_>, counts: &ScanCounts) -> Result<Date> {
    if let Some(date) = job.plan.logical_date {
        return Ok(date);
    }
    let now = as_of_us(job, &calendar(&job.plan, counts));
    Ok(plan::date_before(now, &job.plan.time_zone())?)
}

/// A history item speaks for this many times `n_neighbors` candidates at most: the most similar ones
/// that have it as a neighbor. Without a bound, a popular item of a large catalog speaks for most of it.
/// On MovieLens 100K the precision at 10 moves by less than .0006 between this bound and none, for 20
/// to 200 neighbors.
const CANDIDATES_PER_NEIGHBOR: usize = 3;

/// What all tables are made from.
#[derive(Clone, Copy)]
struct Sources<'a> {
    tables: &'a Tables<'a>,
    counts: &'a ScanCounts,
    prepared: &'a Prepared,
    segments: &'a Segments,
    facts: &'a ItemFacts,
    /// Where the fit of the factors begins, if not always from scratch.
    warm: Option<&'a WarmStart>,
    /// What this process may come to hold, without what it keeps for the next run.
    memory_bytes_bound: u64,
}

/// Models of the items that are made in passing.
struct ItemModels {
    popularity: PopularityModel,
    by_segment: Vec<SegmentPopularity>,
    debias: Option<DebiasWeights>,
}

/// Every model and table in its order.
fn write_all(
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

/// Names the space that the factors of a run lie in: those of two runs do not compare.
fn embedding_space_id(fingerprint: &str) -> String {
    sha256_hex(format!("als {fingerprint}").as_bytes())[..16].to_owned()
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

/// Counts for the manifest.
struct Summary<'a> {
    counts: &'a ScanCounts,
    prepared: &'a Prepared,
    lists: &'a ListCounts,
}

impl Summary<'_> {
    /// Adds up what each process knows, and holds rows in against rows used, filtered and rejected.
    fn over_processes(&self, worker: &mut Worker<'_>) -> Result<Map<String, Value>> {
        let shards = &self.prepared.shards;
        let sum = |of: &dyn Fn(&crate::types::Histories) -> usize| {
            shards.iter().map(|shard| of(shard) as i64).sum::<i64>()
        };
        let local = vec![
            sum(&|shard| shard.n_users()),
            sum(&|shard| (0..shard.n_users()).filter(|&row| !shard.of(row).0.is_empty()).count()),
            sum(&|shard| shard.affinities.len()),
            sum(&|shard| (0..shard.n_users()).map(|row| shard.of(row).0.len().pow(2)).sum()),
        ];
        let events = shards.iter().flat_map(|shard| &shard.facts).map(|facts| facts.events);
        let events_max = events.max().unwrap_or(0);
        let events_max = worker.shell.collectives.all_reduce_max(i64::from(events_max));
        let ranks = 0..self.prepared.dictionary.len();
        let users = ranks.map(|rank| sum_of(&self.prepared.sums, rank).users);
        let sums = worker.shell.collectives.all_reduce_sum(local)?;
        let mut filtered = self.counts.filtered.clone();
        for (reason, count) in self.prepared.filtered.by_reason() {
            if count > 0 {
                *filtered.entry(reason.to_owned()).or_default() += count;
            }
        }
        let rejected = self.counts.rejected_by_reason();
        let n_filtered: u64 = filtered.values().sum();
        let n_rejected: u64 = rejected.values().sum();
        let rows = self.counts.rows;
        if rows != self.prepared.rows_used + n_filtered + n_rejected {
            return Err(anyhow!(
                "{rows} rows were read, but {} used, {n_filtered} filtered and {n_rejected} \
                 rejected; this is a defect, please report it",
                self.prepared.rows_used
            ));
        }
        let counts = json!({
            "rows": rows,
            "rows_used": self.prepared.rows_used,
            "rows_filtered": filtered,
            "rows_rejected": rejected,
            "unlisted_events": self.counts.unlisted_events,
            "files_pruned": worker.job.plan.files_pruned,
            "files_left_out": worker.job.attempt.left_out,
            "oldest_event": time_of(self.counts.oldest_us),
            "newest_event": time_of(self.counts.newest_us),
            "users": sums[0],
            "users_with_history": sums[1],
            "items": self.prepared.dictionary.len(),
            "items_eligible": self.prepared.item_ids.len(),
            "interactions": sums[2],
            "interactions_dropped": {
                "too_few_users": self.prepared.dropped.too_few_users,
                "over_cap": self.prepared.dropped.over_cap,
            },
            "users_over_cap": self.prepared.dropped.users_over_cap,
            "events_of_user_max": events_max,
            "users_of_item_max": users.max().unwrap_or(0),
            "list_rows": self.lists.rows,
            "list_rows_fallback": self.lists.fallback_rows,
            "lists_short": self.lists.short_lists,
            "lists_kept": self.lists.kept,
            "sizes": {
                "packed_rows": rows - self.counts.n_filtered() - self.counts.n_rejected(),
                "packed_bytes": self.counts.packed_bytes,
                "item_id_bytes": encoded_len(&self.prepared.dictionary),
                "interactions_squared": sums[3],
                "segment_items": self.prepared.segment_sums.len(),
            },
            "items_recommended": self.lists.recommended.iter().filter(|is_in| **is_in).count(),
        });
        match counts {
            Value::Object(counts) => Ok(counts),
            _ => unreachable!("counts are an object"),
        }
    }
}

fn manifest(
    worker: &Worker<'_>,
    date: Date,
    fingerprint: &str,
    calendar: &Calendar,
    files: Vec<PublishedFile>,
    counts: Map<String, Value>,
) -> Manifest {
    let plan = &worker.job.plan;
    let logs = plan.sources.iter().flat_map(|source| &source.files);
    Manifest {
        format: crate::store::FORMAT,
        run_id: worker.job.run_id.to_owned(),
        logical_date: date.to_string(),
        as_of: rfc3339(as_of_us(worker.job, calendar)),
        spec_sha256: sha256_hex(plan.spec.resolved().as_bytes()),
        input: logs
            .chain(plan.side_tables.files())
            .map(|file| ManifestInput::from(&input_file(file)))
            .collect(),
        fingerprint: fingerprint.to_owned(),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        instruction_set: instruction_set(),
        embedding_space_id: plan.spec.als.as_ref().map(|_| embedding_space_id(fingerprint)),
        shards: plan.n_shards,
        files,
        counts,
        gates: worker.gates.clone(),
        stages: worker.stages.clone(),
        delta: plan.spec.output.delta,
        state: None,
        changes_since: None,
        unchanged_since: None,
        fit_start: None,
        nonce: worker.job.run_id.to_owned(),
    }
}

/// Process 0 commits; the others wait for its word.
fn publish(
    worker: &mut Worker<'_>,
    output: &Output,
    path: &RunPath,
    (mut manifest, state): (Manifest, Option<StateManifest>),
) -> Result<Outcome> {
    let request = worker.job.request;
    let encoded = worker.stage("publish", None, |worker| {
        if worker.shell.index != 0 {
            return Ok(Vec::new());
        }
        if let Some(state) = &state {
            manifest.state = Some(output.put_state(path, state)?);
        }
        output.put(&path.file("_plan.json"), to_json(&worker.job.plan)?)?;
        if !request.publish {
            return Ok(Vec::new());
        }
        let published_at = rfc3339((request.clock)());
        let published = output.publish(path, &manifest, &published_at, request.force)?;
        let (Published::New(current) | Published::Already(current)) = published;
        Ok(serde_json::to_vec(&current)?)
    })?;
    worker.remove_checkpoints();
    if !request.publish {
        return Ok(Outcome::NotPublished { manifest: Box::new(manifest) });
    }
    worker.account_for(worker.stages.len() - 1, &manifest)?;
    let first = (worker.shell.index == 0).then(|| encoded.into());
    let current = worker.shell.collectives.broadcast(0, first);
    let current: Current =
        serde_json::from_slice(&current).context("the commit of process 0 cannot be read")?;
    if current.run_id != worker.job.run_id {
        return Ok(Outcome::AlreadyPublished { current });
    }
    Ok(Outcome::Published { current, manifest: Box::new(manifest) })
}
