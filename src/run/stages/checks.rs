//! What no run may go on with.

use super::*;
use crate::types::Histories;
use memory::Held;

/// Refuses counts of the scan that no run may go on with.
pub(super) fn check_counts(worker: &mut Worker<'_>, counts: &ScanCounts) -> Result<()> {
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
pub(super) fn check_memory(worker: &mut Worker<'_>, prepared: &Prepared) -> Result<u64> {
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
pub(super) fn check_rows(
    worker: &mut Worker<'_>,
    output: &Output,
    date: Date,
    rows: u64,
) -> Result<()> {
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
pub(super) fn check_lists(
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
pub(super) fn check_not_empty(prepared: &Prepared) -> Result<()> {
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
