//! `tidemill plan`: what a run would do.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use serde_json::json;

use super::{SpecArgs, default_threads, print};
use crate::job::plan::{FilePlan, Plan};
use crate::run::{self, MemoryEstimate, predicted_memory};

/// Show what a run would read and write, and bound its memory, from footers alone
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill plan jobs/nightly.toml
  tidemill plan jobs/nightly.toml --date 2026-11-22 --threads 8
  tidemill plan jobs/nightly.toml --json | jq '.plan.sources[].files | length'")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Threads that the run would have [default: the cores of this machine]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the whole plan as JSON: every file with size, version and row groups
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let spec = args.spec.load()?;
    let runtime = run::runtime(&spec)?;
    let plan = run::plan(&runtime, &spec, &args.spec.base(), &args.spec.flags(&spec)?)?;
    let memory = predicted_memory(&plan, args.threads.unwrap_or_else(default_threads).max(1));
    match args.json {
        true => {
            print(&serde_json::to_string_pretty(&json!({ "plan": plan, "memory": memory }))?);
        }
        false => print(&text(&plan, &memory)),
    }
    Ok(())
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
