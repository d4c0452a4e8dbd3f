//! The Job controller, for one indexed Job: it makes pods, counts failures and ends the Job by the
//! rules of its manifest. What a manifest asks and it does not know ends the test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::Cluster;
use super::pod::Pod;
use crate::kubernetes::rendered::{PodIdentity, items, text};

/// Two minutes of a manifest are a second here.
const SCALE: u32 = 120;

/// What is known of a Job's manifest.
const KNOWN: [&str; 10] = [
    "activeDeadlineSeconds",
    "backoffLimit",
    "completionMode",
    "completions",
    "parallelism",
    "podFailurePolicy",
    "podReplacementPolicy",
    "successPolicy",
    "template",
    "ttlSecondsAfterFinished",
];

/// A duration of Kubernetes, shortened.
pub(crate) fn scaled(seconds: u64) -> Duration {
    Duration::from_secs(seconds) / SCALE
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    /// The reason, as its condition says.
    Failed(&'static str),
}

/// How soon a pod starts and is found by its name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delay {
    pub(crate) start: Duration,
    pub(crate) name: Duration,
}

/// A Job and its pods.
pub(crate) struct Job {
    name: String,
    uid: String,
    spec: Value,
    delay: fn(usize) -> Delay,
    began_at: Instant,
    /// Indexes without a pod, and when they get one.
    waiting: BTreeMap<usize, Instant>,
    pub(crate) pods: BTreeMap<usize, Pod>,
    succeeded: BTreeSet<usize>,
    /// Pods that failed and were counted.
    pub(crate) failed: u32,
    /// Exit codes of pods, in order.
    pub(crate) exits: Vec<(usize, i32)>,
    /// The termination messages of pods that left one.
    pub(crate) messages: Vec<String>,
    end: Option<End>,
    /// What pods said that are gone.
    said: String,
}

impl Job {
    /// A Job of the CronJob in `cluster`. Its first pods start by `delay` of their index.
    pub(crate) fn new(cluster: &Cluster, name: &str, delay: fn(usize) -> Delay) -> Self {
        let (spec, now) = (cluster.manifests.job().clone(), Instant::now());
        let unknown = spec.as_object().unwrap().keys().find(|key| !KNOWN.contains(&key.as_str()));
        assert_eq!(unknown, None, "is not known");
        assert_eq!(spec["completionMode"], "Indexed");
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Never");
        let parallelism = spec["parallelism"].as_u64().unwrap() as usize;
        assert_eq!(spec["completions"], parallelism, "waiting indexes are not known");
        let waiting = (0..parallelism).map(|index| (index, now + delay(index).start)).collect();
        Self {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            spec,
            delay,
            began_at: now,
            waiting,
            pods: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            failed: 0,
            exits: Vec::new(),
            messages: Vec::new(),
            end: None,
            said: String::new(),
        }
    }

    /// Gives it less time than its manifest does.
    pub(crate) fn set_deadline(&mut self, seconds: u64) {
        self.spec["activeDeadlineSeconds"] = seconds.into();
    }

