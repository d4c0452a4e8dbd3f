//! `tidemill calibrate`: what units of work take on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use jiff::civil::date;
use serde_json::json;

use super::generate::{GenerateArgs, GeneratedIds, generate};
use super::{clock, default_threads, print};
use crate::job;
use crate::kernels::simd;
use crate::run::{
    self, COSTS, Cluster, Measured, Outcome, PlanFlags, Request, Silent, Sizes, SizesFrom,
    UnitCosts,
};

/// Measure what units of work take on this machine, for tidemill plan
///
/// Runs a few generated jobs in a temporary folder, about a minute on two cores, and finds the costs
/// that fit their stages best. Leave the machine alone meanwhile. The exchange between processes is
/// measured on this machine's loopback: set exchange_byte_ns in the file to what your network gives.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill calibrate
  tidemill calibrate --out unit_costs.toml --threads 8
  TIDEMILL_UNIT_COSTS=unit_costs.toml tidemill plan jobs/nightly.toml --processes 4")]
pub(super) struct CalibrateArgs {
    /// File for the unit costs, which tidemill plan reads
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Threads of the jobs [default: the cores of this machine]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print the unit costs as JSON
    #[arg(long)]
    json: bool,
}

/// One generated job.
struct Case {
    log: Log,
    n_factors: usize,
    iterations: usize,
    n_neighbors: usize,
    k: usize,
    rankers: &'static str,
}

/// One generated log.
#[derive(Clone, Copy, PartialEq)]
struct Log {
    ids: GeneratedIds,
    users: u32,
    items: u32,
    events: u64,
}

/// Jobs that differ in what their stages have most of. The last one also runs on one thread.
#[rustfmt::skip]
fn cases() -> [Case; 8] {
    let log = |ids, users, items, events| Log { ids, users, items, events };
    let (small, wide, texts, large, usual) = (
        log(GeneratedIds::Int, 4_000, 2_000, 150_000),
        log(GeneratedIds::Int, 3_000, 80_000, 300_000),
        log(GeneratedIds::String, 25_000, 15_000, 500_000),
        log(GeneratedIds::Int, 15_000, 15_000, 800_000),
        log(GeneratedIds::Int, 30_000, 20_000, 1_500_000),
    );
    let (als, neighbors, popularity, both) = (
        "als = 1.0", "item_neighbors = 1.0", "popularity = 1.0", "als = 1.0, item_neighbors = 1.0",
    );
    [
        Case { log: small, n_factors: 16, iterations: 2, n_neighbors: 20, k: 50, rankers: popularity },
        Case { log: small, n_factors: 64, iterations: 8, n_neighbors: 100, k: 10, rankers: neighbors },
        Case { log: wide, n_factors: 64, iterations: 3, n_neighbors: 20, k: 20, rankers: als },
        Case { log: texts, n_factors: 64, iterations: 2, n_neighbors: 50, k: 50, rankers: both },
        Case { log: texts, n_factors: 16, iterations: 6, n_neighbors: 100, k: 20, rankers: neighbors },
        Case { log: large, n_factors: 128, iterations: 1, n_neighbors: 20, k: 20, rankers: als },
        Case { log: usual, n_factors: 64, iterations: 4, n_neighbors: 50, k: 50, rankers: both },
        Case { log: large, n_factors: 64, iterations: 4, n_neighbors: 50, k: 50, rankers: both },
    ]
}

/// Of jobs up to this many events the shortest seconds of each stage count: the rest is somebody
/// else's. A longer one runs once.
const LONG_EVENTS: u64 = 700_000;

