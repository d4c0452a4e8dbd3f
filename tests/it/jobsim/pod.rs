//! One pod: the binary as the first process of a container with nothing else in it.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::cluster::{Cluster, Network};
use crate::kubernetes::rendered::PodIdentity;

/// Mounts what follows and becomes the binary; `BINDS` stands for the volumes. The root holds what
/// the image holds, and is read-only.
const START: &str = r#"
set -e
folder=$1; binary=$2; host=$3; names=$4; shift 4
hostname "$host"
mkdir "$folder/root"
mount -t tmpfs tmpfs "$folder/root"
cd "$folder/root"
mkdir -p proc dev etc lib lib64 usr/local/bin
touch usr/local/bin/tidemill etc/hosts dev/null dev/urandom dev/termination-log
echo "hosts: files" > etc/nsswitch.conf
mount -t proc proc proc
for from in /lib /lib64 /dev/null /dev/urandom; do mount --bind "$from" ".$from"; done
mount --bind "$binary" usr/local/bin/tidemill
mount --bind "$names" etc/hosts
mount --bind "$folder/termination-log" dev/termination-log
BINDS
mount -o remount,bind,ro "$folder/root"
exec chroot . /usr/local/bin/tidemill "$@"
"#;

/// A pod that was started.
pub(crate) struct Pod {
    child: Child,
    pub(crate) network: Network,
    pub(crate) folder: PathBuf,
    pub(crate) host: String,
    /// When it becomes known by its name.
    pub(crate) named_at: Option<Instant>,
    /// Whether it is `DisruptionTarget`.
    pub(crate) is_disrupted: bool,
    /// Whether its first process was killed.
    is_killed: bool,
    /// When the patience with it ends.
    pub(crate) killed_at: Option<Instant>,
}

impl Pod {
    /// Starts the pod of an index. `None` where a volume is missing.
    pub(crate) fn start(
        cluster: &mut Cluster,
        identity: &PodIdentity,
        named_at: Instant,
    ) -> Option<Self> {
        let host = format!("{}-{}", identity.job, identity.index);
        let network = cluster.network();
        let folder = cluster.pod_folder(&host);
        let mut binds = String::new();
        for (volume, path, is_read_only) in cluster.mounts() {
            let from = cluster.volume(&volume, &folder)?;
            let mode = if is_read_only { "mount -o remount,bind,ro" } else { ":" };
            let from = from.display();
            binds += &format!("mkdir -p .{path}\nmount --bind {from} .{path}\n{mode} .{path}\n");
        }
        let script = folder.join("start");
        fs::write(&script, START.replace("BINDS\n", &binds)).unwrap();
        fs::write(folder.join("termination-log"), "").unwrap();
        let container = cluster.manifests.container();
        assert!(container.get("command").is_none(), "the entry point is the image's");
        let namespaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"];
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", network.name))
            .args(namespaces)
            .arg("sh")
            .args([&script, &folder, Path::new(env!("CARGO_BIN_EXE_tidemill"))])
            .arg(&host)
            .arg(cluster.names_file())
            .args(identity.args(container))
            .args(&cluster.args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(identity.environment(container))
            .envs(&cluster.environment)
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("stdout")).unwrap())
            .stderr(File::create(folder.join("stderr")).unwrap());
        let child = command.spawn().unwrap();
        Some(Self {
            child,
            network,
            folder,
            host,
            named_at: Some(named_at),
            is_disrupted: false,
            is_killed: false,
            killed_at: None,
        })
    }

    /// The exit code of the container, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().unwrap()?;
        // Some versions of unshare end with 1 when what they started is killed.
        Some(match status.code() {
            Some(1) if self.is_killed => 128 + 9,
            Some(code) => code,
            None => 128 + status.signal().unwrap(),
        })
    }

    /// Sends a signal to the first process of the container, with which all others end.
    pub(crate) fn signal(&mut self, signal: &str) {
        self.is_killed |= signal == "KILL";
        let outer = self.child.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
        // One that has not begun, or has ended, has no child.
        let first = children.unwrap_or_default();
        if let Some(first) = first.split_whitespace().next() {
            let mut kill = Command::new("kill");
            let _ = kill.args([&format!("-{signal}"), first]).stderr(Stdio::null()).status();
        }
    }

    /// What it says of its end.
    pub(crate) fn message(&self) -> Option<String> {
        let message = fs::read_to_string(self.folder.join("termination-log")).unwrap();
        (!message.is_empty()).then_some(message)
    }

    /// The last lines of both outputs, for people.
    pub(crate) fn said(&self) -> String {
        let text = |name| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        format!("--- {}\n{}{}", self.host, text("stdout"), text("stderr"))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
