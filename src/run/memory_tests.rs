use std::collections::BTreeMap;

use proptest::prelude::*;

use super::memory::{Held, MemoryEstimate, Sizes, check, check_again, predicted_memory};
use super::{Cluster, code, exit_code};
use crate::job::load;
use crate::job::plan::{FilePlan, Plan, RowGroupPlan, SideTables, SourcePlan};
use crate::job::spec::{Als, ByteSize};
use crate::schema::EventColumns;
use crate::types::IdType;

const SPEC: &str = r#"
name = "memory"
[[events]]
url = "events/"
columns = { user = "u", item = "i" }
[item_neighbors]
n_neighbors = 50
[top_k]
k = 20
[output]
url = "out/"
"#;

/// One process.
fn threads(threads: usize) -> Cluster {
    Cluster { processes: 1, threads }
}

/// A plan of one log with so many rows.
pub(super) fn plan(n_rows: u64) -> Plan {
    let row_groups = vec![RowGroupPlan { rows: n_rows, bytes: 1 << 20 }];
    let file = FilePlan {
        key: "1.parquet".to_owned(),
        url: "events/1.parquet".to_owned(),
        bytes: 1 << 20,
        etag: None,
        partitions: BTreeMap::new(),
        row_groups,
    };
    let columns = EventColumns {
        user: "u".to_owned(),
        item: "i".to_owned(),
        time: None,
        event: None,
        value: None,
        id: None,
    };
    let source = SourcePlan {
        url: "events/".to_owned(),
        columns,
        time_unit: None,
        kinds: vec!["*".to_owned()],
        first_kind: 0,
        files: vec![file],
    };
    Plan {
        spec: load(SPEC, "job.toml", &BTreeMap::new(), &[]).unwrap(),
        sources: vec![source],
        side_tables: SideTables::default(),
        n_shards: 4,
        user_id_type: IdType::Int64,
        item_id_type: IdType::Int64,
        as_of_us: None,
        logical_date: None,
        sample_users: None,
        n_rows,
        files_pruned: 0,
    }
}

/// What a process needs before it holds a row, every stage, and the peak.
fn stages(of: &MemoryEstimate) -> [u64; 10] {
    let MemoryEstimate {
        base_bytes,
        scan_bytes,
        shuffle_bytes,
        histories_bytes,
        popularity_bytes,
        item_neighbors_bytes,
        write_neighbors_bytes,
        als_bytes,
        top_k_bytes,
        peak_bytes,
    } = *of;
    let first = [base_bytes, scan_bytes, shuffle_bytes, histories_bytes, popularity_bytes];
    let models = [item_neighbors_bytes, write_neighbors_bytes, als_bytes, top_k_bytes];
    let [base, scan, shuffle, histories, popularity] = first;
    let [neighbors, write, als, top_k] = models;
    [base, scan, shuffle, histories, popularity, neighbors, write, als, top_k, peak_bytes]
}

/// Whether no stage of `more` is below that of `less`.
fn at_least(more: &Plan, less: &Plan, n_threads: usize) -> bool {
    let bound = |plan| stages(&predicted_memory(plan, threads(n_threads)));
    let [more, less] = [more, less].map(bound);
    more.iter().zip(less).all(|(more, less)| *more >= less)
}

#[test]
fn what_is_on_its_way_to_and_from_a_bucket_counts() {
    let near = plan(1000);
    let mut from_afar = plan(1000);
    from_afar.sources[0].url = "s3://shop/events/".to_owned();
    let mut to_afar = plan(1000);
    to_afar.spec.output.url = "s3://shop/out/".to_owned();
    let base = |plan: &Plan| predicted_memory(plan, threads(2)).base_bytes;
    assert_eq!(base(&from_afar) - base(&near), 64 << 20);
    assert_eq!(base(&to_afar) - base(&near), 128 << 20);
    to_afar.spec.store.read_bytes_in_flight_max = ByteSize(1 << 20);
    assert_eq!(base(&to_afar) - base(&near), 65 << 20);
}

#[test]
fn the_peak_is_that_of_the_largest_stage() {
    for n_rows in [0, 1, 1_000, 20_000_000, 5_000_000_000] {
        let of = predicted_memory(&plan(n_rows), threads(2));
        let [base, stages @ .., peak] = stages(&of);
        assert_eq!(stages.into_iter().max(), Some(peak));
        assert_eq!(of.als_bytes, 0, "a stage that does not run needs nothing");
        let mut others = stages.iter().filter(|&&stage| stage != 0);
        assert!(others.all(|&stage| stage >= base), "{of:?}");
    }
    // A bound, not a guess: an empty run stays far below 1 GiB, and a row costs tens of bytes.
    assert!(predicted_memory(&plan(0), threads(2)).peak_bytes < 256 << 20);
    let rows = 20_000_000;
    let per_row = (predicted_memory(&plan(rows), threads(2)).peak_bytes) / rows;
    assert!((16..256).contains(&per_row), "{per_row} bytes a row");
}

