//! The command line as a user meets it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::{Sandbox, digests};

const SPEC: &str = r#"
name = "cli"
[[events]]
url = "shop/events.parquet"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[items]
url = "shop/items.parquet"
columns = { item = "item_id", title = "title" }
[popularity]
[item_neighbors]
[top_k]
k = 5
exclude_seen = ["purchase"]
[output]
url = "out/"
"#;

fn shop() -> Sandbox {
    let sandbox = Sandbox::new();
    let flags = ["--users", "80", "--items", "40", "--events", "2000"];
    assert!(sandbox.tidemill(&[&["generate", "shop"][..], &flags].concat()).status.success());
    sandbox.spec(SPEC);
    sandbox
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.extend([path])
        };
    }
    found
}

#[test]
fn every_command_has_help_with_examples() {
    let sandbox = Sandbox::new();
    for command in ["run", "check", "plan", "calibrate", "show", "search", "init", "generate"] {
        let output = sandbox.tidemill(&[command, "--help"]);
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && help.contains("Examples:"), "{command}: {help}");
    }
    assert_eq!(sandbox.tidemill(&["fly"]).status.code(), Some(64));
}

#[test]
fn what_is_published_is_not_published_again() {
    let sandbox = shop();
    let first = sandbox.run(&[]);
    assert_eq!(first["outcome"], "published");
    let before = files(&sandbox.path("out"));
    assert_eq!(sandbox.run(&[])["outcome"], "already_published");
    assert_eq!(files(&sandbox.path("out")), before);
    let forced = sandbox.run(&["--force"]);
    assert_eq!(forced["current"]["generation"], 2);
    assert_eq!(digests(&forced["manifest"]), digests(&first["manifest"]));
}

#[test]
fn nothing_is_committed_without_publishing() {
    let sandbox = shop();
    assert_eq!(sandbox.run(&["--no-publish"])["outcome"], "not_published");
    assert!(!sandbox.path("out/_log").exists() && !sandbox.path("out/current.json").exists());
    assert_eq!(sandbox.run(&[])["outcome"], "published");
}

#[test]
fn yesterday_is_corrected_behind_today() {
    let sandbox = shop();
    let current = || -> Value {
        serde_json::from_slice(&std::fs::read(sandbox.path("out/current.json")).unwrap()).unwrap()
    };
    sandbox.run(&["--date", "2026-11-22"]);
    let mut today = current();
    sandbox.run(&["--date", "2026-11-21"]);
    // Only what the log was when `current.json` was written is new.
    today["log_generation"] = 2.into();
    assert_eq!(current(), today);
    assert_eq!(today["logical_date"], "2026-11-22");
    assert!(sandbox.path("out/_log/00000000000000000002.json").exists());
}

#[test]
fn a_run_ends_with_a_summary_that_holds_no_ids_where_it_is_kept() {
    let sandbox = shop();
    let output = sandbox.tidemill(&["run", "job.toml"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["published 2026-11-22 as generation 1", "user_top_k", "read_parquet"] {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    // Lists of users are for terminals: what is written elsewhere is kept, as the log of a pod is.
    assert!(!text.contains("because of") && !text.contains("u00000"), "{text}");
    assert!(text.lines().count() <= 50, "{text}");
    let again = sandbox.tidemill(&["run", "job.toml"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("published already"));
}

#[test]
fn show_tells_users_and_items() {
    let sandbox = shop();
    assert_eq!(
        sandbox.tidemill(&["show", "job.toml", "--user", "u000000001"]).status.code(),
        Some(66)
    );
    sandbox.run(&[]);
    let show = |args: &[&str]| {
        let output = sandbox.tidemill(&[&["show", "job.toml", "--json"], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let user = show(&["--user", "u000000001"]);
    let list = user["list"]["entries"].as_array().unwrap();
    assert_eq!(list.len(), 5);
    assert!(!user["history"].as_array().unwrap().is_empty());
    let item = show(&["--item", list[0]["item"].as_str().unwrap()]);
    assert_eq!(item["tables"][0]["table"], "items");
    assert!(!item["neighbors"].as_array().unwrap().is_empty());
    let unknown = sandbox.tidemill(&["show", "job.toml", "--item", "nothing"]);
    assert_eq!(unknown.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("\"nothing\""));
}

#[test]
fn init_writes_a_spec_that_fits() {
    let sandbox = shop();
    let output = sandbox.tidemill(&["init", "shop/events.parquet", "--out", "new.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let check = sandbox.tidemill(&["check", "new.toml"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let text = std::fs::read_to_string(sandbox.path("new.toml")).unwrap();
    assert!(text.contains("undoes = \"purchase\""), "{text}");
    let again = sandbox.tidemill(&["init", "shop/events.parquet", "--out", "new.toml"]);
    assert_eq!(again.status.code(), Some(64));
}
