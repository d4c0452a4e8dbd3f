//! A run is one attempt, or more where its input turned out to be other than it was planned; then a
//! report of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::report::{InputTrouble, Known, Record};
use super::{
    BadFile, Outcome, Refused, Report, Request, drive, exit_code, one_line, runtime, to_json,
};
use crate::dataflow::{execute, execute_over};
use crate::store::{IoRuntime, Output, StoreCounts};

/// What all workers of one attempt share.
pub(super) struct Attempt {
    /// With a run id of its own.
    pub(super) request: Request,
    /// Kept over all attempts.
    pub(super) runtime: IoRuntime,
    /// When the first attempt began.
    pub(super) started_at_us: i64,
    /// What is known so far.
    pub(super) record: Arc<Record>,
    /// Damaged files that earlier attempts met.
    pub(super) left_out: Vec<BadFile>,
}

/// Runs a job from its logs to its published tables.
///
/// # Errors
/// Whatever went wrong first, on the lowest process that it happened to. [`exit_code`] tells the
/// code of the process. Nothing is published then.
///
/// [`exit_code`]: super::exit_code
pub fn run(request: Request) -> Result<Outcome> {
    run_reported(request).0
}

/// The same, and what happened, which is also written to the output: beside the manifest, or to
/// `_failed/<run_id>.json`. A report that cannot be written changes nothing.
pub fn run_reported(request: Request) -> (Result<Outcome>, Report) {
    match runtime(&request.spec) {
        Ok(runtime) => run_on(runtime, request),
        Err(error) => {
            let now = (request.clock)();
            let known = Known { run_id: request.run_id, ..Known::default() };
            let (result, counts) = (Err(error), StoreCounts::default());
            let report = Report::new(&request.spec, known, &result, (now, now), counts);
            (result, report)
        }
    }
}

/// The same on stores that are open already.
pub(super) fn run_on(runtime: IoRuntime, mut request: Request) -> (Result<Outcome>, Report) {
    let started_at_us = (request.clock)();
    let record = Arc::new(Record::default());
    let name = request.run_id.clone();
    let (mut left_out, mut replaced) = (Vec::new(), false);
    let result = loop {
        let result = run_once(Attempt {
            request: request.clone(),
            runtime: runtime.clone(),
            started_at_us,
            record: record.clone(),
            left_out: left_out.clone(),
        });
        match record.take_input() {
            Some(InputTrouble::Replaced) if replaced => {
                break result.map_err(|error| {
                    Refused::bad_data(error.context("inputs were replaced during the run, twice"))
                });
            }
            // The other version may be whole.
            Some(InputTrouble::Replaced) => {
                replaced = true;
                request.observer.note("plan", "an input was replaced; beginning anew");
            }
            Some(InputTrouble::Damaged(file))
                if left_out.len() < request.spec.limits.bad_files_max as usize
                    && !left_out.contains(&file) =>
            {
                let reason = &file.reason;
                request.observer.note("plan", &format!("{reason}; beginning anew without it"));
                left_out.push(file);
            }
            _ => break result,
        }
        // Every attempt has a name of its own, so that files never mix.
        request.run_id = format!("{name}-{}", record.known().attempts + 1);
    };
    let times = (started_at_us, (request.clock)());
    let report = Report::new(&request.spec, record.known(), &result, times, runtime.counts());
    // A run that is published already leaves no trace.
    if report.outcome != "already_published"
        && request.is_first_process()
        && let Err(error) = write(&runtime, &request, &report)
    {
        tracing::warn!(error = one_line(error.as_ref()), "the report is not written");
    }
    (result, report)
}

/// The report of a run whose processes were lost, so that none of them could write it.
pub fn report_lost(request: &Request, error: &anyhow::Error) -> Report {
    // Errors cannot be copied; what a report says of one is its code and its text.
    let error = Refused::with_code(exit_code(error), anyhow!(one_line(error.as_ref())));
    let now = (request.clock)();
    let known = Known { run_id: request.run_id.clone(), ..Known::default() };
    let report = |counts| Report::new(&request.spec, known, &Err(error), (now, now), counts);
    let Ok(runtime) = runtime(&request.spec) else { return report(StoreCounts::default()) };
    let report = report(runtime.counts());
    if let Err(error) = write(&runtime, request, &report) {
        tracing::warn!(error = one_line(error.as_ref()), "the report is not written");
    }
    report
}

fn run_once(attempt: Attempt) -> Result<Outcome> {
    attempt.record.note(|known| {
        let (run_id, attempts) = (attempt.request.run_id.clone(), known.attempts + 1);
        *known = Known { run_id, attempts, ..Known::default() };
    });
    let Some(cluster) = attempt.request.cluster.clone() else {
        let outcomes = execute(attempt.request.workers, move |shell| drive(shell, &attempt))?;
        return Ok(outcomes.into_iter().next().expect("there is a worker"));
    };
    if let Some(outcome) = published_before(&attempt)? {
        return Ok(outcome);
    }
    let mesh = cluster.seat.form()?;
    (cluster.formed)(mesh.epoch);
    let (links, watch) = mesh.watch(cluster.pulse.clone(), cluster.limits, cluster.lost)?;
    let outcome = execute_over(links, cluster.seat.index, move |shell| drive(shell, &attempt));
    drop(watch);
    outcome
}

/// What a run of this name has published before this process was started again. Peers that have heard
/// of it ended well and do not come back, so a cluster would be waited for in vain.
fn published_before(attempt: &Attempt) -> Result<Option<Outcome>> {
    let Attempt { request, runtime, record, .. } = attempt;
    if !request.publish {
        return Ok(None);
    }
    let output = Output::create(runtime, &request.spec.output.url, &request.base)?;
    let log = output.read_log()?;
    let Some(current) = log.find_run(&request.run_id).map(|entry| entry.run.clone()) else {
        return Ok(None);
    };
    output.follow_log()?;
    let manifest = Box::new(output.read_manifest(&current)?);
    record.note(|known| {
        known.run_id = current.run_id.clone();
        known.logical_date = Some(manifest.logical_date.clone());
        known.as_of = Some(manifest.as_of.clone());
        known.fingerprint = Some(manifest.fingerprint.clone());
        known.counts = manifest.counts.clone();
        known.stages = manifest.stages.clone();
        known.files = manifest.files.clone();
    });
    Ok(Some(Outcome::Published { current, manifest }))
}

/// A store that is in trouble has cost enough time already.
const PATIENCE: Duration = Duration::from_secs(10);

fn write(runtime: &IoRuntime, request: &Request, report: &Report) -> Result<()> {
    let output = Output::create(runtime, &request.spec.output.url, &request.base)?;
    Ok(output.put_within(&report.path(), to_json(report)?, PATIENCE)?)
}
