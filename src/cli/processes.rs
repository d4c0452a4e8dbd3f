//! One run on several processes: who starts them, who each of them is, and how they end.
//!
//! The process that a person or Kubernetes starts is a supervisor. It starts one worker, or all of them
//! with `--local-processes`, and starts them again when a peer is lost. A worker is this same program
//! with [`SUPERVISED`] in its environment.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::clock;
use super::telemetry::variable;
use crate::cluster::{
    Hosts, Key, Limits, Lost, Parent, Policy, Pulse, Seat, Tls, Verdict, supervise,
};
use crate::job::Spec;
use crate::run::{self, ClusterSeat, Observer, PlanFlags, Refused, code};

/// Several processes
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Several processes")]
pub(super) struct ProcessArgs {
    /// Run on so many processes of this machine
    #[arg(long, value_name = "N", conflicts_with = "processes")]
    local_processes: Option<usize>,
    /// This is one of so many processes, each started with the same spec and flags
    #[arg(long, value_name = "N", requires = "hosts")]
    processes: Option<usize>,
    /// Which one, from 0 [default: JOB_COMPLETION_INDEX]; 0 publishes
    #[arg(long, value_name = "I", requires = "processes")]
    index: Option<usize>,
    /// A file with host:port of process i in line i
    #[arg(long, value_name = "FILE", group = "hosts")]
    hosts_file: Option<PathBuf>,
    /// host:port with {index} in it, such as mill-{index}.mill:7000
    #[arg(long, value_name = "HOST:PORT", group = "hosts")]
    host_template: Option<String>,
    /// Where this process listens [default: 0.0.0.0 and its own port]
    #[arg(long, value_name = "ADDRESS", requires = "processes")]
    listen: Option<String>,
    /// Wait so long for all processes to find each other, then end with 75
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    rendezvous_seconds: u64,
    /// Take a process for lost that has said nothing for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    silence_seconds: u64,
    /// Take a run for stuck in which no process has done anything for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    stall_seconds: u64,
    /// Begin anew so many times in a row without coming further, then end with 75
    #[arg(long, value_name = "N", default_value_t = 5)]
    restarts: u32,
}

/// Holds a [`Supervised`] in the environment of a worker.
const SUPERVISED: &str = "TIDEMILL_SUPERVISED";
const KEY: &str = "TIDEMILL_CLUSTER_KEY";
const KEY_FILE: &str = "TIDEMILL_CLUSTER_KEY_FILE";
/// Files of this process's certificate, its private key and the certificates it believes.
const TLS_FILES: [&str; 3] =
    ["TIDEMILL_CLUSTER_TLS_CERT", "TIDEMILL_CLUSTER_TLS_KEY", "TIDEMILL_CLUSTER_TLS_CA"];
const RUN_ID: &str = "TIDEMILL_RUN_ID";

/// What a supervisor tells a worker.
#[derive(Debug, Serialize, Deserialize)]
struct Supervised {
    index: usize,
    n_processes: usize,
    /// Where the addresses of local processes are; none for one process per machine.
    hosts: Option<PathBuf>,
}

/// What this process is.
pub(super) enum Role {
    /// All there is.
    Alone,
    /// It starts so many workers here, of so many in all; the first one's index.
    Supervisor { n_here: usize, n_processes: usize, first: usize },
    /// One worker of several.
    Worker(Box<Worker>),
}

/// A worker, before it knows its job.
pub(super) struct Worker {
    pub(super) index: usize,
    n_processes: usize,
    hosts: Hosts,
    listen: String,
    is_local: bool,
    limits: Limits,
    rendezvous: Duration,
}

impl ProcessArgs {
    /// What this process is, by its flags and its environment.
    pub(super) fn role(&self) -> Result<Role> {
        if let Some(text) = variable(SUPERVISED) {
            let supervised: Supervised = serde_json::from_str(&text)
                .with_context(|| format!("{SUPERVISED} is for workers that tidemill starts"))
                .map_err(Refused::usage)?;
            return Ok(Role::Worker(Box::new(self.worker(supervised)?)));
        }
        if let Some(n_processes) = self.local_processes {
            check_count("--local-processes", n_processes)?;
            return Ok(match n_processes {
                1 => Role::Alone,
                n => Role::Supervisor { n_here: n, n_processes: n, first: 0 },
            });
        }
        let Some(n_processes) = self.processes else { return Ok(Role::Alone) };
        check_count("--processes", n_processes)?;
        let index = self.index_of(n_processes)?;
        Ok(match n_processes {
            1 => Role::Alone,
            _ => Role::Supervisor { n_here: 1, n_processes, first: index },
        })
    }

