//! The real binary from `s3://` to `s3://`: on a server in this process, through a proxy that makes
//! faults, and on a server that others wrote.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::Value;
use tidemill::store::{IoRuntime, Manifest, Published, RunPath, Stage, StoreOptions};

use crate::fixture::Sandbox;
use crate::s3::moto::Moto;
use crate::s3::proxy::{Fault, FaultProxy};
use crate::s3::server::S3Server;

const SPEC: &str = r#"
name = "shop"
shards = 4
[[events]]
url = "LOG"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[popularity]
[item_neighbors]
[als]
n_factors = 16
iterations = 2
[top_k]
k = 10
[store]
stall_timeout_seconds = 1.0
[output]
url = "OUT"
delta = true
[[output.vectors]]
of = "item_factors"
type = "flat_ip"
"#;

/// Keys that must never be seen outside of requests to the store.
const PLANTED: &str = "planted-session-token";

fn shop() -> Sandbox {
    let sandbox = Sandbox::new();
    let made = sandbox.tidemill(&["generate", "shop", "--users", "2000", "--events", "40000"]);
    assert!(made.status.success(), "{}", stderr(&made));
    sandbox
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn put_log(server: &S3Server, sandbox: &Sandbox) {
    server.put("log/events.parquet", std::fs::read(sandbox.path("shop/events.parquet")).unwrap());
}

fn spec_on_s3(sandbox: &Sandbox) {
    sandbox.spec(&SPEC.replace("LOG", "s3://shop/log/").replace("OUT", "s3://shop/out/"));
}

/// Hashes of a run's files by their place, without the run's id.
fn hashes(outcome: &Value) -> BTreeMap<String, String> {
    let run = outcome["manifest"]["run_id"].as_str().unwrap();
    let files = outcome["manifest"]["files"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    files.map(|file| (text(&file["path"]).replace(run, ""), text(&file["sha256"]))).collect()
}

fn on_disk(sandbox: &Sandbox) -> BTreeMap<String, String> {
    sandbox.spec(&SPEC.replace("LOG", "shop/events.parquet").replace("OUT", "out/"));
    hashes(&sandbox.run(&[]))
}

#[test]
fn a_store_that_takes_its_time_is_asked_for_much_at_once() {
    let (sandbox, server) = (shop(), S3Server::start_slow("shop", Duration::from_millis(10)));
    let environment = server.environment();
    put_log(&server, &sandbox);
    let spec = SPEC.replace("LOG", "s3://shop/log/").replace("OUT", "s3://shop/out/");
    sandbox.spec(&spec.replace("shards = 4", "shards = 16").replace("delta = true", ""));
    let run = |output: &str| {
        let args = ["run", "job.toml", "--json", "--threads", "1", "--set", output];
        hashes(&json(&sandbox.tidemill_in(&environment, &[&args[..], &["--since-last"]].concat())))
    };
    let first = run("output.url=s3://shop/out/");
    assert!(server.take_requests_at_once() >= 12, "files are written one after the other");
    // One file more: the state is read, and so are the tables that changes are told from.
    server.put("log/more.parquet", std::fs::read(sandbox.path("shop/events.parquet")).unwrap());
    let second = run("output.url=s3://shop/out/");
    assert!(server.take_requests_at_once() >= 12, "state is read one file after the other");
    assert_ne!(first, second);
    let full = run("output.url=s3://shop/full/");
    assert!(full.iter().all(|(path, hash)| second.get(path) == Some(hash)));
}

#[test]
fn a_job_from_s3_to_s3_publishes_the_bytes_of_a_local_one_and_all_commands_work_there() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    let wanted = on_disk(&sandbox);
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let environment = server.environment();
    let tidemill = |args: &[&str]| sandbox.tidemill_in(&environment, args);
    assert_eq!(hashes(&json(&tidemill(&["run", "job.toml", "--json"]))), wanted);
    for key in server.keys("out/tables/").iter().filter(|key| key.ends_with(".parquet")) {
        assert!(server.bytes_of(key).unwrap().starts_with(b"PAR1"));
    }
    let list = server.bytes_of("out/manifests/user_top_k/manifest").unwrap();
    let list = String::from_utf8(list.to_vec()).unwrap();
    assert_eq!(list.lines().count(), 4, "{list}");
    assert!(list.lines().all(|line| server.bytes_of(&line["s3://shop/".len()..]).is_some()));

    let before: u64 = server.requests().values().sum();
    let again = json(&tidemill(&["run", "job.toml", "--json"]));
    assert_eq!(again["outcome"], "already_published");
    let requests = server.requests().values().sum::<u64>() - before;
    assert!(requests <= 20, "{requests} requests for nothing");

    assert!(tidemill(&["show", "job.toml", "--user", "u000000001"]).status.success());
    let index = server.keys("out/runs/").into_iter().find(|key| key.ends_with(".faiss")).unwrap();
    let item = "i000000001";
    let found =
        json(&tidemill(&["search", &format!("s3://shop/{index}"), "--item", item, "--json"]));
    let nearest = found["hits"][0]["id"].as_str().unwrap();
    assert!(nearest.starts_with('i') && nearest != item, "{found}");

    let verified = json(&tidemill(&["verify", "s3://shop/out/", "--json"]));
    assert_eq!(verified["problems"].as_array().unwrap().len(), 0, "{verified}");
    json(&tidemill(&["run", "job.toml", "--json", "--force"]));
    let rolled = json(&tidemill(&["rollback", "job.toml", "--json"]));
    assert_eq!(rolled["current"]["generation"], 1);
    let runs = json(&tidemill(&["runs", "job.toml", "--json"]));
    let standing: Vec<&str> = runs["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["standing"].as_str().unwrap())
        .collect();
    assert_eq!(standing, ["withdrawal", "withdrawn", "current"]);
    let planned =
        json(&tidemill(&["gc", "job.toml", "--keep", "0", "--grace-hours", "0", "--json"]));
    assert_eq!(planned["what"]["published_runs"].as_array().unwrap().len(), 1, "{planned}");
    let gc = ["gc", "job.toml", "--keep", "0", "--grace-hours", "0", "--json", "--delete"];
    json(&tidemill(&gc));
    let withdrawn = runs["runs"][1]["run_id"].as_str().unwrap();
    assert!(server.keys("out/").iter().all(|key| !key.contains(withdrawn)), "gc left files");
    json(&tidemill(&["verify", "job.toml", "--json"]));

    let broken = server.keys("out/tables/items/").into_iter().find(|key| key.ends_with(".parquet"));
    server.put(&broken.unwrap(), "PAR1");
    let verified = tidemill(&["verify", "job.toml"]);
    assert_eq!(verified.status.code(), Some(65), "{}", stderr(&verified));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("has 4 bytes, published with"));
}

#[test]
fn secrets_are_in_nothing_that_is_written() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let mut environment = server.environment();
    let secret = environment.iter().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY").unwrap();
    let secret = secret.1.clone();
    let key = environment.iter().find(|(name, _)| *name == "AWS_ACCESS_KEY_ID").unwrap().1.clone();
    environment.push(("AWS_SESSION_TOKEN", PLANTED.to_owned()));
    let done = sandbox.tidemill_in(&environment, &["run", "job.toml", "-vv"]);
    let planned = sandbox.tidemill_in(&environment, &["plan", "job.toml", "--json"]);
    environment.push(("AWS_SECRET_ACCESS_KEY", format!("{secret}-wrong")));
    let refused = sandbox.tidemill_in(&environment, &["run", "job.toml", "-vv"]);
    assert_eq!(refused.status.code(), Some(77), "{}", stderr(&refused));
    let mut texts: Vec<Vec<u8>> = Vec::new();
    for output in [done, planned, refused] {
        texts.extend([output.stdout, output.stderr]);
    }
    texts.extend(server.keys("out/").iter().map(|key| server.bytes_of(key).unwrap().to_vec()));
    for text in texts {
        let text = String::from_utf8_lossy(&text);
        for word in [PLANTED, secret.as_str(), key.as_str()] {
            assert!(!text.contains(word), "{word:?} is in {}", &text[..text.len().min(500)]);
        }
    }
}

