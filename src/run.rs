//! The driver: the only place where plan, store and dataflow meet.
//!
//! Every process runs [`run`]'s driver from top to bottom. A stage is ordinary Rust between
//! collectives and ends with an agreed status, so an error on one process is the same error on all.
//! Nothing here prints: progress goes to an [`Observer`], results to [`Outcome`].

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::cluster::{Limits, Lost, Pulse, Seat};
use crate::dataflow::Shell;
use crate::job::plan::{self, FilePlan, Plan};
use crate::job::spec::{Spec, Store};
use crate::schema::IdTypes;
use crate::store::{
    Current, Gate, InputFile, IoRuntime, Location, Manifest, ManifestInput, OpenFile, Output,
    Published, PublishedFile, RunPath, Stage, StateManifest, StoreOptions,
};

mod als;
mod attempts;
mod carried;
mod changes;
#[cfg(test)]
mod changes_tests;
mod checkpoint;
mod checkpoint_parts;
#[cfg(test)]
mod checkpoint_tests;
mod counts;
#[cfg(test)]
mod crash_tests;
mod earlier_lists;
#[cfg(test)]
mod fold_in_tests;
mod forget;
mod gates;
mod history;
mod lists;
mod memory;
#[cfg(test)]
mod memory_tests;
mod models;
mod pair_counts;
mod planning;
mod predict;
mod prepare;
mod profile;
mod refused;
mod report;
mod scan;
#[cfg(test)]
mod scan_tests;
mod search;
mod side;
mod stages;
mod state;
#[cfg(test)]
mod state_tests;
mod tables;
mod usage;
mod vectors;
#[cfg(test)]
mod vectors_tests;
mod warm_start;
#[cfg(test)]
mod warm_start_tests;

pub use crate::types::one_line;
pub use attempts::{report_lost, run, run_reported};
pub use carried::Carried;
pub use counts::{Rejected, ScanCounts};
pub use forget::{ForgetCheck, Forgotten, Holding, forget_check};
pub use history::{UserEvent, events_of_user};
pub use memory::{MemoryEstimate, predicted_memory};
pub use planning::{BadFile, PlanFlags, plan};
pub use predict::{
    COSTS, Cluster, Hints, Measured, Prediction, Sizes, SizesFrom, StagePrediction, UnitCosts,
    fitted, predict, sizes,
};
pub use profile::Profile;
pub use refused::{Refused, code, exit_code};
pub use report::{InputSummary, Report};
pub use search::{Hit, nearest};
pub use side::listed_to_delete;
pub use state::{StateCheck, StateUse, check_state};
pub use vectors::scaled_to_one;

use attempts::Attempt;
use checkpoint::Checkpoints;
use gates::Looked;
use report::{Known, Record};
use state::StatePlan;
use usage::Usage;

