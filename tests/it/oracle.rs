//! The whole job on 1, 2 and 3 workers against a sequential oracle: maps, loops and definitions.

mod counted;
mod ranked;

use std::sync::Arc;

use arrow::array::{
    Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::fixture::{Sandbox, batch, column, write_parquet};

const DAY: i64 = 86_400_000_000;
const AS_OF: i64 = 20_000 * DAY;
const AS_OF_TEXT: &str = "2024-10-04T00:00:00Z";
const CAP: usize = 8;
const USERS_MIN: usize = 2;
const N_NEIGHBORS: usize = 4;
const SHRINKAGE: f64 = 0.5;
const K: usize = 6;

/// Rows of a table: what must be equal, and numbers that must be close.
type Rows = Vec<(Vec<String>, Vec<f64>)>;

/// Table, columns that must be equal, columns that must be close.
const TABLES: [(&str, &str, &str); 5] = [
    ("users", "user_id events items first_event last_event eligible reason", ""),
    ("items", "item_id item_idx events users first_event last_event eligible reason", ""),
    ("item_popularity", "item_id item_idx events users rank", "weight weight_decayed trend"),
    ("item_neighbors", "item_id rank neighbor_id support", "score"),
    ("user_top_k", "user_id rank item_id source because_item_id", "score"),
];

/// How neighbors and lists are made.
#[derive(Clone, Copy)]
struct Variant {
    weighted: bool,
    blended: bool,
}

fn spec(variant: Variant) -> String {
    let weights = if variant.weighted { "affinity" } else { "binary" };
    let popularity = if variant.blended { ", popularity = 0.7" } else { "" };
    format!(
        r#"
name = "oracle"
shards = 4
[[events]]
url = "log/"
columns = {{ user = "user", item = "item", time = "time", event = "event", value = "value", id = "id" }}
[events.weights]
view = 1.0
rate = {{ weight = 0.5, value = "linear", negative = "undo" }}
purchase = {{ weight = 10.0, value = "log1p", value_max = 5 }}
return = {{ undoes = "purchase" }}
hide = {{ excludes_item = true }}
[history]
window_days = 60
half_life_days = 30
interactions_per_user_max = {CAP}
users_per_item_min = {USERS_MIN}
[popularity]
[item_neighbors]
weights = "{weights}"
shrinkage = {SHRINKAGE}
n_neighbors = {N_NEIGHBORS}
[top_k]
k = {K}
candidates = {{ item_neighbors = 1.0{popularity} }}
history_weights = "{weights}"
exclude_seen = ["purchase"]
exclude_seen_days = 80
[output]
url = "out/"
"#
    )
}

#[derive(Clone)]
struct Row {
    user: Option<String>,
    item: i64,
    event: &'static str,
    value: f64,
    time: i64,
    id: Option<i64>,
}

/// Low numbers are popular, high ones rare; no two events at one time but copies.
fn random_log(seed: u64) -> Vec<Row> {
    const EVENTS: [&str; 9] =
        ["view", "view", "view", "rate", "rate", "purchase", "return", "hide", "scroll"];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows: Vec<Row> = Vec::new();
    for n in 0..1_200 {
        let mut skewed = |n: i64| rng.random_range(0..n) * rng.random_range(1..=n) / n;
        let (user, item) = (skewed(60), skewed(40) - 3);
        let event = EVENTS[rng.random_range(0..EVENTS.len())];
        let value = f64::from(rng.random_range(1..9));
        rows.push(Row {
            user: rng.random_bool(0.95).then(|| format!("u{user}")),
            item,
            event,
            value: if event == "rate" && rng.random_bool(0.3) { -value } else { value },
            time: AS_OF + rng.random_range(-100 * DAY..4 * DAY),
            id: rng.random_bool(0.5).then_some(n),
        });
        if rng.random_bool(0.1) {
            // Again: the same event where it has an id, and another one where not.
            let copy = rows[rng.random_range(0..rows.len())].clone();
            let later = if rng.random_bool(0.5) { rng.random_range(0..DAY) } else { 0 };
            rows.push(Row { time: copy.time + later, ..copy });
        }
    }
    rows
}

fn write_log(sandbox: &Sandbox, rows: &[Row]) {
    let time = |rows: &[Row]| rows.iter().map(|row| row.time).collect::<Vec<_>>();
    for (part, rows) in rows.chunks(500).enumerate() {
        let log = batch(&[
            ("user", Arc::new(rows.iter().map(|row| row.user.as_deref()).collect::<StringArray>())),
            ("item", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.item)))),
            ("event", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.event)))),
            ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.value)))),
            ("time", Arc::new(TimestampMicrosecondArray::from(time(rows)).with_timezone("UTC"))),
            ("id", Arc::new(rows.iter().map(|row| row.id).collect::<Int64Array>())),
        ]);
        write_parquet(&sandbox.path(&format!("log/part-{part}.parquet")), &log, 70);
    }
}

