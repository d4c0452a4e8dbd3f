//! What must hold before readers see a run.

use anyhow::{Result, anyhow};
use jiff::civil::Date;

use super::tables::ListCounts;
use super::{Refused, rfc3339};
use crate::job::plan::Plan;
use crate::job::spec::{Gates, Spec};
use crate::store::{Gate, Output};
use crate::types::DAY_US;

/// A gate that was looked at, and the refusal where it did not pass.
pub(super) struct Looked {
    pub(super) gate: Gate,
    pub(super) refusal: Option<anyhow::Error>,
}

impl Looked {
    fn at(gate: Gate, refusal: impl FnOnce() -> anyhow::Error) -> Self {
        let refusal = (!gate.passed).then(refusal);
        Self { gate, refusal }
    }
}

/// A gate with its bounds as the spec has them.
fn gate(name: &str, value: f64, min: Option<f64>, max: Option<f64>) -> Gate {
    let passed = min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max);
    Gate { name: name.to_owned(), value, min, max, passed }
}

/// Whether the logs are long enough; by footers alone.
pub(super) fn rows_per_log(plan: &Plan) -> Option<Looked> {
    let min = plan.spec.gates.rows_per_log_min;
    let rows = plan.sources.iter().map(|log| (log.files.iter().map(|f| f.rows()).sum(), &log.url));
    let (fewest, url): (u64, _) = rows.min().filter(|_| min > 0)?;
    Some(Looked::at(gate("rows_per_log", fewest as f64, Some(min as f64), None), || {
        Refused::bad_data(anyhow!(
            "log \"{url}\" has {fewest} rows, and gates.rows_per_log_min is {min}; nothing is \
             published; complete the log or lower the gate"
        ))
    }))
}

/// Whether the newest event is new enough. Without, the log of the last day is not there yet.
pub(super) fn newest_event(gates: &Gates, newest_us: i64, until_us: i64) -> Option<Looked> {
    let max = gates.newest_event_age_days_max.filter(|_| newest_us != i64::MIN)?;
    let age = (until_us - newest_us) as f64 / DAY_US as f64;
    Some(Looked::at(gate("newest_event_age_days", age, None, Some(max.0)), || {
        Refused::temporary(anyhow!(
            "the newest event is of {}, {age:.2} days before {}, and \
             gates.newest_event_age_days_max is {}; run again when newer events are there",
            rfc3339(newest_us),
            rfc3339(until_us),
            max.0
        ))
    }))
}

/// Whether the rows used are about as many as those of the last run.
pub(super) fn rows_ratio(
    gates: &Gates,
    output: &Output,
    date: Date,
    rows_used: u64,
) -> Result<Option<Looked>> {
    let (min, max) = (gates.rows_ratio_min, gates.rows_ratio_max);
    if min.is_none() && max.is_none() {
        return Ok(None);
    }
    let log = output.read_log()?;
    let Some(last) = log.last_before(&date.to_string()) else { return Ok(None) };
    let counts = output.read_manifest(last)?.counts;
    let rows = counts.get("rows_used").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if rows == 0 {
        return Ok(None);
    }
    let ratio = rows_used as f64 / rows as f64;
    Ok(Some(Looked::at(gate("rows_ratio", ratio, min, max), || {
        let (key, bound) = match min {
            Some(min) if ratio < min => ("min", min),
            _ => ("max", max.unwrap_or_default()),
        };
        Refused::bad_data(anyhow!(
            "{rows_used} rows are used, {ratio:.3} times the {rows} of the run of {} (generation {}), and \
             gates.rows_ratio_{key} is {bound}; nothing is published; repair the input or move the \
             gate",
            last.logical_date,
            last.generation
        ))
    })))
}

/// Whether rankers filled the lists, and with how much of the catalog of `n_catalog` items.
pub(super) fn lists(
    spec: &Spec,
    counts: &ListCounts,
    in_catalog: impl Fn(usize) -> bool,
    n_catalog: u64,
) -> Vec<Looked> {
    let mut gates = Vec::new();
    if let Some(max) = spec.gates.fallback_share_max.filter(|_| counts.rows > 0) {
        let share = counts.fallback_rows as f64 / counts.rows as f64;
        gates.push(Looked::at(gate("fallback_share", share, None, Some(max)), || {
            Refused::bad_data(anyhow!(
                "{} of {} rows of lists are of the fallback ({share:.3}), and \
                 gates.fallback_share_max is {max}; nothing is published; look for users who lost \
                 their histories, or raise the gate",
                counts.fallback_rows,
                counts.rows
            ))
        }));
    }
    if let Some(min) = spec.catalog_coverage_min().filter(|_| n_catalog > 0) {
        let items = 0..counts.recommended.len();
        let n_recommended =
            items.filter(|&item| counts.recommended[item] && in_catalog(item)).count();
        let coverage = n_recommended as f64 / n_catalog as f64;
        gates.push(Looked::at(gate("catalog_coverage", coverage, Some(min), None), || {
            Refused::bad_data(anyhow!(
                "the lists hold {n_recommended} of the {n_catalog} items that may be recommended \
                 ({coverage:.3}), and gates.catalog_coverage_min is {min}; nothing is published; \
                 check that item ids of log and catalog are the same, or lower the gate"
            ))
        }));
    }
    gates
}
