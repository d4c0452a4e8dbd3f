//! A Kubernetes cluster as far as its pods can tell, made of namespaces: a bridge, names in a file,
//! volumes in a folder. It needs no rights and is gone with the process that made it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::kubernetes::rendered::{Rendered, items, text};

/// Set where this process is inside of the namespaces of a cluster.
const INSIDE: &str = "TIDEMILL_JOBSIM";

/// Makes the namespaces that it is started in a cluster without pods, then becomes `"$0" "$@"`.
const ENTER: &str = r#"
set -e
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add bridge type bridge
ip addr add 10.88.0.1/16 dev bridge
ip link set bridge up
exec "$0" "$@"
"#;

/// Runs `scenario`, the body of the test `name`, inside of a cluster of its own: in a copy of this
/// process that starts with this test. Where namespaces are refused it says so and runs nothing;
/// they must not be in CI.
pub(crate) fn inside(name: &str, scenario: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return scenario();
    }
    if !crate::kubernetes::rendered::has_kubectl() {
        return;
    }
    let namespaces = ["--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"];
    let enter = |program: &Path, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["sh", "-c", ENTER]).arg(program).args(args);
        command.env(INSIDE, "1").output()
    };
    if !enter(Path::new("true"), &[]).is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI has no namespaces");
        eprintln!("namespaces are refused here: {name} is not tested");
        return;
    }
    let itself = std::env::current_exe().unwrap();
    let output = enter(&itself, &[name, "--exact", "--nocapture"]).unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    let [stdout, stderr] = &said;
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
}

/// What is outside of pods.
pub(crate) struct Cluster {
    pub(crate) manifests: Rendered,
    folder: tempfile::TempDir,
    /// Addresses of pods by their names.
    names: BTreeMap<String, String>,
    pods_made: u8,
    /// What somebody has put beside the manifests.
    secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// Variables that an overlay of the user adds.
    pub(crate) environment: BTreeMap<String, String>,
    /// Arguments that it adds.
    pub(crate) args: Vec<String>,
}

/// A network of its own for one pod, until it is dropped.
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) address: String,
}

impl Network {
    /// Lets nothing in or out any more.
    pub(crate) fn cut_off(&self) {
        let done = Command::new("ip").args(["link", "set", &self.name, "down"]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A namespace takes its links with it at some later time, and the next cluster of the same
        // test uses their names again.
        for words in [["link", "del"], ["netns", "del"]] {
            let _ = Command::new("ip").args(words).arg(&self.name).status();
        }
    }
}

impl Cluster {
    /// A cluster with the objects of an overlay.
    pub(crate) fn with(overlay: &'static str) -> Self {
        let cluster = Self {
            manifests: Rendered::new(overlay),
            folder: tempfile::tempdir().unwrap(),
            names: BTreeMap::new(),
            pods_made: 1,
            secrets: BTreeMap::new(),
            environment: BTreeMap::new(),
            args: Vec::new(),
        };
        for claim in cluster.manifests.of_kind("PersistentVolumeClaim") {
            fs::create_dir_all(cluster.claim(text(&claim["metadata"]["name"]))).unwrap();
        }
        cluster.write_names();
        cluster
    }

    /// Creates a Secret.
    pub(crate) fn secret(&mut self, name: &str, key: &str, value: &str) {
        let data = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        self.secrets.insert(name.to_owned(), data);
    }

    /// Deletes all Secrets.
    pub(crate) fn forget_secrets(&mut self) {
        self.secrets.clear();
    }

