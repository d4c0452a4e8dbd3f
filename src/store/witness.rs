//! A reader of an output that shares no code with its writers: what it must never find.

use std::collections::{BTreeMap, BTreeSet};

use futures::{FutureExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// All objects below a prefix, by key below it.
pub(crate) fn objects(store: &InMemory, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let at_once = "a store in memory never waits";
    let prefix_path = Path::from(prefix);
    let listed = store.list(Some(&prefix_path)).try_collect::<Vec<_>>();
    let mut objects = BTreeMap::new();
    for object in listed.now_or_never().expect(at_once).unwrap() {
        let found = store.get(&object.location).now_or_never().expect(at_once).unwrap();
        let bytes = found.bytes().now_or_never().expect(at_once).unwrap();
        let key = object.location.as_ref().strip_prefix(prefix).unwrap();
        objects.insert(key.trim_start_matches('/').to_owned(), bytes.to_vec());
    }
    objects
}

/// What is false in what readers of these objects see; a line each.
pub(crate) fn violations(objects: &BTreeMap<String, Vec<u8>>, url: &str) -> Vec<String> {
    let mut found = Vec::new();
    let log = log(objects, &mut found);
    let collected: BTreeSet<&str> = log
        .iter()
        .filter_map(|entry| entry["collects"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let published = |entry: &&Value| entry["withdraws"].is_null() && entry["collects"].is_null();
    let mut runs = BTreeMap::new();
    for entry in log.iter().filter(published) {
        let run = entry["run_id"].as_str().unwrap();
        if runs.insert(run.to_owned(), entry).is_some() {
            found.push(format!("run {run} is published twice"));
        }
        if !collected.contains(run) {
            whole(objects, entry, &mut found);
        }
    }
    current(objects, &log, &runs, &mut found);
    let lists = objects.iter().filter(|(key, _)| key.starts_with("manifests/"));
    for (key, list) in lists {
        let lines = std::str::from_utf8(list).unwrap().lines();
        let paths: Vec<&str> = lines.map(|line| line.strip_prefix(url).unwrap()).collect();
        of_one_run(objects, key, &paths, &runs, &mut found);
    }
    for table in delta_tables(objects) {
        let active = delta_files(objects, &table, &mut found);
        let paths: Vec<&str> = active.iter().map(String::as_str).collect();
        of_one_run(objects, &format!("Delta log of {table}"), &paths, &runs, &mut found);
    }
    found
}

/// The entries in their order, which must have no gap.
fn log(objects: &BTreeMap<String, Vec<u8>>, found: &mut Vec<String>) -> Vec<Value> {
    let entries = objects.iter().filter(|(key, _)| {
        key.starts_with("_log/") && key.len() == "_log/00000000000000000001.json".len()
    });
    let mut log = Vec::new();
    for (number, (key, bytes)) in (1u64..).zip(entries) {
        let entry: Value = serde_json::from_slice(bytes).unwrap();
        if !key.ends_with(&format!("{number:020}.json")) || entry["generation"] != number {
            found.push(format!("{key} is not generation {number}"));
        }
        log.push(entry);
    }
    log
}

/// A published run is all there, as its manifest says.
fn whole(objects: &BTreeMap<String, Vec<u8>>, entry: &Value, found: &mut Vec<String>) {
    let path = entry["manifest"].as_str().unwrap();
    let Some(bytes) = objects.get(path) else {
        return found.push(format!("{path} is missing"));
    };
    if hash(bytes) != entry["manifest_sha256"].as_str().unwrap() {
        found.push(format!("{path} is not the one of the commit"));
    }
    let manifest: Value = serde_json::from_slice(bytes).unwrap();
    for file in manifest["files"].as_array().unwrap() {
        let path = file["path"].as_str().unwrap();
        match objects.get(path) {
            None => found.push(format!("{path} is missing")),
            Some(bytes) if hash(bytes) != file["sha256"].as_str().unwrap() => {
                found.push(format!("{path} is not as published"));
            }
            Some(_) => {}
        }
    }
}

/// `current.json` names a run that was published, and what the log said when it was written.
fn current(
    objects: &BTreeMap<String, Vec<u8>>,
    log: &[Value],
    runs: &BTreeMap<String, &Value>,
    found: &mut Vec<String>,
) {
    let Some(bytes) = objects.get("current.json") else { return };
    let current: Value = serde_json::from_slice(bytes).unwrap();
    let run = current["run_id"].as_str().unwrap();
    let Some(entry) = runs.get(run) else {
        return found.push(format!("current.json names {run}, which was never published"));
    };
    // A run may be given up while `current.json` still names it; its files go only after that.
    whole(objects, entry, found);
    if ["generation", "manifest", "manifest_sha256", "nonce"].iter().any(|k| current[k] != entry[k])
    {
        found.push("current.json differs from its entry".to_owned());
    }
    let known = current["log_generation"].as_u64().unwrap() as usize;
    if known > log.len() || newest(&log[..known]).as_deref() != Some(run) {
        found.push(format!("current.json is not what generation {known} of the log says"));
    }
}

/// The run that readers see by a log: worked out in another way than the store's.
pub(crate) fn newest(log: &[Value]) -> Option<String> {
    let mut standing: Vec<&Value> = Vec::new();
    for entry in log {
        if let Some(withdrawn) = entry["withdraws"].as_u64() {
            standing.retain(|other| other["generation"] != withdrawn);
        } else if let Some(runs) = entry["collects"].as_array() {
            standing.retain(|other| !runs.contains(&other["run_id"]));
        } else {
            standing.push(entry);
        }
    }
    let day = |entry: &&&Value| entry["logical_date"].as_str().unwrap().to_owned();
    // The last of the equal ones is the newest generation.
    standing.iter().max_by_key(day).map(|entry| entry["run_id"].as_str().unwrap().to_owned())
}

/// Files that readers are sent to are there, and those of a table that one published run lists; none is
/// fine.
fn of_one_run(
    objects: &BTreeMap<String, Vec<u8>>,
    what: &str,
    paths: &[&str],
    runs: &BTreeMap<String, &Value>,
    found: &mut Vec<String>,
) {
    for path in paths.iter().filter(|path| !objects.contains_key(**path)) {
        found.push(format!("{what} names {path}, which is missing"));
    }
    let Some(table) = paths.first().and_then(|path| path.split('/').nth(1)) else { return };
    let named: BTreeSet<&str> = paths.iter().copied().collect();
    let lists_them = |entry: &&&Value| {
        let Some(bytes) = objects.get(entry["manifest"].as_str().unwrap()) else { return false };
        let manifest: Value = serde_json::from_slice(bytes).unwrap();
        let files = manifest["files"].as_array().unwrap().iter();
        let files = files.filter(|file| file["table"] == table);
        files.map(|file| file["path"].as_str().unwrap()).collect::<BTreeSet<_>>() == named
    };
    if !runs.values().any(|entry| lists_them(&entry)) {
        found.push(format!("{what} mixes or makes up runs: {named:?}"));
    }
}

fn delta_tables(objects: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    let keys = objects.keys().filter(|key| key.contains("/_delta_log/"));
    keys.map(|key| key.split('/').nth(1).unwrap().to_owned()).collect()
}

/// Replays a Delta log.
fn delta_files(
    objects: &BTreeMap<String, Vec<u8>>,
    table: &str,
    found: &mut Vec<String>,
) -> BTreeSet<String> {
    let folder = format!("tables/{table}/");
    let versions = objects.iter().filter(|(key, _)| key.starts_with(&format!("{folder}_delta")));
    let mut active = BTreeSet::new();
    for (number, (key, bytes)) in (0u64..).zip(versions) {
        if !key.ends_with(&format!("{number:020}.json")) {
            found.push(format!("{key} is not version {number}"));
        }
        let lines = std::str::from_utf8(bytes).unwrap().lines();
        let actions: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let paths = |kind: &'static str| {
            let paths = actions.iter().filter_map(move |action| action[kind]["path"].as_str());
            paths.collect::<BTreeSet<_>>()
        };
        if paths("add").intersection(&paths("remove")).next().is_some() {
            found.push(format!("{key} adds and removes one file"));
        }
        for action in &actions {
            if let Some(path) = action["remove"]["path"].as_str()
                && !active.remove(&format!("{folder}{path}"))
            {
                found.push(format!("{key} removes {path}, which is not there"));
            }
            if let Some(path) = action["add"]["path"].as_str() {
                active.insert(format!("{folder}{path}"));
            }
        }
    }
    active
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
