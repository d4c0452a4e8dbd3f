use super::*;
use crate::job::plan::RowGroupPlan;
use crate::job::spec::Als;
use crate::run::memory_tests::plan;
use crate::run::prepare::{owner, shards_of};
use crate::run::{code, exit_code};
use crate::store::Stage;

/// Ten million rows in row groups of a million, with all models.
fn large() -> Plan {
    let mut plan = plan(10_000_000);
    plan.sources[0].files[0].row_groups =
        vec![RowGroupPlan { rows: 1_000_000, bytes: 1 << 24 }; 10];
    plan.n_shards = 32;
    plan.spec.als = Some(Als::default());
    plan
}

fn sizes_of(plan: &Plan, users: u64, items: u64, pairs: u64) -> Sizes {
    let hints = Hints { users: Some(users), items: Some(items), pairs: Some(pairs) };
    sizes::hinted(plan, None, hints).0
}

fn of_stage(prediction: &Prediction, name: &str) -> StagePrediction {
    *prediction.stages.iter().find(|stage| stage.name == name).unwrap()
}

fn predicted(plan: &Plan, sizes: Sizes, processes: usize) -> Prediction {
    let from = SizesFrom::Hints { given: Vec::new() };
    let cluster = Cluster { processes, threads: 2 };
    predict(plan, (sizes, from), cluster, &UnitCosts::shipped())
}

#[test]
fn shards_are_counted_as_they_are_owned() {
    for (n_shards, peers) in [(1, 1), (1, 3), (16, 3), (16, 5), (4096, 7), (8, 16)] {
        let owned: Vec<u32> = shards_of(n_shards, peers).collect();
        let mut expected = vec![0; peers];
        (0..n_shards).for_each(|shard| expected[owner(shard, n_shards, peers)] += 1);
        assert_eq!(owned, expected, "{n_shards} shards of {peers}");
    }
}

#[test]
fn one_process_sends_nothing_and_more_send_what_items_take() {
    let plan = large();
    let sizes = sizes_of(&plan, 100_000, 20_000, 8_000_000);
    assert_eq!(predicted(&plan, sizes, 1).bytes_sent_total, 0);
    let four = of_stage(&predicted(&plan, sizes, 4), "als");
    // (steps + 1) · (N − 1) / N · (P + 1) · items · factors · 4 a process and iteration, P = 1.
    let formula = 15.0 * 4.0 * 0.75 * 2.0 * 20_000.0 * 64.0 * 4.0;
    assert!((four.bytes_sent as f64 / formula - 1.0).abs() < 0.05, "{} {formula}", four.bytes_sent);
    let twice = sizes_of(&plan, 200_000, 20_000, 16_000_000);
    let users_do_not_matter = of_stage(&predicted(&plan, twice, 4), "als").bytes_sent;
    assert_eq!(users_do_not_matter, four.bytes_sent);
}

#[test]
fn more_processes_take_less_time_and_memory_each() {
    let plan = large();
    let sizes = sizes_of(&plan, 100_000, 20_000, 8_000_000);
    let [one, four] = [1, 4].map(|n| predicted(&plan, sizes, n));
    for name in ["scan", "histories", "als", "top-k lists"] {
        let [one, four] = [&one, &four].map(|of| of_stage(of, name).seconds);
        assert!(four < one / 2.0, "{name}: {one} s, then {four} s");
    }
    assert!(of_stage(&four, "scan").memory_bytes < of_stage(&one, "scan").memory_bytes);
    assert_eq!(one.stages.len(), 10);
    let sum: f64 = one.stages.iter().map(|stage| stage.seconds).sum();
    assert!((sum - one.seconds).abs() < 1e-9);
}

#[test]
fn lists_without_reasons_take_less_time() {
    let (mut plan, seconds) = (large(), |plan: &Plan| {
        let sizes = sizes_of(plan, 100_000, 20_000, 8_000_000);
        of_stage(&predicted(plan, sizes, 1), "top-k lists").seconds
    });
    let with = seconds(&plan);
    plan.spec.top_k.as_mut().unwrap().because = false;
    assert!(seconds(&plan) < with);
    // Neighbors tell their reasons on the way.
    plan.spec.als = None;
    let neighbors = seconds(&plan);
    plan.spec.top_k.as_mut().unwrap().because = true;
    assert_eq!(seconds(&plan), neighbors);
}

#[test]
fn hints_go_before_the_last_run_and_that_before_assumptions() {
    let plan = large();
    let (assumed, from) = sizes::hinted(&plan, None, Hints::default());
    assert_eq!((assumed.users, assumed.items, assumed.pairs), (1_000_000, 1_000_000, 10_000_000));
    assert_eq!(from, SizesFrom::Assumptions);
    let given = Hints { users: Some(70), ..Hints::default() };
    let (hinted, from) = sizes::hinted(&plan, None, given);
    assert_eq!((hinted.users, hinted.items), (70, 1_000_000));
    assert_eq!(from, SizesFrom::Hints { given: vec!["users"] });
    let run = SizesFrom::LastRun { run_id: "a".into(), rows_ratio: 1.5, given: Vec::new() };
    let last = sizes_of(&plan, 5_000, 600, 40_000);
    let (both, from) = sizes::hinted(&plan, Some((last, run)), given);
    assert_eq!((both.users, both.items, both.pairs), (70, 600, 40_000));
    let run_id = "a".to_owned();
    assert_eq!(from, SizesFrom::LastRun { run_id, rows_ratio: 1.5, given: vec!["users"] });
}