    /// Processes of this machine that share its cores.
    pub(super) fn n_here(&self) -> usize {
        self.local_processes.unwrap_or(1)
    }

    fn index_of(&self, n_processes: usize) -> Result<usize> {
        const BY_KUBERNETES: &str = "JOB_COMPLETION_INDEX";
        let given = match (self.index, variable(BY_KUBERNETES)) {
            (Some(index), _) => Some(index),
            (None, Some(text)) => Some(text.parse().map_err(|_| {
                Refused::usage(anyhow!("{BY_KUBERNETES} is \"{text}\", which is no index"))
            })?),
            (None, None) => None,
        };
        match given {
            Some(index) if index < n_processes => Ok(index),
            Some(index) => Err(Refused::usage(anyhow!(
                "--index {index} is not one of {n_processes} processes; write 0 to {}",
                n_processes - 1
            ))),
            None => Err(Refused::usage(anyhow!(
                "--processes {n_processes} needs --index, or {BY_KUBERNETES} in the environment"
            ))),
        }
    }

    fn worker(&self, supervised: Supervised) -> Result<Worker> {
        let Supervised { index, n_processes, hosts } = supervised;
        let is_local = hosts.is_some();
        let hosts = match (hosts.or(self.hosts_file.clone()), &self.host_template) {
            (Some(path), _) => Hosts::File(path),
            (None, Some(template)) => Hosts::Template(template.clone()),
            (None, None) => {
                return Err(Refused::usage(anyhow!("--hosts-file or --host-template is missing")));
            }
        };
        let listen = match (&self.listen, is_local) {
            (Some(address), _) => address.clone(),
            (None, true) => "127.0.0.1:0".to_owned(),
            (None, false) => format!("0.0.0.0:{}", hosts.port(index)?),
        };
        let seconds = Duration::from_secs;
        let limits = Limits {
            silence: seconds(self.silence_seconds),
            stall: seconds(self.stall_seconds),
            ..Limits::default()
        };
        let rendezvous = seconds(self.rendezvous_seconds);
        Ok(Worker { index, n_processes, hosts, listen, is_local, limits, rendezvous })
    }

    /// Starts workers until they are done, or until they cannot be.
    pub(super) fn supervise(&self, role: (usize, usize, usize), run_id: &str) -> Result<Verdict> {
        let (n_here, n_processes, first) = role;
        let is_local = n_here == n_processes;
        let key = match is_local {
            true => Key::random_secret()?,
            false => secret()?,
        };
        Key::new(key.as_bytes())?;
        // Said once here, and not by every worker.
        tls()?;
        let folder = tempfile_folder(is_local)?;
        let hosts = folder.as_ref().map(|folder| folder.0.join("hosts"));
        let policy = Policy {
            restarts_max: self.restarts,
            pause: Duration::from_millis(500),
            grace: Duration::from_secs(10),
            // A worker that is stopped says nothing, and its peers wait.
            silence: Duration::from_secs(self.silence_seconds.max(5)),
            is_final,
            hosts_file: hosts.clone(),
        };
        let program = std::env::current_exe().context("the path of this program is not known")?;
        let command = |process: usize, _restart: u32| {
            let supervised =
                Supervised { index: first + process, n_processes, hosts: hosts.clone() };
            let supervised = serde_json::to_string(&supervised).expect("plain data is JSON");
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1)).env(SUPERVISED, supervised);
            command.env(RUN_ID, run_id).env(KEY, &key).env_remove(KEY_FILE);
            command
        };
        let told = |reason: &str| tracing::warn!("{reason}");
        supervise(n_here, &policy, command, told).context("a worker cannot be started")
    }
}

/// Codes that the same command would meet again.
fn is_final(code: u8) -> bool {
    code != 0 && !code::is_retryable(code) && code < 100
}