#[test]
fn secrets_for_other_clouds_are_not_shown_either() {
    let sandbox = shop();
    let key = "planted+key/0123456789abcdefghijklmn";
    let account = r#"{"client_email": "a@b.c", "private_key": "planted-private-key",
                      "private_key_id": "planted-key-id", "disable_oauth": false}"#;
    let nowhere = "http://127.0.0.1:9";
    let clouds = [
        ("gs://shop/out/", vec![("GOOGLE_SERVICE_ACCOUNT_KEY", account)], [77, 78]),
        (
            "az://shop/out/",
            vec![("AZURE_STORAGE_ACCOUNT_NAME", "tidemill"), ("AZURE_STORAGE_ACCOUNT_KEY", key)],
            [75, 75],
        ),
        (
            "az://shop/out/",
            vec![
                ("AZURE_STORAGE_ACCOUNT_NAME", "tidemill"),
                ("AZURE_STORAGE_SAS_KEY", "sv=2026&sig=planted-signature"),
            ],
            [75, 75],
        ),
    ];
    for (url, variables, codes) in clouds {
        sandbox.spec(&SPEC.replace("LOG", "shop/events.parquet").replace("OUT", url));
        let variables: Vec<_> =
            variables.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let sets = [&format!("store.endpoint={nowhere}"), "store.retry_seconds_max=0"];
        let output = sandbox.tidemill_in(
            &variables,
            &["run", "job.toml", "-vv", "--set", sets[0], "--set", sets[1]],
        );
        let code = output.status.code().unwrap();
        assert!(codes.contains(&code), "{url}: {code} {}", stderr(&output));
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(text);
            assert!(!text.contains("planted"), "{url}: {text}");
        }
    }
}

