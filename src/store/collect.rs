//! Garbage collection: which runs nobody needs any more, and their removal.
//!
//! An entry of the log gives runs up before a byte of them is deleted. So a rollback never leads
//! to a run that is half gone, and a run that was only slow finds out when it wants to publish.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectMeta, ObjectStore};
use serde::{Deserialize, Serialize};

use super::checkpoint::{CHECKPOINTS, checkpoint_of};
use super::error::PublishError;
use super::log::{Current, Log, LogEntry, Standing, snapshot_generation};
use super::output::Output;
use super::publish::Appended;
use super::state::STATE;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectionRules {
    /// This many newest publications that are not withdrawn are kept, and whatever readers see.
    pub keep: usize,
    /// Runs that began less than this before now are kept, so this is longer than any run takes.
    pub grace_us: i64,
    /// Now, in microseconds since 1970.
    pub now_us: i64,
}

/// What is, or would be, removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collection {
    /// Runs that were published, and their files.
    pub published_runs: Vec<String>,
    /// Runs that never were: attempts that failed, or were not to be published.
    pub unpublished_runs: Vec<String>,
    /// Fingerprints whose checkpoints go: nothing was saved for them in the time of grace.
    pub checkpoints: Vec<String>,
    /// Objects that go, state that no kept run needs, probes, reports of failed runs and old snapshots of the log included.
    pub objects: usize,
    /// Their size.
    pub bytes: u64,
    /// The entry of the log that gives the runs up; absent where nothing was done.
    pub generation: Option<u64>,
}

/// An object that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Where it was, relative to the output.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its version, as the store told it.
    pub e_tag: Option<String>,
}

/// What [`Output::purge`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// The entry of the log that gives the runs up; absent where one did before.
    pub generation: Option<u64>,
    /// The objects that went.
    pub objects: Vec<Removed>,
}

/// What the output holds, by run.
#[derive(Default)]
struct Inventory {
    runs: BTreeMap<String, Vec<ObjectMeta>>,
    /// By fingerprint.
    checkpoints: BTreeMap<String, Vec<ObjectMeta>>,
    /// Files of stored state.
    state: Vec<ObjectMeta>,
    others: Vec<ObjectMeta>,
}

impl Output {
    /// What [`Output::collect`] would remove.
    ///
    /// # Errors
    /// As [`Output::read_log`].
    pub fn plan_collection(&self, rules: &CollectionRules) -> Result<Collection, PublishError> {
        // Files before the log: a run that is published in between is not taken for dead.
        let mut inventory = self.inventory()?;
        let log = self.read_log()?;
        let runs = inventory.dispensable(&log, rules);
        self.keep_needed(&mut inventory, &log, &runs);
        Ok(inventory.summary(&runs, &log, rules))
    }

    /// Removes what the rules do not keep: an entry of the log first, then tables, then the rest of
    /// each run, its manifest last. A collection that died is finished by the next.
    ///
    /// `nonce` is of this call only, `now` is RFC 3339.
    ///
    /// # Errors
    /// As [`Output::publish`]; nothing is deleted when it is not known whether the entry was written.
    pub fn collect(
        &self,
        rules: &CollectionRules,
        now: &str,
        nonce: &str,
    ) -> Result<Collection, PublishError> {
        let mut inventory = self.inventory()?;
        let log = self.read_log()?;
        let runs = inventory.dispensable(&log, rules);
        let mut generation = None;
        let given_up: Vec<String> =
            runs.iter().filter(|run| !log.is_collected(run)).cloned().collect();
        if !given_up.is_empty() {
            let appended = self.append(entry(given_up, now, nonce), |log, entry| {
                // What was dispensable a moment ago may be what readers see by now.
                let still = inventory.dispensable(log, rules);
                let gone = entry.collects.iter().any(|run| !still.contains(run));
                Ok(gone.then_some(()))
            })?;
            match appended {
                Appended::New(entry) => generation = Some(entry.run.generation),
                Appended::Settled(()) => {
                    return Err(PublishError::Contended { path: self.url_of("_log/") });
                }
            }
        }
        if !runs.is_empty() {
            // Also where the entry is of a collection that died: what readers are sent to must have
            // moved on before a file goes.
            self.repair()?;
        }
        // A run that was published before the entry may list files of those that go; one that comes after
        // it is refused.
        let log = self.read_log()?;
        self.keep_needed(&mut inventory, &log, &runs);
        let objects = inventory.objects_of(&runs, &log, rules);
        self.delete_all(objects.iter().map(|object| object.location.clone()))?;
        Ok(Collection { generation, ..inventory.summary(&runs, &log, rules) })
    }

