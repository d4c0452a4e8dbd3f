//! The driver: the only place where plan, store and dataflow meet.
//!
//! Every process runs [`run`]'s driver from top to bottom. A stage is ordinary Rust between
//! collectives and ends with an agreed status, so an error on one process is the same error on all.
//! Nothing here prints: progress goes to an [`Observer`], results to [`Outcome`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use jiff::civil::Date;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::dataflow::{Shell, execute};
use crate::job::plan::{self, FilePlan, Plan};
use crate::job::spec::Spec;
use crate::schema::IdTypes;
use crate::store::{
    Current, Footer, InputFile, IoRuntime, Location, Manifest, ManifestInput, Output, Published,
    PublishedFile, RunPath, Stage,
};

mod als;
mod counts;
mod history;
mod lists;
mod memory;
#[cfg(test)]
mod memory_tests;
mod models;
mod planning;
mod prepare;
mod refused;
mod scan;
#[cfg(test)]
mod scan_tests;
mod search;
mod side;
mod stages;
mod tables;
mod vectors;
#[cfg(test)]
mod vectors_tests;

pub use counts::{Rejected, ScanCounts};
pub use history::{UserEvent, events_of_user};
pub use memory::{MemoryEstimate, predicted_memory};
pub use planning::{PlanFlags, plan};
pub use refused::{Refused, code, exit_code};
pub use search::{Hit, nearest};
pub use vectors::scaled_to_one;

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
    /// Now, in microseconds since 1970: for names and `published_at`, never for results.
    pub started_at_us: i64,
    /// A name that was never used before.
    pub run_id: String,
    /// Told about progress, on the first worker.
    pub observer: Arc<dyn Observer>,
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

/// One log, opened; footers are read when a row group of their file is.
struct Log {
    location: Location,
    files: Vec<InputFile>,
    footers: Vec<OnceLock<Footer>>,
}

impl Log {
    fn open(
        runtime: &IoRuntime,
        url: &str,
        base: &std::path::Path,
        files: &[FilePlan],
    ) -> Result<Self> {
        Ok(Self {
            location: Location::open(runtime, url, base)?,
            files: files.iter().map(input_file).collect(),
            footers: files.iter().map(|_| OnceLock::new()).collect(),
        })
    }

    fn footer(&self, file: usize) -> Result<&Footer> {
        if let Some(footer) = self.footers[file].get() {
            return Ok(footer);
        }
        let footer = crate::store::footer(&self.location, &self.files[file])?;
        Ok(self.footers[file].get_or_init(|| footer))
    }
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
    logs: Vec<Log>,
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
}

impl Worker<'_> {
    /// Runs a stage and agrees on its status.
    fn stage<T>(
        &mut self,
        name: &str,
        total: Option<(u64, &'static str)>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.job.observer.begin(name, total);
        let start = Instant::now();
        let result = work(self);
        let result = agree(self.shell, result)?;
        let seconds = start.elapsed().as_secs_f64();
        let moved = self.shell.collectives.take_bytes_moved();
        let bytes_moved =
            moved.broadcast + moved.all_gather + moved.all_to_all + moved.all_reduce + moved.agree;
        let mut more = Map::new();
        more.insert("bytes_moved".into(), json!(bytes_moved));
        self.stages.push(Stage { name: name.to_owned(), seconds, more });
        self.job.observer.end(name, seconds, "");
        Ok(result)
    }
}

impl Worker<'_> {
    /// Adds to what the manifest says of the last stage.
    fn report(&mut self, more: Map<String, Value>) {
        let stage = self.stages.last_mut().expect("a stage has run");
        stage.more.extend(more);
    }
}

/// The same error on every worker, with its exit code.
fn agree<T>(shell: &mut Shell, result: Result<T>) -> Result<T> {
    shell.collectives.agree(result, exit_code).map_err(anyhow::Error::from)
}

/// Runs a job from its logs to its published tables.
///
/// # Errors
/// Whatever went wrong first, on the lowest process that it happened to. [`exit_code`] tells the
/// code of the process. Nothing is published then.
pub fn run(request: Request) -> Result<Outcome> {
    let runtime = IoRuntime::new().context("the threads for input and output cannot be started")?;
    let workers = request.workers;
    let request = Arc::new(request);
    let outcomes = execute(workers, move |shell| drive(shell, &request, &runtime))?;
    let first = outcomes.into_iter().next().expect("there is a worker");
    Ok(first)
}

