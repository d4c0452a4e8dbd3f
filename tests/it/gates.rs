//! What keeps a run from its readers, and who is told how a run went.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray};
use serde_json::Value;

use crate::fixture::{Sandbox, batch};

const DAY: i64 = 86_400_000_000;
/// 2026-11-20.
const START: i64 = 20_777 * DAY;

const SPEC: &str = r#"
name = "gates"
[[events]]
url = "log/"
columns = { user = "user", item = "item", time = "time" }
partition_date = "dt"
[items]
url = "items.parquet"
columns = { item = "item" }
[popularity]
[item_neighbors]
[top_k]
k = 3
exclude_seen = false
[output]
url = "out/"
"#;

fn text(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// `rows` events of one day, spread over 4 users and 4 items.
fn put_day(sandbox: &Sandbox, day: i64, rows: usize) {
    let pick = |names: [&'static str; 4], by: usize| -> Vec<&str> {
        (0..rows).map(|row| names[row / by % 4]).collect()
    };
    let times: Vec<i64> = (0..rows).map(|row| START + day * DAY + row as i64).collect();
    let times = Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"));
    let events = batch(&[
        ("user", text(&pick(["a", "b", "c", "d"], 1))),
        ("item", text(&pick(["w", "x", "y", "z"], 3))),
        ("time", times),
    ]);
    sandbox.write(&format!("log/dt=2026-11-{}/1.parquet", 20 + day), &events);
}

fn shop(catalog: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.spec(SPEC);
    put_day(&sandbox, 0, 24);
    put_day(&sandbox, 1, 24);
    sandbox.write("items.parquet", &batch(&[("item", text(catalog))]));
    sandbox
}

const CATALOG: [&str; 5] = ["v", "w", "x", "y", "z"];

fn gate(outcome: &Value, name: &str) -> Value {
    let gates = outcome["manifest"]["gates"].as_array().unwrap();
    gates.iter().find(|gate| gate["name"] == name).unwrap().clone()
}

#[test]
fn the_last_day_must_be_there_before_a_run_for_it() {
    let sandbox = shop(&CATALOG);
    sandbox.refused(75, &["\"log/\"", "\"dt=2026-11-22\"", "run again"], &["--date", "2026-11-22"]);
    let outcome = sandbox.run(&["--date", "2026-11-21"]);
    assert_eq!(outcome["manifest"]["counts"]["rows"], 48);
    let anyway = ["--date", "2026-11-22", "--set", "gates.last_day_required=false"];
    assert_eq!(sandbox.run(&anyway)["manifest"]["logical_date"], "2026-11-22");
}

#[test]
fn the_newest_event_may_not_be_too_old() {
    let sandbox = shop(&CATALOG);
    // A folder that is there and holds the events of another day.
    put_day(&sandbox, 2, 0);
    let age = |days: &str| format!("gates.newest_event_age_days_max={days}");
    let refused = ["--date", "2026-11-22", "--set", &age("1")];
    sandbox.refused(75, &["2026-11-21T00:00:00.000023Z", "2.00 days before"], &refused);
    let outcome = sandbox.run(&["--date", "2026-11-22", "--set", &age("2")]);
    let age = gate(&outcome, "newest_event_age_days")["value"].as_f64().unwrap();
    assert!((1.9..2.0).contains(&age), "{age}");
    // Without a date the clock counts, and these events are not of today.
    sandbox.run(&["--force", "--set", "gates.newest_event_age_days_max=100000"]);
}

#[test]
fn a_log_that_is_too_short_is_refused_by_its_footers() {
    let sandbox = shop(&CATALOG);
    let set = |rows: u64| format!("gates.rows_per_log_min={rows}");
    sandbox.refused(65, &["\"log/\"", "48 rows", "rows_per_log_min is 49"], &["--set", &set(49)]);
    let outcome = sandbox.run(&["--set", &set(48)]);
    assert_eq!(gate(&outcome, "rows_per_log")["passed"], true);
}

#[test]
fn rows_are_held_against_those_of_the_day_before() {
    let sandbox = shop(&CATALOG);
    let band = ["--set", "gates.rows_ratio_min=0.9", "--set", "gates.rows_ratio_max=1.5"];
    let day = |date: &'static str| [&["--date", date][..], &band].concat();
    assert!(sandbox.run(&day("2026-11-20"))["manifest"]["gates"].as_array().unwrap().len() == 1);
    let refused = |date, words: &[&str]| {
        let output = sandbox.tidemill(&[&["run", "job.toml"][..], &day(date)].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    };
    refused("2026-11-21", &["2.000 times the 24", "2026-11-20 (generation 1)", "ratio_max is 1.5"]);
    sandbox.run(&["--date", "2026-11-21"]);
    // Half of the first day is gone: a run for the 21st looks at the 20th, a later one at both.
    put_day(&sandbox, 0, 4);
    put_day(&sandbox, 2, 4);
    refused("2026-11-22", &["0.667 times the 48", "(generation 2)", "rows_ratio_min is 0.9"]);
    let runs = sandbox.tidemill(&["runs", "job.toml", "--json"]);
    let runs: Value = serde_json::from_slice(&runs.stdout).unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 2, "nothing was published");
}

#[test]
fn lists_must_hold_enough_of_the_catalog() {
    let names: Vec<String> = (0..60).map(|number| format!("other{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain(CATALOG).collect();
    let sandbox = shop(&names);
    sandbox.refused(65, &["4 of the 65 items", "(0.062)", "catalog_coverage_min is 0.1"], &[]);
    let run = |share: &str| sandbox.run(&["--set", &format!("gates.catalog_coverage_min={share}")]);
    assert_eq!(gate(&run("0.06"), "catalog_coverage")["value"], 4.0 / 65.0);
    // What the catalog or a deny list takes out is not expected.
    let sandbox = shop(&names);
    sandbox.write("denied.parquet", &batch(&[("item", text(&names[..60]))]));
    sandbox.spec(&SPEC.replace(
        "[popularity]",
        "[deny]\nitems = { url = \"denied.parquet\", column = \"item\" }\n[popularity]",
    ));
    assert_eq!(gate(&sandbox.run(&[]), "catalog_coverage")["value"], 0.8);
}

#[test]
fn lists_must_not_be_of_the_fallback_alone() {
    let sandbox = shop(&CATALOG);
    let no_ranker = [
        ("item_neighbors.users_per_pair_min", "100"),
        ("gates.fallback_share_max", "0.5"),
        ("top_k.fallback", "popularity"),
    ];
    let sets: Vec<String> = no_ranker
        .iter()
        .flat_map(|(key, value)| ["--set".into(), format!("{key}={value}")])
        .collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    sandbox.refused(65, &["12 of 12 rows", "fallback_share_max is 0.5"], &sets);
}

fn reports(folder: &Path) -> Vec<Value> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap()).collect()
}

#[test]
fn every_run_leaves_a_report() {
    let sandbox = shop(&CATALOG);
    let outcome = sandbox.run(&[]);
    let run = outcome["manifest"]["run_id"].as_str().unwrap();
    let path = sandbox.path(&format!("out/runs/2026-11-21/{run}/_report.json"));
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!((&report["outcome"], &report["kind"]), (&"published".into(), &"ok".into()));
    assert_eq!(report["current"]["generation"], 1);
    assert_eq!(report["input"][0]["rows"], 48);
    assert_eq!(report["counts"], outcome["manifest"]["counts"]);
    assert_eq!(report["table_rows"]["user_top_k"], 12);
    assert!(report["store"]["bytes_written"].as_u64().unwrap() > 1_000, "{report}");
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1_000_000, "{report}");

    let failing = ["run", "job.toml", "--force", "--set", "gates.catalog_coverage_min=1"];
    assert_eq!(sandbox.tidemill(&failing).status.code(), Some(65));
    let failed = reports(&sandbox.path("out/_failed"));
    assert_eq!(failed.len(), 1);
    let report = &failed[0];
    assert_eq!((&report["outcome"], &report["exit_code"]), (&"failed".into(), &65.into()));
    assert_eq!(report["gates"][0]["passed"], false);
    assert!(report["error"].as_str().unwrap().contains("4 of the 5 items"), "{report}");
    assert_eq!(report["counts"]["list_rows"], 12);

    let missing = ["run", "job.toml", "--set", "events.0.columns.user=nobody"];
    assert_eq!(sandbox.tidemill(&missing).status.code(), Some(65));
    let failed = reports(&sandbox.path("out/_failed"));
    let early = failed.iter().find(|report| report["stage"] == "plan").unwrap();
    assert_eq!(early["retryable"], false);
    let gc = sandbox.tidemill(&["gc", "job.toml", "--grace-hours", "0", "--delete"]);
    assert!(gc.status.success());
    assert!(reports(&sandbox.path("out/_failed")).is_empty(), "gc keeps reports of failed runs");
}

