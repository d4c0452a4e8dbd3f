//! The command line: one file per subcommand. The only layer that prints, and the only clock.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand};

use crate::job::{self, Spec};
use crate::kernels::simd::{self, Level};
use crate::run::{PlanFlags, Refused};

/// Names the highest set of instructions that kernels may use.
const INSTRUCTIONS: &str = "TIDEMILL_INSTRUCTIONS";

mod calibrate;
mod check;
mod clock;
mod forget;
mod generate;
#[cfg(test)]
mod generate_tests;
mod init;
mod logical_date;
mod plan;
mod processes;
mod profile;
mod progress;
mod published;
mod published_runs;
mod run;
mod search;
#[cfg(test)]
mod search_tests;
mod show;
mod state;
mod summary;
mod telemetry;

/// Precompute recommendations in batches: Parquet logs in, published top-K lists out
#[derive(Debug, Parser)]
#[command(
    name = "tidemill",
    version,
    max_term_width = 100,
    after_help = "\
Start here:
  tidemill run jobs/quickstart.toml            the whole job on a small log that comes with the project
  tidemill plan jobs/quickstart.toml           what a run would read, and the memory and time it takes
  tidemill show jobs/quickstart.toml --user u000000001    one user's list beside their history
  tidemill init log/ --out mine.toml           a commented spec that fits your log

  tidemill runs jobs/quickstart.toml           what was published; verify, rollback and gc take care of it

Exit codes: 0 published (or published already), 64 usage, 65 bad data, 66 no input, 70 internal,
73 withdrawn before, 74 local I/O, 75 temporary, 77 denied, 78 spec or store."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on stderr: -v for details, -vv for ids and requests
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Calibrate(calibrate::CalibrateArgs),
    Show(show::ShowArgs),
    Search(search::SearchArgs),
    Runs(published_runs::RunsArgs),
    Verify(published_runs::VerifyArgs),
    Rollback(published_runs::RollbackArgs),
    Gc(published_runs::GcArgs),
    ForgetCheck(forget::ForgetCheckArgs),
    State(state::StateArgs),
    Init(init::InitArgs),
    Generate(generate::GenerateArgs),
}

/// Runs the command that `cli` holds; gives the exit code.
///
/// # Errors
/// What the command could not do; `run::exit_code` gives the code for it.
pub fn dispatch(cli: &Cli) -> Result<u8> {
    start_logging(cli.verbose);
    limit_instructions().inspect_err(telemetry::refused)?;
    let done = match &cli.command {
        // Tells by itself, and more.
        Command::Run(args) => return run::run(args),
        Command::State(args) => return state::run(args),
        Command::Check(args) => check::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Show(args) => show::run(args),
        Command::Search(args) => search::run(args),
        Command::Runs(args) => published_runs::runs(args),
        Command::Verify(args) => published_runs::verify(args),
        Command::Rollback(args) => published_runs::rollback(args),
        Command::Gc(args) => published_runs::gc(args),
        Command::ForgetCheck(args) => forget::forget_check(args),
        Command::Init(args) => init::run(args),
        Command::Generate(args) => generate::run(args),
    };
    done.inspect_err(telemetry::refused).map(|()| 0)
}

/// Keeps to the instructions that TIDEMILL_INSTRUCTIONS names: slower, and the same bytes.
fn limit_instructions() -> Result<()> {
    let Ok(name) = std::env::var(INSTRUCTIONS) else { return Ok(()) };
    match Level::ALL.into_iter().find(|level| level.name() == name) {
        Some(level) => simd::limit(level),
        None => {
            let problem = anyhow!("{INSTRUCTIONS} is \"{name}\"; use plain, avx2 or avx512");
            return Err(Refused::config(problem));
        }
    }
    Ok(())
}

/// Logs go to stderr; results go to stdout.
fn start_logging(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second start, as in tests, keeps the first subscriber.
    let _ = subscriber.without_time().try_init();
}

/// Which job, and what is different about it this time.
#[derive(Clone, Debug, Args)]
struct SpecArgs {
    /// The job spec, a TOML file; jobs/README.md lists its keys
    spec: PathBuf,
    /// Override any key of the spec: --set top_k.k=20 --set events.0.url=log/
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The day the result is for, such as 2026-11-22, or from-job-name for the day before a
    /// CronJob's job was due (TIDEMILL_JOB_NAME) [default: TIDEMILL_DATE, else derived from as_of]
    #[arg(long, value_name = "DATE")]
    date: Option<String>,
    /// The run's "now": later events do not count [default: end of --date, else the newest event]
    #[arg(long, value_name = "TIME")]
    as_of: Option<String>,
    /// Keep this share of the users, chosen by a hash of their id, such as 0.01
    #[arg(long, value_name = "SHARE")]
    sample_users: Option<f64>,
}

impl SpecArgs {
    /// A spec with keys overridden and nothing else.
    fn of(spec: PathBuf, set: Vec<String>) -> Self {
        Self { spec, set, date: None, as_of: None, sample_users: None }
    }

    /// Reads and checks the spec: flags over environment over file.
    fn load(&self) -> Result<Spec> {
        let name = self.spec.display().to_string();
        let text = std::fs::read_to_string(&self.spec)
            .with_context(|| format!("spec \"{name}\" cannot be read; check the path"))
            .map_err(Refused::no_input)?;
        let mut overrides = Vec::new();
        for set in &self.set {
            let (key, value) = set.split_once('=').ok_or_else(|| {
                Refused::usage(anyhow!("--set \"{set}\" has no \"=\"; write --set top_k.k=20"))
            })?;
            overrides.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(job::load(&text, &name, &environment, &overrides)?)
    }

    /// The folder that relative paths of the spec are relative to.
    fn base(&self) -> PathBuf {
        let folder = self.spec.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new(".")).to_owned()
    }

    fn flags(&self, spec: &Spec) -> Result<PlanFlags> {
        if let Some(share) = self.sample_users
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Refused::usage(anyhow!(
                "--sample-users {share} is not a share; write a number above 0, at most 1"
            )));
        }
        Ok(PlanFlags {
            date: logical_date::date(self.date.as_deref(), spec, clock::now_us())?,
            as_of: self.as_of.clone(),
            sample_users: self.sample_users,
        })
    }
}

/// Threads of this machine.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Writes a result to stdout; a reader that went away is not an error.
fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
