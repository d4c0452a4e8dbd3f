//! Manifests as `kubectl kustomize` renders them, and what a kubelet makes of a container of theirs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

/// All there are.
pub(crate) const OVERLAYS: [&str; 4] =
    ["base", "overlays/single", "overlays/cluster", "overlays/kueue"];

/// The documents of one overlay.
pub(crate) struct Rendered {
    pub(crate) overlay: &'static str,
    documents: Vec<Value>,
}

/// Whether `kubectl` is here. CI must have it.
pub(crate) fn has_kubectl() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let version = Command::new("kubectl").args(["version", "--client"]).output();
        let has = version.is_ok_and(|output| output.status.success());
        assert!(has || std::env::var_os("CI").is_none(), "CI has no kubectl");
        if !has {
            eprintln!("kubectl is not here: manifests are not tested");
        }
        has
    })
}

impl Rendered {
    /// A folder of `k8s/`.
    pub(crate) fn new(overlay: &'static str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s").join(overlay);
        let output = Command::new("kubectl").arg("kustomize").arg(&folder).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{overlay}: {stderr}");
        let text = String::from_utf8(output.stdout).unwrap();
        let documents = serde_yaml_ng::Deserializer::from_str(&text);
        let documents = documents.map(|document| Value::deserialize(document).unwrap()).collect();
        Self { overlay, documents }
    }

    /// All overlays; none where `kubectl` is not here.
    pub(crate) fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Rendered>> = OnceLock::new();
        ALL.get_or_init(|| match has_kubectl() {
            true => OVERLAYS.into_iter().map(Self::new).collect(),
            false => Vec::new(),
        })
    }

    /// The documents of a kind.
    pub(crate) fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.documents.iter().filter(|document| document["kind"] == kind).collect()
    }

    /// The only document of a kind.
    pub(crate) fn one(&self, kind: &str) -> &Value {
        let documents = self.of_kind(kind);
        assert_eq!(documents.len(), 1, "{}: {kind}", self.overlay);
        documents[0]
    }

    pub(crate) fn kinds(&self) -> Vec<&str> {
        self.documents.iter().map(|document| text(&document["kind"])).collect()
    }

    /// The `spec` of the jobs.
    pub(crate) fn job(&self) -> &Value {
        &self.one("CronJob")["spec"]["jobTemplate"]["spec"]
    }

    /// The `spec` of their pods.
    pub(crate) fn pod(&self) -> &Value {
        &self.job()["template"]["spec"]
    }

    pub(crate) fn container(&self) -> &Value {
        assert_eq!(items(&self.pod()["containers"]).len(), 1, "{}", self.overlay);
        &self.pod()["containers"][0]
    }

    /// The labels that the pods of a job have from its manifest.
    pub(crate) fn pod_labels(&self) -> &Value {
        &self.job()["template"]["metadata"]["labels"]
    }

    /// How many processes a run has.
    pub(crate) fn processes(&self) -> usize {
        self.job()["completions"].as_u64().unwrap().try_into().unwrap()
    }

    /// The volume that is mounted at `path`.
    pub(crate) fn volume_at(&self, path: &str) -> Option<&Value> {
        let mounts = items(&self.container()["volumeMounts"]);
        let name = &mounts.iter().find(|mount| mount["mountPath"] == path)?["name"];
        let volumes = items(&self.pod()["volumes"]);
        Some(volumes.iter().find(|volume| &volume["name"] == name).unwrap())
    }
}

/// A string that must be there.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

/// A list, empty where there is none.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A pod of an indexed job, as far as a container can learn about it.
#[derive(Clone, Debug)]
pub(crate) struct PodIdentity {
    pub(crate) job: String,
    pub(crate) controller_uid: String,
    pub(crate) index: usize,
}

impl PodIdentity {
    /// What a field of the downward API holds.
    fn field(&self, path: &str) -> String {
        match path {
            "metadata.labels['batch.kubernetes.io/job-name']" => self.job.clone(),
            "metadata.labels['batch.kubernetes.io/controller-uid']" => self.controller_uid.clone(),
            other => panic!("no field {other} is known"),
        }
    }

    fn value(&self, variable: &Value) -> String {
        let field = &variable["valueFrom"]["fieldRef"]["fieldPath"];
        match (variable.get("valueFrom"), variable.get("value")) {
            (Some(_), None) => self.field(text(field)),
            (None, Some(value)) => text(value).to_owned(),
            other => panic!("{other:?} is no value"),
        }
    }

    /// The environment of a container, with what the Job controller adds.
    pub(crate) fn environment(&self, container: &Value) -> BTreeMap<String, String> {
        let given = items(&container["env"]).iter();
        let given = given.map(|one| (text(&one["name"]).to_owned(), self.value(one)));
        let index = ("JOB_COMPLETION_INDEX".to_owned(), self.index.to_string());
        given.chain([index]).collect()
    }

    /// The arguments of a container, with variables in their places.
    pub(crate) fn args(&self, container: &Value) -> Vec<String> {
        let environment = self.environment(container);
        items(&container["args"]).iter().map(|arg| expanded(text(arg), &environment)).collect()
    }
}

/// `text` with `$(NAME)` replaced by variables that exist, and `$$` for a dollar.
fn expanded(text: &str, environment: &BTreeMap<String, String>) -> String {
    let Some((before, after)) = text.split_once('$') else { return text.to_owned() };
    if let Some(rest) = after.strip_prefix('$') {
        return format!("{before}${}", expanded(rest, environment));
    }
    let reference = after.strip_prefix('(').and_then(|after| after.split_once(')'));
    let found = reference.and_then(|(name, rest)| Some((environment.get(name)?, rest)));
    match found {
        Some((value, rest)) => format!("{before}{value}{}", expanded(rest, environment)),
        None => format!("{before}${}", expanded(after, environment)),
    }
}

#[test]
fn variables_in_arguments_are_replaced_as_a_kubelet_does() {
    let environment = BTreeMap::from([("A".to_owned(), "x$(A)".to_owned())]);
    for (text, expected) in
        [("$(A)-{index}", "x$(A)-{index}"), ("$(B) $A $", "$(B) $A $"), ("$$(A)$(A)", "$(A)x$(A)")]
    {
        assert_eq!(expanded(text, &environment), expected);
    }
}
