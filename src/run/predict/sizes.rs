//! How much there is: what memory, network and time are predicted from.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::job::plan::{FilePlan, Plan};
use crate::run::scan::block_rows;
use crate::store::{IoRuntime, Manifest, Output, PublishedFile};

/// How much there is, over all processes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Rows that are read.
    pub rows_read: u64,
    /// Rows that go on from the scan: of a sample of users its share.
    pub rows: u64,
    /// Their bytes as they are packed for the shuffle.
    pub packed_bytes: u64,
    /// Users with a row that counts.
    pub users: u64,
    /// Distinct items.
    pub items: u64,
    /// Their ids' bytes on the wire.
    pub item_id_bytes: u64,
    /// Items with enough users.
    pub items_eligible: u64,
    /// Pairs of a user and an item.
    pub pairs: u64,
    /// Sum over users of the square of their number of pairs.
    pub pairs_squared: f64,
    /// Pairs of a segment and an item.
    pub segment_items: u64,
    /// Entries of all neighbor lists.
    pub neighbors: u64,
    /// Iterations of ALS.
    pub iterations: u64,
}

/// Sizes that the user knows better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Users.
    pub users: Option<u64>,
    /// Items.
    pub items: Option<u64>,
    /// Pairs of a user and an item.
    pub pairs: Option<u64>,
}

/// Where sizes come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum SizesFrom {
    /// Nothing is known: every row is a pair, users and items are a tenth of the rows.
    Assumptions,
    /// From the command line, the rest assumed.
    Hints {
        /// What was given.
        given: Vec<&'static str>,
    },
    /// From the run that readers see, in proportion to the rows.
    LastRun {
        /// Its name.
        run_id: String,
        /// Rows now, as a multiple of the rows then.
        rows_ratio: f64,
        /// What the command line says instead.
        given: Vec<&'static str>,
    },
}

/// Lengths of histories are taken for lognormal: the mean of their squares is this many times the
/// square of their mean, as for a standard deviation of 1.05 of their logarithm. (MovieLens 100K: 1.9.)
const SQUARE_OF_SKEW: f64 = 3.0;

/// Segments of users, if there are any.
const SEGMENTS_ASSUMED: u64 = 16;

/// Bytes of a text id, about.
const TEXT_ID_BYTES: u64 = 12;

impl Sizes {
    /// Of a plan alone, as [`predicted_memory`](super::super::predicted_memory) assumes them.
    fn assumed(plan: &Plan, hints: Hints) -> Self {
        let rows_read = rows_read(plan);
        let rows = (rows_read as f64 * plan.sample_users.unwrap_or(1.0)).ceil() as u64;
        let tenth = (rows / 10).max(1);
        let users = hints.users.unwrap_or(tenth).max(1);
        let items = hints.items.unwrap_or(tenth).max(1);
        let pairs = hints.pairs.unwrap_or(rows.min(users.saturating_mul(items)));
        let text = if plan.item_id_type.is_int() { 0 } else { TEXT_ID_BYTES };
        let mut sizes = Self {
            rows_read,
            rows,
            packed_bytes: rows * packed_row_bytes(plan, users, items),
            users,
            items,
            item_id_bytes: items * (8 + text),
            items_eligible: items,
            pairs,
            pairs_squared: 0.0,
            segment_items: plan.spec.users.as_ref().map_or(0, |_| SEGMENTS_ASSUMED * items),
            neighbors: 0,
            iterations: plan.spec.als.as_ref().map_or(0, |als| als.iterations as u64),
        };
        sizes.assume_lengths(plan);
        sizes
    }

    /// What follows from users, items and pairs.
    fn assume_lengths(&mut self, plan: &Plan) {
        let (pairs, users) = (self.pairs as f64, self.users.max(1) as f64);
        let cap = plan.spec.history.interactions_per_user_max as f64;
        let longest = cap.min(self.items_eligible as f64);
        self.pairs_squared = (pairs + SQUARE_OF_SKEW * pairs * pairs / users).min(pairs * longest);
        let n_neighbors = plan.spec.item_neighbors.as_ref().map_or(0, |of| of.n_neighbors as u64);
        let others = n_neighbors.min(self.items_eligible.saturating_sub(1));
        self.neighbors = (self.items_eligible * others).min(self.pairs_squared as u64);
    }