/// Answers as the agent that gives pods their identity: the keys of `server` for a `token`.
fn pod_identity_agent(server: &S3Server, token: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/credentials", listener.local_addr().unwrap());
    let keys: BTreeMap<_, _> = server.environment().into_iter().collect();
    let answer = serde_json::json!({
        "AccessKeyId": keys["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": keys["AWS_SECRET_ACCESS_KEY"],
        "Token": PLANTED,
        "Expiration": "2099-01-01T00:00:00Z",
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut asked, mut part) = (String::new(), [0; 4096]);
            while !asked.contains("\r\n\r\n") {
                let read = stream.read(&mut part).unwrap();
                assert!(read > 0, "{asked}");
                asked += &String::from_utf8_lossy(&part[..read]);
            }
            let (status, body) = match asked.contains(token) {
                true => ("200 OK", answer.to_string()),
                false => ("401 Unauthorized", String::new()),
            };
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close");
            write!(stream, "{head}\r\n\r\n{body}").unwrap();
        }
    });
    url
}

#[test]
fn pod_identity_and_a_key_of_the_key_service_come_from_the_environment() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let token = sandbox.path("token").display().to_string();
    std::fs::write(&token, "planted-identity").unwrap();
    let mut environment = server.environment();
    environment.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    let agent = pod_identity_agent(&server, "planted-identity");
    environment.extend([
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.clone()),
        ("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms".to_owned()),
        ("AWS_SSE_KMS_KEY_ID", "our-key".to_owned()),
    ]);
    let ran = sandbox.tidemill_in(&environment, &["run", "job.toml", "-vv"]);
    assert!(ran.status.success() && !stderr(&ran).contains("planted"), "{}", stderr(&ran));
    let kms_keys = server.kms_keys();
    assert!(kms_keys["our-key"] > 20 && kms_keys.len() == 1, "{kms_keys:?}");

    std::fs::write(&token, "planted-and-revoked").unwrap();
    let ran = sandbox.tidemill_in(&environment, &["run", "job.toml", "-vv", "--force"]);
    assert_eq!(ran.status.code(), Some(77), "{}", stderr(&ran));
    assert!(!stderr(&ran).contains("planted"), "{}", stderr(&ran));
}

