//! Rules that the rendered manifests of `k8s/` must keep and that no schema knows.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use serde_json::{Value, json};
use tidemill::cli::Cli;
use tidemill::run::code;

mod image;
pub(crate) mod rendered;

use rendered::{OVERLAYS, PodIdentity, Rendered, has_kubectl, items, text};

/// The first pod of a job.
fn pod() -> PodIdentity {
    PodIdentity { job: "tidemill-29927670".into(), controller_uid: "uid".into(), index: 0 }
}

/// The argument after `flag`.
fn flag(rendered: &Rendered, flag: &str) -> Option<String> {
    let args = pod().args(rendered.container());
    let at = args.iter().position(|arg| arg == flag)?;
    Some(args[at + 1].clone())
}

/// The port that processes dial; none where there is one process without peers.
fn port(rendered: &Rendered) -> Option<i64> {
    let template = flag(rendered, "--host-template")?;
    Some(template.rsplit_once(':').unwrap().1.parse().unwrap())
}

/// Whether these labels are among those of the pods.
fn selects(labels: &Value, rendered: &Rendered) -> bool {
    let labels = labels.as_object().unwrap();
    let has = |(name, value): (&String, &Value)| rendered.pod_labels().get(name) == Some(value);
    !labels.is_empty() && labels.iter().all(has)
}

#[test]
fn overlays_hold_what_they_are_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
    let folders = fs::read_dir(root.join("overlays")).unwrap();
    let folders = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<String> = folders.map(|name| format!("overlays/{name}")).collect();
    assert_eq!(folders, OVERLAYS[1..].iter().map(|name| (*name).to_owned()).collect());
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for rendered in Rendered::all() {
        let overlay = rendered.overlay;
        assert!(readme.contains(&format!("k8s/{overlay}")), "{overlay} is not in README.md");
        let kinds = rendered.kinds();
        let common = ["CronJob", "ConfigMap", "ServiceAccount", "NetworkPolicy"];
        for kind in common.into_iter().chain(["PodDisruptionBudget"]) {
            assert!(kinds.contains(&kind), "{overlay} has no {kind}");
        }
        assert_eq!(kinds.contains(&"Service"), overlay != "overlays/single", "{overlay}");
        // The key is made where it is used.
        assert!(!kinds.contains(&"Secret"), "{overlay}");
        let several = ["overlays/cluster", "overlays/kueue"].contains(&overlay);
        assert_eq!(rendered.processes() > 1, several, "{overlay}");
    }
}

#[test]
fn a_job_has_an_index_for_each_process() {
    for rendered in Rendered::all() {
        let (overlay, job, processes) = (rendered.overlay, rendered.job(), rendered.processes());
        assert_eq!(job["completionMode"], "Indexed", "{overlay}");
        assert_eq!(job["parallelism"], job["completions"], "{overlay}");
        let flag = flag(rendered, "--processes").unwrap_or("1".into());
        assert_eq!(flag, processes.to_string(), "{overlay}");
        assert!(job["backoffLimit"].as_u64().unwrap() >= 3 * processes as u64, "{overlay}");
        // Of independent indexes: a failed one would leave the others waiting.
        for word in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            assert_eq!(job.get(word), None, "{overlay}");
        }
        assert!(job["activeDeadlineSeconds"].as_u64().unwrap() >= 3600, "{overlay}");
        assert!(job["ttlSecondsAfterFinished"].is_u64(), "{overlay}");
        // Process 0 publishes.
        assert_eq!(job["successPolicy"], json!({ "rules": [{ "succeededIndexes": "0" }] }));
        let budget = &rendered.one("PodDisruptionBudget")["spec"];
        assert_eq!(budget["minAvailable"], processes, "{overlay}");
        assert_eq!(budget.get("maxUnavailable"), None, "{overlay}: jobs cannot be scaled");
        assert!(selects(&budget["selector"]["matchLabels"], rendered), "{overlay}");
    }
}

#[test]
fn codes_that_would_come_again_fail_a_job_and_disruptions_cost_no_attempt() {
    let fatal = |code: &u8| code::name(*code) != "internal" && !code::is_retryable(*code);
    let fatal: Vec<u8> = (1..=255).filter(fatal).collect();
    assert!(fatal.len() >= 6);
    for rendered in Rendered::all() {
        let (overlay, job, pod) = (rendered.overlay, rendered.job(), rendered.pod());
        // The policy works with no other.
        assert_eq!(pod["restartPolicy"], "Never", "{overlay}");
        assert_eq!(job["podReplacementPolicy"], "Failed", "{overlay}");
        assert!(pod["terminationGracePeriodSeconds"].is_u64(), "{overlay}");
        let disrupted = json!([{ "type": "DisruptionTarget", "status": "True" }]);
        let name = &rendered.container()["name"];
        let codes = json!({ "containerName": name, "operator": "In", "values": fatal });
        let expected = json!([
            { "action": "Ignore", "onPodConditions": disrupted },
            { "action": "FailJob", "onExitCodes": codes },
        ]);
        assert_eq!(job["podFailurePolicy"]["rules"], expected, "{overlay}");
    }
}

