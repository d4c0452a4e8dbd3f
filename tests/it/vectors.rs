//! Factors from the log to the answers of a vector file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixture::{Sandbox, column};

const SPEC: &str = r#"
name = "vectors"
shards = 4
[[events]]
url = "shop/events.parquet"
columns = { user = "user_id", item = "item_id", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[items]
url = "shop/items.parquet"
columns = { item = "item_id", title = "title" }
[als]
n_factors = 8
iterations = 5
[top_k]
k = 6
candidates = { als = 1.0 }
exclude_seen = false
fallback = "none"
[output]
url = "out/"
[[output.vectors]]
of = "item_factors"
type = "flat_ip"
[[output.vectors]]
of = "item_factors"
type = "cosine"
[[output.vectors]]
of = "user_factors"
type = "npy"
"#;

fn published(ids: &str) -> (Sandbox, Value) {
    let sandbox = Sandbox::new();
    let flags = ["--users", "90", "--items", "40", "--events", "2000", "--ids", ids];
    let made = sandbox.tidemill(&[&["generate", "shop"][..], &flags].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    sandbox.spec(SPEC);
    let outcome = sandbox.run(&[]);
    (sandbox, outcome)
}

fn vector_files(sandbox: &Sandbox, outcome: &Value, table: &str) -> Vec<PathBuf> {
    let files = outcome["manifest"]["files"].as_array().unwrap();
    let of_table = files.iter().filter(|file| file["table"] == table);
    of_table.map(|file| sandbox.path("out").join(file["path"].as_str().unwrap())).collect()
}

fn search(sandbox: &Sandbox, file: &Path, of: &[&str]) -> Value {
    let args = [&["search", file.to_str().unwrap(), "--json", "--k", "6"], of].concat();
    let output = sandbox.tidemill(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The ids of a search's hits, as the log has them, as text.
fn hits(found: &Value) -> Vec<String> {
    let text = |id: &Value| id.as_str().map_or_else(|| id.to_string(), str::to_owned);
    let hits = found["hits"].as_array().unwrap();
    hits.iter().map(|hit| text(&hit["id"])).collect()
}

#[test]
fn a_user_finds_their_list_in_the_index() {
    for ids in ["string", "int"] {
        let (sandbox, outcome) = published(ids);
        let index = vector_files(&sandbox, &outcome, "item_factors.flat_ip").remove(0);
        let lists = sandbox.table(&outcome, "user_top_k");
        let mut of_user: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (user, item) in column(&lists, "user_id").into_iter().zip(column(&lists, "item_id")) {
            of_user.entry(user).or_default().push(item);
        }
        assert!(of_user.len() > 60, "{} users", of_user.len());
        for (user, items) in of_user.iter().step_by(9) {
            let found = search(&sandbox, &index, &["--user", user]);
            assert_eq!(&hits(&found), items, "user {user}");
        }
    }
}

#[test]
fn an_item_is_not_its_own_neighbor_and_cosines_stay_within_one() {
    let (sandbox, outcome) = published("string");
    let index = vector_files(&sandbox, &outcome, "item_factors.cosine").remove(0);
    let items = sandbox.table(&outcome, "item_factors");
    for item in column(&items, "item_id").iter().step_by(7) {
        let found = search(&sandbox, &index, &["--item", item]);
        assert!(!hits(&found).contains(item), "{found}");
        for hit in found["hits"].as_array().unwrap() {
            let score = hit["score"].as_f64().unwrap();
            assert!((-1.0001..=1.0001).contains(&score), "{found}");
        }
    }
}

#[test]
fn arrays_of_users_have_the_rows_of_their_shards_tables() {
    let (sandbox, outcome) = published("int");
    let arrays = vector_files(&sandbox, &outcome, "user_factors.npy");
    let tables = vector_files(&sandbox, &outcome, "user_factors");
    assert_eq!((arrays.len(), tables.len()), (4, 4));
    for (array, table) in arrays.iter().zip(&tables) {
        let bytes = std::fs::read(array).unwrap();
        let rows: usize = crate::fixture::read_parquet(table).iter().map(|b| b.num_rows()).sum();
        let header = String::from_utf8_lossy(&bytes[..128]).into_owned();
        assert!(header.contains(&format!("({rows}, 8)")), "{header}");
        assert_eq!(bytes.len(), 128 + rows * 8 * 4);
    }
}
