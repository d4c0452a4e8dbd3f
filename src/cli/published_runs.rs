//! `tidemill runs`, `verify`, `rollback` and `gc`: what is published in an output, and its care.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use serde_json::{Value, json};

use super::forget::{self, IdArgs, Purge};
use super::{SpecArgs, clock, print, progress};
use crate::job::Spec;
use crate::run::{self, Refused};
use crate::store::{
    Collection, CollectionRules, Current, IoRuntime, Log, LogEntry, Output, Standing, Verification,
};

/// The output that a command is about.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// The job spec, or the output's url or folder itself
    #[arg(value_name = "SPEC|OUTPUT")]
    of: String,
    /// Override any key of the spec: --set output.url=/tmp/try/
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

impl OutputArgs {
    /// The spec and the folder its paths are relative to, where a spec is given.
    pub(super) fn spec(&self) -> Result<Option<(Spec, PathBuf)>> {
        if !self.of.ends_with(".toml") {
            return Ok(None);
        }
        let spec_args = SpecArgs::of(PathBuf::from(&self.of), self.set.clone());
        Ok(Some((spec_args.load()?, spec_args.base())))
    }

    pub(super) fn open(&self) -> Result<Output> {
        let Some((spec, base)) = self.spec()? else {
            let runtime = IoRuntime::new()?;
            return Ok(Output::open(&runtime, &self.of, Path::new(""))?);
        };
        let runtime = run::runtime(&spec)?;
        Output::open(&runtime, &spec.output.url, &base).map_err(|error| {
            Refused::no_input(anyhow!(error).context("nothing is published; run the job first"))
        })
    }
}

/// List what was published, newest first, and what became of it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill runs jobs/nightly.toml
  tidemill runs s3://shop-recs/nightly/ --limit 3 --json | jq '.runs[].run_id'")]
pub(super) struct RunsArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// Entries to show, newest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Bring current.json and all else that follows the log up to it
    #[arg(long)]
    repair: bool,
}

pub(super) fn runs(args: &RunsArgs) -> Result<()> {
    let output = args.output.open()?;
    if args.repair {
        output.repair()?;
    }
    let log = output.read_log()?;
    let shown: Vec<&LogEntry> = log.entries().iter().rev().take(args.limit).collect();
    if args.output.json {
        let runs: Vec<Value> = shown.iter().map(|entry| as_json(&log, entry)).collect();
        print(&serde_json::to_string_pretty(&json!({ "current": log.current(), "runs": runs }))?);
        return Ok(());
    }
    if shown.is_empty() {
        print(&format!("nothing is published in \"{}\"; run the job first", output.url()));
        return Ok(());
    }
    let mut out = format!(
        "{:>10}  {:<10}  {:<36}  {:<20}  {}",
        "generation", "date", "run", "began", "standing"
    );
    for entry in &shown {
        let run = &entry.run;
        let standing = described(&log, entry);
        write!(
            out,
            "\n{:>10}  {:<10}  {:<36}  {:<20}  {standing}",
            run.generation,
            run.logical_date,
            run.run_id,
            seconds_of(&run.published_at)
        )?;
    }
    let older = log.entries().len() - shown.len();
    if older > 0 {
        write!(out, "\nand {older} older; --limit shows more")?;
    }
    print(&out);
    Ok(())
}

fn as_json(log: &Log, entry: &LogEntry) -> Value {
    let mut value = serde_json::to_value(entry).expect("a log entry is plain data");
    value["standing"] = json!(log.standing(entry));
    value
}

/// An instant without its fraction of a second.
fn seconds_of(instant: &str) -> String {
    match instant.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => instant.to_owned(),
    }
}

fn described(log: &Log, entry: &LogEntry) -> String {
    match log.standing(entry) {
        Standing::Current => "current: what readers see".to_owned(),
        Standing::Standing => "published".to_owned(),
        Standing::Withdrawn => "withdrawn".to_owned(),
        Standing::Collected => "removed by gc".to_owned(),
        Standing::Withdrawal => format!("withdraws {}", entry.withdraws.unwrap_or(0)),
        Standing::Collection => format!("gc gives up {} runs", entry.collects.len()),
    }
}

/// Read a published run back, and hold every file's size and SHA-256 against its manifest
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill verify jobs/nightly.toml
  tidemill verify s3://shop-recs/nightly/ --generation 41 --json | jq .problems")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// The generation to read [default: what readers see]
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

pub(super) fn verify(args: &VerifyArgs) -> Result<()> {
    let output = args.output.open()?;
    let log = output.read_log()?;
    let run = generation(&output, &log, args.generation)?;
    let observer = progress::observer(args.output.json);
    let bytes = output.read_manifest(&run)?.files.iter().map(|file| file.bytes).sum();
    observer.begin("verify", Some((bytes, "bytes")));
    let start = std::time::Instant::now();
    let found = output.verify(&run, &|bytes| observer.advance(bytes))?;
    observer.end("verify", start.elapsed().as_secs_f64(), "");
    match args.output.json {
        true => print(&serde_json::to_string_pretty(&found)?),
        false => print(&verified(&found)),
    }
    match found.problems.len() {
        0 => Ok(()),
        n => Err(Refused::bad_data(anyhow!(
            "{n} of the run's parts are not as they were published; restore them, or withdraw the \
             generation with \"tidemill rollback\""
        ))),
    }
}