    /// Removes `runs`, whatever rules would keep, with the state that no other run needs and all
    /// checkpoints: an entry of the log first, as [`Output::collect`] does. Runs that go on lose their
    /// checkpoints and nothing else.
    ///
    /// # Errors
    /// As [`Output::collect`]; [`PublishError::InUse`] where readers see one of them.
    pub fn purge(
        &self,
        runs: &BTreeSet<String>,
        now: &str,
        nonce: &str,
    ) -> Result<Purge, PublishError> {
        let mut inventory = self.inventory()?;
        let log = self.read_log()?;
        let is_seen = |log: &Log| log.current().is_some_and(|run| runs.contains(&run.run_id));
        let in_use = || PublishError::InUse { path: self.url_of("current.json") };
        if is_seen(&log) {
            return Err(in_use());
        }
        let mut generation = None;
        let given_up: Vec<String> =
            runs.iter().filter(|run| !log.is_collected(run)).cloned().collect();
        if !given_up.is_empty() {
            let appended =
                self.append(entry(given_up, now, nonce), |log, _| Ok(is_seen(log).then_some(())))?;
            match appended {
                Appended::New(entry) => generation = Some(entry.run.generation),
                Appended::Settled(()) => return Err(in_use()),
            }
        }
        self.repair()?;
        // As above; and what a run left that is gone, since others listed it.
        let log = self.read_log()?;
        let needed = self.files_needed(&log, |run| !runs.contains(run))?;
        inventory.retain(|path| !needed.contains(path));
        let is_over = |run: &str| log.publications().any(|entry| entry.run.run_id == run);
        let is_over = |path: &str| path.split('/').nth(1).is_some_and(is_over);
        inventory.state.retain(|object| is_over(object.location.as_ref()));
        let goes = |run: &String| runs.contains(run) || log.is_collected(run);
        let of_runs = inventory.runs.iter().filter(|(run, _)| goes(run));
        let mut objects: Vec<&ObjectMeta> = of_runs.flat_map(|(_, objects)| objects).collect();
        objects.sort_by_key(last);
        objects.extend(&inventory.state);
        objects.extend(inventory.checkpoints.values().flatten());
        self.delete_all(objects.iter().map(|object| object.location.clone()))?;
        let removed = |object: &&ObjectMeta| Removed {
            path: object.location.to_string(),
            bytes: object.size,
            e_tag: object.e_tag.clone(),
        };
        Ok(Purge { generation, objects: objects.iter().map(removed).collect() })
    }

    /// Checkpoints of all runs, by path.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn checkpoint_paths(&self) -> Result<Vec<String>, PublishError> {
        Ok(self.list(CHECKPOINTS)?.iter().map(|object| object.location.to_string()).collect())
    }

    /// Reports of runs that failed, by path.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn failed_reports(&self) -> Result<Vec<String>, PublishError> {
        Ok(self.list("_failed")?.iter().map(|object| object.location.to_string()).collect())
    }

    /// Takes what some run that stays needs of others out of the inventory; all tables and all state where
    /// that cannot be told.
    fn keep_needed(&self, inventory: &mut Inventory, log: &Log, dispensable: &BTreeSet<String>) {
        if inventory.state.is_empty() && dispensable.is_empty() {
            return;
        }
        match self.files_needed(log, |run| !dispensable.contains(run)) {
            Ok(needed) => inventory.retain(|path| !needed.contains(path)),
            Err(error) => {
                tracing::warn!(%error, "no tables and no state are removed");
                inventory.retain(|path| path.starts_with("runs/"));
            }
        }
    }

    fn inventory(&self) -> Result<Inventory, PublishError> {
        let mut inventory = Inventory::default();
        for object in self.list("tables")?.into_iter().chain(self.list("runs")?) {
            if let Some(run) = run_of(object.location.as_ref()) {
                inventory.runs.entry(run.to_owned()).or_default().push(object);
            }
        }
        inventory.state = self.list(STATE)?;
        inventory.others = self.list("_probe")?;
        inventory.others.extend(self.list("_failed")?);
        inventory.others.extend(self.list("_log")?);
        for object in self.list(CHECKPOINTS)? {
            if let Some(fingerprint) = checkpoint_of(object.location.as_ref()) {
                let of_one = inventory.checkpoints.entry(fingerprint.to_owned());
                of_one.or_default().push(object);
            }
        }
        Ok(inventory)
    }

    pub(super) fn delete_all(
        &self,
        paths: impl Iterator<Item = object_store::path::Path>,
    ) -> Result<(), PublishError> {
        let paths: Vec<_> = paths.map(Ok).collect();
        let deleted = self.runtime.wait(
            self.store
                .delete_stream(stream::iter(paths).boxed())
                .filter(|result| {
                    let gone = matches!(result, Err(object_store::Error::NotFound { .. }));
                    std::future::ready(!gone)
                })
                .try_collect::<Vec<_>>(),
        );
        deleted.map(drop).map_err(|source| self.store_error("runs/", source))
    }
}

impl Inventory {
    /// Leaves out tables and state which may not go, by their paths.
    fn retain(&mut self, may_go: impl Fn(&str) -> bool) {
        let lists = self.runs.values_mut().chain([&mut self.state]);
        lists.for_each(|objects| objects.retain(|object| may_go(object.location.as_ref())));
    }

