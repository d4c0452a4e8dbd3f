//! Metrics of a run, for the textfile collector of node_exporter or for a Pushgateway.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use super::{post, variable, warn};
use crate::run::Report;

/// Every metric with what it means. All are gauges with the label `spec`, the name of the job.
const METRICS: [(&str, &str); 16] = [
    ("tidemill_last_run_timestamp_seconds", "When the last run ended, whatever came of it."),
    ("tidemill_last_run_exit_code", "Exit code of the last run."),
    ("tidemill_last_success_timestamp_seconds", "When a run last published, or had nothing to do."),
    ("tidemill_published_as_of_timestamp_seconds", "End of the history in the last published run."),
    ("tidemill_run_duration_seconds", "Wall clock of the last run."),
    ("tidemill_stage_duration_seconds", "Wall clock of a stage of the last run that came to it."),
    ("tidemill_rows", "Rows of the logs by what became of them."),
    ("tidemill_reject_share", "Share of the rows that were rejected."),
    ("tidemill_fallback_share", "Share of the rows of lists that no ranker put there."),
    ("tidemill_catalog_coverage", "Share of the catalog that the lists hold."),
    ("tidemill_gate_passed", "1 where a gate was passed, 0 where it was not."),
    ("tidemill_peak_memory_bytes", "Most memory that the process held."),
    ("tidemill_store_requests", "Requests to stores by kind."),
    ("tidemill_store_retries", "HTTP requests that failed and were sent again."),
    ("tidemill_store_bytes", "Bytes of objects read and written."),
    ("tidemill_table_rows", "Rows of each table of the last run that wrote it."),
];

/// A value with the labels beside `spec`.
type Sample = (&'static str, Vec<(&'static str, String)>, f64);

/// Writes to where `TIDEMILL_PROMETHEUS_FILE` says, and pushes to `TIDEMILL_PROMETHEUS_PUSH_URL`.
///
/// A failed run leaves metrics as they were that it knows nothing of: the file is read for that, and
/// a Pushgateway keeps what is not sent.
pub(super) fn tell(report: &Report) {
    let (file, url) =
        (variable("TIDEMILL_PROMETHEUS_FILE"), variable("TIDEMILL_PROMETHEUS_PUSH_URL"));
    let samples = samples(report);
    if let Some(path) = file {
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let text = exposition(report, &samples) + &kept(&before, &samples);
        warn("Prometheus", &path, replace(Path::new(&path), &text));
    }
    if let Some(url) = url {
        let name: String = url::form_urlencoded::byte_serialize(report.name.as_bytes()).collect();
        let name = name.replace('+', "%20");
        let url = format!("{}/metrics/job/tidemill/spec/{name}", url.trim_end_matches('/'));
        post("Prometheus", &url, "text/plain; version=0.0.4", None, exposition(report, &samples));
    }
}

/// A reader sees the old file or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("prom.new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

