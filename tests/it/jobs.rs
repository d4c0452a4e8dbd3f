//! Every job that comes with the project parses, fits its input and plans.

use std::path::Path;
use std::process::Command;

#[test]
fn every_job_plans() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let mut n_jobs = 0;
    for entry in std::fs::read_dir(root.join("jobs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let data = root.join("jobs/quickstart");
        let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
            .args(["plan", path.to_str().unwrap(), "--json", "--date", "2026-11-22"])
            .env("EVENTS_URL", data.join("events.parquet"))
            .env("ITEMS_URL", data.join("items.parquet"))
            .env("USERS_URL", data.join("users.parquet"))
            .env("OUTPUT_URL", out.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {stderr}", path.display());
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(plan["plan"]["n_rows"], 20_000, "{}", path.display());
        n_jobs += 1;
    }
    assert!(n_jobs >= 5, "{n_jobs} jobs");
}
