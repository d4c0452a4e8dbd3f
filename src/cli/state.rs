//! `tidemill state`: what incremental runs keep of the logs, and its care.

use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use indicatif::{BinaryBytes, HumanCount};
use serde_json::json;

use super::published_runs::{OutputArgs, generation};
use super::run::RunArgs;
use super::{print, progress, telemetry};
use crate::run::{self, Refused, StateUse};
use crate::store::{Current, Output, StateKind, StateManifest};

/// Look after the rows that incremental runs keep: show, verify, compact, rebuild
#[derive(Debug, Args)]
#[command(after_help = "\
A job with [incremental] keeps the rows of its logs by user below state/ in the output, and its next run
reads new and changed files only. A generation's state is published with its tables, and is shared with the
generations after it.

Examples:
  tidemill state show jobs/nightly.toml
  tidemill state verify s3://shop-recs/nightly/ --generation 41
  tidemill state rebuild jobs/nightly.toml --date 2026-11-22")]
pub(super) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// Tell what the state of a generation holds and takes
    Show(OfGeneration),
    /// Read the state of a generation through, and hold its files against their digests and each other
    Verify(OfGeneration),
    /// Run the job and write each shard's rows as one file; publishes a generation with the same tables
    Compact(RunArgs),
    /// Run the job on all files, whatever state there is, and write its state anew
    Rebuild(RunArgs),
}

#[derive(Debug, Args)]
struct OfGeneration {
    #[command(flatten)]
    output: OutputArgs,
    /// The generation [default: what readers see]
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

impl OfGeneration {
    fn find(&self) -> Result<(Output, Current, StateManifest)> {
        let output = self.output.open()?;
        let run = generation(&output, &output.read_log()?, self.generation)?;
        let state = output.read_manifest(&run)?.state.ok_or_else(|| {
            Refused::no_input(anyhow!(
                "generation {} has no state; run the job with [incremental] or --since-last",
                run.generation
            ))
        })?;
        let state = output.read_state(&state)?;
        Ok((output, run, state))
    }
}

/// Looks at state, or runs the job, which tells of itself.
pub(super) fn run(args: &StateArgs) -> Result<u8> {
    match &args.command {
        StateCommand::Show(of) => show(of).inspect_err(telemetry::refused).map(|()| 0),
        StateCommand::Verify(of) => verify(of).inspect_err(telemetry::refused).map(|()| 0),
        StateCommand::Compact(run) => super::run::run(&run.with_state(StateUse::Compact)),
        StateCommand::Rebuild(run) => super::run::run(&run.with_state(StateUse::Rebuild)),
    }
}

fn show(of: &OfGeneration) -> Result<()> {
    let (_, run, state) = of.find()?;
    let runs_of = |shard: u32| state.parts.iter().filter(|part| part.is_rows_of(shard)).count();
    let runs_max = (0..state.shards).map(runs_of).max().unwrap_or(0);
    let takes_back = |kind: &StateKind| matches!(kind, StateKind::Rows { takes_back: true, .. });
    let n_users: u64 = state.n_users.iter().map(|&n| u64::from(n)).sum();
    let shown = json!({
        "generation": run.generation,
        "run_id": run.run_id,
        "meaning": state.meaning,
        "shards": state.shards,
        "input_files": state.inputs.len(),
        "stored_rows": state.stored_rows(),
        "users": n_users,
        "items": state.n_items,
        "files": state.parts.len(),
        "runs_of_a_shard_max": runs_max,
        "runs_that_take_back": state.parts.iter().filter(|part| takes_back(&part.kind)).count(),
        "bytes": state.bytes(),
        "bytes_of_pair_counts": state.bytes_of_pairs(),
    });
    if of.output.json {
        print(&serde_json::to_string_pretty(&shown)?);
        return Ok(());
    }
    print(&format!(
        "generation {}, run {}: rows of {} input files, {} as stored, of {} users and {} items\n\
         {} in {} files, {:.1} bytes per row; {} shards, at most {runs_max} runs each\n\
         {} of them counts of pairs of items, with the histories that they are of",
        run.generation,
        run.run_id,
        HumanCount(state.inputs.len() as u64),
        HumanCount(state.stored_rows()),
        HumanCount(n_users),
        HumanCount(state.n_items.into()),
        BinaryBytes(state.bytes()),
        HumanCount(state.parts.len() as u64),
        (state.bytes() - state.bytes_of_pairs()) as f64 / state.stored_rows().max(1) as f64,
        state.shards,
        BinaryBytes(state.bytes_of_pairs()),
    ));
    Ok(())
}

fn verify(of: &OfGeneration) -> Result<()> {
    let (output, run, state) = of.find()?;
    let observer = progress::observer(of.output.json);
    observer.begin("verify state", Some((2 * state.bytes(), "bytes")));
    let start = Instant::now();
    let advance = |bytes: u64| observer.advance(bytes);
    let mut problems = output.verify_state(&state, &advance);
    let mut found = None;
    if problems.is_empty() {
        let check = run::check_state(&output, &state, &advance)?;
        problems.extend(check.problems.iter().cloned());
        found = Some(check);
    }
    observer.end("verify state", start.elapsed().as_secs_f64(), "");
    if of.output.json {
        let shown = json!({ "run": run, "problems": problems, "found": found });
        print(&serde_json::to_string_pretty(&shown)?);
    } else {
        let head = format!("state of generation {}, run {}", run.generation, run.run_id);
        print(&match (problems.is_empty(), &found) {
            (true, Some(found)) => format!(
                "{head}: {} rows of {} users and {} items, all as written",
                HumanCount(found.rows),
                HumanCount(found.users),
                HumanCount(found.items)
            ),
            _ => format!("{head}:\n  {}", problems.join("\n  ")),
        });
    }
    match problems.len() {
        0 => Ok(()),
        n => Err(Refused::bad_data(anyhow!(
            "the state has {n} problems; write it anew with \"tidemill state rebuild SPEC\""
        ))),
    }
}