    /// Runs that no rule keeps.
    fn dispensable(&self, log: &Log, rules: &CollectionRules) -> BTreeSet<String> {
        let stands = |entry: &&LogEntry| {
            matches!(log.standing(entry), Standing::Current | Standing::Standing)
        };
        let newest = log.publications().rev().filter(stands).take(rules.keep);
        let newest = newest.map(|entry| &entry.run.run_id);
        let mut kept: BTreeSet<&String> = newest.collect();
        kept.extend(log.current().map(|run| &run.run_id));
        let is_old = |run: &str, objects: &[ObjectMeta]| {
            rules.now_us - began_us(run, objects) > rules.grace_us
        };
        let runs = self.runs.iter();
        let old = runs.filter(|(run, objects)| !kept.contains(run) && is_old(run, objects));
        old.map(|(run, _)| run.clone()).collect()
    }

    /// Objects of `runs` in the order in which they go, then those that only help.
    fn objects_of(
        &self,
        runs: &BTreeSet<String>,
        log: &Log,
        rules: &CollectionRules,
    ) -> Vec<&ObjectMeta> {
        let of_runs = runs.iter().filter_map(|run| self.runs.get(run)).flatten();
        let mut objects: Vec<&ObjectMeta> = of_runs.collect();
        objects.sort_by_key(last);
        let newest = log.generation() / super::log::SNAPSHOT_EVERY * super::log::SNAPSHOT_EVERY;
        objects.extend(self.others.iter().filter(|object| {
            let path = object.location.as_ref();
            let superseded = snapshot_generation(path).is_some_and(|found| found < newest);
            // A probe may be of a run that goes on.
            let age_us = rules.now_us - object.last_modified.timestamp_micros();
            let is_old = !path.starts_with("_log/") && age_us > rules.grace_us;
            is_old || superseded
        }));
        // A run that goes on writes its state before anything names it.
        objects.extend(self.state.iter().filter(|object| {
            let run = object.location.as_ref().split('/').nth(1).unwrap_or_default();
            let began_us = began_us(run, std::slice::from_ref(*object));
            let written_us = object.last_modified.timestamp_micros();
            rules.now_us - began_us.max(written_us) > rules.grace_us
        }));
        objects.extend(self.old_checkpoints(rules).flat_map(|(_, objects)| objects));
        objects
    }

    /// Checkpoints of runs that are over, as one that goes on would have added to them.
    fn old_checkpoints(
        &self,
        rules: &CollectionRules,
    ) -> impl Iterator<Item = (&String, &Vec<ObjectMeta>)> {
        let rules = *rules;
        self.checkpoints.iter().filter(move |(_, objects)| {
            let times = objects.iter().map(|object| object.last_modified.timestamp_micros());
            times.max().is_some_and(|newest| rules.now_us - newest > rules.grace_us)
        })
    }

    fn summary(&self, runs: &BTreeSet<String>, log: &Log, rules: &CollectionRules) -> Collection {
        let is_published =
            |run: &&String| log.publications().any(|entry| entry.run.run_id == **run);
        // Of a run that is gone, files may be there that others list.
        let has_objects = |run: &&String| self.runs.get(*run).is_some_and(|of| !of.is_empty());
        let (published, unpublished): (Vec<&String>, Vec<&String>) =
            runs.iter().filter(has_objects).partition(is_published);
        let objects = self.objects_of(runs, log, rules);
        Collection {
            published_runs: published.into_iter().cloned().collect(),
            unpublished_runs: unpublished.into_iter().cloned().collect(),
            checkpoints: self.old_checkpoints(rules).map(|(key, _)| key.clone()).collect(),
            objects: objects.len(),
            bytes: objects.iter().map(|object| object.size).sum(),
            generation: None,
        }
    }
}

/// The order in which the objects of a run go: tables first, its manifest last.
fn last(object: &&ObjectMeta) -> (bool, bool) {
    let path = object.location.as_ref();
    (path.ends_with("/_manifest.json"), path.starts_with("runs/"))
}

/// The run that an object belongs to.
pub(super) fn run_of(path: &str) -> Option<&str> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["runs", _, run, _, ..] => Some(run),
        ["tables", _, date, run, _, ..] if date.starts_with("logical_date=") => {
            run.strip_prefix("run_id=")
        }
        _ => None,
    }
}

/// When a run began, by its id if that tells the time, else by its newest object.
fn began_us(run: &str, objects: &[ObjectMeta]) -> i64 {
    let told = uuid::Uuid::parse_str(run).ok().and_then(|id| id.get_timestamp());
    let newest = || objects.iter().map(|object| object.last_modified.timestamp_micros()).max();
    match told {
        Some(time) => {
            let (seconds, nanoseconds) = time.to_unix();
            seconds as i64 * 1_000_000 + i64::from(nanoseconds) / 1_000
        }
        None => newest().unwrap_or(i64::MAX),
    }
}

fn entry(runs: Vec<String>, now: &str, nonce: &str) -> LogEntry {
    let run = Current {
        generation: 0,
        logical_date: String::new(),
        run_id: String::new(),
        manifest: String::new(),
        published_at: now.to_owned(),
        nonce: nonce.to_owned(),
        manifest_sha256: String::new(),
    };
    LogEntry { run, fingerprint: String::new(), withdraws: None, collects: runs, delta: false }
}