fn drive(shell: &mut Shell, request: &Request, runtime: &IoRuntime) -> Result<Outcome> {
    let observer: &dyn Observer =
        if shell.index == 0 { request.observer.as_ref() } else { &Silent };
    observer.begin("plan", None);
    let start = Instant::now();
    let plan = shared_plan(shell, request, runtime)?;
    let output = Output::create(runtime, &plan.spec.output.url, &request.base);
    let output = agree(shell, output.map_err(Into::into))?;
    let fingerprint = fingerprint(&plan);
    if let Some(current) = already_published(shell, request, &output, &fingerprint)? {
        return Ok(Outcome::AlreadyPublished { current });
    }
    let logs = plan
        .sources
        .iter()
        .map(|source| Log::open(runtime, &source.url, &request.base, &source.files))
        .collect();
    let logs = agree(shell, logs)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(request.threads).build();
    let pool = agree(shell, pool.context("the threads for kernels cannot be started"))?;
    let seconds = start.elapsed().as_secs_f64();
    observer.end("plan", seconds, &format!("{} rows in {} shards", plan.n_rows, plan.n_shards));
    let job = Job { plan, logs, threads: request.threads, request, runtime, observer };
    let stages = vec![Stage { name: "plan".to_owned(), seconds, more: Map::new() }];
    let mut worker = Worker { shell, job: &job, pool: &pool, stages };
    stages::all(&mut worker, &output, &fingerprint)
}

/// Process 0 plans; everybody gets the same plan.
fn shared_plan(shell: &mut Shell, request: &Request, runtime: &IoRuntime) -> Result<Plan> {
    let made = match shell.index {
        0 => plan(runtime, &request.spec, &request.base, &request.flags).and_then(|plan| {
            memory::check(&plan, request.threads)?;
            serde_json::to_vec(&plan).map(Some).context("the plan cannot be written as JSON")
        }),
        _ => Ok(None),
    };
    let made = agree(shell, made)?;
    let encoded = shell.collectives.broadcast(0, made.map(Into::into));
    serde_json::from_slice(&encoded).context("the plan of process 0 cannot be read")
}

/// The generation that has this fingerprint already, unless the run is to go on all the same.
fn already_published(
    shell: &mut Shell,
    request: &Request,
    output: &Output,
    fingerprint: &str,
) -> Result<Option<Current>> {
    let found = match shell.index {
        // A run that died between its commit and the mirror is repaired on the way.
        0 if request.publish && !request.force => match output.find_published(fingerprint) {
            Ok(Some(current)) => output.mirror_current().map(|_| Some(current)),
            other => other,
        },
        _ => Ok(None),
    };
    let found = agree(shell, found.map_err(Into::into))?;
    let encoded = serde_json::to_vec(&found).expect("a log entry is plain data");
    let first = (shell.index == 0).then(|| encoded.into());
    let found = shell.collectives.broadcast(0, first);
    serde_json::from_slice(&found).context("the answer of process 0 cannot be read")
}

/// Instructions that results may depend on in their last bits.
pub fn instruction_set() -> String {
    std::env::consts::ARCH.to_owned()
}

/// Hex digest of all that decides the bytes of the tables.
fn fingerprint(plan: &Plan) -> String {
    let files = plan.sources.iter().flat_map(|source| &source.files);
    let input: Vec<_> = files
        .chain(plan.side_tables.files())
        .map(|file| (&file.url, file.bytes, &file.etag))
        .collect();
    let decisive = json!({
        "spec": plan.spec.resolved(),
        "input": input,
        "as_of_us": plan.as_of_us,
        "logical_date": plan.logical_date,
        "sample_users": plan.sample_users,
        "shards": plan.n_shards,
        "code_version": env!("CARGO_PKG_VERSION"),
        "instruction_set": instruction_set(),
    });
    sha256_hex(decisive.to_string().as_bytes())
}

fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