    /// What a run found, by what its manifest says of it; `None` where an older version wrote it.
    pub fn of_manifest(manifest: &Manifest) -> Option<Self> {
        let number = |counts: &Map<String, Value>, key: &str| counts.get(key)?.as_u64();
        let counts = &manifest.counts;
        let sizes = counts.get("sizes")?.as_object()?;
        let of_als = manifest.stages.iter().find(|stage| stage.name == "als");
        let iterations = of_als.and_then(|stage| number(&stage.more, "iterations"));
        let neighbors = manifest.files.iter().filter(|file| file.table == "item_neighbors");
        Some(Self {
            rows_read: number(counts, "rows")?,
            rows: number(sizes, "packed_rows")?,
            packed_bytes: number(sizes, "packed_bytes")?,
            users: number(counts, "users")?,
            items: number(counts, "items")?,
            item_id_bytes: number(sizes, "item_id_bytes")?,
            items_eligible: number(counts, "items_eligible")?,
            pairs: number(counts, "interactions")?,
            pairs_squared: number(sizes, "interactions_squared")? as f64,
            segment_items: number(sizes, "segment_items")?,
            neighbors: neighbors.map(|file: &PublishedFile| file.rows).sum(),
            iterations: iterations.unwrap_or(0),
        })
    }

    /// The same log, longer or shorter.
    fn scaled(self, ratio: f64) -> Self {
        let scaled = |size: u64| (size as f64 * ratio).ceil() as u64;
        Self {
            rows_read: scaled(self.rows_read),
            rows: scaled(self.rows),
            packed_bytes: scaled(self.packed_bytes),
            users: scaled(self.users),
            items: scaled(self.items),
            item_id_bytes: scaled(self.item_id_bytes),
            items_eligible: scaled(self.items_eligible),
            pairs: scaled(self.pairs),
            pairs_squared: self.pairs_squared * ratio,
            segment_items: scaled(self.segment_items),
            neighbors: scaled(self.neighbors),
            iterations: self.iterations,
        }
    }

    /// Bytes of the gathered histories, as they are coded.
    pub(in crate::run) fn coded_bytes(&self, weighted: bool) -> f64 {
        /// A weight of 1 is 2^16 units: three groups of seven bits, and heavier ones take four.
        const AFFINITY_BYTES: f64 = 3.5;
        let length = self.pairs_squared / self.pairs.max(1) as f64;
        let gap = self.items_eligible as f64 / (length + 1.0);
        // Gaps between the sorted items of a history are about exponential.
        let item_bytes = 1.0 + (-128.0 / gap).exp() + (-16_384.0 / gap).exp();
        let affinity = if weighted { AFFINITY_BYTES } else { 0.0 };
        self.users as f64 + self.pairs as f64 * (item_bytes + affinity)
    }
}

/// Rows of the files that are read, by their footers.
fn rows_read(plan: &Plan) -> u64 {
    plan.sources.iter().flat_map(|source| &source.files).map(FilePlan::rows).sum()
}

/// A row on its way to its shard: user, item, kind, value, time and digest in whole bytes.
fn packed_row_bytes(plan: &Plan, users: u64, items: u64) -> u64 {
    let width = |n: u64| u64::from(u64::BITS - n.leading_zeros()).div_ceil(8);
    let any = |has: fn(&crate::schema::EventColumns) -> bool| {
        plan.sources.iter().any(|source| has(&source.columns))
    };
    let user = match plan.user_id_type.is_int() {
        true => width(users),
        false => text_user_bytes(plan, users),
    };
    let of_column = |has: bool, bytes: u64| if has { bytes } else { 0 };
    user + width(items)
        + of_column(any(|columns| columns.event.is_some()), 1)
        + of_column(any(|columns| columns.value.is_some()), 4)
        + of_column(any(|columns| columns.time.is_some()), 6)
        + of_column(any(|columns| columns.id.is_some()), 4)
}

