//! What the manifest says of a run.

use super::*;
use crate::kernels::dictionary::encoded_len;
use crate::kernels::item_totals::sum_of;

/// RFC 3339; `None` where there is no event with a time.
fn time_of(time_us: i64) -> Option<String> {
    (time_us != i64::MIN && time_us != i64::MAX).then(|| rfc3339(time_us))
}

/// Names the space that the factors of a run lie in: those of two runs do not compare.
fn embedding_space_id(fingerprint: &str) -> String {
    sha256_hex(format!("als {fingerprint}").as_bytes())[..16].to_owned()
}

/// Counts for the manifest.
pub(super) struct Summary<'a> {
    pub(super) counts: &'a ScanCounts,
    pub(super) prepared: &'a Prepared,
    pub(super) lists: &'a ListCounts,
}

impl Summary<'_> {
    /// Adds up what each process knows, and holds rows in against rows used, filtered and rejected.
    pub(super) fn over_processes(&self, worker: &mut Worker<'_>) -> Result<Map<String, Value>> {
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

/// The manifest of a run, but for its state and what it is told beside.
pub(super) fn manifest(
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