proptest! {
    #[test]
    fn more_of_anything_never_needs_less(
        n_rows in 0u64..1 << 36,
        more in 0u64..1 << 34,
        n_threads in 1usize..64,
        processes in 1usize..20,
    ) {
        let small = plan(n_rows);
        prop_assert!(at_least(&plan(n_rows + more), &small, n_threads), "rows");
        let [one, two] =
            [n_threads, n_threads + 1].map(|n| stages(&predicted_memory(&small, threads(n))));
        prop_assert!(one.iter().zip(two).all(|(one, two)| *one <= two), "threads");
        let with = |change: &dyn Fn(&mut Plan)| {
            let mut plan = small.clone();
            change(&mut plan);
            plan
        };
        let neighbors = with(&|plan| plan.spec.item_neighbors.as_mut().unwrap().n_neighbors = 500);
        prop_assert!(at_least(&neighbors, &small, n_threads), "neighbors");
        let lists = with(&|plan| plan.spec.top_k.as_mut().unwrap().k = 1_000);
        prop_assert!(at_least(&lists, &small, n_threads), "k");
        let als = with(&|plan| plan.spec.als = Some(Als::default()));
        prop_assert!(at_least(&als, &small, n_threads), "factors");
        prop_assert!(predicted_memory(&als, threads(n_threads)).als_bytes > 0);
        let text = with(&|plan| plan.user_id_type = IdType::Utf8);
        prop_assert!(at_least(&text, &small, n_threads), "ids of users");
        let text = with(&|plan| plan.item_id_type = IdType::Utf8);
        prop_assert!(at_least(&text, &small, n_threads), "ids of items");
        let ids = with(&|plan| plan.sources[0].columns.id = Some("id".to_owned()));
        prop_assert!(at_least(&ids, &small, n_threads), "ids of events");
        let wide = with(&|plan| plan.sources[0].files[0].row_groups[0].bytes <<= 10);
        prop_assert!(at_least(&wide, &small, n_threads), "row groups");
        let fewer = with(&|plan| plan.sample_users = Some(0.1));
        prop_assert!(at_least(&small, &fewer, n_threads), "sampled users");
        // Two processes add buffers; from there on more of them never need more each.
        let of = |processes| predicted_memory(&als, Cluster { processes, threads: n_threads });
        let [some, more] = [1 + processes, 2 + 2 * processes].map(|n| stages(&of(n)));
        prop_assert!(some.iter().zip(more).all(|(some, more)| *some >= more), "processes");
    }
}

/// Users are shared out, items are not.
#[test]
fn processes_share_what_belongs_to_users() {
    let mut plan = plan(400_000_000);
    plan.n_shards = 1024;
    plan.spec.als = Some(Als::default());
    plan.sources[0].files[0].row_groups =
        vec![RowGroupPlan { rows: 1_000_000, bytes: 1 << 24 }; 400];
    let of = |processes| predicted_memory(&plan, Cluster { processes, threads: 2 });
    let (one, sixteen) = (of(1), of(16));
    // A tenth of the rows are items: 40 M ids, and 40 M rows of 64 factors, everywhere.
    let items = 40_000_000 * 80;
    assert!(sixteen.scan_bytes < one.scan_bytes / 2);
    assert!(sixteen.histories_bytes < one.histories_bytes / 4 * 3);
    assert!(sixteen.als_bytes > items + 40_000_000 * 256);
    assert!(sixteen.als_bytes < one.als_bytes / 3 * 2);
    // Gathered histories are whole in each of them.
    assert!(sixteen.item_neighbors_bytes > 400_000_000 * 8);
}

#[test]
fn what_is_not_read_is_not_held() {
    let all = plan(20_000_000);
    let mut pruned = plan(1_000_000);
    // The footers of files that are left out count for the shards alone.
    pruned.n_rows = all.n_rows;
    assert_eq!(
        predicted_memory(&pruned, threads(2)).peak_bytes,
        predicted_memory(&plan(1_000_000), threads(2)).peak_bytes
    );
    let mut sampled = all.clone();
    sampled.sample_users = Some(0.01);
    let [all, sampled] = [all, sampled].map(|plan| predicted_memory(&plan, threads(2)));
    let rows_of = |of: MemoryEstimate| of.peak_bytes - of.base_bytes;
    assert!(rows_of(sampled) < rows_of(all) / 50);
    assert_eq!(sampled.base_bytes, all.base_bytes);
}

#[test]
fn a_plan_over_the_limit_is_refused_with_what_helps() {
    let mut plan = plan(20_000_000);
    let needed = predicted_memory(&plan, threads(2)).peak_bytes;
    plan.spec.limits.memory_bytes_max.0 = needed;
    assert!(check(&plan, threads(2)).is_ok(), "the limit itself is allowed");
    plan.spec.limits.memory_bytes_max.0 = needed - 1;
    let error = check(&plan, threads(2)).unwrap_err();
    assert_eq!(exit_code(&error), code::CONFIG);
    let expected = format!(
        "the run may need {} MiB of memory and limits.memory_bytes_max is {} MiB; raise it, or \
         read less (history.window_days with partition_date, --sample-users)",
        needed.div_ceil(1 << 20),
        (needed - 1) >> 20
    );
    assert_eq!(format!("{error:#}"), expected);
    assert!(check(&plan, threads(1)).is_ok(), "a thread less needs less");
}

/// More items than the plan took for granted are found out before the models begin.
#[test]
fn real_sizes_are_checked_again() {
    let mut plan = plan(1_000_000);
    plan.spec.limits.memory_bytes_max.0 = predicted_memory(&plan, threads(2)).peak_bytes;
    let sizes = Sizes { rows: 0, items: 100_000, users: 100_000, pairs: 1_000_000 };
    let held = |items| {
        let own = Sizes { items, ..sizes };
        Held { rows_read: 0, own, all: own }
    };
    assert!(check_again(&plan, held(100_000), threads(2)).is_ok());
    let error = check_again(&plan, held(400_000), threads(2)).unwrap_err();
    assert_eq!(exit_code(&error), code::CONFIG);
}
