//! The image: no builder of images is needed to see that a Dockerfile fits its project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::rendered::{Rendered, has_kubectl};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The instructions of the Dockerfile, each on one line.
fn instructions() -> Vec<String> {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap().replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// What the builder takes from the project.
fn copied() -> Vec<String> {
    let copies = instructions().into_iter().filter_map(|line| {
        let words: Vec<String> =
            line.strip_prefix("COPY ")?.split(' ').map(str::to_owned).collect();
        (!words[0].starts_with("--from")).then(|| words[..words.len() - 1].to_vec())
    });
    copies.flatten().collect()
}

#[test]
fn the_builder_gets_what_it_copies_and_cargo_needs_no_more() {
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let lines: Vec<&str> = ignored.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines[0], "*", "all but what is named");
    let kept: Vec<&str> = lines[1..].iter().map(|line| line.strip_prefix('!').unwrap()).collect();
    assert_eq!(kept, copied());
    let context = tempfile::tempdir().unwrap();
    for name in copied() {
        let from = root().join(&name);
        let to = context.path();
        let copied = Command::new("cp").arg("-r").arg(&from).arg(to).status().unwrap();
        assert!(copied.success(), "{name}");
    }
    // Reads the manifest as a build does, and builds nothing.
    let fetched = Command::new(env!("CARGO"))
        .args(["fetch", "--offline", "--locked", "--target", "x86_64-unknown-linux-gnu"])
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
}

#[test]
fn the_compiler_is_new_enough() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let wanted = manifest.split_once("rust-version = \"").unwrap().1.split('"').next().unwrap();
    let from = instructions().into_iter().find(|line| line.starts_with("FROM rust:")).unwrap();
    assert!(from.starts_with(&format!("FROM rust:{wanted}-")), "{from}, {wanted}");
}

#[test]
fn the_image_has_no_shell_and_runs_the_binary_as_the_user_of_the_manifests() {
    let lines = instructions();
    let last = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    assert!(lines[last].contains("/distroless/"), "{}", lines[last]);
    let stage = &lines[last + 1..];
    assert!(stage.iter().all(|line| !line.starts_with("RUN ")), "there is no shell");
    assert!(stage.contains(&"ENTRYPOINT [\"/usr/local/bin/tidemill\"]".to_owned()));
    let copy = stage.iter().find(|line| line.starts_with("COPY ")).unwrap();
    assert!(copy.ends_with(" /usr/local/bin/tidemill"), "{copy}");
    if has_kubectl() {
        let rendered = Rendered::new("base");
        let security = &rendered.pod()["securityContext"];
        let (user, group) = (&security["runAsUser"], &security["runAsGroup"]);
        assert!(stage.contains(&format!("USER {user}:{group}")));
        assert!(rendered.container().get("command").is_none(), "the entry point of the image");
    }
}

/// What is in the image besides the binary, as far as the loader cares.
const LIBRARIES: [&str; 5] =
    ["linux-vdso.so.1", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"];

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn the_binary_needs_no_library_that_the_image_lacks() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_tidemill")).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().map(|line| line.split_whitespace().next().unwrap());
    let names: Vec<&str> = names.map(|name| name.rsplit('/').next().unwrap()).collect();
    assert!(names.iter().all(|name| LIBRARIES.contains(name)), "{names:?}");
}
