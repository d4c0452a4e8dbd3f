//! `tidemill run`: the whole job.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use jiff::ToSpan;
use jiff::civil::Date;

use super::processes::{self, ProcessArgs, Role, Worker};
use super::telemetry::{self, Telemetry};
use super::{SpecArgs, clock, default_threads, print, profile, progress, summary};
use crate::cluster::{Pulse, Verdict};
use crate::run::{self, Carried, Cluster, Outcome, Profile, Refused, Request, StateUse};

/// Run a job: read its logs, compute its tables, publish them all or none
///
/// A run whose input, spec and version are published already exits 0 and writes nothing, so it is
/// safe to run again. The tables are the same byte for byte for any number of threads, any order of
/// files and any cut into row groups, and for any number of processes.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill run jobs/quickstart.toml
  tidemill run jobs/nightly.toml --date 2026-11-22
  tidemill run jobs/nightly.toml --set top_k.k=20 --set output.url=/tmp/try/ --sample-users 0.01
  tidemill run jobs/nightly.toml --no-publish --json | jq .manifest.counts
  tidemill run jobs/nightly.toml --since-last
  tidemill run jobs/nightly.toml --from 2026-10-01 --to 2026-11-01
  tidemill run jobs/nightly.toml --local-processes 4
  tidemill run jobs/nightly.toml --no-publish --profile-stages
  tidemill run jobs/nightly.toml --processes 4 --index 2 --host-template 'mill-{index}.mill:7000'

Processes that are started on several machines share a secret, in TIDEMILL_CLUSTER_KEY or in the file
that TIDEMILL_CLUSTER_KEY_FILE names. When one of them is lost, all begin anew from the last
checkpoint. TIDEMILL_RUN_ID names the run; without it, every start is a run of its own.
They talk through TLS where three PEM files are named, in all processes or in none:
  TIDEMILL_CLUSTER_TLS_CERT, TIDEMILL_CLUSTER_TLS_KEY      a certificate for the name tidemill
  TIDEMILL_CLUSTER_TLS_CA                                  who gave it, and those of the others

What happened is in runs/<date>/<run_id>/_report.json below the output, of a failed run in
_failed/<run_id>.json. The environment says who else is told:
  TIDEMILL_PROMETHEUS_FILE, TIDEMILL_PROMETHEUS_PUSH_URL   metrics, see k8s/alerts
  OPENLINEAGE_URL, TIDEMILL_OPENLINEAGE_FILE               START, COMPLETE and FAIL events
  TIDEMILL_TERMINATION_LOG    one line of JSON [default: /dev/termination-log, where it is]

Loops use the widest instructions of the machine, which change no byte of what is published;
TIDEMILL_INSTRUCTIONS=avx2 (or plain, avx512) keeps them to a set.")]
pub(super) struct RunArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// Threads for reading and computing, per process [default: the cores of this machine]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write and audit the tables, but let no reader see them
    #[arg(long)]
    no_publish: bool,
    /// Publish even if the same input and spec are published already
    #[arg(long)]
    force: bool,
    /// Keep the rows of the logs for the next run, and read only files that are new or changed since the
    /// last one; the same as [incremental] in the spec
    #[arg(long)]
    since_last: bool,
    /// Publish a generation for each day from this one to --to, in order, each from the state of the one
    /// before (as with --since-last); days that are published already are passed over
    #[arg(long, value_name = "DATE", requires = "to", conflicts_with_all = ["date", "as_of"])]
    from: Option<String>,
    /// The last day of --from
    #[arg(long, value_name = "DATE", requires = "from")]
    to: Option<String>,
    /// How the state of the last run is used: by "tidemill state"
    #[arg(skip)]
    state: StateUse,
    /// Publish to a store without conditional writes; safe only if nothing else writes there
    #[arg(long)]
    unsafe_single_writer: bool,
    /// Print the outcome with the whole manifest as JSON, and no progress
    #[arg(long)]
    json: bool,
    /// Say on stderr what each stage took: seconds, cores, bytes, memory, FLOP per second. The report
    /// of every run has the same numbers
    #[arg(long)]
    profile_stages: bool,
    /// Write the same as JSON, with the seconds of each ALS iteration
    #[arg(long, value_name = "FILE")]
    profile_stages_out: Option<PathBuf>,
    #[command(flatten)]
    processes: ProcessArgs,
}

/// Runs the job, or starts and watches the processes that do; gives the exit code where a process has
/// told why already.
pub(super) fn run(args: &RunArgs) -> Result<u8> {
    if let (Some(from), Some(to)) = (&args.from, &args.to) {
        return backfill(args, from, to).map(|()| 0);
    }
    match args.processes.role().inspect_err(telemetry::refused)? {
        Role::Alone => run_here(args, None, None).map(|()| 0),
        Role::Worker(worker) => work(args, *worker),
        Role::Supervisor { n_here, n_processes, first } => {
            supervise(args, (n_here, n_processes, first))
        }
    }
}

/// Runs the job for one day after the other, as a daily schedule would have done.
fn backfill(args: &RunArgs, from: &str, to: &str) -> Result<()> {
    let days = days(args, from, to).inspect_err(telemetry::refused)?;
    let carried = Arc::new(Carried::default());
    for day in &days {
        let spec = SpecArgs { date: Some(day.to_string()), ..args.spec.clone() };
        let of_day = RunArgs { spec, since_last: true, from: None, to: None, ..args.clone() };
        run_here(&of_day, None, Some(&carried))
            .with_context(|| format!("the backfill ends at {day}"))?;
    }
    tracing::info!(days = days.len(), "all days are published");
    Ok(())
}

