//! The published bytes depend on the rows and the spec, and on nothing else.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use serde_json::Value;

use crate::fixture::{Sandbox, digests, read_parquet, shuffled, write_parquet};

const SPEC: &str = r#"
name = "same"
shards = 16

[[events]]
url = "log/"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event", value = "quantity", id = "event_id" }
[events.weights]
view = 1.0
click = 2.0
purchase = { weight = 10.0, value = "log1p", value_max = 20 }
return = { undoes = "purchase" }
cart = { excludes_item = true }

[items]
url = "shop/items.parquet"
columns = { item = "item_id", title = "title" }
recommend_where = { in_stock = true }

[users]
url = "shop/users.parquet"
columns = { user = "user_id", segment = "country" }

[history]
window_days = 120
half_life_days = 20
interactions_per_user_max = 30
users_per_item_min = 3

[popularity]
[debias]
[item_neighbors]
weights = "affinity"
shrinkage = 1.5
n_neighbors = 20
[als]
n_factors = 20
iterations = 3
confidence = "log"
interactions_per_user_min = 4
[top_k]
k = 15
candidates = { als = 0.7, item_neighbors = 1.0, popularity = 0.3 }
combine = "scaled_score"
debias = true
history_weights = "affinity"
exclude_seen = ["purchase", "click"]
exclude_seen_days = 60

[output]
url = "out/"
vectors = [{ of = "item_factors", type = "flat_ip" }, { of = "user_factors", type = "npy" }]
"#;

/// The same job with exact solutions.
fn spec(solver: &str) -> String {
    SPEC.replace("[als]\n", &format!("[als]\nsolver = \"{solver}\"\n"))
}

/// A generated shop, and its log in one file.
fn shop(ids: &str, solver: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let output = sandbox.tidemill(&[
        "generate", "shop", "--users", "900", "--items", "250", "--events", "30000", "--ids", ids,
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let batches = read_parquet(&sandbox.path("shop/events.parquet"));
    let log = concat_batches(&batches[0].schema(), &batches).unwrap();
    write_parquet(&sandbox.path("log/events.parquet"), &log, 1 << 20);
    sandbox.spec(&spec(solver));
    sandbox
}

/// Replaces the log by the same rows in another order, cut into files and small row groups.
fn cut_otherwise(sandbox: &Sandbox) {
    let path = sandbox.path("log/events.parquet");
    let batches = read_parquet(&path);
    let log = shuffled(&concat_batches(&batches[0].schema(), &batches).unwrap(), 77);
    std::fs::remove_file(path).unwrap();
    let (n_files, rows) = (5, log.num_rows());
    for file in 0..n_files {
        let (start, end) = (rows * file / n_files, rows * (file + 1) / n_files);
        let part = log.slice(start, end - start);
        // Names in the reverse order of the rows.
        let name = format!("log/z={}/part-{}.parquet", 9 - file, 9 - file);
        write_parquet(&sandbox.path(&name), &part, 700 + 331 * file);
    }
}

#[test]
fn threads_files_and_row_groups_do_not_matter() {
    for (ids, solver) in [("string", "cg"), ("int", "cholesky")] {
        let sandbox = shop(ids, solver);
        let first = digests(&sandbox.run(&["--threads", "1", "--force"])["manifest"]);
        let tables: Vec<&str> = first.keys().map(|(table, _)| table.as_str()).collect();
        assert_eq!(tables.iter().filter(|table| **table == "user_top_k").count(), 16);
        let again = digests(&sandbox.run(&["--threads", "1", "--force"])["manifest"]);
        let threads = digests(&sandbox.run(&["--threads", "2", "--force"])["manifest"]);
        cut_otherwise(&sandbox);
        let cut = digests(&sandbox.run(&["--threads", "2", "--force"])["manifest"]);
        assert_eq!(first, again);
        assert_eq!(first, threads);
        assert_eq!(first, cut);
    }
}

/// All that a list says but the reasons of its entries.
fn without_reasons(lists: &RecordBatch) -> RecordBatch {
    let columns: Vec<usize> = (0..lists.num_columns())
        .filter(|&at| !lists.schema().field(at).name().starts_with("because_"))
        .collect();
    lists.project(&columns).unwrap()
}

#[test]
fn lists_without_reasons_are_the_same_but_for_them() {
    let sandbox = shop("string", "cg");
    let shapes = [
        ("rows", "user_top_k", "because_item_id"),
        ("lists", "user_top_k_lists", "because_item_ids"),
    ];
    for (shape, table, column) in shapes {
        let run = |because: bool| {
            let flags = [format!("top_k.shape={shape}"), format!("top_k.because={because}")];
            let flags = flags.iter().flat_map(|flag| ["--set", flag]).chain(["--force"]);
            let outcome = sandbox.run(&flags.collect::<Vec<_>>());
            sandbox.table(&outcome, table)
        };
        let (with, without) = (run(true), run(false));
        assert_eq!(without_reasons(&with), without_reasons(&without), "{shape}");
        assert_eq!(with.schema(), without.schema(), "{shape}");
        let given = |lists: &RecordBatch| {
            let reasons = lists.column_by_name(column).unwrap();
            let reasons = reasons.as_list_opt::<i32>().map_or(reasons, |lists| lists.values());
            reasons.len() - reasons.null_count()
        };
        assert!(given(&with) > 10_000, "{shape}: {} reasons", given(&with));
        assert_eq!(given(&without), 0, "{shape}");
    }
}

#[test]
fn instructions_do_not_matter() {
    for solver in ["cg", "cholesky"] {
        let sandbox = shop("int", solver);
        let widest = digests(&sandbox.run(&["--force"])["manifest"]);
        for level in ["plain", "avx2", "avx512"] {
            let environment = [("TIDEMILL_INSTRUCTIONS", level.to_owned())];
            let args = ["run", "job.toml", "--json", "--force"];
            let output = sandbox.tidemill_in(&environment, &args);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{level}: {stderr}");
            let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(digests(&outcome["manifest"]), widest, "{level}");
        }
    }
}

#[test]
fn instructions_have_names() {
    let sandbox = shop("int", "cg");
    let environment = [("TIDEMILL_INSTRUCTIONS", "sse2".to_owned())];
    let output = sandbox.tidemill_in(&environment, &["run", "job.toml"]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("\"sse2\"; use plain, avx2 or avx512"), "{stderr}");
}

fn with_workers(
    sandbox: &Sandbox,
    solver: &str,
    workers: usize,
) -> BTreeMap<(String, String), String> {
    digests(&sandbox.run_on_workers(&spec(solver), None, workers)["manifest"])
}

/// No stage may assume that it sees all users.
#[test]
fn the_number_of_workers_does_not_matter() {
    for solver in ["cg", "cholesky"] {
        let sandbox = shop("string", solver);
        cut_otherwise(&sandbox);
        let one = with_workers(&sandbox, solver, 1);
        assert_eq!(one, with_workers(&sandbox, solver, 2));
        assert_eq!(one, with_workers(&sandbox, solver, 3));
    }
}