#[test]
fn credentials_that_expire_are_read_again_once() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    // The first request of each kind, where lists, reads and writes are kinds.
    let proxy = FaultProxy::start(server.address(), {
        let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
        move |request| {
            let kind = (request.method.clone(), request.query.contains("list-type"));
            seen.lock().unwrap().insert(kind).then_some(Fault::Expired)
        }
    });
    let output = sandbox.tidemill_in(&proxy.environment(), &["run", "job.toml", "--json"]);
    assert_eq!(json(&output)["outcome"], "published");
    assert!(proxy.faults()["expired"] >= 3, "{:?}", proxy.faults());
    assert!(stderr(&output).contains("reading them again"), "{}", stderr(&output));

    let proxy = FaultProxy::start(server.address(), |_| Some(Fault::Expired));
    let output = sandbox.tidemill_in(&proxy.environment(), &["run", "job.toml", "--force"]);
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
}

#[test]
fn stores_that_cannot_be_used_end_a_run_with_the_right_code() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let environment = server.environment();
    server.ignore_preconditions(true);
    let unsafe_store = sandbox.tidemill_in(&environment, &["run", "job.toml"]);
    assert_eq!(unsafe_store.status.code(), Some(78), "{}", stderr(&unsafe_store));
    assert!(stderr(&unsafe_store).contains("--unsafe-single-writer"), "{}", stderr(&unsafe_store));
    assert!(server.bytes_of("out/current.json").is_none());
    let trusted = sandbox.tidemill_in(&environment, &["run", "job.toml", "--unsafe-single-writer"]);
    assert!(trusted.status.success(), "{}", stderr(&trusted));
    let empty = ["run", "job.toml", "--set", "events.0.url=s3://shop/nothing/"];
    assert_eq!(sandbox.tidemill_in(&environment, &empty).status.code(), Some(66));
    let gone: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let mut nowhere = environment;
    nowhere.push(("AWS_ENDPOINT_URL", format!("http://{gone}")));
    let quick = ["run", "job.toml", "--set", "store.retry_seconds_max=0"];
    let unreachable = sandbox.tidemill_in(&nowhere, &quick);
    assert_eq!(unreachable.status.code(), Some(75), "{}", stderr(&unreachable));
}

/// One request in twenty fails, in every way that a store has.
pub(crate) fn five_percent()
-> impl Fn(&crate::s3::proxy::RequestLine) -> Option<Fault> + Send + Sync {
    let number = AtomicU64::new(0);
    move |request| {
        let number = number.fetch_add(1, SeqCst);
        if number % 20 != 7 {
            return None;
        }
        Some(match (number / 20 % 5, request.method.as_str()) {
            (0, "GET") => Fault::CutBody,
            (1, "PUT") => Fault::LoseReply,
            (2, _) => Fault::Delay(Duration::from_millis(300)),
            (3, "GET") => Fault::Hang(Duration::from_secs(3)),
            _ => Fault::SlowDown,
        })
    }
}

#[test]
fn a_job_over_a_faulty_network_publishes_the_same_bytes() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    let wanted = on_disk(&sandbox);
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let proxy = FaultProxy::start(server.address(), five_percent());
    for _ in 0..3 {
        let args = ["run", "job.toml", "--json", "--force"];
        let outcome = json(&sandbox.tidemill_in(&proxy.environment(), &args));
        assert_eq!(hashes(&outcome), wanted);
    }
    assert!(proxy.faults().values().sum::<u64>() >= 5, "{:?}", proxy.faults());
    let verified = sandbox.tidemill_in(&server.environment(), &["verify", "job.toml", "--json"]);
    assert_eq!(json(&verified)["problems"].as_array().unwrap().len(), 0);
}

