//! `tidemill plan`: what a run would do.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use serde_json::json;

use super::{SpecArgs, default_threads, print};
use crate::job::plan::{FilePlan, Plan};
use crate::run::{
    self, Cluster, Hints, MemoryEstimate, Prediction, Refused, SizesFrom, UnitCosts,
    predicted_memory,
};

/// Show what a run would read and write, and what it takes: memory, network and time by stage
///
/// Reads footers, and the manifest of the run that readers see. Memory is a bound for each process;
/// bytes and seconds are what a run of these sizes takes, where the store is not what it waits for.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill plan jobs/nightly.toml
  tidemill plan jobs/nightly.toml --date 2026-11-22 --processes 4 --threads 8
  tidemill plan jobs/nightly.toml --processes 16 --users 30000000 --items 2000000 --pairs 900000000
  tidemill plan jobs/nightly.toml --json | jq .prediction.stages

Unit costs are those of the machine that the crate was measured on; tidemill calibrate --out FILE
measures this one, and TIDEMILL_UNIT_COSTS=FILE or --unit-costs FILE predicts with it.")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Processes that the run would have
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    processes: u16,
    /// Threads that each process would have [default: the cores of this machine]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Users that the log holds [default: as the last run found, else a tenth of the rows]
    #[arg(long, value_name = "N")]
    users: Option<u64>,
    /// Items that the log holds [default: as the last run found, else a tenth of the rows]
    #[arg(long, value_name = "N")]
    items: Option<u64>,
    /// Pairs of a user and an item [default: as the last run found, else the rows]
    #[arg(long, value_name = "N")]
    pairs: Option<u64>,
    /// Unit costs that tidemill calibrate wrote [default: TIDEMILL_UNIT_COSTS, else the crate's]
    #[arg(long, value_name = "FILE")]
    unit_costs: Option<PathBuf>,
    /// Print the whole plan as JSON: every file with size, version and row groups
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let spec = args.spec.load()?;
    let runtime = run::runtime(&spec)?;
    let base = args.spec.base();
    let plan = run::plan(&runtime, &spec, &base, &args.spec.flags(&spec)?)?;
    let threads = args.threads.unwrap_or_else(default_threads).max(1);
    let cluster = Cluster { processes: usize::from(args.processes), threads };
    let memory = predicted_memory(&plan, cluster);
    let costs = unit_costs(args.unit_costs.as_ref())?;
    let hints = Hints { users: args.users, items: args.items, pairs: args.pairs };
    let sizes = run::sizes(&runtime, &plan, &base, hints);
    let prediction = run::predict(&plan, sizes, cluster, &costs);
    match args.json {
        true => {
            let all = json!({ "plan": plan, "memory": memory, "prediction": prediction });
            print(&serde_json::to_string_pretty(&all)?);
        }
        false => print(&format!("{}\n\n{}", text(&plan, &memory), table(&prediction))),
    }
    Ok(())
}

/// Of the file that is named, by the flag or by the environment; else the crate's own.
fn unit_costs(flag: Option<&PathBuf>) -> Result<UnitCosts> {
    let of_environment = || std::env::var_os("TIDEMILL_UNIT_COSTS").map(PathBuf::from);
    let Some(path) = flag.cloned().or_else(of_environment) else {
        return Ok(UnitCosts::shipped());
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("unit costs \"{name}\" cannot be read; check the path"))
        .map_err(Refused::no_input)?;
    UnitCosts::parse(&text, &name)
}

