//! The spec: what the user wrote, with the defaults of absent keys filled in.
//!
//! The doc comments of these fields are the users' documentation: `jobs/README.md` and the JSON
//! Schema for editors are made from them, and the ranges and word lists declared here are the ones
//! that are checked.

mod als;
mod checkpoints;
mod gates;
mod incremental;
mod input;
mod models;
mod output;
mod store;
mod values;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use als::{Als, AlsDialect, AlsGathered, AlsSolver, ConfidenceScale};
pub use checkpoints::Checkpoints;
pub use gates::Gates;
pub use incremental::Incremental;
pub use input::{
    Delete, Deny, EVERY_ROW, EventColumns, Events, IdList, ItemColumns, Items, Negative, TimeUnit,
    UserColumns, Users, ValueScale, Weight,
};
pub use models::{
    Candidates, Combine, Counted, Debias, ExcludeSeen, Fallback, History, HistoryWeights,
    ItemNeighbors, Popularity, Ranker, Shape, Similarity, TopK,
};
pub use output::{EmbeddingType, Output, VectorType, Vectors, VectorsOf};
pub use store::Store;
pub use values::{ByteSize, Days, FilterValue, Values};

/// A job: what is read, what is computed, where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Tidemill job spec")]
pub struct Spec {
    /// Name of the job: letters, digits, `-` and `_`.
    #[schemars(extend("format" = "name"), example = &"nightly")]
    pub name: String,
    /// IANA name of the zone in which days begin and end, and of timestamps that have no zone.
    #[serde(default = "utc")]
    #[schemars(extend("format" = "time-zone"), example = &"Europe/Stockholm")]
    pub time_zone: String,
    /// Number of shards the users are dealt to, a power of two up to 4096. It decides the number
    /// of files per table and is part of what makes two runs equal byte for byte; the number of
    /// processes is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 1, max = 4096),
        extend(
            "enum" = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
            "x-default" = "one per 262,144 rows, rounded down to a power of two"
        ),
        example = 16
    )]
    pub shards: Option<u32>,
    /// The logs that are read, one `[[events]]` each.
    #[schemars(length(min = 1))]
    pub events: Vec<Events>,
    /// A table of the items: titles for people, filters for lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Items>,
    /// A table of the users: segments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Users>,
    /// Items and users that must not come out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<Deny>,
    /// Users and items whose events are as good as never read. The tables are those of a log without
    /// them, `rejects` aside, which counts unusable rows by place; state holds none of their rows and
    /// ids from the next run on. `tidemill forget-check` proves it, `tidemill gc --purge` removes the
    /// generations from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete: Option<Delete>,
    /// Which events count, and how much.
    #[serde(default)]
    #[schemars(extend("x-default" = "the defaults of its keys"))]
    pub history: History,
    /// Table `item_popularity`: events, users, weight and trend of each item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub popularity: Option<Popularity>,
    /// Table `debias_weights`: propensity, inverse-propensity weight and popularity discount of
    /// each item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debias: Option<Debias>,
    /// Table `item_neighbors`: for each item, the items that the same users have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_neighbors: Option<ItemNeighbors>,
    /// Tables `item_factors` and `user_factors`, and a ranker of the lists: implicit ALS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub als: Option<Als>,
    /// Tables `user_top_k` and `default_top_k`: what to recommend to each user, and to visitors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<TopK>,
    /// When to refuse.
    #[serde(default)]
    #[schemars(extend("x-default" = "the defaults of its keys"))]
    pub limits: Limits,
    /// When to keep readers on the last run.
    #[serde(default)]
    #[schemars(extend("x-default" = "the defaults of its keys"))]
    pub gates: Gates,
    /// How object stores are reached; nothing of it changes a result.
    #[serde(default)]
    #[schemars(extend("x-default" = "the defaults of its keys"))]
    pub store: Store,
    /// What a run saves on its way: histories, item neighbors, factors, and which files it has
    /// written. A run that died is continued by the next one on the same input and spec, with any
    /// number of processes, to the same bytes: at most one stage, or `als_iterations` iterations, are
    /// done again. A checkpoint that is missing or damaged costs time and never a run; all are
    /// removed once the run is published. Nothing of it changes a result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Checkpoints>,
    /// What a run keeps so that the next one reads only what changed: the rows of the logs by user, in
    /// `state/` below the output. It is published with the tables, shared by later generations, and
    /// kept by `tidemill gc` as long as one of them needs it. A change of `[[events]]`, `time_zone`,
    /// `[deny] users`, `shards` or the type of ids makes the next run read everything again. Nothing
    /// of it changes a result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incremental: Option<Incremental>,
    /// Where the results are published.
    pub output: Output,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// When to refuse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most memory a process may use: an integer, or text with a unit such as `"8GiB"`. A run that
    /// would need more is refused before it starts.
    #[schemars(extend("x-default" = "`\"8GiB\"`"), example = &"24GiB")]
    pub memory_bytes_max: ByteSize,
    /// Share of all rows that may be rejected (unreadable, NaN, time out of range, …) before the
    /// run refuses to publish. Filtered rows (too old, no user, …) do not count.
    #[schemars(range(min = 0, max = 1), extend("x-unit" = "share of rows"), example = 0.01)]
    pub reject_share_max: f64,
    /// Most files of the logs that may be left out because they are damaged: truncated, corrupt, or
    /// larger unpacked than can be. Each is left out whole, and named in the manifest. A store that
    /// does not answer is never taken for a damaged file.
    #[schemars(extend("x-unit" = "files"), example = 2)]
    pub bad_files_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes_max: ByteSize(8 << 30), reject_share_max: 0.001, bad_files_max: 0 }
    }
}