fn check_count(flag: &str, n_processes: usize) -> Result<()> {
    match (1..=4096).contains(&n_processes) {
        true => Ok(()),
        false => {
            Err(Refused::usage(anyhow!("{flag} {n_processes} is out of range; write 1 to 4096")))
        }
    }
}

/// The cluster's key, from the environment or the file that it names.
fn secret() -> Result<String> {
    if let Some(key) = variable(KEY) {
        return Ok(key);
    }
    let Some(path) = variable(KEY_FILE) else {
        return Err(Refused::config(anyhow!(
            "several processes need a secret that all of them share; set {KEY}, or {KEY_FILE} to a \
             file that holds it"
        )));
    };
    std::fs::read_to_string(&path)
        .with_context(|| format!("the cluster key \"{path}\" cannot be read; see {KEY_FILE}"))
        .map_err(Refused::config)
}

/// TLS between processes, where the environment names its three files.
fn tls() -> Result<Option<Tls>> {
    let paths = TLS_FILES.map(variable);
    if paths.iter().all(Option::is_none) {
        return Ok(None);
    }
    let read = |place: usize| -> Result<Vec<u8>> {
        let name = TLS_FILES[place];
        let path = paths[place].as_ref().ok_or_else(|| {
            anyhow!("{name} is missing; TLS takes {}, or none of them", TLS_FILES.join(", "))
        })?;
        std::fs::read(path).with_context(|| format!("\"{path}\" cannot be read; see {name}"))
    };
    let read = || -> Result<Tls> { Ok(Tls::new(&read(0)?, &read(1)?, &read(2)?)?) };
    read().map(Some).map_err(Refused::config)
}

/// Whether the run has a name from outside.
pub(super) fn is_named() -> bool {
    variable(RUN_ID).is_some()
}

/// The name of a run: given from outside, so that it stays over restarts, or a new one.
pub(super) fn run_id() -> Result<String> {
    let Some(given) = variable(RUN_ID) else { return Ok(clock::run_id()) };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match given.len() <= 64 && given.chars().all(is_plain) {
        true => Ok(given),
        false => Err(Refused::usage(anyhow!(
            "{RUN_ID} is \"{given}\"; write at most 64 letters, digits, - and _"
        ))),
    }
}

/// A folder for the addresses of local processes, removed with its owner.
struct Folder(PathBuf);

fn tempfile_folder(is_wanted: bool) -> Result<Option<Folder>> {
    if !is_wanted {
        return Ok(None);
    }
    let path = std::env::temp_dir().join(format!("tidemill-{}", clock::run_id()));
    std::fs::create_dir(&path)
        .with_context(|| format!("\"{}\" cannot be made; set TMPDIR", path.display()))?;
    Ok(Some(Folder(path)))
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is two small files in a temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The line to the supervisor, for the hooks that end this process.
static PARENT: OnceLock<Parent> = OnceLock::new();

/// Whether the processes have found each other.
static IS_FORMED: AtomicBool = AtomicBool::new(false);

impl Worker {
    /// Makes this process one that ends when its supervisor or a peer does.
    pub(super) fn begin(&self) -> Result<()> {
        end_on_panic();
        let orphaned = || leave(code::TEMPORARY, "the supervisor of this process is gone");
        let parent = Parent::on_stdin(orphaned).context("the supervisor is not there")?;
        let parent = PARENT.get_or_init(|| parent).clone();
        let beat = move || loop {
            parent.beat();
            std::thread::sleep(Duration::from_secs(1));
        };
        std::thread::Builder::new().name("cluster:alive".to_owned()).spawn(beat)?;
        Ok(())
    }

    /// Whether process 0 tells what went wrong on the same terminal: an error of a run is the same in
    /// all its processes.
    pub(super) fn is_echo(&self) -> bool {
        self.is_local && self.index > 0 && IS_FORMED.load(SeqCst)
    }

    /// This worker's place among the others, for a job.
    pub(super) fn cluster(
        &self,
        spec: &Spec,
        flags: &PlanFlags,
        options: &str,
        pulse: Arc<Pulse>,
    ) -> Result<Arc<ClusterSeat>> {
        let digest = |parts: &[&str]| -> [u8; 32] { Sha256::digest(parts.join("\n")).into() };
        let seat = Seat {
            index: self.index,
            n_processes: self.n_processes,
            hosts: self.hosts.clone(),
            listen: self.listen.clone(),
            key: Key::new(secret()?.as_bytes())?,
            tls: tls()?,
            build: digest(&[env!("CARGO_PKG_VERSION"), &run::instruction_set()]),
            job: digest(&[&spec.resolved(), &format!("{flags:?}"), options]),
            rendezvous: self.rendezvous,
            now_us: clock::now_us,
            listening: Box::new(|address| {
                if let Some(parent) = PARENT.get() {
                    parent.listening(address.port());
                }
            }),
        };
        let formed = |epoch| {
            tracing::info!(epoch, "all processes are connected");
            IS_FORMED.store(true, SeqCst);
            if let Some(parent) = PARENT.get() {
                parent.formed();
            }
        };
        let lost = |lost: Lost| leave(code::TEMPORARY, &lost.to_string());
        Ok(Arc::new(ClusterSeat { seat, limits: self.limits, pulse, formed, lost }))
    }
}

/// Ends this process at once. Of many reasons the first is told.
fn leave(code: u8, reason: &str) -> ! {
    tracing::warn!("{reason}; this process ends");
    std::process::exit(i32::from(code));
}

/// timely tells nobody that it lost a peer: its threads panic and the others wait.
fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        if !thread.name().is_some_and(|name| name.starts_with("timely:")) {
            return usual(panic);
        }
        if panic.to_string().contains("timely communication error") {
            leave(code::TEMPORARY, "the connection to another process broke off");
        }
        usual(panic);
        std::process::exit(i32::from(code::INTERNAL));
    }));
}