fn samples(report: &Report) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut add = |name, labels: &[(&'static str, &str)], value| {
        let labels = labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        samples.push((name, labels, value));
    };
    let ended = seconds(&report.finished_at);
    let is_success = report.exit_code == 0 && report.outcome != "not_published";
    add("tidemill_last_run_timestamp_seconds", &[], ended);
    add("tidemill_last_run_exit_code", &[], report.exit_code.into());
    if is_success {
        add("tidemill_last_success_timestamp_seconds", &[], ended);
    }
    if let ("published", Some(as_of)) = (report.outcome, &report.as_of) {
        add("tidemill_published_as_of_timestamp_seconds", &[], seconds(as_of));
    }
    add("tidemill_run_duration_seconds", &[], report.seconds);
    for stage in &report.stages {
        add("tidemill_stage_duration_seconds", &[("stage", &stage.name)], stage.seconds);
    }
    let count = |key: &str| report.counts.get(key).and_then(serde_json::Value::as_f64);
    if let Some(used) = count("rows_used") {
        add("tidemill_rows", &[("state", "used"), ("reason", "")], used);
    }
    for (key, state) in [("rows_filtered", "filtered"), ("rows_rejected", "rejected")] {
        let reasons = report.counts.get(key).and_then(serde_json::Value::as_object);
        for (reason, rows) in reasons.into_iter().flatten() {
            let rows = rows.as_f64().unwrap_or(0.0);
            add("tidemill_rows", &[("state", state), ("reason", reason)], rows);
        }
    }
    if let Some(share) = report.reject_share() {
        add("tidemill_reject_share", &[], share);
    }
    if let (Some(rows), Some(fallback)) = (count("list_rows"), count("list_rows_fallback"))
        && rows > 0.0
    {
        add("tidemill_fallback_share", &[], fallback / rows);
    }
    if let Some(coverage) = report.gates.iter().find(|gate| gate.name == "catalog_coverage") {
        add("tidemill_catalog_coverage", &[], coverage.value);
    }
    for gate in &report.gates {
        add("tidemill_gate_passed", &[("gate", &gate.name)], u8::from(gate.passed).into());
    }
    if let Some(bytes) = report.peak_memory_bytes {
        add("tidemill_peak_memory_bytes", &[], bytes as f64);
    }
    for (kind, requests) in &report.store.requests {
        add("tidemill_store_requests", &[("kind", kind)], *requests as f64);
    }
    add("tidemill_store_retries", &[], report.store.http_retries as f64);
    add("tidemill_store_bytes", &[("direction", "read")], report.store.bytes_read as f64);
    add("tidemill_store_bytes", &[("direction", "written")], report.store.bytes_written as f64);
    for (table, rows) in &report.table_rows {
        add("tidemill_table_rows", &[("table", table)], *rows as f64);
    }
    samples
}

fn seconds(time: &str) -> f64 {
    let time: Option<jiff::Timestamp> = time.parse().ok();
    time.map_or(f64::NAN, |time| time.as_microsecond() as f64 / 1e6)
}

/// The text format of Prometheus, metric by metric.
fn exposition(report: &Report, samples: &[Sample]) -> String {
    let mut text = String::new();
    for (name, help) in METRICS {
        let mut of_metric = samples.iter().filter(|(of, _, _)| *of == name).peekable();
        if of_metric.peek().is_some() {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        }
        for (_, labels, value) in of_metric {
            let _ = write!(text, "{name}{{spec=\"{}\"", escaped(&report.name));
            for (key, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
                let _ = write!(text, ",{key}=\"{}\"", escaped(value));
            }
            let _ = writeln!(text, "}} {value}");
        }
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Lines of an earlier text about metrics that have no sample now.
fn kept(before: &str, samples: &[Sample]) -> String {
    let now: BTreeSet<&str> = samples.iter().map(|(name, _, _)| *name).collect();
    let metric = |line: &str| {
        let line = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        line.split(['{', ' ']).next().unwrap_or_default().to_owned()
    };
    let known = |name: &str| METRICS.iter().any(|(known, _)| *known == name);
    let kept = before.lines().filter(|line| {
        let name = metric(line);
        known(&name) && !now.contains(name.as_str())
    });
    kept.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_now_stays_as_it_was() {
        let before = "# HELP tidemill_last_success_timestamp_seconds x\n\
                      # TYPE tidemill_last_success_timestamp_seconds gauge\n\
                      tidemill_last_success_timestamp_seconds{spec=\"a\"} 5\n\
                      tidemill_last_run_exit_code{spec=\"a\"} 0\nother_metric 3\n";
        let samples = [("tidemill_last_run_exit_code", Vec::new(), 65.0)];
        let kept = kept(before, &samples);
        assert_eq!(kept.lines().count(), 3, "{kept}");
        assert!(kept.ends_with("tidemill_last_success_timestamp_seconds{spec=\"a\"} 5\n"));
    }

    #[test]
    fn names_of_jobs_are_quoted() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
