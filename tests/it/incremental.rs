//! Runs that go on from the last one, by the binary, on one process and on several.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::TimestampMicrosecondType;
use serde_json::Value;

use crate::fixture::{Sandbox, batch, column, digests, read_parquet, shuffled, write_parquet};

const SPEC: &str = r#"
name = "days"
shards = 8
[[events]]
url = "log/"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[history]
window_days = 60
half_life_days = 30
[popularity]
[debias]
[item_neighbors]
[als]
n_factors = 8
iterations = 2
[top_k]
k = 10
candidates = { als = 1.0, item_neighbors = 1.0 }
[output]
url = "out/"
"#;

struct Shop {
    sandbox: Sandbox,
    events: RecordBatch,
}

impl Shop {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let sizes = ["--users", "2000", "--items", "300", "--events", "40000"];
        let made = sandbox.tidemill(&[&["generate", "shop"], &sizes[..]].concat());
        assert!(made.status.success());
        sandbox.spec(SPEC);
        let events = read_parquet(&sandbox.path("shop/events.parquet"));
        let events = concat_batches(&events[0].schema(), &events).unwrap();
        Self { events: shuffled(&events, 11), sandbox }
    }

    /// Writes some of the events as a file of the log.
    fn write(&self, name: &str, rows: std::ops::Range<usize>) {
        let rows = self.events.slice(rows.start, rows.len());
        write_parquet(&self.sandbox.path("log").join(name), &rows, 1_000);
    }

    /// Runs the job from the last state; the tables must be those of a run without state. Gives what the
    /// stages say.
    fn run(&self, processes: &str) -> Value {
        let flags = ["--since-last", "--local-processes", processes, "--threads", "1"];
        let outcome = self.sandbox.run(&flags);
        let full = self.sandbox.run(&["--set", "output.url=full/", "--force"]);
        let (found, wanted) = (digests(&outcome["manifest"]), digests(&full["manifest"]));
        assert_eq!(found, wanted, "{processes} processes");
        outcome["manifest"].clone()
    }

    /// How many of the events weigh something: the others are counted and go no further.
    fn listed(&self, rows: std::ops::Range<usize>) -> i64 {
        let events = column(&self.events.slice(rows.start, rows.len()), "event");
        events.iter().filter(|event| ["view", "purchase"].contains(&event.as_str())).count() as i64
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.sandbox.tidemill(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn of_stage<'a>(manifest: &'a Value, stage: &str, key: &str) -> &'a Value {
    let stages = manifest["stages"].as_array().unwrap();
    &stages.iter().find(|found| found["name"] == stage).unwrap()[key]
}

#[test]
fn a_log_that_grows_and_changes_is_followed_by_any_number_of_processes() {
    let shop = Shop::new();
    shop.write("day-1.parquet", 0..30_000);
    let first = shop.run("1");
    assert_eq!(of_stage(&first, "state", "shards_rewritten"), 8);
    let steps: [(&str, &dyn Fn(), &str); 5] = [
        ("a new day", &|| shop.write("day-2.parquet", 30_000..31_000), "3"),
        ("another", &|| shop.write("day-3.parquet", 31_000..31_400), "1"),
        ("late rows in an old file", &|| shop.write("day-2.parquet", 29_900..31_050), "2"),
        ("a file twice", &|| shop.write("copy.parquet", 31_000..31_400), "3"),
        ("a file less", &|| fs::remove_file(shop.sandbox.path("log/day-3.parquet")).unwrap(), "2"),
    ];
    assert_eq!(first["changes_since"], Value::Null);
    for (generation, (what, change, processes)) in (1..).zip(steps) {
        change();
        let manifest = shop.run(processes);
        assert_eq!(manifest["changes_since"]["generation"], generation, "{what}");
        let rows_of = |table: &str| -> u64 {
            let files = manifest["files"].as_array().unwrap().iter();
            let files = files.filter(|file| file["table"] == table);
            files.map(|file| file["rows"].as_u64().unwrap()).sum()
        };
        let (changes, rows) = (rows_of("user_top_k_changes"), rows_of("user_top_k"));
        assert!(0 < changes && changes < 2 * rows, "{what}: {changes} changes of {rows} rows");
        assert_eq!(rows_of("user_factors_changes"), 0, "{what}");
        assert_eq!(of_stage(&manifest, "state", "shards_rewritten"), 0, "{what}");
        let changed = of_stage(&manifest, "state", "rows_changed").as_i64().unwrap();
        let wanted = match what {
            "a new day" => shop.listed(30_000..31_000),
            "late rows in an old file" => shop.listed(29_900..30_000) + shop.listed(31_000..31_050),
            _ => shop.listed(31_000..31_400),
        };
        // Equal rows are one change.
        assert!((wanted - 20..=wanted).contains(&changed), "{what}: {changed} rows changed");
    }
    let shown = shop.json(&["state", "show", "job.toml", "--json"]);
    assert_eq!(shown["runs_of_a_shard_max"], 6, "{shown}");
    let verified = shop.json(&["state", "verify", "out", "--json"]);
    assert_eq!(verified["problems"], serde_json::json!([]));
    let rows = [0..30_000, 29_900..31_050, 31_000..31_400].map(|rows| shop.listed(rows));
    assert_eq!(verified["found"]["rows"], rows.iter().sum::<i64>());
    let compacted = shop.json(&["state", "compact", "job.toml", "--json"]);
    assert_eq!(of_stage(&compacted["manifest"], "state", "shards_rewritten"), 8);
    let shown = shop.json(&["state", "show", "job.toml", "--json"]);
    assert_eq!(shown["runs_of_a_shard_max"], 1);
}