/// Told what a run is doing; may be called from several threads.
pub trait Observer: Send + Sync {
    /// A stage begins: its name, and how many of which unit it will advance by, if known.
    fn begin(&self, stage: &str, total: Option<(u64, &'static str)>);
    /// So many units more are done.
    fn advance(&self, units: u64);
    /// Something worth a line while the stage goes on.
    fn note(&self, stage: &str, text: &str);
    /// The stage is done.
    fn end(&self, stage: &str, seconds: f64, note: &str);
}

/// Observes nothing.
pub struct Silent;

impl Observer for Silent {
    fn begin(&self, _: &str, _: Option<(u64, &'static str)>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str, _: &str) {}
    fn end(&self, _: &str, _: f64, _: &str) {}
}

/// One run of a job, as asked for.
#[derive(Clone)]
pub struct Request {
    /// The checked spec.
    pub spec: Spec,
    /// Relative paths of the spec are relative to this folder.
    pub base: PathBuf,
    /// Date, `as_of`, sample.
    pub flags: PlanFlags,
    /// Threads of each process's pool.
    pub threads: usize,
    /// Workers in this process; more than one only proves that no stage sees everything.
    pub workers: usize,
    /// Whether to commit. Without, files are written and audited and no reader sees them.
    pub publish: bool,
    /// Publish even what is published already.
    pub force: bool,
    /// How a job that is incremental uses the state of the last run.
    pub state: StateUse,
    /// Publish to a store that would let two runs overwrite each other.
    pub unsafe_single_writer: bool,
    /// Keep checkpoints also where the spec has no section `[checkpoints]`.
    pub checkpoints_by_default: bool,
    /// Now, in microseconds since 1970: for `published_at` and reports, never for results.
    pub clock: fn() -> i64,
    /// A name that was never used before, except by a run that this one goes on with after it was cut
    /// off. In a cluster that of process 0 counts.
    pub run_id: String,
    /// Told about progress, on the first worker of each process.
    pub observer: Arc<dyn Observer>,
    /// What the last run of the job in this process left for this one, which leaves it for the next.
    pub carried: Option<Arc<Carried>>,
    /// This process's place among several; none for a run in one process.
    pub cluster: Option<Arc<ClusterSeat>>,
}

impl Request {
    /// Whether this process speaks for the run: it publishes, reports and shows progress.
    pub fn is_first_process(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.seat.index == 0)
    }
}

/// One process's place in a cluster.
pub struct ClusterSeat {
    /// Who it is, and how it finds the others.
    pub seat: Seat,
    /// When it gives up on them.
    pub limits: Limits,
    /// How far this process is, as its observer knows.
    pub pulse: Arc<Pulse>,
    /// Told that all processes are connected.
    pub formed: fn(epoch: u64),
    /// Has to end the process: a peer is lost, and whatever waits for it waits for ever.
    pub lost: fn(Lost),
}

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The same input and spec are published already; nothing was written.
    AlreadyPublished {
        /// The generation that has them.
        current: Current,
    },
    /// A new generation.
    Published {
        /// Its commit.
        current: Current,
        /// Its manifest.
        manifest: Box<Manifest>,
    },
    /// Everything was written and nothing committed, as asked.
    NotPublished {
        /// What the manifest would have been.
        manifest: Box<Manifest>,
    },
}

/// The files of one log.
fn open_log(
    runtime: &IoRuntime,
    base: &std::path::Path,
    source: &plan::SourcePlan,
) -> Result<Vec<OpenFile>> {
    let location = Location::open(runtime, &source.url, base)?;
    let files = source.files.iter();
    Ok(files.map(|file| OpenFile::new(&location, input_file(file))).collect())
}

fn input_file(file: &FilePlan) -> InputFile {
    InputFile {
        key: file.key.clone(),
        url: file.url.clone(),
        bytes: file.bytes,
        etag: file.etag.clone(),
        last_modified: 0,
        partitions: file.partitions.clone(),
    }
}

/// What all stages of one process read.
struct Job<'a> {
    plan: Plan,
    /// What process 0 found to go on from; none for a job that is not incremental.
    state: Option<StatePlan>,
    /// What readers saw when the run was planned; none for a job that does not tell its changes.
    earlier: Option<Current>,
    attempt: &'a Attempt,
    /// When the run began, on the clock of process 0.
    started_at_us: i64,
    /// Name of this attempt, in all processes.
    run_id: &'a str,
    logs: Vec<Vec<OpenFile>>,
    threads: usize,
    request: &'a Request,
    runtime: &'a IoRuntime,
    observer: &'a dyn Observer,
}

/// One process in the middle of a run.
struct Worker<'a> {
    shell: &'a mut Shell,
    job: &'a Job<'a>,
    pool: &'a rayon::ThreadPool,
    stages: Vec<Stage>,
    gates: Vec<Gate>,
    checkpoints: Option<Checkpoints>,
    /// Whether the stage under way goes on from a checkpoint.
    resumed: bool,
}