/// What [`TABLES`] must hold.
fn expected(rows: &[Row], variant: Variant) -> [Rows; 5] {
    let users = counted::users(rows);
    let items = counted::items(rows, &users);
    let near = ranked::neighbors(&items, &users, variant.weighted);
    [
        counted::user_rows(&users),
        counted::item_rows(&items),
        counted::popularity_rows(&items),
        ranked::neighbor_rows(&near),
        ranked::list_rows(&items, &users, &near, variant),
    ]
}

/// The rows of a published table; of tables cut by shard, brought in the order of all users.
fn published(table: &RecordBatch, exact: &str, close: &str) -> Rows {
    let exact: Vec<Vec<String>> = exact.split(' ').map(|name| cells(table, name)).collect();
    let close: Vec<Vec<String>> =
        close.split_whitespace().map(|name| column(table, name)).collect();
    let row = |row: usize| {
        let numbers = close.iter().map(|column| column[row].parse().unwrap()).collect();
        (exact.iter().map(|column| column[row].clone()).collect(), numbers)
    };
    let mut rows: Rows = (0..table.num_rows()).map(row).collect();
    if table.column_by_name("user_id").is_some() {
        rows.sort_by(|a, b| a.0[0].cmp(&b.0[0]));
    }
    rows
}

/// A column as text, times in microseconds.
fn cells(table: &RecordBatch, name: &str) -> Vec<String> {
    let array = table.column_by_name(name).unwrap();
    if !matches!(array.data_type(), DataType::Timestamp(..)) {
        return column(table, name);
    }
    let integers = arrow::compute::cast(array, &DataType::Int64).unwrap();
    column(&batch(&[(name, integers)]), name)
}

fn assert_rows(what: &str, actual: &Rows, expected: &Rows) {
    for (actual, expected) in actual.iter().zip(expected) {
        assert_eq!(actual.0, expected.0, "{what}");
        for (a, b) in actual.1.iter().zip(&expected.1) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{what} {:?}: {a}, expected {b}", actual.0);
        }
    }
    assert_eq!(actual.len(), expected.len(), "{what}");
}

#[test]
fn a_job_equals_its_sequential_oracle() {
    for seed in 0..6 {
        let variant = Variant { weighted: seed % 2 == 1, blended: seed % 3 == 2 };
        let rows = random_log(seed);
        let expected = expected(&rows, variant);
        let sandbox = Sandbox::new();
        write_log(&sandbox, &rows);
        for workers in 1..=3 {
            let outcome = sandbox.run_on_workers(&spec(variant), Some(AS_OF_TEXT), workers);
            for ((table, exact, close), expected) in TABLES.iter().zip(&expected) {
                let actual = published(&sandbox.table(&outcome, table), exact, close);
                let what = format!("{table} of seed {seed} on {workers} workers");
                assert_rows(&what, &actual, expected);
            }
        }
    }
}
