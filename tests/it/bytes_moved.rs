//! What several workers send to each other, against the formulas of the design.

use serde_json::Value;

use crate::fixture::Sandbox;

const SHARDS: usize = 16;
const STEPS: f64 = 3.0;

fn spec(iterations: usize, workers: usize) -> String {
    format!(
        r#"
name = "moved"
shards = {SHARDS}
[[events]]
url = "shop/events.parquet"
columns = {{ user = "user_id", item = "item_id", time = "timestamp", event = "event" }}
[events.weights]
view = 1.0
click = 2.0
cart = 2.0
purchase = 5.0
[history]
users_per_item_min = 1
[popularity]
[item_neighbors]
n_neighbors = 20
[als]
n_factors = 16
iterations = {iterations}
[top_k]
k = 10
[output]
url = "out-{iterations}-{workers}/"
"#
    )
}

fn shop(users: u32, items: u32, events: u32) -> Sandbox {
    let sandbox = Sandbox::new();
    let [users, items, events] = [users, items, events].map(|number| number.to_string());
    let args = ["generate", "shop", "--users", &users, "--items", &items, "--events", &events];
    let output = sandbox.tidemill(&[&args[..], &["--row-group-rows", "20000"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    sandbox
}

fn stages(sandbox: &Sandbox, iterations: usize, workers: usize) -> Vec<Value> {
    std::fs::create_dir_all(sandbox.path(&format!("out-{iterations}-{workers}"))).unwrap();
    let outcome = sandbox.run_on_workers(&spec(iterations, workers), None, workers);
    outcome["manifest"]["stages"].as_array().unwrap().clone()
}

fn moved(stages: &[Value], name: &str, key: &str) -> f64 {
    let stage = stages.iter().find(|stage| stage["name"] == name).unwrap();
    stage[key].as_f64().unwrap()
}

/// All workers together, in one iteration: what two more iterations add.
fn of_an_iteration(sandbox: &Sandbox, workers: usize) -> f64 {
    let [one, three] = [1, 3].map(|n| moved(&stages(sandbox, n, workers), "als", "bytes_moved"));
    (three - one) / 2.0
}

/// Aligned subtrees of 16 shards that all of so many workers hold.
fn subtrees(workers: usize) -> f64 {
    // 2: 0-8, 8-16. 3: 0-4 4-6, 6-8 8-10 10, 11 12-16. 4: four of four.
    [2.0, 7.0, 4.0][workers - 2]
}

/// (steps + 1) · (N − 1) / N · (P + 1) · items · factors · 4 bytes of each worker: DESIGN.
#[test]
fn als_moves_what_the_formula_says() {
    for items in [400, 1_000] {
        let sandbox = shop(3_000, items, 150_000);
        for workers in [2, 3, 4] {
            let n = workers as f64;
            let formula = n * (STEPS + 1.0) * (n - 1.0) / n
                * (subtrees(workers) / n + 1.0)
                * f64::from(items)
                * 64.0;
            let moved = of_an_iteration(&sandbox, workers);
            let ratio = moved / formula;
            assert!((0.9..1.1).contains(&ratio), "{items} items, {workers} workers: {ratio}");
        }
    }
}

/// User factors never leave their owner: twice the users say no more of as many items.
#[test]
fn users_are_never_on_the_wire() {
    let [some, twice] = [(3_000, 150_000), (6_000, 300_000)]
        .map(|(users, events)| of_an_iteration(&shop(users, 400, events), 2));
    // A set of factors of 3,000 more users would be 192,000 bytes.
    assert!((twice - some).abs() < 20_000.0, "{some} bytes, then {twice}");
}

#[test]
fn every_stage_moves_about_what_was_predicted() {
    let sandbox = shop(3_000, 1_000, 150_000);
    for workers in [1, 2, 3, 4] {
        let stages = stages(&sandbox, 2, workers);
        for name in ["shuffle", "histories", "item neighbors", "als"] {
            let [moved, predicted] =
                ["bytes_moved", "bytes_moved_predicted"].map(|key| moved(&stages, name, key));
            let close = (moved - predicted).abs() <= 0.1 * moved + 4_096.0;
            assert!(close, "{name} of {workers} workers: {moved} bytes, predicted {predicted}");
            assert!(workers > 1 || moved == 0.0, "one worker has nobody to send to");
        }
    }
}
