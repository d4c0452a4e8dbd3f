//! What `k8s/` holds besides manifests: access policies and alerting rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use serde_json::Value;

use crate::fixture::{Sandbox, batch, column, read_parquet};
use crate::s3::proxy::{Fault, FaultProxy, RequestLine};
use crate::s3::server::S3Server;

/// The metrics that a run leaves behind.
const METRICS: [&str; 15] = [
    "tidemill_last_run_timestamp_seconds",
    "tidemill_last_run_exit_code",
    "tidemill_last_success_timestamp_seconds",
    "tidemill_published_as_of_timestamp_seconds",
    "tidemill_run_duration_seconds",
    "tidemill_stage_duration_seconds",
    "tidemill_rows",
    "tidemill_reject_share",
    "tidemill_fallback_share",
    "tidemill_catalog_coverage",
    "tidemill_gate_passed",
    "tidemill_peak_memory_bytes",
    "tidemill_store_requests",
    "tidemill_store_retries",
    "tidemill_store_bytes",
];

fn k8s(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s").join(folder)
}

/// The text of each file of a folder by its name.
fn texts(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let files = fs::read_dir(k8s(folder)).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.to_str().unwrap().ends_with(ending));
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let texts: BTreeMap<_, _> =
        files.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect();
    assert!(!texts.is_empty(), "no {ending} in k8s/{folder}");
    texts
}

/// A value that may be one string or several.
fn strings(value: &Value) -> Vec<String> {
    let one = value.as_str().map(|one| vec![one.to_owned()]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    one.unwrap_or_else(|| value.as_array().into_iter().flatten().map(text).collect())
}

/// One statement of an AWS policy.
#[derive(Debug)]
struct Statement {
    sid: String,
    effect: String,
    actions: Vec<String>,
    resources: Vec<String>,
    has_principal: bool,
    condition: Value,
}

fn statements(text: &str) -> Vec<Statement> {
    let policy: Value = serde_json::from_str(text).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    let statement = |value: &Value| Statement {
        sid: value["Sid"].as_str().unwrap().to_owned(),
        effect: value["Effect"].as_str().unwrap().to_owned(),
        actions: strings(&value["Action"]),
        resources: strings(&value["Resource"]),
        has_principal: !value["Principal"].is_null(),
        condition: value["Condition"].clone(),
    };
    policy["Statement"].as_array().unwrap().iter().map(statement).collect()
}

fn policy(name: &str) -> Vec<Statement> {
    statements(&fs::read_to_string(k8s("iam").join(name)).unwrap())
}

/// Whether `text` matches `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = (0..=text.len()).filter(|&at| text.is_char_boundary(at));
            ends.into_iter().any(|at| matches(rest, &text[at..]))
        }),
    }
}

#[test]
fn policies_are_complete_and_grant_nothing_by_a_bare_wildcard() {
    let files = texts("iam", ".json");
    for (name, text) in files.iter().filter(|(name, _)| name.starts_with("aws-")) {
        let mut sids = BTreeSet::new();
        for Statement { sid, effect, actions, resources, has_principal, .. } in statements(text) {
            assert!(sids.insert(sid.clone()), "{name}: {sid} twice");
            assert!(["Allow", "Deny"].contains(&effect.as_str()), "{name}: {sid}");
            assert!(!actions.is_empty(), "{name}: {sid}");
            assert!(actions.iter().all(|action| !action.contains('*')), "{name}: {actions:?}");
            // Who may take a role is said of the role, which is no resource of the statement.
            assert_eq!(resources.is_empty(), name == "aws-trust.json", "{name}: {sid}");
            let named = |resource: &String| {
                let place = resource.splitn(6, ':').last().unwrap();
                resource.starts_with("arn:aws:") && !place.is_empty() && !place.starts_with('*')
            };
            assert!(resources.iter().all(named), "{name}: {resources:?}");
            let of_others = ["aws-trust.json", "aws-bucket-policy.json"];
            assert_eq!(has_principal, of_others.contains(&name.as_str()), "{name}: {sid}");
        }
    }
    for (name, text) in files.iter().filter(|(name, _)| name.starts_with("azure-")) {
        let role: Value = serde_json::from_str(text).unwrap();
        assert!(strings(&role["Actions"]).is_empty(), "{name}");
        let actions = strings(&role["DataActions"]);
        assert!(!actions.is_empty() && actions.iter().all(|a| !a.contains('*')), "{name}");
        let scopes = strings(&role["AssignableScopes"]);
        assert!(!scopes.is_empty() && scopes.iter().all(|scope| scope.len() > 1), "{name}");
    }
    assert!(files.keys().all(|name| name.starts_with("aws-") || name.starts_with("azure-")));
}