#[test]
fn state_that_is_damaged_is_told() {
    let shop = Shop::new();
    shop.write("day-1.parquet", 0..3_000);
    shop.run("1");
    let parts = fs::read_dir(shop.sandbox.path("out/state")).unwrap().next().unwrap().unwrap();
    let part = parts.path().join("rows-00003.parquet");
    let mut bytes = fs::read(&part).unwrap();
    bytes[40] ^= 1;
    fs::write(&part, bytes).unwrap();
    let output = shop.sandbox.tidemill(&["state", "verify", "job.toml"]);
    assert_eq!(output.status.code(), Some(65));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("rows-00003.parquet\" has SHA-256"), "{out}");
    assert!(err.contains("tidemill state rebuild"), "{err}");
    let none = shop.sandbox.tidemill(&["state", "show", "full"]);
    assert_eq!(none.status.code(), Some(66));
}

#[test]
fn a_backfill_publishes_each_day_as_a_daily_schedule_would_have_done() {
    let shop = Shop::new();
    shop.write("all.parquet", 0..6_000);
    let times = shop.events.column_by_name("timestamp").unwrap();
    let times = times.as_primitive::<TimestampMicrosecondType>().values();
    let last = jiff::Timestamp::from_microsecond(*times.iter().max().unwrap()).unwrap();
    let last = last.to_zoned(jiff::tz::TimeZone::UTC).date();
    let days: Vec<String> = (0..3i64)
        .map(|ago| last.checked_sub(jiff::Span::new().days(2 - ago)).unwrap().to_string())
        .collect();
    let from_to = ["run", "job.toml", "--from", &days[0], "--to", &days[2]];
    let done = shop.sandbox.tidemill(&from_to);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let manifests = |output: &str| -> Vec<Value> {
        let runs = shop.json(&["runs", output, "--json"]);
        let runs = runs["runs"].as_array().unwrap().iter().rev();
        let manifest = |run: &Value| {
            let path = shop.sandbox.path(output).join(run["manifest"].as_str().unwrap());
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        };
        runs.map(manifest).collect()
    };
    let found = manifests("out");
    let dates: Vec<&str> = found.iter().map(|run| run["logical_date"].as_str().unwrap()).collect();
    assert_eq!(dates, days);
    for day in &days {
        shop.sandbox.run(&["--date", day, "--set", "output.url=daily/"]);
    }
    let wanted = manifests("daily");
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(digests(found), digests(wanted), "{}", found["logical_date"]);
        assert_eq!(found["counts"]["rows_filtered"], wanted["counts"]["rows_filtered"]);
    }
    assert_eq!(of_stage(&found[2], "state", "rows_changed"), 0, "the log is the same");
    // Again, all of it is there already.
    assert!(shop.sandbox.tidemill(&from_to).status.success());
    assert_eq!(manifests("out").len(), 3);
    let backwards = ["run", "job.toml", "--from", &days[2], "--to", &days[0]];
    assert_eq!(shop.sandbox.tidemill(&backwards).status.code(), Some(64));
}