/// The publication that was asked for, or what readers see.
pub(super) fn generation(output: &Output, log: &Log, asked: Option<u64>) -> Result<Current> {
    let found = match asked {
        None => log.current(),
        Some(asked) => {
            let entry = log.publications().find(|entry| entry.run.generation == asked);
            entry.map(|entry| &entry.run)
        }
    };
    found.cloned().ok_or_else(|| {
        let what = asked.map_or("nothing is published".to_owned(), |asked| {
            format!("generation {asked} publishes no run")
        });
        Refused::no_input(anyhow!("{what} in \"{}\"; see \"tidemill runs\"", output.url()))
    })
}

fn verified(found: &Verification) -> String {
    let Verification { run, files, bytes, problems } = found;
    let head = format!(
        "generation {} of {}, run {}: {} files, {}",
        run.generation,
        run.logical_date,
        run.run_id,
        HumanCount(*files as u64),
        BinaryBytes(*bytes)
    );
    match problems.is_empty() {
        true => format!("{head}: all as published"),
        false => format!("{head}\n  {}", problems.join("\n  ")),
    }
}

/// Withdraw a published generation, so that readers see the one before it
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is deleted: a withdrawal is one more entry of the log. The same input and spec are not
published again without --force.

Examples:
  tidemill rollback jobs/nightly.toml
  tidemill rollback s3://shop-recs/nightly/ --generation 41")]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// The generation to withdraw [default: what readers see]
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
}

pub(super) fn rollback(args: &RollbackArgs) -> Result<()> {
    let output = args.output.open()?;
    let (now, nonce) = (clock::now(), clock::run_id());
    let (entry, current) = output.withdraw(args.generation, &now, &nonce)?;
    if args.output.json {
        let shown = json!({ "entry": entry, "current": current });
        print(&serde_json::to_string_pretty(&shown)?);
        return Ok(());
    }
    let done = match &entry {
        Some(entry) => format!(
            "generation {} is withdrawn, by generation {}",
            entry.withdraws.unwrap_or(0),
            entry.run.generation
        ),
        None => "it was withdrawn already".to_owned(),
    };
    let seen = match current {
        Some(run) => {
            let Current { generation, logical_date, run_id, .. } = run;
            format!("readers see generation {generation} of {logical_date}, run {run_id}")
        }
        None => "readers see nothing: no published generation is left".to_owned(),
    };
    print(&format!("{done}; {seen}"));
    Ok(())
}

/// Show, or with --delete remove, runs that nobody needs any more
#[derive(Debug, Args)]
#[command(after_help = "\
Kept are the newest publications that are not withdrawn (--keep), what readers see, and every run that began less than
--grace-hours ago, so make that longer than a run ever takes. Checkpoints go that long after the last was saved. Parts of uploads that were never
completed are not listed by stores in a common way; let the bucket's lifecycle rules abort them.

Examples:
  tidemill gc jobs/nightly.toml
  tidemill gc jobs/nightly.toml --keep 14 --delete
  tidemill gc jobs/nightly.toml --purge --delete --signed-off-by 'A. Person'")]
pub(super) struct GcArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// Newest publications to keep
    #[arg(long, value_name = "N", default_value_t = 7)]
    keep: usize,
    /// Hours after its beginning during which a run is left alone
    #[arg(long, value_name = "HOURS", default_value_t = 48)]
    grace_hours: u32,
    /// Delete; without it, only show what would go
    #[arg(long)]
    delete: bool,
    /// Remove every generation that holds somebody who is to be gone (--user, --item, or the lists of
    /// [delete]), whatever --keep and --grace-hours say, and all checkpoints; writes a receipt
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    ids: IdArgs,
    /// Who answers for the purge, for the receipt
    #[arg(long, value_name = "NAME", requires = "purge")]
    signed_off_by: Option<String>,
}

pub(super) fn gc(args: &GcArgs) -> Result<()> {
    if args.purge {
        let GcArgs { output, ids, delete, .. } = args;
        let signed_off_by = args.signed_off_by.as_deref();
        return forget::purge(&Purge { output, ids, signed_off_by, delete: *delete });
    }
    let output = args.output.open()?;
    let grace_us = i64::from(args.grace_hours) * 3_600_000_000;
    let rules = CollectionRules { keep: args.keep, grace_us, now_us: clock::now_us() };
    let found = match args.delete {
        true => output.collect(&rules, &clock::now(), &clock::run_id())?,
        false => output.plan_collection(&rules)?,
    };
    match args.output.json {
        true => {
            print(&serde_json::to_string_pretty(
                &json!({ "deleted": args.delete, "what": found }),
            )?);
        }
        false => print(&collected(&found, args.delete)),
    }
    Ok(())
}

fn collected(found: &Collection, deleted: bool) -> String {
    if found.objects == 0 {
        return "nothing to remove".to_owned();
    }
    let mut out = format!(
        "{} {} objects, {}: {} runs that were published, {} that never were",
        if deleted { "removed" } else { "would remove" },
        HumanCount(found.objects as u64),
        BinaryBytes(found.bytes),
        found.published_runs.len(),
        found.unpublished_runs.len()
    );
    let named = found.published_runs.iter().map(|run| (run, "published"));
    let never = found.unpublished_runs.iter().map(|run| (run, "never published"));
    for (run, what) in named.chain(never) {
        let _ = write!(out, "\n  {run}  {what}");
    }
    for fingerprint in &found.checkpoints {
        let _ = write!(out, "\n  {fingerprint}  checkpoints");
    }
    if !deleted {
        out += "\n--delete removes them";
    }
    out
}