/// Runs while the log is replaced whenever `is_hit` holds for the number of a read of it.
fn run_under_replacement(is_hit: fn(u64) -> bool) -> (Output, Arc<S3Server>) {
    let (sandbox, server) = (shop(), Arc::new(S3Server::start("shop")));
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let made = ["generate", "other", "--users", "2000", "--events", "30000"];
    assert!(sandbox.tidemill(&made).status.success());
    let other = std::fs::read(sandbox.path("other/events.parquet")).unwrap();
    let first = server.bytes_of("log/events.parquet").unwrap();
    let (number, behind) = (AtomicU64::new(0), server.clone());
    let proxy = FaultProxy::start(server.address(), move |request| {
        if request.method == "GET" && request.path.contains("/log/events.parquet") {
            let number = number.fetch_add(1, SeqCst);
            match (is_hit(number), number % 4 / 2) {
                (false, _) => {}
                (true, 0) => behind.put("log/events.parquet", other.clone()),
                (true, _) => behind.put("log/events.parquet", first.to_vec()),
            }
        }
        None
    });
    (sandbox.tidemill_in(&proxy.environment(), &["run", "job.toml", "--json"]), server)
}

#[test]
fn a_log_that_is_replaced_during_a_run_is_planned_anew_once() {
    // Reads of the log: footer, row group, then the same again.
    let (output, server) = run_under_replacement(|number| number == 1);
    let outcome = json(&output);
    assert_eq!(outcome["manifest"]["counts"]["rows"], 30_000, "the version that is whole");
    let run = outcome["manifest"]["run_id"].as_str().unwrap();
    assert!(run.ends_with("-2"), "{run}");
    let report = server.keys("out/runs/").into_iter().find(|key| key.ends_with("_report.json"));
    let report: Value =
        serde_json::from_slice(&server.bytes_of(&report.unwrap()).unwrap()).unwrap();
    assert_eq!(report["attempts"], 2);

    let (output, server) = run_under_replacement(|number| number % 2 == 1);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("log/events.parquet"), "{}", stderr(&output));
    assert!(stderr(&output).contains("twice"), "{}", stderr(&output));
    assert!(server.bytes_of("out/current.json").is_none());
    assert_eq!(server.keys("out/_failed/").len(), 1);
}

#[test]
fn every_fault_of_a_commit_ends_in_the_right_outcome() {
    let (sandbox, server) = (shop(), S3Server::start("shop"));
    put_log(&server, &sandbox);
    spec_on_s3(&sandbox);
    let faults: [fn() -> Fault; 6] = [
        || Fault::LoseReply,
        || Fault::ErrorAfter,
        || Fault::SlowDown,
        || Fault::Conflict,
        || Fault::Expired,
        || Fault::Hang(Duration::from_secs(2)),
    ];
    for place in ["/_log/", "/current.json", "/_manifest.json"] {
        for (number, fault) in faults.into_iter().enumerate() {
            let once = AtomicU64::new(0);
            let proxy = FaultProxy::start(server.address(), move |request| {
                let hit = request.method == "PUT" && request.path.contains(place);
                (hit && once.fetch_add(1, SeqCst) == 0).then(fault)
            });
            let args = [
                "run",
                "job.toml",
                "--json",
                "--force",
                "--set",
                "store.request_timeout_seconds=1",
            ];
            let outcome = json(&sandbox.tidemill_in(&proxy.environment(), &args));
            assert_eq!(outcome["outcome"], "published", "{place} {number}");
            assert_eq!(proxy.faults().values().sum::<u64>(), 1, "{place} {number}");
            let current = server.bytes_of("out/current.json").unwrap();
            let current: Value = serde_json::from_slice(&current).unwrap();
            assert_eq!(current["run_id"], outcome["manifest"]["run_id"], "{place} {number}");
        }
    }
    let runs = sandbox.tidemill_in(&server.environment(), &["runs", "job.toml", "--json"]);
    assert_eq!(json(&runs)["runs"].as_array().unwrap().len(), 18, "one generation each");
}