impl Worker<'_> {
    /// Runs a stage and agrees on its status.
    fn stage<T>(
        &mut self,
        name: &str,
        total: Option<(u64, &'static str)>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.begin(name, total);
        let start = self.usage();
        let result = work(self);
        let result = self.agree(result)?;
        self.end(name, &start);
        Ok(result)
    }

    fn begin(&mut self, name: &str, total: Option<(u64, &'static str)>) {
        self.job.observer.begin(name, total);
        self.note(|known| known.stage = Some(name.to_owned()));
    }

    /// What the process has used so far.
    fn usage(&self) -> Usage {
        Usage::now(self.job.runtime)
    }

    /// Ends the stage that began at `start`.
    fn end(&mut self, name: &str, start: &Usage) {
        let (seconds, mut more) = start.since(self.job.runtime);
        let moved = self.shell.collectives.take_bytes_moved();
        let bytes_moved =
            moved.broadcast + moved.all_gather + moved.all_to_all + moved.all_reduce + moved.agree;
        more.insert("bytes_moved".into(), json!(bytes_moved));
        if let Some((bytes, seconds)) = self.take_checkpoint_cost() {
            more.insert("checkpoint_bytes".into(), json!(bytes));
            more.insert("checkpoint_seconds".into(), json!(seconds));
        }
        let resumed = std::mem::take(&mut self.resumed);
        if resumed {
            more.insert("resumed".into(), json!(true));
        }
        self.stages.push(Stage { name: name.to_owned(), seconds, more });
        let note = if resumed { "resumed from a checkpoint" } else { "" };
        self.job.observer.end(name, seconds, note);
        let stages = self.stages.clone();
        self.note(|known| known.stages = stages);
    }

    /// Adds to what is known of the run, on the first worker.
    fn note(&self, note: impl FnOnce(&mut Known)) {
        if self.shell.index == 0 {
            self.job.attempt.record.note(note);
        }
    }

    /// The same error on every worker.
    fn agree<T>(&mut self, result: Result<T>) -> Result<T> {
        agree(self.shell, &self.job.attempt.record, result)
    }

    /// Goes on only if a gate is passed; all workers look at the same.
    fn pass(&mut self, looked: impl IntoIterator<Item = Looked>) -> Result<()> {
        let mut first = None;
        for Looked { gate, refusal } in looked {
            self.note(|known| known.gates.push(gate.clone()));
            self.gates.push(gate);
            first = first.or(refusal);
        }
        first.map_or(Ok(()), Err)
    }

    /// Makes the bytes that the stages from `first` on moved those of all processes, and sets beside
    /// them what was to be expected of a run of such sizes, and the work that was done.
    fn account_for(&mut self, first: usize, manifest: &Manifest) -> Result<()> {
        let moved = |stage: &Stage| stage.more.get("bytes_moved").and_then(Value::as_i64);
        let moved = self.stages[first..].iter().map(|stage| moved(stage).unwrap_or(0)).collect();
        let sums = self.shell.collectives.all_reduce_sum(moved)?;
        for (stage, sum) in self.stages[first..].iter_mut().zip(sums) {
            stage.more.insert("bytes_moved".to_owned(), json!(sum));
        }
        if let Some(sizes) = Sizes::of_manifest(manifest) {
            let (stages, peers) = (&mut self.stages[first..], self.shell.peers);
            predict::note_predicted(stages, &self.job.plan, &sizes, peers);
            profile::note_work(stages, &self.job.plan, manifest, &sizes);
        }
        let stages = self.stages.clone();
        self.note(|known| known.stages = stages);
        Ok(())
    }

    /// Adds to what the manifest says of a stage that has run.
    fn report(&mut self, name: &str, more: Map<String, Value>) {
        let mut stages = self.stages.iter_mut().rev();
        let stage = stages.find(|stage| stage.name == name).expect("the stage has run");
        stage.more.extend(more);
    }
}

/// The same error on every worker, with its exit code.
fn agree<T>(shell: &mut Shell, record: &Record, result: Result<T>) -> Result<T> {
    if let Err(error) = &result {
        record.note_input(error);
    }
    shell.collectives.agree(result, exit_code).map_err(anyhow::Error::from)
}

/// The threads for input and output, and how they reach stores.
///
/// # Errors
/// When the operating system gives no more threads.
pub fn runtime(spec: &Spec) -> Result<IoRuntime> {
    let Store { endpoint, region, .. } = &spec.store;
    let options = StoreOptions {
        endpoint: endpoint.clone(),
        region: region.clone(),
        request_timeout: spec.store.request_timeout(),
        stall_timeout: spec.store.stall_timeout(),
        retry_timeout: spec.store.retry_timeout(),
        read_bytes_in_flight_max: spec.store.read_bytes_in_flight_max.0,
    };
    IoRuntime::with_options(options).context("the threads for input and output cannot be started")
}

fn to_json(value: &impl Serialize) -> Result<bytes::Bytes> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    Ok(json.into())
}

fn rfc3339(time_us: i64) -> String {
    jiff::Timestamp::from_microsecond(time_us)
        .map_or_else(|_| "out of range".to_owned(), |instant| instant.to_string())
}

/// One attempt on one worker.
fn drive(shell: &mut Shell, attempt: &Attempt) -> Result<Outcome> {
    let result = drive_stages(shell, attempt);
    // An error is the same everywhere, and so must be what to begin anew without.
    if result.is_err() && shell.peers > 1 {
        attempt.record.share_input(shell);
    }
    result
}

