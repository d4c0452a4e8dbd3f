//! The section about what must hold before readers see a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Days, Spec};

/// What must hold before a run is published. Where it does not, nothing is published and readers
/// keep what they have: input that is not there yet ends with exit code 75 ("try again later"), all
/// else with 65. Results are in the manifest and in the run's report. None of these changes a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gates {
    /// Whether each log with `partition_date` must have a folder of the last day before `as_of`,
    /// where `--date` or `--as-of` says when that is. Exit code 75 otherwise.
    pub last_day_required: bool,
    /// Most time between the newest event and `as_of`, or the start of the run where neither
    /// `--date` nor `--as-of` is given. Exit code 75 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "not checked"), example = 1.5)]
    pub newest_event_age_days_max: Option<Days>,
    /// Fewest rows of each log, by its footers and after folders are left out by date.
    #[schemars(extend("x-unit" = "rows"), example = 1_000_000)]
    pub rows_per_log_min: u64,
    /// Fewest rows used, as a multiple of those of the last run: the newest of an earlier day that
    /// is not withdrawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("x-default" = "not checked"), example = 0.5)]
    pub rows_ratio_min: Option<f64>,
    /// Most rows used, as a multiple of those of the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("x-default" = "not checked"), example = 2.0)]
    pub rows_ratio_max: Option<f64>,
    /// Most rows of lists that no ranker put there, as a share of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 1),
        extend("x-unit" = "share of list rows", "x-default" = "not checked"),
        example = 0.3
    )]
    pub fallback_share_max: Option<f64>,
    /// Fewest different items in the lists of all users, as a share of the items of `[items]` that
    /// may be recommended. Needs `[items]` and `[top_k]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 1),
        extend("x-unit" = "share of items", "x-default" = "0.1 with `[items]` and `[top_k]`"),
        example = 0.3
    )]
    pub catalog_coverage_min: Option<f64>,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            last_day_required: true,
            newest_event_age_days_max: None,
            rows_per_log_min: 0,
            rows_ratio_min: None,
            rows_ratio_max: None,
            fallback_share_max: None,
            catalog_coverage_min: None,
        }
    }
}

const CATALOG_COVERAGE_MIN: f64 = 0.1;

impl Spec {
    /// See [`Gates::catalog_coverage_min`], the default filled in; `None` where the catalog is not
    /// known or there are no lists.
    pub fn catalog_coverage_min(&self) -> Option<f64> {
        let known = self.items.is_some() && self.top_k.is_some();
        known.then(|| self.gates.catalog_coverage_min.unwrap_or(CATALOG_COVERAGE_MIN))
    }
}