#[test]
fn unit_costs_survive_their_file_and_bad_ones_are_refused() {
    let costs = UnitCosts::shipped();
    assert_eq!(UnitCosts::parse(&costs.to_toml().unwrap(), "x").unwrap(), costs);
    let text = costs.to_toml().unwrap();
    let scan = text.lines().find(|line| line.starts_with("scan_row")).unwrap();
    for (bad, word) in [
        (text.replace(scan, ""), "ns.scan_row is missing"),
        (format!("{text}\nscan_rows = 1.0\n"), "ns.scan_rows is unknown"),
        (text.replace(scan, "scan_row = -1.0"), "negative"),
        (text.replace(scan, "scan_row = nan"), "not finite"),
        ("machine = 3".to_owned(), "machine"),
    ] {
        let error = UnitCosts::parse(&bad, "costs.toml").unwrap_err();
        assert_eq!(exit_code(&error), code::USAGE);
        let message = format!("{error:#}");
        assert!(message.contains("\"costs.toml\"") && message.contains(word), "{message}");
    }
}

/// Runs that take exactly what some costs say give costs that say the same.
#[test]
fn a_fit_predicts_the_runs_it_was_made_of() {
    let mut truth = UnitCosts::shipped();
    for (place, ns) in truth.ns.values_mut().enumerate() {
        *ns *= [0.6, 1.0, 1.5][place % 3];
    }
    truth.parallel_efficiency = 0.8;
    let shapes = [
        (16, 2, 100_000, 20_000, 2_000_000, 2),
        (64, 5, 400_000, 5_000, 4_000_000, 2),
        (128, 1, 50_000, 90_000, 5_000_000, 1),
        (128, 1, 50_000, 90_000, 5_000_000, 2),
    ];
    let measured = |(n_factors, iterations, users, items, pairs, threads)| {
        let mut plan = large();
        plan.spec.als = Some(Als { n_factors, iterations, ..Als::default() });
        let sizes = sizes_of(&plan, users, items, pairs);
        let from = SizesFrom::Hints { given: Vec::new() };
        let cluster = Cluster { processes: 1, threads };
        let predicted = predict(&plan, (sizes, from), cluster, &truth);
        let stages = predicted.stages.iter().map(|stage| Stage {
            name: stage.name.to_owned(),
            seconds: stage.seconds,
            more: Default::default(),
        });
        Measured { plan, sizes, threads, stages: stages.collect() }
    };
    let runs: Vec<Measured> = shapes.into_iter().map(measured).collect();
    let (ns, efficiency) = fitted(&runs, (2, 3));
    // Selection and gathering of item neighbors are for one thread, so it is somewhat less.
    assert!((0.6..=0.8).contains(&efficiency), "{efficiency}");
    let ns = ns.into_iter().collect();
    let costs = UnitCosts { ns, parallel_efficiency: efficiency, ..truth };
    for run in &runs {
        let from = SizesFrom::Hints { given: Vec::new() };
        let cluster = Cluster { processes: 1, threads: run.threads };
        let again = predict(&run.plan, (run.sizes, from), cluster, &costs);
        for (stage, measured) in again.stages.iter().zip(&run.stages) {
            let ratio = stage.seconds / measured.seconds;
            assert!((0.85..1.18).contains(&ratio), "{}: {ratio}", stage.name);
        }
    }
}

/// What ALS hands to others is what a test can read: sums and rows of items, Gram matrices, losses by
/// shard and counts. Rows of users are in none of them.
#[test]
fn als_sends_nothing_of_single_users() {
    let source = [
        include_str!("../als.rs"),
        include_str!("../als/exchange.rs"),
        include_str!("../als/fit.rs"),
        include_str!("../als/fold_in.rs"),
        include_str!("../als/observed.rs"),
    ]
    .concat();
    let calls: Vec<&str> = source.lines().filter(|line| line.contains("collectives.")).collect();
    let payloads = [
        "all_gather(encoded",
        // One number.
        "all_gather(largest_here",
        "all_to_all(outgoing",
        "all_reduce_sum(n_",
        "(vec![n_users",
    ];
    for call in &calls {
        assert!(payloads.iter().any(|payload| call.contains(payload)), "{call}");
    }
    let rows: Vec<&str> = source
        .split("all_rows(worker, ")
        .skip(1)
        .filter_map(|call| call.split(')').next())
        .collect();
    assert_eq!(rows, ["cg.directions(", "&x", "&x"], "rows of the items of this process");
    // What is encoded: subtree by subtree a Gram matrix, shard by shard a loss, and rows as above.
    assert_eq!(source.matches("encoded: Vec<u8>").count(), 3);
    assert!(!source.contains("encode(&self.users") && !source.contains("self.users.iter()"));
}
