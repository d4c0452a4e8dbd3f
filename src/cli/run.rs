//! `tidemill run`: the whole job.

use anyhow::{Result, anyhow};
use clap::Args;

use super::telemetry::{self, Telemetry};
use super::{SpecArgs, clock, default_threads, print, progress, summary};
use crate::run::{self, Outcome, Refused, Request};

/// Run a job: read its logs, compute its tables, publish them all or none
///
/// A run whose input, spec and version are published already exits 0 and writes nothing, so it is
/// safe to run again. The tables are the same byte for byte for any number of threads, any order of
/// files and any cut into row groups.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill run jobs/quickstart.toml
  tidemill run jobs/nightly.toml --date 2026-11-22
  tidemill run jobs/nightly.toml --set top_k.k=20 --set output.url=/tmp/try/ --sample-users 0.01
  tidemill run jobs/nightly.toml --no-publish --json | jq .manifest.counts

What happened is in runs/<date>/<run_id>/_report.json below the output, of a failed run in
_failed/<run_id>.json. The environment says who else is told:
  TIDEMILL_PROMETHEUS_FILE, TIDEMILL_PROMETHEUS_PUSH_URL   metrics, see k8s/alerts
  OPENLINEAGE_URL, TIDEMILL_OPENLINEAGE_FILE               START, COMPLETE and FAIL events
  TIDEMILL_TERMINATION_LOG    one line of JSON [default: /dev/termination-log, where it is]")]
pub(super) struct RunArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Threads for reading and computing [default: the cores of this machine]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write and audit the tables, but let no reader see them
    #[arg(long)]
    no_publish: bool,
    /// Publish even if the same input and spec are published already
    #[arg(long)]
    force: bool,
    /// Publish to a store without conditional writes; safe only if nothing else writes there
    #[arg(long)]
    unsafe_single_writer: bool,
    /// Print the outcome with the whole manifest as JSON, and no progress
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let request = request(args).inspect_err(telemetry::refused)?;
    let (spec, base) = (request.spec.clone(), request.base.clone());
    let date = request.flags.date.as_deref();
    let telemetry = Telemetry::begin(&spec, &base, &request.run_id, date);
    let (outcome, report) = run::run_reported(request);
    telemetry.end(&report, outcome.as_ref().ok());
    let outcome = outcome?;
    match args.json {
        true => print(&serde_json::to_string_pretty(&outcome)?),
        false => print(&summary::of(&outcome, &spec, &args.spec)?),
    }
    if let Outcome::NotPublished { .. } = outcome {
        tracing::info!("nothing was committed, as asked");
    }
    Ok(())
}

fn request(args: &RunArgs) -> Result<Request> {
    let threads = args.threads.unwrap_or_else(default_threads);
    if !(1..=1024).contains(&threads) {
        return Err(Refused::usage(anyhow!(
            "--threads {threads} is out of range; write 1 to 1024"
        )));
    }
    let spec = args.spec.load()?;
    Ok(Request {
        base: args.spec.base(),
        flags: args.spec.flags(&spec)?,
        spec,
        threads,
        workers: 1,
        publish: !args.no_publish,
        force: args.force,
        unsafe_single_writer: args.unsafe_single_writer,
        clock: clock::now_us,
        run_id: clock::run_id(),
        observer: progress::observer(args.json),
    })
}