/// A code per row, and the id once per block.
fn text_user_bytes(plan: &Plan, users: u64) -> u64 {
    let rows = block_rows(plan.n_shards, plan.user_id_type) as f64;
    let users = users as f64 / f64::from(plan.n_shards);
    let distinct = users * (1.0 - (-rows / users).exp());
    2 + ((TEXT_ID_BYTES + 2) as f64 * distinct / rows).ceil() as u64
}

/// The run that readers see, scaled to the rows of the plan; none where nothing is published.
pub(super) fn of_last_run(
    runtime: &IoRuntime,
    plan: &Plan,
    base: &Path,
) -> Result<Option<(Sizes, SizesFrom)>> {
    // A folder that is not there holds no run.
    let Ok(output) = Output::open(runtime, &plan.spec.output.url, base) else { return Ok(None) };
    let Some(current) = output.read_current()? else { return Ok(None) };
    let manifest = output.read_manifest(&current)?;
    let Some(then) = Sizes::of_manifest(&manifest) else { return Ok(None) };
    // Of a sample of users, the rows of the others do not count.
    let filtered = manifest.counts.get("rows_filtered");
    let not_sampled = filtered.and_then(|of| of.get("not_sampled")).and_then(Value::as_u64);
    let rows_then = then.rows_read.saturating_sub(not_sampled.unwrap_or(0));
    if rows_then == 0 {
        return Ok(None);
    }
    let now = Sizes::assumed(plan, Hints::default());
    let rows_ratio = now.rows as f64 / rows_then as f64;
    let mut sizes = then.scaled(rows_ratio);
    sizes.rows_read = now.rows_read;
    // The spec may ask for other models than it did then.
    let spec = &plan.spec;
    let listed = spec.item_neighbors.as_ref().map_or(0, |of| of.n_neighbors as u64);
    sizes.neighbors = match then.neighbors {
        0 => sizes.items_eligible * listed,
        _ => sizes.neighbors.min(sizes.items_eligible * listed),
    };
    let asked = spec.als.as_ref().map_or(0, |als| als.iterations as u64);
    let may_stop = spec.als.as_ref().is_some_and(|als| als.loss_tolerance.is_some());
    sizes.iterations = match then.iterations {
        then if then > 0 && may_stop => then.min(asked),
        _ => asked,
    };
    let from = SizesFrom::LastRun { run_id: current.run_id, rows_ratio, given: Vec::new() };
    Ok(Some((sizes, from)))
}

/// Hints over the last run over assumptions.
pub(super) fn hinted(
    plan: &Plan,
    last: Option<(Sizes, SizesFrom)>,
    hints: Hints,
) -> (Sizes, SizesFrom) {
    let hinted = [("users", hints.users), ("items", hints.items), ("pairs", hints.pairs)];
    let given: Vec<&'static str> =
        hinted.iter().filter(|(_, hint)| hint.is_some()).map(|(name, _)| *name).collect();
    match last {
        None if given.is_empty() => (Sizes::assumed(plan, hints), SizesFrom::Assumptions),
        None => (Sizes::assumed(plan, hints), SizesFrom::Hints { given }),
        Some((sizes, from)) if given.is_empty() => (sizes, from),
        Some((last, from)) => {
            let mut sizes = last;
            sizes.users = hints.users.unwrap_or(last.users).max(1);
            sizes.pairs = hints.pairs.unwrap_or(last.pairs);
            if let Some(items) = hints.items {
                sizes.items = items.max(1);
                sizes.items_eligible = items.max(1);
                sizes.item_id_bytes = last.item_id_bytes / last.items.max(1) * items;
            }
            sizes.assume_lengths(plan);
            let from = match from {
                SizesFrom::LastRun { run_id, rows_ratio, .. } => {
                    SizesFrom::LastRun { run_id, rows_ratio, given }
                }
                other => other,
            };
            (sizes, from)
        }
    }
}
