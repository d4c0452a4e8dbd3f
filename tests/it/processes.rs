//! One job on several processes of this machine: the same bytes, whatever happens to them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::fixture::{Sandbox, digests};

const SPEC: &str = r#"
name = "shop"
shards = 16
[[events]]
url = "shop/events.parquet"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[items]
url = "shop/items.parquet"
columns = { item = "item_id", title = "title" }
[history]
half_life_days = 30
[popularity]
[debias]
[item_neighbors]
[als]
n_factors = 16
iterations = 12
[top_k]
k = 10
candidates = { als = 1.0, item_neighbors = 1.0 }
[output]
url = "out/"
[[output.vectors]]
of = "item_factors"
type = "flat_ip"
"#;

type Digests = BTreeMap<(String, String), String>;

fn shop() -> (Sandbox, Digests) {
    let sandbox = Sandbox::new();
    let made = sandbox.tidemill(&["generate", "shop", "--users", "3000", "--events", "60000"]);
    assert!(made.status.success(), "{}", stderr(&made));
    sandbox.spec(SPEC);
    let wanted = digests(&sandbox.run(&["--force"])["manifest"]);
    (sandbox, wanted)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn published(output: &Output) -> Digests {
    assert!(output.status.success(), "{:?} {}", output.status, stderr(output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["outcome"], "published", "{}", stderr(output));
    digests(&outcome["manifest"])
}

const RUN: [&str; 4] = ["run", "job.toml", "--json", "--force"];

#[test]
fn any_number_of_processes_and_threads_publishes_the_same_bytes() {
    let (sandbox, wanted) = shop();
    for n_processes in ["2", "3", "4"] {
        for threads in ["1", "2"] {
            let several = ["--local-processes", n_processes, "--threads", threads];
            let output = sandbox.tidemill(&[&RUN[..], &several].concat());
            assert_eq!(published(&output), wanted, "{n_processes} processes, {threads} threads");
        }
    }
}

#[test]
fn real_logs_come_out_alike_on_several_processes() {
    for spec in ["movielens_als", "complete_journey"] {
        let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/specs/{spec}.toml"));
        let sandbox = Sandbox::new();
        let run = |n_processes: &str, threads: &str| {
            let several = ["--local-processes", n_processes, "--threads", threads];
            let args = ["run", spec.to_str().unwrap(), "--json", "--no-publish"];
            let several = [&several[..], &["--set", "shards=16"]].concat();
            let mut command = sandbox.command(&[&args[..], &several].concat());
            let output = command.env("OUTPUT_URL", sandbox.path("out")).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
            digests(&outcome["manifest"])
        };
        let wanted = run("1", "2");
        for (n_processes, threads) in [("2", "1"), ("3", "2"), ("4", "1")] {
            assert_eq!(run(n_processes, threads), wanted, "{spec:?} on {n_processes} processes");
        }
    }
}

/// A run of several processes that is going on.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Its workers that are there now.
    fn workers(&self) -> Vec<u32> {
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        children.split_whitespace().map(|child| child.parse().unwrap()).collect()
    }

    fn is_going_on(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn end(self) -> Output {
        self.0.wait_with_output().unwrap()
    }
}

fn signal(process: u32, name: &str) {
    // It may have ended in the meantime.
    let _ = Command::new("kill").args([name, &process.to_string()]).stderr(Stdio::null()).status();
}

/// Numbers that only a seed decides.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// `TIDEMILL_KILLS=200` kills more often than every test run does.
fn n_kills() -> usize {
    std::env::var("TIDEMILL_KILLS").map_or(20, |kills| kills.parse().unwrap())
}

#[test]
fn killed_workers_start_again_and_publish_the_same_bytes() {
    let (sandbox, wanted) = shop();
    let mut dice = Dice(0x1D3_5EED);
    let (mut killed, mut runs) = (0, 0);
    while killed < n_kills() {
        runs += 1;
        let several = ["--local-processes", "3", "--threads", "1", "--restarts", "30"];
        let mut run = Running::start(sandbox.command(&[&RUN[..], &several].concat()));
        let mut of_this_run = 0;
        while run.is_going_on() {
            thread::sleep(Duration::from_millis(20 + dice.below(500)));
            let workers = run.workers();
            if of_this_run < 5 && killed < n_kills() && !workers.is_empty() {
                signal(workers[dice.below(workers.len() as u64) as usize], "-KILL");
                (of_this_run, killed) = (of_this_run + 1, killed + 1);
            }
        }
        assert_eq!(published(&run.end()), wanted, "after {killed} kills");
    }
    assert!(runs <= n_kills(), "every run was killed at least once");
    let left: Vec<_> = fs::read_dir(sandbox.path("out/_failed")).into_iter().flatten().collect();
    assert!(left.is_empty(), "no run failed");
}

/// The lines of a running process's stderr, as they come.
fn lines(run: &mut Running) -> impl Iterator<Item = String> + use<> {
    let stderr = run.0.stderr.take().unwrap();
    BufReader::new(stderr).lines().map(Result::unwrap)
}

#[test]
fn a_lost_worker_costs_the_iterations_since_the_last_checkpoint_and_no_more() {
    let (sandbox, _) = shop();
    let several = ["--local-processes", "3", "--threads", "1"];
    // Without --json, so that it says how far it is.
    let more = ["run", "job.toml", "--force", "--set", "als.iterations=60"];
    let slower = ["--set", "als.n_factors=64", "--set", "checkpoints.als_iterations=4"];
    let mut run = Running::start(sandbox.command(&[&more[..], &slower, &several].concat()));
    let (mut iterations, mut scans, mut killed_at) = (Vec::new(), 0, None);
    for line in lines(&mut run) {
        scans += usize::from(line.starts_with("scan "));
        let Some((before, _)) = line.split_once(": loss") else { continue };
        let iteration: usize = before.rsplit(' ').next().unwrap().parse().unwrap();
        iterations.push(iteration);
        if killed_at.is_none() && iteration >= 10 {
            signal(run.workers()[2], "-KILL");
            killed_at = Some(iterations.len());
        }
    }
    assert!(run.end().status.success());
    let (before, after) = iterations.split_at(killed_at.unwrap());
    // Some more iterations may have ended before the others noticed.
    let again = after.iter().position(|iteration| iteration <= before.last().unwrap());
    let again = &after[again.unwrap_or(0)..];
    assert!(again[0] >= 9 && again[0] % 4 == 1, "{iterations:?}");
    assert_eq!(again.last(), Some(&60));
    assert_eq!(scans, 1, "what is in a checkpoint is not read again");
}

#[test]
fn a_worker_that_is_stopped_is_noticed() {
    let (sandbox, wanted) = shop();
    let several = ["--local-processes", "2", "--threads", "1", "--silence-seconds", "2"];
    let slow = ["--set", "als.iterations=200", "--set", "als.n_factors=64"];
    let command = sandbox.command(&[&RUN[..], &several, &slow].concat());
    let mut run = Running::start(command);
    let began = Instant::now();
    while run.workers().len() < 2 || began.elapsed() < Duration::from_millis(500) {
        assert!(run.is_going_on(), "{}", stderr(&run.end()));
        thread::sleep(Duration::from_millis(10));
    }
    signal(run.workers()[1], "-STOP");
    let output = run.end();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("starting again"), "{}", stderr(&output));
    assert!(began.elapsed() < Duration::from_secs(60));
    // And after all that, the usual job as usual.
    let output = sandbox.tidemill(&[&RUN[..], &["--local-processes", "2"]].concat());
    assert_eq!(published(&output), wanted);
}

#[test]
fn what_stops_one_process_stops_all_with_its_code_and_one_line() {
    let (sandbox, _) = shop();
    fs::remove_dir_all(sandbox.path("out")).unwrap();
    for (more, code, word) in [
        (["--as-of", "2001-01-01"], 66, "no item is left"),
        (["--set", "shop.nothing=1"], 78, "shop"),
        (["--set", "events.0.url=nothing/"], 66, "nothing"),
    ] {
        let several = ["--local-processes", "3", "--threads", "1"];
        let output = sandbox.tidemill(&[&RUN[..], &several, &more].concat());
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.contains("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(word), "{stderr}");
    }
    assert!(!sandbox.path("out/current.json").exists());
    let failed = fs::read_dir(sandbox.path("out/_failed")).into_iter().flatten();
    failed.for_each(|report| fs::remove_file(report.unwrap().path()).unwrap());
    // What no worker lived to tell is told by the supervisor, with the code that it ends with.
    let several = ["--processes", "2", "--index", "0", "--host-template", "localhost:{index}"];
    let mut short = sandbox.command(&[&RUN[..], &several].concat());
    let output = short.env("TIDEMILL_CLUSTER_KEY", "short").output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    let report = fs::read_dir(sandbox.path("out/_failed")).unwrap().next().unwrap().unwrap();
    let report: Value = serde_json::from_slice(&fs::read(report.path()).unwrap()).unwrap();
    assert_eq!(report["exit_code"], 78, "{report}");
    assert!(report["error"].as_str().unwrap().starts_with("the cluster key"), "{report}");
    // A damaged file, which one of the processes meets, is left out by all of them.
    let whole = fs::read(sandbox.path("shop/events.parquet")).unwrap();
    let log = sandbox.path("log");
    fs::create_dir(&log).unwrap();
    fs::write(log.join("whole.parquet"), &whole).unwrap();
    let mut damaged = whole;
    damaged[2_000..40_000].fill(7);
    fs::write(log.join("damaged.parquet"), damaged).unwrap();
    let more = ["--set", "events.0.url=log/", "--set", "limits.bad_files_max=1"];
    let several = ["--local-processes", "3", "--threads", "1"];
    let output = sandbox.tidemill(&[&RUN[..], &several, &more].concat());
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["manifest"]["counts"]["rows"], 60_000, "{}", stderr(&output));
}

/// Processes as they are started on several machines, each by itself.
struct Machines {
    sandbox: Sandbox,
    ports: Vec<u16>,
    hosts: PathBuf,
}

impl Machines {
    fn new(sandbox: Sandbox, n_processes: usize) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let free: Vec<TcpListener> = (0..n_processes).map(|_| free()).collect();
        let ports: Vec<u16> = free.iter().map(|port| port.local_addr().unwrap().port()).collect();
        let hosts = sandbox.path("hosts");
        let lines = ports.iter().map(|port| format!("127.0.0.1:{port}\n"));
        fs::write(&hosts, lines.collect::<String>()).unwrap();
        Self { sandbox, ports, hosts }
    }

    fn start(&self, index: usize, key: &str, more: &[&str]) -> Running {
        let (n_processes, index) = (self.ports.len().to_string(), index.to_string());
        let hosts = self.hosts.to_str().unwrap();
        let several = ["--processes", &n_processes, "--index", &index, "--hosts-file", hosts];
        let mut command = self.sandbox.command(&[&RUN[..], &several, more].concat());
        command.args(["--threads", "1"]).env("TIDEMILL_CLUSTER_KEY", key);
        Running::start(command)
    }
}