/// Answers every request with 200 and gives the bodies.
fn receiver(n_requests: usize) -> (String, std::thread::JoinHandle<Vec<(String, String)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = std::thread::spawn(move || {
        let one = || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
            loop {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.to_lowercase().lines().find_map(|line| {
                        line.strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap())
                    });
                    if body.len() >= length.unwrap() {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                        return (head.to_owned(), body.to_owned());
                    }
                }
                let read = stream.read(&mut part).unwrap();
                assert!(read > 0, "the request ended early: {text}");
                bytes.extend_from_slice(&part[..read]);
            }
        };
        (0..n_requests).map(|_| one()).collect()
    });
    (url, received)
}

/// Where a run tells what it does, in the folder of a test.
fn told(sandbox: &Sandbox) -> Vec<(&'static str, String)> {
    let path = |name: &str| sandbox.path(name).display().to_string();
    vec![
        ("TIDEMILL_TERMINATION_LOG", path("termination")),
        ("TIDEMILL_PROMETHEUS_FILE", path("tidemill.prom")),
        ("TIDEMILL_OPENLINEAGE_FILE", path("lineage.ndjson")),
    ]
}

fn read(sandbox: &Sandbox, name: &str) -> String {
    fs::read_to_string(sandbox.path(name)).unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn others_are_told_how_a_run_went() {
    let sandbox = shop(&CATALOG);
    let environment = told(&sandbox);
    let run =
        |more: &[&str]| sandbox.tidemill_in(&environment, &[&["run", "job.toml"], more].concat());
    assert_eq!(code(&run(&[])), Some(0));
    let line: Value = serde_json::from_str(&read(&sandbox, "termination")).unwrap();
    assert_eq!((&line["kind"], &line["generation"]), (&"ok".into(), &1.into()));
    let metrics = read(&sandbox, "tidemill.prom");
    for sample in [
        "tidemill_last_run_exit_code{spec=\"gates\"} 0\n",
        "tidemill_rows{spec=\"gates\",state=\"used\"} 48\n",
        "tidemill_catalog_coverage{spec=\"gates\"} 0.8\n",
        "tidemill_gate_passed{spec=\"gates\",gate=\"catalog_coverage\"} 1\n",
        "tidemill_published_as_of_timestamp_seconds{spec=\"gates\"} 1795219200.000024\n",
        "tidemill_table_rows{spec=\"gates\",table=\"user_top_k\"} 12\n",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in {metrics}");
    }
    let success = |metrics: &str| {
        let mut lines = metrics.lines();
        lines.rfind(|line| line.contains("last_success_timestamp_seconds{")).map(str::to_owned)
    };
    let before = success(&metrics).unwrap();

    assert_eq!(code(&run(&["--force", "--set", "gates.catalog_coverage_min=1"])), Some(65));
    let line: Value = serde_json::from_str(&read(&sandbox, "termination")).unwrap();
    assert_eq!((&line["code"], &line["retryable"]), (&65.into(), &false.into()));
    assert!(line["message"].as_str().unwrap().contains("4 of the 5 items"), "{line}");
    let metrics = read(&sandbox, "tidemill.prom");
    assert!(metrics.contains("tidemill_last_run_exit_code{spec=\"gates\"} 65\n"), "{metrics}");
    assert!(metrics.contains("gate=\"catalog_coverage\"} 0\n"), "{metrics}");
    assert_eq!(success(&metrics).unwrap(), before, "the last success stays");

    let events: Vec<Value> = read(&sandbox, "lineage.ndjson")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> =
        events.iter().map(|event| event["eventType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["START", "COMPLETE", "START", "FAIL"]);
    assert_eq!(events[0]["run"]["runId"], events[1]["run"]["runId"]);
    let outputs = events[1]["outputs"].as_array().unwrap();
    let name = |dataset: &Value| dataset["name"].as_str().unwrap().to_owned();
    let lists = outputs.iter().find(|output| name(output).ends_with("out/tables/user_top_k"));
    assert_eq!(lists.unwrap()["outputFacets"]["outputStatistics"]["rowCount"], 12);
    assert_eq!(events[1]["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"], 48);
    assert!(events[3]["run"]["facets"]["errorMessage"]["message"].is_string());

    // A spec that is wrong ends before there is a run to report.
    assert_eq!(code(&run(&["--set", "top_k.k=0"])), Some(78));
    let line: Value = serde_json::from_str(&read(&sandbox, "termination")).unwrap();
    assert_eq!((&line["kind"], &line["code"]), (&"config".into(), &78.into()));
}

#[test]
fn receivers_over_http_are_told_and_none_of_them_fails_a_run() {
    let sandbox = shop(&CATALOG);
    let (url, received) = receiver(3);
    let environment = [
        ("OPENLINEAGE_URL", url.clone()),
        ("OPENLINEAGE_API_KEY", "planted-token".to_owned()),
        ("TIDEMILL_PROMETHEUS_PUSH_URL", format!("{url}/")),
    ];
    let output = sandbox.tidemill_in(&environment, &["run", "job.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let received = received.join().unwrap();
    let lines: Vec<&str> = received.iter().map(|(head, _)| head.lines().next().unwrap()).collect();
    let lineage = "POST /api/v1/lineage HTTP/1.1";
    assert_eq!(lines, [lineage, lineage, "POST /metrics/job/tidemill/spec/gates HTTP/1.1"]);
    assert!(received[0].0.contains("planted-token") && !received[0].1.contains("planted-token"));
    assert!(received[2].1.contains("tidemill_last_success_timestamp_seconds{spec=\"gates\"}"));

    // Nobody listens, and no file can be written.
    let deaf = [
        ("OPENLINEAGE_URL", "http://user:planted-password@127.0.0.1:9".to_owned()),
        ("TIDEMILL_PROMETHEUS_FILE", "/nowhere/at/all.prom".to_owned()),
        ("TIDEMILL_OPENLINEAGE_FILE", "/nowhere/at/all.ndjson".to_owned()),
        ("TIDEMILL_TERMINATION_LOG", "/nowhere/at/all".to_owned()),
    ];
    let output = sandbox.tidemill_in(&deaf, &["run", "job.toml", "--force", "-vv"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("OpenLineage was not told"), "{stderr}");
    assert!(stderr.contains("/nowhere/at/all.prom") && !stderr.contains("planted"), "{stderr}");
}