#[test]
fn a_run_is_due_by_a_clock_without_summer_and_for_the_day_before() {
    for rendered in Rendered::all() {
        let (overlay, cron) = (rendered.overlay, &rendered.one("CronJob")["spec"]);
        assert_eq!(cron["timeZone"], "Etc/UTC", "{overlay}");
        assert_eq!(cron["concurrencyPolicy"], "Forbid", "{overlay}");
        // The controller looks every 10 s.
        assert!(cron["startingDeadlineSeconds"].as_u64().unwrap() >= 10, "{overlay}");
        let environment = pod().environment(rendered.container());
        assert_eq!(environment["TIDEMILL_DATE"], "from-job-name", "{overlay}");
        assert_eq!(environment["TIDEMILL_JOB_NAME"], pod().job, "{overlay}");
        assert_eq!(environment["TIDEMILL_RUN_ID"], pod().controller_uid, "{overlay}");
        let suspended = rendered.job()["suspend"] == true;
        let labels = &cron["jobTemplate"]["metadata"]["labels"];
        let queued = labels.get("kueue.x-k8s.io/queue-name").is_some();
        assert_eq!((suspended, queued), (overlay == "overlays/kueue", suspended), "{overlay}");
    }
}

#[test]
fn processes_find_each_other_by_names_that_fit_and_that_no_other_job_has() {
    for rendered in Rendered::all() {
        let (overlay, processes) = (rendered.overlay, rendered.processes());
        let name = text(&rendered.one("CronJob")["metadata"]["name"]);
        let host = format!("{name}-29927670-{}", processes - 1);
        assert!(name.len() <= 52 && host.len() <= 63, "{host}");
        let Some(port) = port(rendered) else { continue };
        let service = rendered.one("Service");
        let name = &service["metadata"]["name"];
        assert_eq!(&rendered.pod()["subdomain"], name, "{overlay}");
        assert_eq!(rendered.pod().get("hostname"), None, "{overlay}: the index makes it");
        let expected = format!("{}-{{index}}.{}:{port}", pod().job, text(name));
        assert_eq!(flag(rendered, "--host-template"), Some(expected), "{overlay}");
        let service = &service["spec"];
        assert_eq!(service["clusterIP"], "None", "{overlay}");
        assert_eq!(service["publishNotReadyAddresses"], true, "{overlay}");
        // The labels of the manifest; a job's own, such as job-name, are not among them.
        assert!(selects(&service["selector"], rendered), "{overlay}");
        assert_eq!(items(&service["ports"]).len(), 1, "{overlay}");
        assert_eq!(service["ports"][0]["port"], port, "{overlay}");
        let open = &rendered.container()["ports"];
        assert_eq!(items(open).len(), 1, "{overlay}");
        assert_eq!(open[0]["containerPort"], port, "{overlay}");
        assert_eq!(service["ports"][0]["targetPort"], open[0]["name"], "{overlay}");
    }
}

/// The ports of a rule, such as `TCP 443`.
fn ports(rule: &Value) -> BTreeSet<String> {
    let name = |port: &Value| format!("{} {}", text(&port["protocol"]), port["port"]);
    items(&rule["ports"]).iter().map(name).collect()
}

#[test]
fn the_network_is_open_to_peers_names_and_object_stores() {
    for rendered in Rendered::all() {
        let overlay = rendered.overlay;
        let policy = &rendered.one("NetworkPolicy")["spec"];
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]), "{overlay}");
        assert!(selects(&policy["podSelector"]["matchLabels"], rendered), "{overlay}");
        let peers = json!([{ "podSelector": policy["podSelector"] }]);
        let dialed = port(rendered).map(|port| format!("TCP {port}"));
        let ingress = items(&policy["ingress"]);
        assert!(ingress.iter().all(|rule| rule["from"] == peers), "{overlay}");
        let from_peers: BTreeSet<_> = ingress.iter().flat_map(ports).collect();
        assert_eq!(from_peers, dialed.clone().into_iter().collect(), "{overlay}");
        let egress = items(&policy["egress"]);
        let (some, all): (Vec<_>, Vec<_>) =
            egress.iter().partition(|rule| rule.get("to").is_some());
        assert!(some.iter().all(|rule| rule["to"] == peers), "{overlay}");
        let to_peers: BTreeSet<_> = some.into_iter().flat_map(ports).collect();
        assert_eq!(to_peers, dialed.into_iter().collect(), "{overlay}");
        let to_all: BTreeSet<_> = all.into_iter().flat_map(ports).collect();
        assert_eq!(to_all, ["TCP 443", "TCP 53", "UDP 53"].map(str::to_owned).into(), "{overlay}");
    }
}