/// Tells the watch and the supervisor how far a run is, and passes on what there is to show.
pub(super) struct Told {
    inner: Arc<dyn Observer>,
    pulse: Arc<Pulse>,
    /// Place of the stage that runs.
    stage: AtomicU64,
    /// Units of it that are done.
    units: AtomicU64,
}

/// The stages of a run in their order.
const STAGES: [&str; 13] = [
    "plan",
    "scan",
    "shuffle",
    "side tables",
    "histories",
    "popularity",
    "write popularity",
    "item neighbors",
    "write neighbors",
    "als",
    "write factors",
    "top-k lists",
    "publish",
];

/// Iterations of ALS are steps of their own, since each may be the last checkpoint.
const STEPS_PER_STAGE: u64 = 1 << 20;

impl Told {
    pub(super) fn new(inner: Arc<dyn Observer>, pulse: Arc<Pulse>) -> Self {
        Self { inner, pulse, stage: AtomicU64::new(0), units: AtomicU64::new(0) }
    }

    fn reached(&self, place: u64) {
        if let Some(parent) = PARENT.get() {
            parent.reached(place);
        }
    }
}

impl Observer for Told {
    fn begin(&self, stage: &str, total: Option<(u64, &'static str)>) {
        let place = STAGES.iter().position(|name| *name == stage).unwrap_or(0);
        self.stage.store(place as u64, SeqCst);
        self.units.store(0, SeqCst);
        self.inner.begin(stage, total);
    }

    fn advance(&self, units: u64) {
        self.pulse.advance(units);
        let done = self.units.fetch_add(units, SeqCst) + units;
        let stage = self.stage.load(SeqCst);
        if STAGES[stage as usize] == "als" {
            self.reached(stage * STEPS_PER_STAGE + done);
        }
        self.inner.advance(units);
    }

    fn note(&self, stage: &str, text: &str) {
        self.inner.note(stage, text);
    }

    fn end(&self, stage: &str, seconds: f64, note: &str) {
        self.pulse.end_stage();
        self.reached((self.stage.load(SeqCst) + 1) * STEPS_PER_STAGE);
        self.inner.end(stage, seconds, note);
    }
}

/// How a verdict ends the supervisor: with a code that its workers have explained, or an error.
pub(super) fn conclude(verdict: Verdict) -> Result<u8> {
    match verdict {
        Verdict::Done => Ok(0),
        Verdict::Ended(code) | Verdict::Unformed(code) => Ok(code),
        Verdict::Stopped(signal) => Ok((128 + signal) as u8),
        Verdict::GivenUp(reason) => Err(Refused::temporary(anyhow!(
            "{reason}, again and again, and the run came no further; look at what its processes said"
        ))),
    }
}
