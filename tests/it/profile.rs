//! `tidemill run --profile-stages`: what each stage took, as a table and as JSON.

use serde_json::Value;

use crate::fixture::Sandbox;

const N_FACTORS: f64 = 8.0;
const ITERATIONS: usize = 3;

const SPEC: &str = r#"
name = "profiled"
shards = 4
[[events]]
url = "shop/events.parquet"
columns = { user = "user_id", item = "item_id", time = "timestamp" }
[popularity]
[item_neighbors]
n_neighbors = 20
[als]
n_factors = 8
iterations = 3
[top_k]
k = 5
candidates = { als = 1.0 }
[output]
url = "out/"
"#;

fn shop() -> Sandbox {
    let sandbox = Sandbox::new();
    let args = ["generate", "shop", "--users", "400", "--items", "90", "--events", "8000"];
    assert!(sandbox.tidemill(&args).status.success());
    sandbox.spec(SPEC);
    sandbox
}

const FLAGS: [&str; 3] = ["--profile-stages", "--profile-stages-out", "profile.json"];

fn profile(sandbox: &Sandbox) -> Value {
    serde_json::from_slice(&std::fs::read(sandbox.path("profile.json")).unwrap()).unwrap()
}

fn stage<'a>(profile: &'a Value, name: &str) -> &'a Value {
    let stages = profile["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// One iteration by hand: both halves of three steps, two Gram matrices and the loss. Plain pairs are
/// added once per half, and have a score for the loss.
fn flop(users: f64, items: f64, pairs: f64, plain: f64) -> f64 {
    let products = 4.0;
    let weighing = (pairs - plain) * N_FACTORS * (2.0 * products * 4.0 + 2.0);
    let of_pairs = weighing + plain * N_FACTORS * (2.0 * 2.0 + 2.0);
    let of_rows = products * 2.0 * N_FACTORS * N_FACTORS + N_FACTORS * (N_FACTORS + 1.0);
    of_pairs + (users + items) * of_rows
}

#[test]
fn stages_say_what_they_took() {
    let sandbox = shop();
    let output = sandbox.tidemill(&[&["run", "job.toml", "--json"], &FLAGS[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    // What is on stdout is still one JSON value, and its stages have the same numbers.
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let profile = profile(&sandbox);
    assert_eq!(stage(&outcome["manifest"], "als"), stage(&profile, "als"));
    let names: Vec<&str> = profile["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    #[rustfmt::skip]
    assert_eq!(names, [
        "plan", "scan", "shuffle", "side tables", "histories", "popularity", "write popularity",
        "item neighbors", "write neighbors", "als", "write factors", "top-k lists", "publish",
    ]);
    for word in names.iter().chain(&["between them", "FLOP/s", " additions/s", " rows/s"]) {
        assert!(stderr.contains(word), "{word:?} is not in {stderr}");
    }
    let als = stderr.lines().find(|line| line.starts_with("als iterations in seconds: "));
    let n_numbers = als.map(|line| line.split("; ").next().unwrap().split(' ').skip(4).count());
    assert_eq!(n_numbers, Some(ITERATIONS), "{stderr}");
    let seconds: f64 = names.iter().map(|name| number(stage(&profile, name), "seconds")).sum();
    assert!(seconds <= number(&profile, "seconds"), "{profile}");
}

#[test]
fn work_is_that_of_the_run() {
    let sandbox = shop();
    let output = sandbox.run(&FLAGS);
    let (counts, profile) = (&output["manifest"]["counts"], profile(&sandbox));
    let work = |name: &str| {
        let stage = stage(&profile, name);
        (number(stage, "work"), stage["work_unit"].as_str().unwrap())
    };
    let [users, items] = ["users", "items_eligible"].map(|key| number(counts, key));
    assert_eq!(work("scan"), (8_000.0, "rows"));
    assert_eq!(work("histories"), (8_000.0, "rows"));
    let squares = number(&counts["sizes"], "interactions_squared");
    assert_eq!(work("item neighbors"), (squares, "additions"));
    let pairs = number(counts, "interactions");
    let iterations = ITERATIONS as f64;
    let fitted = number(counts, "users_with_history");
    // Each event weighs 1, so a pair of one event is plain.
    let plain = number(stage(&profile, "als"), "pairs_plain");
    assert!(0.0 < plain && plain < pairs, "{plain} of {pairs}");
    assert_eq!(work("als"), (iterations * flop(fitted, items, pairs, plain), "flop"));
    assert_eq!(work("top-k lists"), (2.0 * users * items * N_FACTORS, "flop"));
    let als = stage(&profile, "als");
    let seconds: Vec<f64> =
        als["iteration_seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    assert_eq!((seconds.len(), als["loss"].as_array().unwrap().len()), (ITERATIONS, ITERATIONS));
    assert!(seconds.iter().sum::<f64>() <= number(als, "seconds"));
}

#[test]
fn bytes_and_memory_are_those_of_the_stage() {
    let sandbox = shop();
    let outcome = sandbox.run(&FLAGS);
    let profile = profile(&sandbox);
    let log = std::fs::metadata(sandbox.path("shop/events.parquet")).unwrap().len() as f64;
    let read = number(stage(&profile, "scan"), "bytes_read");
    // A file as small as this one is read whole for its footer, too.
    assert!(read > 0.2 * log && read <= 2.2 * log, "{read} of {log}");
    assert_eq!(number(stage(&profile, "als"), "bytes_read"), 0.0);
    let files = outcome["manifest"]["files"].as_array().unwrap();
    let of_lists = files
        .iter()
        .filter(|file| ["user_top_k", "default_top_k"].contains(&file["table"].as_str().unwrap()));
    let bytes: f64 = of_lists.map(|file| number(file, "bytes")).sum();
    assert_eq!(number(stage(&profile, "top-k lists"), "bytes_written"), bytes);
    if !cfg!(target_os = "linux") {
        return;
    }
    // The system sums up what its processors counted, and may be short of what it said before.
    const SLACK: f64 = 1_048_576.0;
    let mut peak = 0.0_f64;
    for stage in profile["stages"].as_array().unwrap() {
        assert!(number(stage, "cpu_seconds") >= 0.0);
        let until_then = number(stage, "memory_bytes_peak");
        assert!(until_then + SLACK >= number(stage, "memory_bytes").max(peak), "{stage}");
        peak = peak.max(until_then);
    }
    assert!(number(&profile, "peak_memory_bytes") + SLACK >= peak);
}

#[test]
fn a_run_that_failed_has_a_profile_too() {
    let sandbox = shop();
    let gate = ["--set", "gates.newest_event_age_days_max=1", "--date", "2040-01-01"];
    let output = sandbox.tidemill(&[&["run", "job.toml"], &FLAGS[..], &gate[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("between them"), "{stderr}");
    let profile = profile(&sandbox);
    assert_eq!(profile["outcome"], "failed");
    assert!(number(stage(&profile, "scan"), "seconds") > 0.0);
    assert_eq!(profile["stages"].as_array().unwrap().len(), 2, "{profile}");
}

#[test]
fn the_first_of_several_processes_tells() {
    let sandbox = shop();
    let processes = ["--local-processes", "2", "--threads", "1"];
    let output = sandbox.tidemill(&[&["run", "job.toml"], &FLAGS[..], &processes[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.matches("between them").count(), 1, "{stderr}");
    assert!(stderr.contains("on 2 processes of 1 thread,"), "{stderr}");
    let profile = profile(&sandbox);
    assert_eq!(profile["cluster"]["processes"], 2);
    assert!(number(stage(&profile, "als"), "bytes_moved") > 0.0);
    assert_eq!(number(stage(&profile, "scan"), "work"), 8_000.0);
}