pub(super) fn run(args: &CalibrateArgs) -> Result<()> {
    let threads = args.threads.map_or_else(default_threads, usize::from);
    let folder = Folder::new()?;
    let mut measured = Vec::new();
    for (number, case) in cases().iter().enumerate() {
        tracing::info!(number, events = case.log.events, "measuring");
        measured.push(case.measured(&folder.0, threads)?);
    }
    let [.., last] = cases();
    let one = measured.len();
    measured.push(last.measured(&folder.0, 1)?);
    let (ns, parallel_efficiency) = run::fitted(&measured, (one, one - 1));
    let costs = UnitCosts {
        machine: machine(),
        date: clock::now()[..10].to_owned(),
        instruction_set: simd::chosen().to_owned(),
        threads,
        parallel_efficiency: rounded(parallel_efficiency),
        exchange_byte_ns: rounded(exchange_byte_ns()?),
        ns: ns.into_iter().map(|(name, ns)| (name, rounded(ns))).collect(),
    };
    if let Some(path) = &args.out {
        let name = path.display();
        fs::write(path, costs.to_toml()?)
            .with_context(|| format!("unit costs cannot be written to \"{name}\""))?;
    }
    match args.json {
        true => print(&serde_json::to_string_pretty(&json!({ "unit_costs": costs }))?),
        false => print(&format!("{}\n{}", table(&costs), fit(&measured, &costs))),
    }
    Ok(())
}

/// Four digits: what is measured is not better than that.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

impl Case {
    /// Runs the job twice, unless it is long, and says what its stages took.
    fn measured(&self, folder: &Path, threads: usize) -> Result<Measured> {
        let mut best = self.measured_once(folder, threads)?;
        let rounds = if self.log.events > LONG_EVENTS { 1 } else { 2 };
        for _ in 1..rounds {
            let again = self.measured_once(folder, threads)?;
            for (stage, other) in best.stages.iter_mut().zip(again.stages) {
                stage.seconds = stage.seconds.min(other.seconds);
            }
        }
        Ok(best)
    }

    fn measured_once(&self, folder: &Path, threads: usize) -> Result<Measured> {
        self.log.generate(folder)?;
        let text = self.spec();
        let spec = job::load(&text, "calibrate.toml", &BTreeMap::new(), &[])?;
        let plan = run::plan(&run::runtime(&spec)?, &spec, folder, &PlanFlags::default())?;
        let (outcome, report) = run::run_reported(Request {
            spec,
            base: folder.to_owned(),
            flags: PlanFlags::default(),
            threads,
            workers: 1,
            publish: true,
            force: true,
            state: run::StateUse::default(),
            unsafe_single_writer: false,
            checkpoints_by_default: false,
            clock: clock::now_us,
            run_id: clock::run_id(),
            observer: Arc::new(Silent),
            carried: None,
            cluster: None,
        });
        let Outcome::Published { manifest, .. } = outcome? else {
            return Err(anyhow!("a generated job was not published; this is a defect"));
        };
        let sizes = Sizes::of_manifest(&manifest).context("a manifest without sizes")?;
        Ok(Measured { plan, sizes, threads, stages: report.stages })
    }

    fn spec(&self) -> String {
        let Self { log, n_factors, iterations, n_neighbors, k, rankers } = self;
        let log = log.folder();
        format!(
            r#"name = "calibrate"
[[events]]
url = "{log}/events.parquet"
columns = {{ user = "user_id", item = "item_id", time = "timestamp", event = "event", value = "quantity", id = "event_id" }}
[events.weights]
view = 1.0
click = 2.0
cart = 5.0
purchase = {{ weight = 10.0, value = "log1p" }}
return = {{ undoes = "purchase" }}
[popularity]
[debias]
[item_neighbors]
n_neighbors = {n_neighbors}
[als]
n_factors = {n_factors}
iterations = {iterations}
[top_k]
k = {k}
candidates = {{ {rankers} }}
[limits]
memory_bytes_max = "64GiB"
[output]
url = "out/"
vectors = [{{ of = "item_factors", type = "flat_ip" }}, {{ of = "user_factors", type = "npy" }}]
"#
        )
    }
}