const KEY: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn strangers_at_the_door_do_not_keep_a_cluster_from_forming() {
    let (sandbox, wanted) = shop();
    let machines = Machines::new(sandbox, 2);
    let first = machines.start(0, KEY, &[]);
    let connect = || loop {
        match TcpStream::connect(("127.0.0.1", machines.ports[0])) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    drop(connect());
    let silent: Vec<TcpStream> = (0..70).map(|_| connect()).collect();
    connect().write_all(b"GET /healthz HTTP/1.1\r\nHost: mill-0\r\n\r\n").unwrap();
    // What stock timely takes for process 1, and then records for its first channels.
    let mut forged = connect();
    forged.write_all(&1u64.to_be_bytes()).unwrap();
    for channel in 0..4u64 {
        let header = [channel, 1, 0, 1, 16, 0].map(u64::to_be_bytes).concat();
        let _ = forged.write_all(&[&header[..], &[0x42; 16]].concat());
    }
    let huge = [3, 1, 0, 1, 1 << 62, 0].map(u64::to_be_bytes).concat();
    connect().write_all(&huge).unwrap();
    // Somebody with another key, who says everything else right.
    let mut stranger =
        machines.start(1, "another key, also long enough", &["--rendezvous-seconds", "2"]);
    while stranger.is_going_on() {
        thread::sleep(Duration::from_millis(20));
    }
    let output = stranger.end();
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(stderr(&output).contains("key"), "{}", stderr(&output));
    // Somebody of the cluster, with another job.
    let other = machines.start(1, KEY, &["--set", "top_k.k=3"]).end();
    assert_eq!(other.status.code(), Some(78), "{}", stderr(&other));
    assert!(stderr(&other).contains("another job"), "{}", stderr(&other));
    let second = machines.start(1, KEY, &[]);
    let (first, second) = (first.end(), second.end());
    assert_eq!(published(&first), wanted);
    assert!(second.status.success() && second.stdout.is_empty(), "{}", stderr(&second));
    drop(silent);
}

#[test]
fn a_machine_that_comes_late_or_again_is_waited_for() {
    let (sandbox, wanted) = shop();
    let machines = Machines::new(sandbox, 3);
    let first = machines.start(0, KEY, &[]);
    let mut middle = machines.start(1, KEY, &[]);
    thread::sleep(Duration::from_millis(700));
    // The machine is gone, with supervisor and worker.
    let workers = middle.workers();
    signal(middle.0.id(), "-KILL");
    workers.iter().for_each(|&worker| signal(worker, "-KILL"));
    middle.0.wait().unwrap();
    let last = machines.start(2, KEY, &[]);
    let middle = machines.start(1, KEY, &[]);
    assert_eq!(published(&first.end()), wanted);
    for other in [middle, last] {
        let output = other.end();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

/// Files of a certificate for `tidemill`, its key and the CA that gave it, and the variables that name
/// them.
fn certify(sandbox: &Sandbox, folder: &str) -> [(&'static str, PathBuf); 3] {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let (issuer, key) = (Issuer::new(params, key), KeyPair::generate().unwrap());
    let params = CertificateParams::new(["tidemill".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let folder = sandbox.path(folder);
    fs::create_dir(&folder).unwrap();
    [
        ("TIDEMILL_CLUSTER_TLS_CERT", "tls.crt", certificate),
        ("TIDEMILL_CLUSTER_TLS_KEY", "tls.key", key.serialize_pem()),
        ("TIDEMILL_CLUSTER_TLS_CA", "ca.crt", ca),
    ]
    .map(|(variable, file, text)| {
        fs::write(folder.join(file), text).unwrap();
        (variable, folder.join(file))
    })
}

#[test]
fn processes_that_talk_through_tls_publish_the_same_bytes() {
    let (sandbox, wanted) = shop();
    let run = |files: &[(&str, PathBuf)]| {
        let several = ["--local-processes", "3", "--threads", "1", "--rendezvous-seconds", "5"];
        let mut command = sandbox.command(&[&RUN[..], &several].concat());
        command.envs(files.iter().cloned()).output().unwrap()
    };
    let files = certify(&sandbox, "ours");
    assert_eq!(published(&run(&files)), wanted);
    let [.., other_ca] = certify(&sandbox, "theirs");
    let distrustful = run(&[files[0].clone(), files[1].clone(), other_ca]);
    let (code, told) = (distrustful.status.code(), stderr(&distrustful));
    assert!(code == Some(75) && told.contains("does not get along in TLS"), "{told}");
    let partial = run(&files[..2]);
    let (code, told) = (partial.status.code(), stderr(&partial));
    assert!(code == Some(78) && told.contains("TIDEMILL_CLUSTER_TLS_CA is missing"), "{told}");
    assert_eq!(told.lines().filter(|line| line.contains("error: ")).count(), 1, "{told}");
}