fn manifest(run_id: &str) -> Manifest {
    Manifest {
        format: 1,
        run_id: run_id.to_owned(),
        logical_date: "2026-11-22".to_owned(),
        as_of: "2026-11-23T00:00:00Z".to_owned(),
        spec_sha256: String::new(),
        input: Vec::new(),
        fingerprint: run_id.to_owned(),
        code_version: String::new(),
        instruction_set: String::new(),
        embedding_space_id: None,
        shards: 1,
        files: Vec::new(),
        counts: Default::default(),
        gates: Vec::new(),
        stages: Vec::<Stage>::new(),
        delta: false,
        state: None,
        changes_since: None,
        unchanged_since: None,
        fit_start: None,
        nonce: run_id.to_owned(),
    }
}

/// Publishers race each other, a generation per round and publisher.
fn race(endpoint: &str, n_publishers: usize, n_rounds: usize) {
    let day = jiff::civil::date(2026, 11, 22);
    let open = || {
        let endpoint = Some(endpoint.to_owned());
        let runtime = IoRuntime::with_options(StoreOptions { endpoint, ..Default::default() });
        tidemill::store::Output::open(&runtime.unwrap(), "s3://shop/race/", Path::new("")).unwrap()
    };
    std::thread::scope(|scope| {
        for publisher in 0..n_publishers {
            let output = open();
            scope.spawn(move || {
                for round in 0..n_rounds {
                    let run_id = format!("p{publisher}r{round}");
                    let path = RunPath::new(day, &run_id);
                    let published =
                        output.publish(&path, &manifest(&run_id), "2026-11-23T00:00:00Z", false);
                    let Published::New(_) = published.unwrap() else { panic!("{run_id} is lost") };
                }
            });
        }
    });
    let log = open().read_log_entries().unwrap();
    let mut runs: Vec<&str> = log.entries().iter().map(|entry| entry.run.run_id.as_str()).collect();
    assert_eq!(runs.len(), n_publishers * n_rounds, "a generation for each, without a gap");
    let current = open().read_current().unwrap().unwrap();
    assert_eq!(current.generation as usize, runs.len());
    runs.sort_unstable();
    runs.dedup();
    assert_eq!(runs.len(), n_publishers * n_rounds, "and each once");
}

/// Rounds of a race: 200 by hand, fewer in every test run.
fn rounds() -> usize {
    std::env::var("TIDEMILL_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap())
}

/// Runs a test of this file again in a process that has the server's credentials, as the library
/// reads them from the environment; `false` in that process.
fn is_left_to_a_process_with_credentials(test: &str) -> bool {
    const MARK: &str = "TIDEMILL_TEST_HAS_CREDENTIALS";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let mut environment = crate::s3::server::environment("");
    environment.retain(|(name, _)| *name != "AWS_ENDPOINT_URL");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("s3_jobs::{test}"), "--nocapture"]);
    assert!(command.envs(environment).env(MARK, "1").status().unwrap().success());
    true
}

#[test]
fn publishers_who_race_get_a_generation_each() {
    if is_left_to_a_process_with_credentials("publishers_who_race_get_a_generation_each") {
        return;
    }
    let server = S3Server::start("shop");
    race(&server.endpoint(), 8, rounds());
    if let Some(moto) = Moto::start("shop") {
        race(&format!("http://{}", moto.address()), 8, rounds());
    }
}
