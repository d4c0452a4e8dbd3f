//! A folder is a layer, and imports follow the arrows of the crate's documentation.

use std::fs;
use std::path::{Path, PathBuf};

/// What each layer may import from the crate.
const ARROWS: [(&str, &[&str]); 9] = [
    ("types", &[]),
    ("kernels", &["types"]),
    ("schema", &["types"]),
    ("job", &["types", "kernels", "schema"]),
    ("store", &["types", "schema"]),
    ("cluster", &[]),
    ("dataflow", &["types", "kernels", "cluster"]),
    ("run", &["types", "kernels", "schema", "job", "store", "cluster", "dataflow"]),
    ("cli", &["types", "kernels", "schema", "job", "store", "cluster", "run"]),
];

/// Libraries, and the layers that may name them.
const LIBRARIES: [(&str, &[&str]); 9] = [
    ("timely", &["dataflow"]),
    ("differential_dataflow", &["dataflow"]),
    ("object_store", &["store"]),
    ("parquet", &["store", "cli"]),
    ("tokio", &["store", "dataflow"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("arrow", &["schema", "store", "run", "cli"]),
    ("schemars", &["job"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file up to its unit tests, without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn layer_of(path: &Path, src: &Path) -> String {
    let inside = path.strip_prefix(src).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_follow_the_arrows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut n_checked = 0;
    for path in files {
        let layer = layer_of(&path, &src);
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_test = name.ends_with("tests") || matches!(name, "reference" | "faults" | "witness");
        let Some((_, allowed)) = ARROWS.iter().find(|(of, _)| *of == layer) else { continue };
        if is_test {
            continue;
        }
        n_checked += 1;
        let code = code(&path);
        for (other, _) in ARROWS.iter().filter(|(other, _)| *other != layer) {
            let named = code.contains(&format!("crate::{other}::"));
            if named && !allowed.contains(other) {
                wrong.push(format!("{} names crate::{other}", path.display()));
            }
        }
        for (library, layers) in LIBRARIES {
            let named = code.contains(&format!("{library}::"));
            if named && !layers.contains(&layer.as_str()) {
                wrong.push(format!("{} names {library}", path.display()));
            }
        }
    }
    assert!(n_checked > 50, "{n_checked} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