impl Log {
    fn folder(&self) -> String {
        let Self { users, items, events, .. } = self;
        format!("log-{users}-{items}-{events}")
    }

    /// Writes the log, unless it is there.
    fn generate(&self, folder: &Path) -> Result<()> {
        let out_folder = folder.join(self.folder());
        if out_folder.exists() {
            return Ok(());
        }
        generate(&GenerateArgs {
            out_folder,
            users: self.users,
            items: self.items,
            events: self.events,
            days: 180,
            end: date(2026, 11, 22),
            ids: self.ids,
            files: 1,
            row_group_rows: 1 << 17,
            seed: 7,
            force: false,
        })
        .map(drop)
    }
}

/// A temporary folder, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tidemill-calibrate-{}", clock::run_id()));
        fs::create_dir_all(&path)
            .with_context(|| format!("folder {path:?} cannot be made; set TMPDIR"))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Nanoseconds per byte of numbers that are coded, sent through a local socket and decoded.
fn exchange_byte_ns() -> Result<f64> {
    const BLOCK: usize = 64 << 10;
    const BLOCKS: usize = 1 << 10;
    let listener = TcpListener::bind("127.0.0.1:0").context("no local socket can be opened")?;
    let address = listener.local_addr().context("a local socket has no address")?;
    let start = Instant::now();
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let numbers: Vec<f32> = (0..BLOCK).map(|number| number as f32).collect();
        for _ in 0..BLOCKS {
            let block: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            stream.write_all(&block)?;
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept().context("a local socket takes no connection")?;
    let (mut block, mut numbers) = (vec![0; 4 * BLOCK], vec![0.0f32; BLOCK]);
    for _ in 0..BLOCKS {
        stream.read_exact(&mut block).context("a local socket broke")?;
        for (number, bytes) in numbers.iter_mut().zip(block.chunks_exact(4)) {
            *number += f32::from_le_bytes(bytes.try_into().expect("4 bytes"));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    assert!(numbers[1] > 0.0, "the numbers have arrived");
    sender.join().expect("the sender does not panic").context("a local socket broke")?;
    Ok(seconds * 1e9 / (4 * BLOCK * BLOCKS) as f64)
}

/// The processor, as Linux names it, and how many of it.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let model = model.unwrap_or(std::env::consts::ARCH).trim();
    format!("{} × {model}", default_threads())
}

fn table(costs: &UnitCosts) -> String {
    let mut out = format!("{:<20}{:>12}  unit\n", "cost", "ns");
    let mut row = |name: &str, ns: f64, unit: &str| {
        out += &format!("{name:<20}{ns:>12.4}  per {unit}\n");
    };
    for (name, unit) in COSTS {
        row(name, costs.ns[name], unit);
    }
    row("exchange_byte_ns", costs.exchange_byte_ns, "byte sent to another process (loopback)");
    out += &format!(
        "another thread adds {:.0} % of the first; measured with {} on {costs}\n",
        100.0 * costs.parallel_efficiency,
        costs.threads
    );
    out
}

/// How well the costs say what the jobs took.
fn fit(measured: &[Measured], costs: &UnitCosts) -> String {
    let mut out = format!("{:<34}{:>12}{:>12}\n", "job", "measured", "predicted");
    for run in measured {
        let cluster = Cluster { processes: 1, threads: run.threads };
        let sizes = (run.sizes, SizesFrom::Assumptions);
        let predicted = run::predict(&run.plan, sizes, cluster, costs);
        let is_predicted = |name: &str| predicted.stages.iter().any(|stage| stage.name == name);
        let stages = run.stages.iter().filter(|stage| is_predicted(&stage.name));
        let seconds: f64 = stages.map(|stage| stage.seconds).sum();
        let name = format!("{} rows, {} threads", run.sizes.rows, run.threads);
        out += &format!("{name:<34}{seconds:>10.2} s{:>10.2} s\n", predicted.seconds);
    }
    out.trim_end().to_owned()
}