/// From top to bottom.
fn drive_stages(shell: &mut Shell, attempt: &Attempt) -> Result<Outcome> {
    let Attempt { request, runtime, record, .. } = attempt;
    let observer: &dyn Observer = match shell.index == 0 || request.cluster.is_some() {
        true => request.observer.as_ref(),
        false => &Silent,
    };
    observer.begin("plan", None);
    let is_first = shell.index == 0;
    let note = |note: &dyn Fn(&mut Known)| {
        if is_first {
            record.note(note)
        }
    };
    note(&|known| known.stage = Some("plan".to_owned()));
    let began = Usage::now(runtime);
    let output = Output::create(runtime, &request.spec.output.url, &request.base);
    let output = agree(shell, record, output.map_err(Into::into))?;
    let Go { plan, state, earlier, fingerprint, run_id, started_at_us } =
        match start(shell, attempt, &output)? {
            Start::Already(current) => return Ok(Outcome::AlreadyPublished { current }),
            Start::Go(go) => *go,
        };
    note(&|known| {
        known.fingerprint = Some(fingerprint.clone());
        known.input = InputSummary::of(&plan);
    });
    let logs = plan.sources.iter().map(|source| open_log(runtime, &request.base, source)).collect();
    let logs = agree(shell, record, logs)?;
    let pool = match &request.carried {
        Some(carried) => carried.pool(request.threads, (shell.peers, shell.index)),
        None => carried::pool(request.threads).map(Arc::new),
    };
    let pool = agree(shell, record, pool.context("the threads for kernels cannot be started"))?;
    let (seconds, more) = began.since(runtime);
    observer.end("plan", seconds, &format!("{} rows in {} shards", plan.n_rows, plan.n_shards));
    let threads = request.threads;
    let run_id = &run_id;
    let job = Job {
        plan,
        state,
        earlier,
        logs,
        threads,
        attempt,
        request,
        runtime,
        observer,
        started_at_us,
        run_id,
    };
    let stages = vec![Stage { name: "plan".to_owned(), seconds, more }];
    note(&|known| known.stages = stages.clone());
    let checkpoints = checkpoint::open(shell, attempt, &output, &job.plan, &fingerprint)?;
    let (gates, resumed) = (Vec::new(), false);
    let mut worker = Worker { shell, job: &job, pool: &pool, stages, gates, checkpoints, resumed };
    let long_enough = gates::rows_per_log(&job.plan);
    worker.pass(long_enough)?;
    stages::all(&mut worker, &output, &fingerprint)
}

/// How a run begins, as process 0 found it.
#[derive(Serialize, Deserialize)]
enum Start {
    /// There is nothing to do.
    Already(Current),
    /// There is.
    Go(Box<Go>),
}

/// What all processes have to know alike.
#[derive(Serialize, Deserialize)]
struct Go {
    plan: Plan,
    state: Option<StatePlan>,
    earlier: Option<Current>,
    fingerprint: String,
    run_id: String,
    started_at_us: i64,
}

/// Process 0 looks and plans; everybody gets the same answer.
fn start(shell: &mut Shell, attempt: &Attempt, output: &Output) -> Result<Start> {
    let cluster = Cluster { processes: shell.peers, threads: attempt.request.threads };
    let made = match shell.index {
        0 => look_and_plan(attempt, output, cluster).and_then(|start| {
            serde_json::to_vec(&start).map(Some).context("the plan cannot be written as JSON")
        }),
        _ => Ok(None),
    };
    let made = agree(shell, &attempt.record, made)?;
    let encoded = shell.collectives.broadcast(0, made.map(Into::into));
    serde_json::from_slice(&encoded).context("the plan of process 0 cannot be read")
}

/// From what is cheap to what is not: listings, the log, a probe of the store, footers.
fn look_and_plan(attempt: &Attempt, output: &Output, cluster: Cluster) -> Result<Start> {
    let Attempt { request, runtime, left_out, .. } = attempt;
    let Request { spec, base, flags, .. } = request;
    let frozen = planning::freeze(runtime, spec, base, flags)?;
    let fingerprint = frozen.fingerprint(spec, flags);
    if request.publish
        && !request.force
        && let Some(current) = output.find_published(&fingerprint)?
    {
        // A run that died between its commit and what follows it is repaired on the way.
        output.follow_log()?;
        checkpoint::forget(attempt, output, &fingerprint);
        return Ok(Start::Already(current));
    }
    frozen.check_last_day(spec)?;
    if request.publish && !request.unsafe_single_writer {
        output.probe(&request.run_id)?;
    }
    let mut plan = frozen.plan(runtime, spec, base, flags, left_out)?;
    let state = StatePlan::find(output, &mut plan, request.state);
    let earlier = changes::earlier(output, &plan.spec);
    memory::check(&plan, cluster)?;
    let (run_id, started_at_us) = (request.run_id.clone(), attempt.started_at_us);
    Ok(Start::Go(Box::new(Go { plan, state, earlier, fingerprint, run_id, started_at_us })))
}

/// Instructions that results may depend on in their last bits.
pub fn instruction_set() -> String {
    std::env::consts::ARCH.to_owned()
}

fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
