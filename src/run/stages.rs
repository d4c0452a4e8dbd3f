//! The stages of a run in their order.

mod checks;
mod outputs;
mod summary;

use super::*;
use crate::kernels::histories::Calendar;
use crate::types::{DAY_US, Ids};
use checkpoint_parts::{self as parts, Share};
use checks::{check_counts, check_lists, check_memory, check_not_empty, check_rows};
use outputs::{Sources, write_all};
use prepare::Prepared;
use side::{Deleted, ItemFacts, Segments};
use summary::{Summary, manifest};
use tables::{ListCounts, Tables};
use warm_start::WarmStart;

/// Checkpoint of what is read from the logs.
const HISTORIES: &str = "histories";

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

/// When events count: `as_of` from the plan, else just after the newest event.
pub(super) fn calendar(plan: &Plan, counts: &ScanCounts) -> Calendar {
    let newest = (counts.newest_us != i64::MIN).then(|| counts.newest_us + 1);
    // A log without times has all its events at 0.
    let as_of_us = plan.as_of_us.or(newest).unwrap_or(1);
    plan.calendar(as_of_us, counts.oldest_us.min(as_of_us))
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