    /// The folder of a claim.
    pub(crate) fn claim(&self, name: &str) -> PathBuf {
        self.path(&format!("claims/{name}"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder for one pod.
    pub(crate) fn pod_folder(&self, name: &str) -> PathBuf {
        let folder = self.path(&format!("pods/{}-{name}", self.pods_made));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// An address that no pod had before.
    pub(crate) fn network(&mut self) -> Network {
        self.pods_made += 1;
        let (number, name) = (self.pods_made, format!("pod{}", self.pods_made));
        let address = format!("10.88.0.{number}");
        let outside = format!(
            "netns add {name}\n\
             link add {name} type veth peer name eth0 netns {name}\n\
             link set {name} master bridge up\n"
        );
        let inside = format!("link set lo up\naddr add {address}/16 dev eth0\nlink set eth0 up\n");
        let batch = self.path("network");
        for (words, lines) in [(&[][..], outside), (&["-netns", &name][..], inside)] {
            fs::write(&batch, lines).unwrap();
            let done = Command::new("ip").args(words).arg("-batch").arg(&batch).status().unwrap();
            assert!(done.success(), "{name} has no network");
        }
        Network { name, address }
    }

    /// The folder that a volume of a pod is, made where it is the pod's own. `None` where a pod has
    /// to wait for what is not there.
    pub(crate) fn volume(&self, volume: &Value, pod_folder: &Path) -> Option<PathBuf> {
        let name = text(&volume["name"]);
        if let Some(claim) = volume.get("persistentVolumeClaim") {
            let folder = self.claim(text(&claim["claimName"]));
            return folder.is_dir().then_some(folder);
        }
        let folder = pod_folder.join("volumes").join(name);
        fs::create_dir_all(&folder).unwrap();
        let data: BTreeMap<String, String> = if let Some(map) = volume.get("configMap") {
            let maps = self.manifests.of_kind("ConfigMap").into_iter();
            let mut maps = maps.filter(|one| one["metadata"]["name"] == map["name"]);
            serde_json::from_value(maps.next()?["data"].clone()).unwrap()
        } else if let Some(secret) = volume.get("secret") {
            let found = self.secrets.get(text(&secret["secretName"])).cloned();
            let is_optional = secret["optional"] == true;
            found.or_else(|| is_optional.then(BTreeMap::new))?
        } else {
            assert!(volume.get("emptyDir").is_some(), "{volume} is of no kind that is known");
            BTreeMap::new()
        };
        for (file, contents) in data {
            fs::write(folder.join(file), contents).unwrap();
        }
        Some(folder)
    }

    /// Lets a pod be found, if a Service says so: a headless one that has the name of the pod's
    /// subdomain and selects it.
    pub(crate) fn publish(&mut self, host: &str, address: &str) {
        let Some(subdomain) = self.manifests.pod().get("subdomain") else { return };
        let labels = self.manifests.pod_labels();
        let selects = |service: &&Value| {
            let selector = service["spec"]["selector"].as_object().unwrap();
            service["metadata"]["name"] == *subdomain
                && service["spec"]["clusterIP"] == "None"
                && service["spec"]["publishNotReadyAddresses"] == true
                && selector.iter().all(|(name, value)| labels.get(name) == Some(value))
        };
        if self.manifests.of_kind("Service").iter().any(selects) {
            self.names.insert(format!("{host}.{}", text(subdomain)), address.to_owned());
            self.write_names();
        }
    }

    /// Forgets all names of an address.
    pub(crate) fn unpublish(&mut self, address: &str) {
        self.names.retain(|_, of| of != address);
        self.write_names();
    }

    /// Where pods look names up. Written in place, since it is mounted.
    pub(crate) fn names_file(&self) -> PathBuf {
        self.path("hosts")
    }

    fn write_names(&self) {
        let line = |(name, address): (&String, &String)| {
            format!("{address} {name} {name}.default.svc.cluster.local\n")
        };
        let lines: String = self.names.iter().map(line).collect();
        fs::write(self.names_file(), format!("127.0.0.1 localhost\n{lines}")).unwrap();
    }

    /// The volumes of a pod and where its container sees them.
    pub(crate) fn mounts(&self) -> Vec<(Value, String, bool)> {
        let mounts = items(&self.manifests.container()["volumeMounts"]).iter();
        let mount = |mount: &Value| {
            let path = text(&mount["mountPath"]);
            let volume = self.manifests.volume_at(path).unwrap().clone();
            (volume, path.to_owned(), mount["readOnly"] == true)
        };
        mounts.map(mount).collect()
    }
}
