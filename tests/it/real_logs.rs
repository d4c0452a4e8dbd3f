//! Real logs through the real command. They are read where `TIDEMILL_DATA` points; without it these
//! tests say so and pass, and CI always sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::fixture::{Sandbox, column, read_parquet};

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("TIDEMILL_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("TIDEMILL_DATA is not set: real logs are not tested");
    }
    folder
}

/// Runs a spec of `tests/specs` into `out/` of the sandbox.
fn run(sandbox: &Sandbox, data: &Path, spec: &str, more: &[&str]) -> Value {
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/specs").join(spec);
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["run", spec.to_str().unwrap(), "--json"])
        .args(more)
        .env("TIDEMILL_DATA", data.canonicalize().unwrap())
        .env("OUTPUT_URL", sandbox.path("out"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn pairs(path: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut pairs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for batch in read_parquet(path) {
        for (user, item) in column(&batch, "user_id").into_iter().zip(column(&batch, "item_id")) {
            pairs.entry(user).or_default().insert(item);
        }
    }
    pairs
}

/// Mean precision at 10 over the users of the test half; no list may hold a training item.
fn precision_at_10(sandbox: &Sandbox, outcome: &Value, data: &Path) -> f64 {
    let train = pairs(&data.join("movielens-100k/mcrec_train.parquet"));
    let test = pairs(&data.join("movielens-100k/mcrec_test.parquet"));
    let lists = sandbox.table(outcome, "user_top_k");
    let mut hits: BTreeMap<String, usize> = BTreeMap::new();
    for (user, item) in column(&lists, "user_id").into_iter().zip(column(&lists, "item_id")) {
        assert!(
            !train.get(&user).is_some_and(|seen| seen.contains(&item)),
            "{user} has seen {item}"
        );
        let hit = test.get(&user).is_some_and(|relevant| relevant.contains(&item));
        *hits.entry(user).or_default() += usize::from(hit);
    }
    test.keys().map(|user| hits[user] as f64 / 10.0).sum::<f64>() / test.len() as f64
}

#[test]
fn movielens_split_reaches_the_published_quality() {
    let Some(data) = data() else { return };
    let sandbox = Sandbox::new();
    let outcome = run(&sandbox, &data, "movielens_split.toml", &[]);
    let precision = precision_at_10(&sandbox, &outcome, &data);
    assert!(precision >= 0.325, "cosine neighbors reach {precision:.4}");
    let sandbox = Sandbox::new();
    let outcome = run(&sandbox, &data, "movielens_als.toml", &[]);
    let precision = precision_at_10(&sandbox, &outcome, &data);
    assert!(precision >= 0.36, "factors reach {precision:.4}");
    let sandbox = Sandbox::new();
    let outcome = run(&sandbox, &data, "movielens_popularity.toml", &[]);
    let precision = precision_at_10(&sandbox, &outcome, &data);
    assert!((precision - 0.19).abs() <= 0.002, "popularity reaches {precision:.4}");
}

#[test]
fn movielens_runs_with_titles_and_segments() {
    let Some(data) = data() else { return };
    let sandbox = Sandbox::new();
    let outcome = run(&sandbox, &data, "movielens.toml", &[]);
    let counts = &outcome["manifest"]["counts"];
    assert_eq!(counts["rows_used"], 100_000);
    assert_eq!(counts["users"], 943);
    assert_eq!(counts["items"], 1_682);
    assert_eq!(counts["list_rows"], 9_430);
    let items = sandbox.table(&outcome, "items");
    let star_wars = column(&items, "title").iter().position(|title| title == "Star Wars");
    let popularity = sandbox.table(&outcome, "item_popularity");
    let rank = column(&popularity, "rank")[star_wars.unwrap()].clone();
    assert_eq!(rank, "1");
}

#[test]
fn complete_journey_runs_with_quantities_and_naive_times() {
    let Some(data) = data() else { return };
    let sandbox = Sandbox::new();
    let outcome = run(&sandbox, &data, "complete_journey.toml", &[]);
    let counts = &outcome["manifest"]["counts"];
    assert_eq!(counts["rows"], 75_000);
    let zero = counts["rows_filtered"]["value_zero"].as_u64().unwrap();
    assert!(zero > 0 && counts["rows_used"].as_u64().unwrap() + zero == 75_000, "{counts}");
    assert!(
        counts["users"].as_u64().unwrap() <= 2_377 && counts["users"].as_u64().unwrap() > 2_300
    );
    let lists = sandbox.table(&outcome, "user_top_k");
    assert_eq!(lists.num_rows() as u64, counts["users"].as_u64().unwrap() * 20);
    let id_type = lists.column_by_name("user_id").unwrap().data_type().clone();
    assert_eq!(id_type, arrow::datatypes::DataType::LargeUtf8);
}