#[test]
fn roles_of_google_name_permissions_one_by_one() {
    for (name, text) in texts("iam", ".yaml") {
        assert!(!text.contains(".*") && !text.contains("\"*\""), "{name}");
        assert!(!text.contains("allUsers") && !text.contains("Admin"), "{name}");
    }
}

#[test]
fn the_publisher_deletes_no_results_and_readers_change_nothing() {
    let resources_of = |policy: &str, action: &str| -> Vec<String> {
        let statements = self::policy(policy).into_iter();
        let with = statements.filter(|statement| statement.actions.iter().any(|a| a == action));
        with.flat_map(|statement| statement.resources).collect()
    };
    let output = "arn:aws:s3:::OUTPUT_BUCKET/nightly/";
    let deletes = resources_of("aws-publisher.json", "s3:DeleteObject");
    let own = ["_checkpoints/*", "_probe/*", "current.json"];
    assert_eq!(deletes, own.map(|place| format!("{output}{place}")));
    let entry = format!("arn:aws:s3:::OUTPUT_BUCKET/nightly/_log/{:020}.json", 7);
    let delta = format!("{output}tables/items/_delta_log/{:020}.json", 7);
    for kept in [entry, delta] {
        let deletes = resources_of("aws-gc.json", "s3:DeleteObject");
        assert!(!deletes.iter().any(|pattern| matches(pattern, &kept)), "gc may delete {kept}");
    }
    let reads = ["s3:ListBucket", "s3:GetObject", "kms:Decrypt"];
    let reader = policy("aws-reader.json");
    let asked: Vec<_> = reader.iter().flat_map(|statement| &statement.actions).collect();
    assert!(asked.iter().all(|action| reads.contains(&action.as_str())), "{asked:?}");
    let azure: Value =
        serde_json::from_str(&texts("iam", ".json")["azure-role-reader.json"]).unwrap();
    assert!(strings(&azure["DataActions"]).iter().all(|action| action.ends_with("/read")));
}

#[test]
fn a_role_is_for_one_service_account_and_the_bucket_refuses_what_is_not_encrypted() {
    for Statement { condition, .. } in policy("aws-trust.json") {
        let tests: Vec<_> = condition.as_object().unwrap().keys().collect();
        assert_eq!(tests, ["StringEquals"]);
        let equal = &condition["StringEquals"];
        assert_eq!(equal["OIDC_PROVIDER:aud"], "sts.amazonaws.com");
        assert_eq!(equal["OIDC_PROVIDER:sub"], "system:serviceaccount:NAMESPACE:SERVICE_ACCOUNT");
    }
    let denied = policy("aws-bucket-policy.json");
    assert!(denied.iter().all(|statement| statement.effect == "Deny"));
    let plain = denied.iter().find(|of| of.condition["Bool"]["aws:SecureTransport"] == "false");
    let denied_in_plain: BTreeSet<_> = plain.unwrap().actions.iter().cloned().collect();
    let granted: BTreeSet<String> = ["aws-publisher.json", "aws-gc.json", "aws-reader.json"]
        .into_iter()
        .flat_map(policy)
        .flat_map(|statement| statement.actions)
        .filter(|action| action.starts_with("s3:"))
        .collect();
    assert_eq!(denied_in_plain, granted);
}

