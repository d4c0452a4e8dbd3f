//! The table of ARCHITECTURE.md: a job that nobody has run, by the formulas of `tidemill plan`.

use std::fmt::Write as _;

use super::*;
use crate::job::plan::RowGroupPlan;
use crate::job::spec::Als;
use crate::run::memory_tests::plan;

const EVENTS: u64 = 10_000_000_000;
const SIZES: Hints =
    Hints { users: Some(300_000_000), items: Some(10_000_000), pairs: Some(4_000_000_000) };
const THREADS: usize = 16;

/// A byte of a 10 Gbit/s network with its coding on both sides.
const EXCHANGE_BYTE_NS: f64 = 1.5;

/// The largest job that the design is for; item neighbors only where asked.
fn paper(with_neighbors: bool) -> Plan {
    let mut plan = plan(EVENTS);
    let group = RowGroupPlan { rows: 1 << 20, bytes: 16 << 20 };
    plan.sources[0].files[0].row_groups = vec![group; (EVENTS >> 20) as usize];
    let columns = &mut plan.sources[0].columns;
    (columns.time, columns.event) = (Some("time".to_owned()), Some("event".to_owned()));
    plan.n_shards = crate::job::plan::SHARDS_MAX;
    plan.spec.als = Some(Als::default());
    plan.spec.top_k.as_mut().unwrap().k = 50;
    if !with_neighbors {
        plan.spec.item_neighbors = None;
    }
    plan
}

/// The file of the crate as it is now, so that it can be replaced and the table blessed in one go.
fn shipped() -> UnitCosts {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/run/predict/unit_costs.toml");
    UnitCosts::parse(&std::fs::read_to_string(path).unwrap(), path).unwrap()
}

fn predicted(with_neighbors: bool, processes: usize) -> Prediction {
    let plan = paper(with_neighbors);
    let costs = UnitCosts { exchange_byte_ns: EXCHANGE_BYTE_NS, ..shipped() };
    let cluster = Cluster { processes, threads: THREADS };
    predict(&plan, sizes::hinted(&plan, None, SIZES), cluster, &costs)
}

fn table() -> String {
    let mut out =
        "| processes | memory each (with item neighbors) | sent by each: shuffle, als, all | \
                   hours: to histories | als | lists | all (with item neighbors) |\n\
                   |---|---|---|---|---|---|---|\n"
            .to_owned();
    for processes in [1, 4, 16, 64, 256] {
        let [without, with] = [false, true].map(|neighbors| predicted(neighbors, processes));
        let hours = |names: &[&str]| {
            let stages = without.stages.iter().filter(|stage| names.contains(&stage.name));
            stages.map(|stage| stage.seconds).sum::<f64>() / 3_600.0
        };
        let sent = |name: &str| {
            let stage = without.stages.iter().find(|stage| stage.name == name);
            gigabytes(stage.map_or(0, |stage| stage.bytes_sent))
        };
        writeln!(
            out,
            "| {processes} | {} ({}) | {}, {}, {} | {} | {} | {} | {} ({}) |",
            gigabytes(without.memory_bytes),
            gigabytes(with.memory_bytes),
            sent("shuffle"),
            sent("als"),
            gigabytes(without.bytes_sent),
            short(hours(&["scan", "shuffle", "histories"])),
            short(hours(&["als"])),
            short(hours(&["top-k lists"])),
            short(without.seconds / 3_600.0),
            short(with.seconds / 3_600.0),
        )
        .unwrap();
    }
    out
}

fn gigabytes(bytes: u64) -> String {
    format!("{} GB", short(bytes as f64 / 1e9))
}

/// Two or three digits.
fn short(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[test]
fn the_paper_model_of_the_architecture_is_what_the_code_says() {
    const MARKS: [&str; 2] = ["<!-- paper model -->\n", "<!-- end -->\n"];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).unwrap();
    let (written, after) = rest.split_once(MARKS[1]).unwrap();
    let table = table();
    if std::env::var_os("TIDEMILL_BLESS").is_some() {
        let blessed = format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]);
        return std::fs::write(path, blessed).unwrap();
    }
    assert!(written == table, "ARCHITECTURE.md differs from the code; run with TIDEMILL_BLESS=1");
}

#[test]
fn the_paper_model_lies_where_the_design_says() {
    let [one, sixteen] = [1, 16].map(|processes| predicted(false, processes));
    // Items are whole everywhere: 10 M rows of 64 factors, twice while lists are made.
    assert!(sixteen.memory_bytes > 2 * 10_000_000 * 256);
    assert!(sixteen.memory_bytes < one.memory_bytes / 4);
    let als = sixteen.stages.iter().find(|stage| stage.name == "als").unwrap();
    let formula = 15.0 * 4.0 * 15.0 / 16.0 * 2.0 * 1e7 * 256.0;
    assert!((als.bytes_sent as f64 / formula - 1.0).abs() < 0.1, "{}", als.bytes_sent);
}
