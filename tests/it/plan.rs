//! `tidemill plan` on several processes, and `tidemill calibrate`'s file.

use serde_json::Value;

use crate::fixture::Sandbox;

const SPEC: &str = r#"
name = "planned"
[[events]]
url = "shop/events.parquet"
columns = { user = "user_id", item = "item_id", time = "timestamp" }
[popularity]
[als]
n_factors = 8
iterations = 2
[top_k]
k = 5
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

fn plan(sandbox: &Sandbox, more: &[&str]) -> Value {
    let output = sandbox.tidemill(&[&["plan", "job.toml", "--json"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn sizes_come_from_hints_or_the_last_run() {
    let sandbox = shop();
    let assumed = plan(&sandbox, &[])["prediction"].clone();
    assert_eq!(assumed["sizes_from"]["from"], "assumptions");
    assert_eq!(assumed["sizes"]["users"], 800);
    assert_eq!(assumed["bytes_sent_total"], 0);
    let hinted = plan(&sandbox, &["--users", "400", "--processes", "3"])["prediction"].clone();
    assert_eq!(hinted["sizes_from"]["given"][0], "users");
    assert_eq!(hinted["sizes"]["users"], 400);
    assert!(hinted["bytes_sent_total"].as_u64().unwrap() > 0);
    let counts = sandbox.run(&[])["manifest"]["counts"].clone();
    let last = plan(&sandbox, &["--processes", "3"])["prediction"].clone();
    assert_eq!(last["sizes_from"]["from"], "last_run");
    assert_eq!(last["sizes_from"]["rows_ratio"], 1.0);
    for (size, count) in [("users", "users"), ("items", "items"), ("pairs", "interactions")] {
        assert_eq!(last["sizes"][size], counts[count]);
    }
    let text = sandbox.tidemill(&["plan", "job.toml", "--processes", "3", "--threads", "2"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for word in ["memory each", "all send", "top-k lists", "3 processes of 2 threads", "of run"] {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

#[test]
fn unit_costs_come_from_a_file() {
    let sandbox = shop();
    let shipped = include_str!("../../src/run/predict/unit_costs.toml");
    let list_row = shipped.lines().find(|line| line.starts_with("list_row")).unwrap();
    let slow = shipped.replace(list_row, "list_row = 1e9");
    std::fs::write(sandbox.path("slow.toml"), slow).unwrap();
    let seconds = |plan: Value| plan["prediction"]["seconds"].as_f64().unwrap();
    assert!(seconds(plan(&sandbox, &[])) < 10.0);
    assert!(seconds(plan(&sandbox, &["--unit-costs", "slow.toml"])) > 1_000.0);
    let environment = [("TIDEMILL_UNIT_COSTS", "slow.toml".to_owned())];
    let output = sandbox.tidemill_in(&environment, &["plan", "job.toml", "--json"]);
    assert!(seconds(serde_json::from_slice(&output.stdout).unwrap()) > 1_000.0);
    for (file, code) in [("nowhere.toml", 66), ("job.toml", 64)] {
        let output = sandbox.tidemill(&["plan", "job.toml", "--unit-costs", file]);
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8_lossy(&output.stderr).contains(file));
    }
}