impl Events {
    /// The weights that apply: those written, or the weight of every row under [`EVERY_ROW`] where
    /// the log has no event column.
    pub fn weights_or_default(&self) -> BTreeMap<String, Weight> {
        if self.columns.event.is_some() || !self.weights.is_empty() {
            return self.weights.clone();
        }
        let value =
            if self.columns.value.is_some() { ValueScale::Linear } else { ValueScale::None };
        BTreeMap::from([(EVERY_ROW.to_owned(), Weight { value, ..Weight::plain(1.0) })])
    }
}

impl Spec {
    /// Whether every log says when things happened.
    pub fn has_time(&self) -> bool {
        self.events.iter().all(|log| log.columns.time.is_some())
    }

    /// Whether a run keeps state for the next one, and goes on from that of the last.
    pub fn is_incremental(&self) -> bool {
        self.incremental.as_ref().is_some_and(|section| section.enabled)
    }

    /// Whether a run tells what is different since the last one.
    pub fn tells_changes(&self) -> bool {
        self.incremental.as_ref().is_some_and(|section| section.enabled && section.changes)
    }

    /// Whether a run lists files of the last one that are as they were.
    pub fn shares_files(&self) -> bool {
        self.incremental.as_ref().is_some_and(|section| section.enabled && section.share_files)
    }

    /// The rankers of the lists with their weights, defaults filled in; none without `[top_k]`.
    pub fn candidates(&self) -> Candidates {
        match &self.top_k {
            None => Candidates::default(),
            Some(TopK { candidates: Some(written), .. }) => written.clone(),
            Some(_) if self.als.is_some() || self.item_neighbors.is_some() => Candidates {
                als: self.als.as_ref().map(|_| 1.0),
                item_neighbors: self.item_neighbors.as_ref().map(|_| 1.0),
                popularity: None,
            },
            Some(_) => Candidates {
                popularity: self.popularity.as_ref().map(|_| 1.0),
                ..Candidates::default()
            },
        }
    }

    /// What fills the places that candidates leave empty, the default filled in.
    pub fn fallback(&self) -> Fallback {
        let written = self.top_k.as_ref().and_then(|top_k| top_k.fallback);
        let default = if self.popularity.is_some() { Fallback::Popularity } else { Fallback::None };
        written.unwrap_or(default)
    }

    /// This spec with every default written out, also those that depend on other keys.
    ///
    /// `shards` stays absent: its default depends on the data.
    pub fn with_defaults(&self) -> Self {
        let mut spec = self.clone();
        for log in &mut spec.events {
            log.weights = log.weights_or_default();
        }
        spec.als = self.als.as_ref().map(Als::with_defaults);
        if let Some(top_k) = &mut spec.top_k {
            top_k.candidates = Some(self.candidates());
            top_k.fallback = Some(self.fallback());
            top_k.n_candidates = Some(top_k.n_candidates());
        }
        spec.gates.catalog_coverage_min = self.catalog_coverage_min();
        spec
    }

    /// Canonical TOML of the spec with every default written out: equal jobs, equal text, however
    /// they were written. Loads back to the same job.
    pub fn resolved(&self) -> String {
        let mut value = toml::Value::try_from(self.with_defaults())
            .expect("a spec is made of tables, lists, text, numbers and booleans");
        escape_dollars(&mut value);
        toml::to_string(&value).expect("a TOML value has a text")
    }
}

fn escape_dollars(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => *text = text.replace('$', "$$"),
        toml::Value::Array(values) => values.iter_mut().for_each(escape_dollars),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| escape_dollars(value)),
        _ => {}
    }
}

impl Spec {
    /// The tables that a run of this job publishes.
    pub fn table_names(&self) -> Vec<&'static str> {
        let mut names = vec!["items", "users", "rejects"];
        if self.popularity.is_some() {
            names.push("item_popularity");
        }
        if self.popularity.is_some() && self.users.is_some() {
            names.push("item_popularity_by_segment");
        }
        if self.debias.is_some() {
            names.push("debias_weights");
        }
        if self.item_neighbors.is_some() {
            names.push("item_neighbors");
        }
        if self.als.is_some() {
            names.extend(["item_factors", "user_factors"]);
        }
        if let Some(top_k) = &self.top_k {
            names.push(match top_k.shape {
                Shape::Rows => "user_top_k",
                Shape::Lists => "user_top_k_lists",
            });
            if self.popularity.is_some() {
                names.push("default_top_k");
            }
        }
        names
    }
}