const SPEC: &str = r#"
name = "shop"
shards = 2
[[events]]
url = "s3://shop/log/"
columns = { user = "user_id", item = "item_id", time = "timestamp", event = "event" }
[events.weights]
view = 1.0
purchase = 5.0
[popularity]
[als]
n_factors = 8
iterations = 1
[top_k]
k = 5
[checkpoints]
[output]
url = "s3://shop/nightly/"
delta = true
[[output.vectors]]
of = "item_factors"
type = "flat_ip"
"#;

/// What a request asks the permission for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    action: &'static str,
    resource: String,
    prefix: Option<String>,
}

impl Need {
    fn on(action: &'static str, key: &str) -> Self {
        Self { action, resource: format!("arn:aws:s3:::shop/{key}"), prefix: None }
    }

    /// `None` for a bulk deletion, whose keys are in its body.
    fn of(request: &RequestLine) -> Option<Self> {
        let path = decoded(&request.path);
        let key = path.strip_prefix("/shop").unwrap().trim_start_matches('/');
        let pairs = request.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let query: BTreeMap<&str, &str> = pairs.collect();
        if key.is_empty() && request.method == "POST" {
            return None;
        }
        if key.is_empty() {
            let prefix = query.get("prefix").map(|prefix| decoded(prefix));
            let resource = "arn:aws:s3:::shop".to_owned();
            return Some(Self { action: "s3:ListBucket", resource, prefix });
        }
        Some(match request.method.as_str() {
            "GET" | "HEAD" => Self::on("s3:GetObject", key),
            "PUT" | "POST" => Self::on("s3:PutObject", key),
            "DELETE" if query.contains_key("uploadId") => Self::on("s3:AbortMultipartUpload", key),
            "DELETE" => Self::on("s3:DeleteObject", key),
            other => panic!("{other} {path}"),
        })
    }