    /// What became of it, once all of its pods are gone.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.as_ref().filter(|_| self.pods.is_empty())
    }

    /// All that its pods have said.
    pub(crate) fn said(&self) -> String {
        let running: String = self.pods.values().map(Pod::said).collect();
        format!("{:?} {:?}\n{}{running}", self.end, self.exits, self.said)
    }

    /// Looks at everything once.
    pub(crate) fn look(&mut self, cluster: &mut Cluster) {
        let now = Instant::now();
        self.name_pods(cluster, now);
        self.bury_pods(cluster, now);
        let deadline = scaled(self.spec["activeDeadlineSeconds"].as_u64().unwrap());
        if self.end.is_none() && now >= self.began_at + deadline {
            self.finish(End::Failed("DeadlineExceeded"), now);
        }
        if self.end.is_none() {
            self.start_pods(cluster, now);
        }
        let pods = self.pods.values_mut();
        let late = pods.filter(|pod| pod.killed_at.is_some_and(|at| now >= at));
        late.for_each(|pod| pod.signal("KILL"));
    }

    fn name_pods(&mut self, cluster: &mut Cluster, now: Instant) {
        for pod in self.pods.values_mut() {
            if pod.named_at.is_some_and(|at| now >= at) {
                pod.named_at = None;
                cluster.publish(&pod.host, &pod.network.address);
            }
        }
    }

    fn bury_pods(&mut self, cluster: &mut Cluster, now: Instant) {
        let ended: Vec<(usize, i32)> =
            self.pods.iter_mut().filter_map(|(index, pod)| Some((*index, pod.ended()?))).collect();
        for (index, code) in ended {
            let pod = self.pods.remove(&index).unwrap();
            cluster.unpublish(&pod.network.address);
            self.said += &pod.said();
            self.exits.push((index, code));
            self.messages.extend(pod.message());
            if self.end.is_none() {
                self.judge(index, code, pod.is_disrupted, now);
            }
        }
    }

    /// What a pod's end means for the Job.
    fn judge(&mut self, index: usize, code: i32, is_disrupted: bool, now: Instant) {
        if code == 0 {
            self.succeeded.insert(index);
            if self.has_succeeded() {
                self.finish(End::Complete, now);
            }
            return;
        }
        match self.action(code, is_disrupted).as_str() {
            "FailJob" => return self.finish(End::Failed("PodFailurePolicy"), now),
            "Ignore" => {}
            "Count" => self.failed += 1,
            other => panic!("action {other} is not known"),
        }
        if u64::from(self.failed) > self.spec["backoffLimit"].as_u64().unwrap() {
            return self.finish(End::Failed("BackoffLimitExceeded"), now);
        }
        // The pod is gone, which is what this policy waits for.
        assert_eq!(self.spec["podReplacementPolicy"], "Failed");
        let pause = 10 << self.failed.saturating_sub(1).min(6);
        let pause = if self.failed == 0 { 0 } else { pause.min(360) };
        self.waiting.insert(index, now + scaled(pause));
    }

    /// The action of the first rule that fits.
    fn action(&self, code: i32, is_disrupted: bool) -> String {
        let name = &self.spec["template"]["spec"]["containers"][0]["name"];
        let fits = |rule: &&Value| {
            let conditions = items(&rule["onPodConditions"]).iter();
            let mut disruptions = conditions.filter(|condition| {
                condition["type"] == "DisruptionTarget" && condition["status"] == "True"
            });
            let codes = &rule["onExitCodes"];
            let is_listed = items(&codes["values"]).iter().any(|value| *value == code);
            let by_code = codes.get("containerName").is_none_or(|of| of == name)
                && match codes.get("operator").map(text) {
                    Some("In") => is_listed,
                    Some("NotIn") => !is_listed,
                    _ => false,
                };
            is_disrupted && disruptions.next().is_some() || by_code
        };
        let rules = items(&self.spec["podFailurePolicy"]["rules"]);
        let rule = rules.iter().find(fits);
        rule.map_or("Count", |rule| text(&rule["action"])).to_owned()
    }

    fn has_succeeded(&self) -> bool {
        let rules = items(&self.spec["successPolicy"]["rules"]);
        let holds = |rule: &Value| {
            assert!(rule.get("succeededCount").is_none(), "a count is not known");
            let mut indexes = text(&rule["succeededIndexes"]).split(',');
            indexes.all(|index| self.succeeded.contains(&index.parse().unwrap()))
        };
        rules.iter().any(holds)
            || self.succeeded.len() as u64 == self.spec["completions"].as_u64().unwrap()
    }

    fn finish(&mut self, end: End, now: Instant) {
        self.end = Some(end);
        self.waiting.clear();
        let indexes: Vec<usize> = self.pods.keys().copied().collect();
        indexes.into_iter().for_each(|index| self.terminate(index, now));
    }

    fn start_pods(&mut self, cluster: &mut Cluster, now: Instant) {
        let due: Vec<usize> =
            self.waiting.iter().filter(|(_, at)| now >= **at).map(|(index, _)| *index).collect();
        for index in due {
            let (job, controller_uid) = (self.name.clone(), self.uid.clone());
            let identity = PodIdentity { job, controller_uid, index };
            let named_at = now + (self.delay)(index).name;
            if let Some(pod) = Pod::start(cluster, &identity, named_at) {
                self.waiting.remove(&index);
                self.pods.insert(index, pod);
            }
        }
    }

    /// Asks a pod to end, and makes it when its time is over.
    fn terminate(&mut self, index: usize, now: Instant) {
        let grace = self.spec["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
        let Some(pod) = self.pods.get_mut(&index) else { return };
        pod.signal("TERM");
        pod.killed_at = Some(now + scaled(grace.unwrap()));
    }

    /// A pod dies, with all of its processes.
    pub(crate) fn kill(&mut self, index: usize) {
        self.pods.get_mut(&index).expect("a pod that runs").signal("KILL");
    }

    /// The first process of a pod stands still; its other processes go on.
    pub(crate) fn stop(&mut self, index: usize) {
        self.pods.get_mut(&index).expect("a pod that runs").signal("STOP");
    }

    /// The node of a pod is cut off: nobody hears of it any more, and it goes on.
    pub(crate) fn cut_off(&mut self, index: usize) {
        self.pods[&index].network.cut_off();
    }

    /// A pod is evicted: its node is drained.
    pub(crate) fn evict(&mut self, index: usize) {
        self.pods.get_mut(&index).expect("a pod that runs").is_disrupted = true;
        self.terminate(index, Instant::now());
    }

    /// Whether a pod of every index runs.
    pub(crate) fn is_whole(&self) -> bool {
        self.pods.len() as u64 == self.spec["completions"].as_u64().unwrap()
    }
}