/// A whole number, with a binary unit or without.
fn number(quantity: &str) -> u64 {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let unit =
        units.into_iter().find_map(|(unit, bits)| Some((quantity.strip_suffix(unit)?, bits)));
    let (digits, bits) = unit.unwrap_or((quantity, 0));
    digits.parse::<u64>().unwrap() << bits
}

#[test]
fn a_container_has_what_it_may_use_and_uses_it() {
    for rendered in Rendered::all() {
        let (overlay, container) = (rendered.overlay, rendered.container());
        let limits = &container["resources"]["limits"];
        assert_eq!(limits, &container["resources"]["requests"], "{overlay}");
        let (cores, memory) = (text(&limits["cpu"]), number(text(&limits["memory"])));
        assert_eq!(flag(rendered, "--threads").as_deref(), Some(cores), "{overlay}");
        let environment = pod().environment(container);
        let bound = number(environment["TIDEMILL__LIMITS__MEMORY_BYTES_MAX"].trim_end_matches('B'));
        assert!(bound < memory && bound >= memory * 3 / 4, "{overlay}: {bound} of {memory}");
    }
}

#[test]
fn a_container_has_no_rights() {
    for rendered in Rendered::all() {
        let (overlay, pod, container) = (rendered.overlay, rendered.pod(), rendered.container());
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true, "{overlay}");
        assert!(security["runAsUser"].as_u64().unwrap() >= 10_000, "{overlay}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{overlay}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{overlay}");
        let account = rendered.one("ServiceAccount");
        assert_eq!(pod["serviceAccountName"], account["metadata"]["name"], "{overlay}");
        assert_eq!(account["automountServiceAccountToken"], false, "{overlay}");
        let expected = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(container["securityContext"], expected, "{overlay}");
        for word in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_eq!(pod.get(word), None, "{overlay}");
        }
        // A probe would be a stranger on the port.
        for word in ["livenessProbe", "readinessProbe", "startupProbe"] {
            assert_eq!(container.get(word), None, "{overlay}");
        }
        let mounts = items(&container["volumeMounts"]).iter();
        let writable = mounts.filter(|mount| mount["readOnly"] != true);
        let writable: Vec<_> = writable.map(|mount| text(&mount["mountPath"])).collect();
        assert_eq!(writable, ["/data/output", "/tmp"], "{overlay}");
    }
}

#[test]
fn the_spec_that_is_mounted_is_one_of_jobs() {
    for rendered in Rendered::all() {
        let overlay = rendered.overlay;
        let args = pod().args(rendered.container());
        assert_eq!(args[0], "run", "{overlay}");
        let (folder, file) = args[1].rsplit_once('/').unwrap();
        let wanted = &rendered.volume_at(folder).unwrap()["configMap"]["name"];
        let maps = rendered.of_kind("ConfigMap");
        let map = maps.iter().find(|map| &map["metadata"]["name"] == wanted).unwrap();
        let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").join(file);
        assert_eq!(text(&map["data"][file]), fs::read_to_string(job).unwrap(), "{overlay}");
    }
}

#[test]
fn the_key_comes_from_a_secret_and_its_absence_ends_a_run_at_once() {
    for rendered in Rendered::all() {
        let overlay = rendered.overlay;
        let environment = pod().environment(rendered.container());
        assert!(!environment.contains_key("TIDEMILL_CLUSTER_KEY"), "{overlay}");
        let file = environment.get("TIDEMILL_CLUSTER_KEY_FILE");
        assert_eq!(file.is_some(), port(rendered).is_some(), "{overlay}");
        let Some((folder, _)) = file.and_then(|file| file.rsplit_once('/')) else { continue };
        let secret = &rendered.volume_at(folder).unwrap()["secret"];
        assert_eq!(secret["optional"], true, "{overlay}: else pods wait for it");
        assert_eq!(secret["defaultMode"], 0o440, "{overlay}");
        assert!(rendered.pod()["securityContext"]["fsGroup"].is_u64(), "{overlay}");
    }
}

#[test]
fn arguments_are_some_that_the_binary_takes() {
    for rendered in Rendered::all() {
        let args = pod().args(rendered.container());
        let parsed = Cli::try_parse_from(["tidemill".to_owned()].into_iter().chain(args));
        assert!(parsed.is_ok(), "{}: {}", rendered.overlay, parsed.unwrap_err());
    }
}

#[test]
fn one_process_alone_has_nothing_of_a_cluster() {
    if has_kubectl() {
        let rendered = Rendered::new("overlays/single");
        let expected = json!(["run", "/etc/tidemill/nightly.toml", "--threads", "4"]);
        assert_eq!(rendered.container()["args"], expected);
        assert_eq!(rendered.pod().get("subdomain"), None);
        assert!(rendered.volume_at("/etc/tidemill-key").is_none());
    }
}
