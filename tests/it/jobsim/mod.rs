//! The shipped manifests, played on processes of this machine: what a Job controller, a kubelet and a
//! cluster's names do to pods, and what is published in the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tidemill::run::code;

mod cluster;
mod controller;
mod pod;

use cluster::{Cluster, inside};
use controller::{Delay, End, Job};

/// 2026-11-26 02:30 UTC, and a minute later.
const JOBS: [&str; 2] = ["tidemill-29927670", "tidemill-29927671"];

/// The day that both are for.
const DAY: &str = "2026-11-25";

/// A test of this name, inside of a cluster.
macro_rules! plays {
    ($name:ident, $scenario:expr) => {
        #[test]
        fn $name() {
            inside(concat!("jobsim::", stringify!($name)), $scenario);
        }
    };
}

/// What an overlay of a user says of a small shop: more shards than it needs, so that all processes
/// have some, and a long fit, so that there is time to interrupt it.
fn small_shop() -> BTreeMap<String, String> {
    let variables = [
        ("TIDEMILL__SHARDS", "16"),
        ("TIDEMILL__ALS__ITERATIONS", "120"),
        ("TIDEMILL__ALS__LOSS_TOLERANCE", "1e-9"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// A cluster with a log, and a key where processes share one.
fn shop(overlay: &'static str) -> Cluster {
    let mut cluster = Cluster::with(overlay);
    let input = cluster.claim("tidemill-input");
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/quickstart");
    for table in ["events", "items", "users"] {
        fs::create_dir(input.join(table)).unwrap();
        let file = format!("{table}.parquet");
        fs::copy(quickstart.join(&file), input.join(table).join(&file)).unwrap();
    }
    cluster.secret("tidemill-cluster-key", "key", "0123456789abcdef0123456789abcdef\n");
    cluster.environment = small_shop();
    cluster
}

/// Plays jobs until all have ended, and does `meddle` after every look.
fn play(cluster: &mut Cluster, jobs: &mut [Job], mut meddle: impl FnMut(&Cluster, &mut [Job])) {
    while jobs.iter().any(|job| job.end().is_none()) {
        jobs.iter_mut().for_each(|job| job.look(cluster));
        meddle(cluster, jobs);
        thread::sleep(Duration::from_millis(10));
    }
}

fn nothing(_: &Cluster, _: &mut [Job]) {}

/// The digests of the files that readers see in an output, by table and name.
fn published(output: &Path) -> BTreeMap<String, String> {
    let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let current = json(&output.join("current.json"));
    assert_eq!(current["logical_date"], DAY);
    let manifest = json(&output.join(current["manifest"].as_str().unwrap()));
    let files = manifest["files"].as_array().unwrap().iter();
    let digest = |file: &Value| {
        let name = file["path"].as_str().unwrap().rsplit('/').next().unwrap();
        (format!("{}/{name}", file["table"]), file["sha256"].as_str().unwrap().to_owned())
    };
    files.map(digest).collect()
}

/// What one process publishes without a cluster.
fn expected(cluster: &Cluster) -> BTreeMap<String, String> {
    let (input, output) = (cluster.claim("tidemill-input"), cluster.path("expected"));
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/nightly.toml");
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["run", job.to_str().unwrap(), "--date", DAY, "--threads", "2"])
        .env("EVENTS_URL", input.join("events"))
        .env("ITEMS_URL", input.join("items"))
        .env("USERS_URL", input.join("users"))
        .env("OUTPUT_URL", &output)
        .envs(&cluster.environment)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    published(&output)
}

fn output(cluster: &Cluster) -> std::path::PathBuf {
    cluster.claim("tidemill-output").join("nightly")
}

/// Holds that all jobs are complete and have published, once, what one process does.
fn assert_published(cluster: &Cluster, jobs: &[Job]) {
    for job in jobs {
        assert_eq!(job.end(), Some(&End::Complete), "{}", job.said());
    }
    assert_eq!(published(&output(cluster)), expected(cluster));
    let second = output(cluster).join("_log/00000000000000000002.json");
    assert!(!second.exists(), "{}", jobs[0].said());
}

/// Pods that start in another order than that of their indexes.
fn shuffled(index: usize) -> Delay {
    Delay { start: Duration::from_millis([150, 0, 250, 50][index % 4]), ..Delay::default() }
}

fn at_once(_: usize) -> Delay {
    Delay::default()
}

plays!(one_process_publishes_for_the_day_before, || {
    let mut cluster = shop("overlays/single");
    let mut jobs = [Job::new(&cluster, JOBS[0], at_once)];
    play(&mut cluster, &mut jobs, nothing);
    assert_published(&cluster, &jobs);
    assert_eq!(jobs[0].exits, [(0, 0)]);
});

plays!(a_job_whose_input_is_missing_fails_at_once_and_says_why, || {
    let mut cluster = shop("overlays/single");
    fs::remove_dir_all(cluster.claim("tidemill-input").join("events")).unwrap();
    let mut jobs = [Job::new(&cluster, JOBS[0], at_once)];
    play(&mut cluster, &mut jobs, nothing);
    assert_eq!(jobs[0].end(), Some(&End::Failed("PodFailurePolicy")), "{}", jobs[0].said());
    assert_eq!(jobs[0].exits, [(0, i32::from(code::NO_INPUT))]);
    let message: Value = serde_json::from_str(&jobs[0].messages[0]).unwrap();
    assert_eq!(message["code"], code::NO_INPUT, "{message}");
    assert_eq!(message["retryable"], false, "{message}");
});

/// Names that come late, each after another time.
fn named_late(index: usize) -> Delay {
    let name = Duration::from_millis(400 * (4 - index as u64));
    Delay { name, ..shuffled(index) }
}

plays!(processes_that_start_in_any_order_and_have_names_late_publish_what_one_does, || {
    let mut cluster = shop("overlays/cluster");
    let mut jobs = [Job::new(&cluster, JOBS[0], named_late)];
    play(&mut cluster, &mut jobs, nothing);
    assert_published(&cluster, &jobs);
    assert_eq!(jobs[0].failed, 0, "{}", jobs[0].said());
});

/// Does `what` to a job, once, when one of its processes has said `words`.
fn once(words: &str, what: impl Fn(&mut Job)) -> impl FnMut(&Cluster, &mut [Job]) {
    let mut is_done = false;
    move |_, jobs| {
        let job = &mut jobs[0];
        if !is_done && job.pods.values().any(|pod| pod.said().contains(words)) {
            assert!(job.is_whole(), "too late: {}", job.said());
            what(job);
            is_done = true;
        }
    }
}

plays!(a_run_survives_the_death_of_any_pod, || {
    let moments = ["plan", "histories", "iteration 1:", "iteration 20:"];
    for (victim, moment) in moments.into_iter().enumerate() {
        let mut cluster = shop("overlays/cluster");
        let mut jobs = [Job::new(&cluster, JOBS[0], shuffled)];
        play(&mut cluster, &mut jobs, once(moment, |job| job.kill(victim)));
        assert_published(&cluster, &jobs);
        assert!(jobs[0].exits.contains(&(victim, 137)), "{}", jobs[0].said());
        // The others wait in their pods for the next.
        assert_eq!(jobs[0].failed, 1, "{}", jobs[0].said());
    }
});

// Its peers have ended well, and no pod of theirs comes back.
plays!(a_pod_that_dies_when_all_is_published_is_not_missed, || {
    let mut cluster = shop("overlays/cluster");
    let mut jobs = [Job::new(&cluster, JOBS[0], shuffled)];
    // The supervisor does not see its worker end, so the pod stays until it is killed.
    let mut stop = once("iteration 1:", |job| job.stop(0));
    play(&mut cluster, &mut jobs, |cluster, jobs| {
        stop(cluster, jobs);
        let has_ended = |index| jobs[0].exits.contains(&(index, 0));
        if (1..4).all(has_ended) && jobs[0].failed == 0 {
            jobs[0].kill(0);
        }
    });
    assert_published(&cluster, &jobs);
    assert!(jobs[0].exits.contains(&(0, 137)), "{}", jobs[0].said());
});

plays!(an_evicted_pod_costs_no_attempt, || {
    let mut cluster = shop("overlays/cluster");
    let mut jobs = [Job::new(&cluster, JOBS[0], shuffled)];
    play(&mut cluster, &mut jobs, once("iteration 10:", |job| job.evict(2)));
    assert_published(&cluster, &jobs);
    assert_eq!(jobs[0].failed, 0, "{}", jobs[0].said());
    // Once process 0 has ended well, pods that are still on their way out are told to end.
    let while_it_ran = jobs[0].exits.iter().take_while(|exit| **exit != (0, 0));
    let evicted = while_it_ran.filter(|(index, code)| (*index, *code != 0) == (2, true));
    assert_eq!(evicted.count(), 1, "{}", jobs[0].said());
});

plays!(a_node_that_is_cut_off_is_noticed_and_its_pod_replaced, || {
    let mut cluster = shop("overlays/cluster");
    cluster.args = ["--silence-seconds", "5"].map(str::to_owned).into();
    let mut jobs = [Job::new(&cluster, JOBS[0], shuffled)];
    let mut cut_off = once("iteration 1:", |job| job.cut_off(2));
    let mut evict = once("silent for 5 s", |job| job.evict(2));
    play(&mut cluster, &mut jobs, |cluster, jobs| {
        cut_off(cluster, jobs);
        evict(cluster, jobs);
    });
    assert_published(&cluster, &jobs);
    assert_eq!(jobs[0].failed, 0, "{}", jobs[0].said());
});

plays!(two_jobs_of_one_cron_job_do_not_mix, || {
    let mut cluster = shop("overlays/cluster");
    let mut jobs = JOBS.map(|name| Job::new(&cluster, name, shuffled));
    play(&mut cluster, &mut jobs, nothing);
    assert_published(&cluster, &jobs);
    for job in &jobs {
        assert_eq!(job.failed, 0, "{}", job.said());
    }
});

plays!(without_its_key_a_cluster_fails_at_once, || {
    let mut cluster = shop("overlays/cluster");
    cluster.forget_secrets();
    let mut jobs = [Job::new(&cluster, JOBS[0], at_once)];
    play(&mut cluster, &mut jobs, nothing);
    assert_eq!(jobs[0].end(), Some(&End::Failed("PodFailurePolicy")), "{}", jobs[0].said());
    assert!(jobs[0].said().contains("TIDEMILL_CLUSTER_KEY"), "{}", jobs[0].said());
});

plays!(a_pod_that_never_starts_ends_a_job_at_its_deadline, || {
    let mut cluster = shop("overlays/cluster");
    let mut jobs = [Job::new(&cluster, JOBS[0], |index| Delay {
        start: Duration::from_secs(3600 * (index as u64 / 3)),
        ..Delay::default()
    })];
    jobs[0].set_deadline(360);
    play(&mut cluster, &mut jobs, nothing);
    assert_eq!(jobs[0].end(), Some(&End::Failed("DeadlineExceeded")), "{}", jobs[0].said());
    assert!(!output(&cluster).join("current.json").exists());
});