#[test]
fn who_is_deleted_is_nowhere_and_a_receipt_says_so() {
    let shop = Shop::new();
    let spec = SPEC.replace(
        "[history]",
        "[delete.users]\nurl = \"forget.parquet\"\ncolumn = \"user_id\"\n[history]",
    );
    shop.sandbox.spec(&spec);
    let forget = |users: &[&str]| {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(users));
        shop.sandbox.write("forget.parquet", &batch(&[("user_id", ids)]));
    };
    forget(&["nobody"]);
    shop.write("day-1.parquet", 0..5_000);
    shop.run("1");
    let users = column(&shop.events.slice(0, 5_000), "user_id");
    let (one, other) = (users[17].as_str(), users.iter().find(|user| **user != users[17]).unwrap());
    let named = ["--user", one, "--user", other];
    forget(&[one, other]);
    // A file of the next day does not hold them either.
    shop.write("day-2.parquet", 5_000..6_000);
    let manifest = shop.run("2");
    let gone = manifest["counts"]["rows_filtered"]["deleted_user"].as_u64().unwrap();
    let all = shop.events.slice(0, 6_000);
    let rows = column(&all, "user_id").into_iter().zip(column(&all, "event"));
    let rows = rows.filter(|(user, event)| {
        (user == one || user == other) && ["view", "purchase"].contains(&event.as_str())
    });
    assert_eq!(gone, rows.count() as u64);
    // The first generation still holds them.
    let held = shop.sandbox.tidemill(&["forget-check", "job.toml", "--json"]);
    assert_eq!(held.status.code(), Some(65));
    let held: Value = serde_json::from_slice(&held.stdout).unwrap();
    let holdings = held["holdings"].as_array().unwrap();
    assert!(holdings.iter().all(|holding| holding["generation"] == 1), "{held}");
    for kind in ["/users/", "/user_top_k/", "/user_factors/", "state/"] {
        let is_of = |path: &Value| path.as_str().unwrap().contains(kind);
        assert!(holdings.iter().any(|holding| is_of(&holding["path"])), "{kind} is not in {held}");
    }
    let planned = shop.json(&["gc", "job.toml", "--purge", "--json"]);
    assert_eq!(planned["runs"].as_array().unwrap().len(), 1);
    let purged =
        ["gc", "job.toml", "--purge", "--delete", "--signed-off-by", "A. Person", "--json"];
    let purged = shop.json(&purged);
    let receipt = purged["path"].as_str().unwrap();
    assert_eq!(purged["receipt"]["signed_off_by"], "A. Person");
    assert!(!purged.to_string().contains(one), "a receipt names nobody");
    let clean = shop.json(&[&["forget-check", "out", "--json"], &named[..]].concat());
    assert_eq!(clean["holdings"], serde_json::json!([]));
    assert!(clean["ids"].as_u64().unwrap() > 10_000, "{clean}");
    // What is left is whole, and goes on.
    let verified = shop.json(&["state", "verify", "out", "--json"]);
    assert_eq!(verified["problems"], serde_json::json!([]));
    shop.write("day-3.parquet", 6_000..6_300);
    let manifest = shop.run("3");
    assert_eq!(of_stage(&manifest, "state", "shards_rewritten"), 0);
    let checked = [&["forget-check", "out", "--receipt", receipt, "--json"], &named[..]].concat();
    assert_eq!(shop.json(&checked)["problems"], serde_json::json!([]));
    // Somebody else is not in it, and a receipt that was changed is none.
    let of_others = ["forget-check", "out", "--receipt", receipt, "--user", one];
    assert_eq!(shop.sandbox.tidemill(&of_others).status.code(), Some(65));
    let path = shop.sandbox.path("out").join(receipt);
    let text = fs::read_to_string(&path).unwrap().replace("\"users\": 2", "\"users\": 3");
    fs::write(&path, text).unwrap();
    assert_eq!(shop.sandbox.tidemill(&checked).status.code(), Some(65));
    // Who is there again is read again.
    forget(&[other]);
    let manifest = shop.run("1");
    let left_out = manifest["counts"]["rows_filtered"]["deleted_user"].as_u64().unwrap();
    assert!(0 < left_out && left_out < gone, "{left_out} of {gone}");
}