/// The days of a backfill, in order.
fn days(args: &RunArgs, from: &str, to: &str) -> Result<Vec<Date>> {
    let parse = |text: &str| {
        text.parse::<Date>().map_err(|_| {
            Refused::usage(anyhow!("\"{text}\" is not a date; write it as 2026-11-22"))
        })
    };
    let (from, to) = (parse(from)?, parse(to)?);
    if from > to {
        return Err(Refused::usage(anyhow!("--from {from} is after --to {to}")));
    }
    if !matches!(args.processes.role()?, Role::Alone) || processes::is_named() {
        return Err(Refused::usage(anyhow!(
            "--from publishes many runs, in one process; leave out --processes, --local-processes \
             and TIDEMILL_RUN_ID"
        )));
    }
    Ok(from.series(1.day()).take_while(|day| *day <= to).collect())
}

/// Begins and ends what is told of a run of several processes; its workers do the rest.
fn supervise(args: &RunArgs, role: (usize, usize, usize)) -> Result<u8> {
    let request = request(args, None).inspect_err(telemetry::refused)?;
    let (spec, base) = (&request.spec, &request.base);
    let speaks = role.2 == 0;
    let date = request.flags.date.as_deref();
    let telemetry = speaks.then(|| Telemetry::new(spec, base, &request.run_id, date));
    telemetry.iter().for_each(Telemetry::start);
    let verdict = args.processes.supervise(role, &request.run_id);
    let is_told = matches!(verdict, Ok(Verdict::Done | Verdict::Ended(_)));
    let concluded = verdict.and_then(processes::conclude);
    if let (false, Some(telemetry)) = (is_told, telemetry) {
        let ended = |code| Refused::temporary(anyhow!("the processes ended with code {code}"));
        let report = match &concluded {
            Ok(code) => run::report_lost(&request, &ended(code)),
            Err(error) => run::report_lost(&request, error),
        };
        telemetry.end(&report, None);
    }
    concluded
}

/// Runs the job as one of several processes.
fn work(args: &RunArgs, worker: Worker) -> Result<u8> {
    worker.begin()?;
    match run_here(args, Some(&worker), None) {
        Ok(()) => Ok(0),
        Err(error) if worker.is_echo() => Ok(run::exit_code(&error)),
        Err(error) => Err(error),
    }
}

fn run_here(args: &RunArgs, worker: Option<&Worker>, carried: Option<&Arc<Carried>>) -> Result<()> {
    let request = request(args, worker).inspect_err(telemetry::refused)?;
    let request = Request { carried: carried.cloned(), ..request };
    let (spec, base) = (request.spec.clone(), request.base.clone());
    let (speaks, is_alone) = (request.is_first_process(), worker.is_none());
    let date = request.flags.date.as_deref();
    let telemetry = Telemetry::new(&spec, &base, &request.run_id, date);
    if is_alone {
        telemetry.start();
    }
    let cluster = cluster_of(&request);
    let (outcome, report) = run::run_reported(request);
    match speaks {
        true => telemetry.end(&report, outcome.as_ref().ok()),
        false => telemetry::ended(&report),
    }
    if let (true, Ok(outcome)) = (speaks, &outcome) {
        match args.json {
            true => print(&serde_json::to_string_pretty(outcome)?),
            false => print(&summary::of(outcome, &spec, &args.spec)?),
        }
        if let Outcome::NotPublished { .. } = outcome {
            tracing::info!("nothing was committed, as asked");
        }
    }
    if speaks {
        args.tell_profile(&Profile::new(&report, cluster));
    }
    outcome.map(drop)
}

/// The processes of a run, all with as many threads.
fn cluster_of(request: &Request) -> Cluster {
    let processes = request.cluster.as_ref().map_or(1, |cluster| cluster.seat.n_processes);
    Cluster { processes, threads: request.threads }
}

impl RunArgs {
    /// The same run, which writes its state anew even if its tables are published already.
    pub(super) fn with_state(&self, state: StateUse) -> Self {
        Self { since_last: true, force: true, state, ..self.clone() }
    }

    /// Says what the stages took, as asked; also of a run that failed.
    fn tell_profile(&self, profile: &Profile) {
        if self.profile_stages {
            profile::print(profile);
        }
        let out = self.profile_stages_out.as_ref();
        if let Some(Err(error)) = out.map(|path| profile::write(profile, path)) {
            tracing::warn!(error = run::one_line(error.as_ref()), "the profile is not written");
        }
    }
}

fn request(args: &RunArgs, worker: Option<&Worker>) -> Result<Request> {
    let cores = (default_threads() / args.processes.n_here()).max(1);
    let threads = args.threads.unwrap_or(cores);
    if !(1..=1024).contains(&threads) {
        return Err(Refused::usage(anyhow!(
            "--threads {threads} is out of range; write 1 to 1024"
        )));
    }
    let mut spec = args.spec.load()?;
    if args.since_last {
        spec.incremental.get_or_insert_default().enabled = true;
    }
    let flags = args.spec.flags(&spec)?;
    let mut observer = progress::observer(args.json || worker.is_some_and(|of| of.index > 0));
    let mut cluster = None;
    if let Some(worker) = worker {
        let pulse = Arc::new(Pulse::default());
        observer = Arc::new(processes::Told::new(observer, pulse.clone()));
        let options = format!("{} {}", args.no_publish, args.force);
        cluster = Some(worker.cluster(&spec, &flags, &options, pulse)?);
    }
    Ok(Request {
        spec,
        base: args.spec.base(),
        flags,
        threads,
        workers: 1,
        publish: !args.no_publish,
        force: args.force,
        state: args.state,
        unsafe_single_writer: args.unsafe_single_writer,
        checkpoints_by_default: worker.is_some(),
        clock: clock::now_us,
        run_id: processes::run_id()?,
        observer,
        carried: None,
        cluster,
    })
}
