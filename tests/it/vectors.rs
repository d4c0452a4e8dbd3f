//! Factors from the log to the answers of a vector file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, StringArray};
use arrow::datatypes::Float32Type;
use serde_json::Value;

use crate::fixture::{Sandbox, batch, column};

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

const DISLIKES: &str = r#"
name = "dislikes"
[[events]]
url = "log.parquet"
columns = { user = "user", item = "item", event = "event" }
[events.weights]
view = 1.0
dislike = -6.0
[popularity]
[als]
n_factors = 4
regularization = 0.1
[output]
url = "out/"
"#;

/// Users of two tastes; the first user of each dislikes an item that all others of the taste have.
fn tastes(with_dislikes: bool) -> (Sandbox, Value) {
    let mut rows: Vec<(i64, i64, &str)> = Vec::new();
    for user in 0..40i64 {
        let items = if user % 2 == 0 { 0..6 } else { 6..12 };
        rows.extend(items.filter(|item| (user + item) % 5 != 0).map(|item| (user, item, "view")));
    }
    rows.retain(|&(user, item, _)| (user, item) != (0, 3) && (user, item) != (1, 8));
    if with_dislikes {
        rows.extend([(0, 3, "dislike"), (1, 8, "dislike")]);
    }
    let sandbox = Sandbox::new();
    let users: Int64Array = rows.iter().map(|row| Some(row.0)).collect();
    let items: Int64Array = rows.iter().map(|row| Some(row.1)).collect();
    let events: StringArray = rows.iter().map(|row| Some(row.2)).collect();
    let log = [("user", Arc::new(users) as _), ("item", Arc::new(items) as _)];
    sandbox.write("log.parquet", &batch(&[&log[..], &[("event", Arc::new(events) as _)]].concat()));
    sandbox.spec(DISLIKES);
    let outcome = sandbox.run(&[]);
    (sandbox, outcome)
}

fn vector(sandbox: &Sandbox, outcome: &Value, side: &str, id: &str) -> Vec<f32> {
    let table = sandbox.table(outcome, &format!("{side}_factors"));
    let row = column(&table, &format!("{side}_id")).iter().position(|other| other == id).unwrap();
    let embeddings = table.column_by_name("embedding").unwrap().as_fixed_size_list();
    embeddings.value(row).as_primitive::<Float32Type>().values().to_vec()
}

#[test]
fn a_negative_weight_is_a_preference_of_zero_for_als_and_nothing_for_the_rest() {
    let predicted = |(sandbox, outcome): &(Sandbox, Value), user: &str, item: &str| -> f32 {
        let (x, y) =
            (vector(sandbox, outcome, "user", user), vector(sandbox, outcome, "item", item));
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    };
    let (plain, disliked) = (tastes(false), tastes(true));
    for (user, item) in [("0", "3"), ("1", "8")] {
        let (before, after) = (predicted(&plain, user, item), predicted(&disliked, user, item));
        assert!(before > 0.2 && after < before / 2.0, "{user} {item}: {before} then {after}");
    }
    let popularity = |(sandbox, outcome): &(Sandbox, Value)| {
        let table = sandbox.table(outcome, "item_popularity");
        ["item_id", "n_events", "n_users", "weight"]
            .map(|name| table.column_by_name(name).map(|_| column(&table, name)))
    };
    assert_eq!(popularity(&plain), popularity(&disliked));
}