    fn is_granted_by(&self, statement: &Statement) -> bool {
        let has = |action: &String| action == self.action;
        let patterns = statement.condition["StringLike"].get("s3:prefix").map(strings);
        let prefix_fits = patterns.is_none_or(|patterns| {
            let prefix = self.prefix.as_deref();
            prefix.is_some_and(|prefix| patterns.iter().any(|pattern| matches(pattern, prefix)))
        });
        let is_named = |pattern: &String| {
            let pattern = pattern.replace("LOG_BUCKET", "shop").replace("OUTPUT_BUCKET", "shop");
            matches(&pattern, &self.resource)
        };
        statement.effect == "Allow"
            && statement.actions.iter().any(has)
            && statement.resources.iter().any(is_named)
            && prefix_fits
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%').map(std::str::from_utf8);
        let byte = hex.and_then(|hex| u8::from_str_radix(hex.ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap()
}

/// A shop on S3, and what commands ask of it.
struct Shop {
    sandbox: Sandbox,
    server: S3Server,
}

impl Shop {
    fn new() -> Self {
        let (sandbox, server) = (Sandbox::new(), S3Server::start("shop"));
        let users = ["generate", "shop", "--users", "300", "--events", "6000"];
        assert!(sandbox.tidemill(&users).status.success());
        let log = fs::read(sandbox.path("shop/events.parquet")).unwrap();
        server.put("log/events.parquet", log);
        sandbox.spec(SPEC);
        Self { sandbox, server }
    }

    /// Runs a command that must work, and gives what it needed.
    fn needs_of(&self, args: &[&str]) -> BTreeSet<Need> {
        self.needs_until(0, args)
    }

    /// What it takes to remove a generation with somebody who is deleted since, and to show that.
    fn needs_of_a_purge(&self) -> BTreeSet<Need> {
        let events = read_parquet(&self.sandbox.path("shop/events.parquet"));
        let users = column(&events[0], "user_id").into_iter().take(1);
        let users: ArrayRef = Arc::new(StringArray::from_iter_values(users));
        let delete = "[delete.users]\nurl = \"forget.parquet\"\ncolumn = \"user_id\"\n[popularity]";
        self.sandbox.spec(&SPEC.replace("[popularity]", delete));
        let nobody: ArrayRef = Arc::new(StringArray::from_iter_values(["nobody"]));
        for ids in [nobody, users] {
            self.sandbox.write("forget.parquet", &batch(&[("user_id", ids)]));
            self.needs_of(&["run", "job.toml", "--since-last"]);
        }
        let purge = ["gc", "job.toml", "--purge", "--delete", "--signed-off-by", "A. Person"];
        let mut needs = self.needs_of(&purge);
        let receipts = self.server.keys("nightly/_receipts/");
        let receipt = receipts[0].strip_prefix("nightly/").unwrap();
        needs.extend(self.needs_of(&["forget-check", "job.toml", "--receipt", receipt]));
        needs
    }

    /// Runs a command that must end with `code`, and gives what it needed.
    fn needs_until(&self, code: i32, args: &[&str]) -> BTreeSet<Need> {
        let proxy = FaultProxy::start(self.server.address(), |_| None);
        let before = self.server.keys("");
        let Output { status, stderr, .. } = self.sandbox.tidemill_in(&proxy.environment(), args);
        assert_eq!(status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&stderr));
        let after: BTreeSet<String> = self.server.keys("").into_iter().collect();
        // Keys of bulk deletions are in their bodies: what was there, or was written, and is gone.
        let requests = proxy.requests();
        let written = requests.iter().filter(|request| request.method == "PUT");
        let written = written.map(|request| decoded(&request.path)["/shop/".len()..].to_owned());
        let gone = before.into_iter().chain(written).filter(|key| !after.contains(key));
        let deletions = gone.map(|key| Need::on("s3:DeleteObject", &key));
        requests.iter().filter_map(Need::of).chain(deletions).collect()
    }
}

/// Holds what commands need against a policy, and a policy against what they need.
fn check(name: &str, needs: &BTreeSet<Need>, unused: &[(&str, &str)]) {
    let statements = policy(name);
    for need in needs {
        let granted = statements.iter().any(|statement| need.is_granted_by(statement));
        assert!(granted, "{name} does not grant {need:?}");
    }
    for Statement { actions, resources, .. } in statements {
        for action in actions.iter().filter(|action| action.starts_with("s3:")) {
            for resource in &resources {
                let pattern = resource.replace("LOG_BUCKET", "shop");
                let pattern = pattern.replace("OUTPUT_BUCKET", "shop");
                let used = |need: &Need| need.action == action && matches(&pattern, &need.resource);
                let place = resource.split_once("/nightly/").map_or("", |(_, place)| place);
                let is_known = unused.contains(&(action, place));
                assert_eq!(!needs.iter().any(used), is_known, "{name}: {action} on {resource}");
            }
        }
    }
}

#[test]
fn policies_grant_what_the_commands_ask_of_a_store_and_no_more() {
    let shop = Shop::new();
    let mut needs = BTreeSet::new();
    for k in ["top_k.k=5", "top_k.k=4", "top_k.k=3"] {
        needs.extend(shop.needs_of(&["run", "job.toml", "--set", k]));
    }
    for more in ["log/more.parquet", "log/again.parquet"] {
        needs.extend(shop.needs_of(&["run", "job.toml", "--since-last"]));
        shop.server.put(more, shop.server.bytes_of("log/events.parquet").unwrap());
    }
    needs.extend(shop.needs_of(&["run", "job.toml", "--since-last"]));
    let too_early = ["run", "job.toml", "--as-of", "2001-01-01"];
    needs.extend(shop.needs_until(66, &too_early));
    let not_in_a_quiet_run = [
        ("s3:GetObject", "_checkpoints/*"),
        ("s3:AbortMultipartUpload", "_checkpoints/*"),
        ("s3:AbortMultipartUpload", "runs/*"),
        ("s3:AbortMultipartUpload", "state/*"),
        ("s3:AbortMultipartUpload", "tables/*"),
        ("s3:DeleteObject", "current.json"),
    ];
    check("aws-publisher.json", &needs, &not_in_a_quiet_run);

    let mut needs = shop.needs_of(&["runs", "s3://shop/nightly/"]);
    needs.extend(shop.needs_of(&["verify", "s3://shop/nightly/"]));
    // Warehouses read the lists of files; no command of ours does.
    check("aws-reader.json", &needs, &[("s3:GetObject", "manifests/*")]);

    let mut needs = BTreeSet::new();
    shop.server.put("nightly/_probe/left", "by a run that died");
    shop.server.put("nightly/_checkpoints/f/v/histories/common", "by a run that died");
    // Four more entries, so that one snapshot of the log takes the place of another.
    for _ in 0..16 {
        needs.extend(shop.needs_of(&["rollback", "s3://shop/nightly/"]));
        if shop.server.keys("nightly/_log/").iter().any(|key| key.contains("016.snapshot")) {
            break;
        }
        for k in ["top_k.k=5", "top_k.k=4", "top_k.k=3"] {
            shop.needs_of(&["run", "job.toml", "--set", k, "--force"]);
        }
    }
    let gc = ["gc", "s3://shop/nightly/", "--keep", "0", "--grace-hours", "0", "--delete"];
    needs.extend(shop.needs_of(&gc));
    needs.extend(shop.needs_of(&["rollback", "s3://shop/nightly/"]));
    needs.extend(shop.needs_of(&["runs", "s3://shop/nightly/", "--repair"]));
    needs.extend(shop.needs_of_a_purge());
    check("aws-gc.json", &needs, &[]);
}

#[test]
fn a_write_that_a_policy_denies_ends_a_run_with_77_and_a_probe_may_stay() {
    let shop = Shop::new();
    for place in ["/_probe/", "/tables/", "/_manifest.json", "/_log/"] {
        let proxy = FaultProxy::start(shop.server.address(), move |request| {
            let hit = request.method == "PUT" && request.path.contains(place);
            hit.then_some(Fault::Denied)
        });
        let denied = shop.sandbox.tidemill_in(&proxy.environment(), &["run", "job.toml"]);
        let stderr = String::from_utf8_lossy(&denied.stderr);
        assert_eq!(denied.status.code(), Some(77), "{place}: {stderr}");
        assert!(shop.server.bytes_of("nightly/current.json").is_none(), "{place}");
    }
    let proxy = FaultProxy::start(shop.server.address(), |request| {
        let deletes = request.method == "POST" && request.query.contains("delete");
        (deletes || request.method == "DELETE").then_some(Fault::Denied)
    });
    let done = shop.sandbox.tidemill_in(&proxy.environment(), &["run", "job.toml"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // Of the probe and of the checkpoints.
    assert_eq!(proxy.faults()["denied"], 2);
    assert!(shop.server.keys("nightly/_probe/").len() == 1, "the probe stays");
}

/// The words of `text` that look like names of metrics.
fn metrics_of(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("tidemill_")).collect()
}

#[test]
fn alerts_are_about_metrics_that_exist() {
    for (name, text) in texts("alerts", ".yaml") {
        let unknown: Vec<&str> =
            metrics_of(&text).into_iter().filter(|metric| !METRICS.contains(metric)).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_tested() {
    let files = texts("alerts", ".yaml");
    let rules: Vec<&str> = files["tidemill.yaml"].split("- alert: ").skip(1).collect();
    assert!(rules.len() >= 8);
    for rule in rules {
        let name = rule.lines().next().unwrap();
        for part in ["expr:", "for:", "severity:", "summary:", "description:", "runbook:"] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
        assert!(files["tests.yaml"].contains(&format!("\"{name}\"")), "{name} is not tested");
    }
}