/// What each stage takes.
fn table(prediction: &Prediction) -> String {
    let Prediction { cluster, stages, sizes, .. } = prediction;
    let of_all = |bytes: u64| BinaryBytes(bytes).to_string();
    let row = |name: &str, cells: [String; 4]| {
        let [memory, sent, sent_total, seconds] = cells;
        format!("{name:<18}{memory:>14}{sent:>16}{sent_total:>16}{seconds:>12}\n")
    };
    let head = ["memory each", "one sends", "all send", "seconds"].map(str::to_owned);
    let mut out = row("stage", head);
    for stage in stages {
        let (sent, sent_total) = (of_all(stage.bytes_sent), of_all(stage.bytes_sent_total));
        let seconds = format!("{:.2}", stage.seconds);
        out += &row(stage.name, [of_all(stage.memory_bytes), sent, sent_total, seconds]);
    }
    let (sent, sent_total) = (of_all(prediction.bytes_sent), of_all(prediction.bytes_sent_total));
    let seconds = format!("{:.2}", prediction.seconds);
    out += &row("all", [of_all(prediction.memory_bytes), sent, sent_total, seconds]);
    let plural = |n: usize, noun: &str| if n == 1 { noun.to_owned() } else { format!("{noun}s") };
    out += &format!(
        "\non        {} process{} of {} {}\nsizes     {}\n          {} users, {} items, {} pairs, \
         {} rows\nseconds   of {}; without what a store makes it wait",
        cluster.processes,
        if cluster.processes == 1 { "" } else { "es" },
        cluster.threads,
        plural(cluster.threads, "thread"),
        origin(&prediction.sizes_from),
        HumanCount(sizes.users),
        HumanCount(sizes.items),
        HumanCount(sizes.pairs),
        HumanCount(sizes.rows),
        prediction.machine
    );
    out
}

fn origin(from: &SizesFrom) -> String {
    let flags = |given: &[&str]| {
        given.iter().map(|name| format!("--{name}")).collect::<Vec<_>>().join(", ")
    };
    match from {
        SizesFrom::Assumptions => {
            "assumed: users and items a tenth of the rows, every row a pair; \
                                   give --users, --items and --pairs for better numbers"
                .to_owned()
        }
        SizesFrom::Hints { given } => format!("of {}, the rest assumed", flags(given)),
        SizesFrom::LastRun { run_id, rows_ratio, given } if given.is_empty() => {
            format!("of run {run_id}, × {rows_ratio:.3} by rows")
        }
        SizesFrom::LastRun { run_id, rows_ratio, given } => {
            format!("of {}, the rest of run {run_id}, × {rows_ratio:.3} by rows", flags(given))
        }
    }
}

fn text(plan: &Plan, memory: &MemoryEstimate) -> String {
    let mut out = String::new();
    let write = "writing to a string does not fail";
    for source in &plan.sources {
        let (files, bytes) = totals(&source.files);
        let groups: usize = source.files.iter().map(|file| file.row_groups.len()).sum();
        let rows: u64 = source.files.iter().map(FilePlan::rows).sum();
        writeln!(
            out,
            "reads     {}: {files} files, {groups} row groups, {} rows, {}",
            source.url,
            HumanCount(rows),
            BinaryBytes(bytes)
        )
        .expect(write);
        writeln!(out, "          columns {}", source.columns.names().join(", ")).expect(write);
    }
    let (files, bytes) = totals(plan.side_tables.files());
    if files > 0 {
        writeln!(out, "beside    {files} files of side tables, {}", BinaryBytes(bytes))
            .expect(write);
    }
    if plan.files_pruned > 0 {
        writeln!(out, "leaves    {} files outside of what can count", plan.files_pruned)
            .expect(write);
    }
    let as_of = plan.as_of_us.and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    let as_of = as_of.map_or("just after the newest event".to_owned(), |time| time.to_string());
    writeln!(out, "as of     {as_of}").expect(write);
    writeln!(out, "shards    {}", plan.n_shards).expect(write);
    writeln!(out, "writes    {}", plan.spec.table_names().join(", ")).expect(write);
    writeln!(out, "to        {}", plan.spec.output.url).expect(write);
    let allowed = plan.spec.limits.memory_bytes_max.0;
    let verdict = if memory.peak_bytes <= allowed { "within" } else { "over" };
    write!(
        out,
        "memory    {} (scan {}, histories {}, item neighbors {}, als {}, top-k {}), {verdict} \
         limits.memory_bytes_max = {}\n          if users and items are at most a tenth of the rows; \
         a run looks again when it knows them",
        BinaryBytes(memory.peak_bytes),
        BinaryBytes(memory.scan_bytes),
        BinaryBytes(memory.histories_bytes),
        BinaryBytes(memory.item_neighbors_bytes),
        BinaryBytes(memory.als_bytes),
        BinaryBytes(memory.top_k_bytes),
        BinaryBytes(allowed)
    )
    .expect(write);
    out
}

fn totals<'a>(files: impl IntoIterator<Item = &'a FilePlan>) -> (usize, u64) {
    files.into_iter().fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes))
}
