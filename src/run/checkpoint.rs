//! Checkpoints: what a run saves between its stages, and how the next one goes on from there.
//!
//! Nothing here makes a run fail: what cannot be written or read is a warning, and is computed. All
//! processes take the same collectives in the same order, so process 0 decides what is there, and
//! one that cannot read its part makes all of them compute.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::attempts::Attempt;
use super::{Worker, agree, one_line, sha256_hex};
use crate::dataflow::Shell;
use crate::job::plan::Plan;
use crate::store::{
    CHECKPOINT_FORMAT, CheckpointFolder, CheckpointPart, Output, PublishError, PublishedFile,
    RunPath, Seal,
};

/// After so many checkpoints that could not be written, a run goes on without: each may have waited
/// for a store for minutes.
const FAILURES_MAX: u32 = 2;

/// The checkpoints of a run.
pub(super) struct Checkpoints {
    folder: CheckpointFolder,
    /// Iterations of ALS between two.
    pub(super) als_iterations: usize,
    /// Stages that are sealed, and records. Only process 0 knows.
    names: BTreeSet<String>,
    /// Checkpoints that were not written; the same on all processes.
    failures: u32,
    /// What was written since a stage ended.
    bytes: u64,
    seconds: f64,
}

/// A checkpoint that is sealed.
pub(super) struct Sealed<'a> {
    folder: &'a CheckpointFolder,
    stage: String,
    seal: Seal,
}

impl Sealed<'_> {
    /// What it is a checkpoint of.
    pub(super) fn stage(&self) -> &str {
        &self.stage
    }

    /// The content of a part, as it was written.
    pub(super) fn part(&self, name: &str) -> Result<bytes::Bytes> {
        Ok(self.folder.read_part(&self.stage, &self.seal, name)?)
    }
}

/// A checkpoint that is being written.
pub(super) struct Saving<'a> {
    folder: &'a CheckpointFolder,
    stage: &'a str,
}

impl Saving<'_> {
    /// Writes a part, whose content `fill` appends.
    pub(super) fn put(
        &self,
        name: &str,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<CheckpointPart> {
        Ok(self.folder.put_part(self.stage, name, fill)?)
    }
}

/// What a run has written in one stage.
#[derive(Serialize, Deserialize)]
struct Written<T> {
    files: Vec<PublishedFile>,
    more: T,
}

/// Finds out what there is to go on from. `None` where the run is to keep no checkpoints, or cannot.
pub(super) fn open(
    shell: &mut Shell,
    attempt: &Attempt,
    output: &Output,
    plan: &Plan,
    fingerprint: &str,
) -> Result<Option<Checkpoints>> {
    if !is_wanted(attempt) {
        return Ok(None);
    }
    let als_iterations =
        attempt.request.spec.checkpoints.clone().unwrap_or_default().als_iterations;
    let folder = match folder(attempt, output, fingerprint, &variant(attempt, plan)) {
        // What is wrong with the spec is told before a row is read.
        Err(error @ PublishError::Url(_)) => Err(error.into()),
        other => Ok(other),
    };
    let folder = agree(shell, &attempt.record, folder)?;
    let found = folder.and_then(|folder| {
        let names = if shell.index == 0 { folder.names()? } else { BTreeSet::new() };
        Ok((folder, names))
    });
    let all_have = shell.collectives.all_reduce_min(i64::from(found.is_ok())) == 1;
    if let Err(error) = &found {
        let error = one_line(error);
        tracing::warn!(error, "this run keeps no checkpoints");
    }
    Ok(found.ok().filter(|_| all_have).map(|(folder, names)| Checkpoints {
        folder,
        als_iterations,
        names,
        failures: 0,
        bytes: 0,
        seconds: 0.0,
    }))
}

/// Removes what runs with this fingerprint have saved, since one of them is published.
pub(super) fn forget(attempt: &Attempt, output: &Output, fingerprint: &str) {
    if !is_wanted(attempt) {
        return;
    }
    let removed = folder(attempt, output, fingerprint, "").and_then(|folder| folder.remove());
    if let Err(error) = removed {
        tracing::warn!(error = one_line(&error), "checkpoints stay; gc removes them");
    }
}

fn is_wanted(attempt: &Attempt) -> bool {
    attempt.request.spec.checkpoints.is_some() || attempt.request.checkpoints_by_default
}

fn folder(
    attempt: &Attempt,
    output: &Output,
    fingerprint: &str,
    variant: &str,
) -> Result<CheckpointFolder, PublishError> {
    let url = attempt.request.spec.checkpoints.as_ref().and_then(|section| section.url.as_deref());
    match url {
        None => Ok(CheckpointFolder::of_output(output, fingerprint, variant)),
        Some(url) => {
            let (runtime, base) = (&attempt.runtime, &attempt.request.base);
            CheckpointFolder::create(runtime, url, base, (fingerprint, variant))
        }
    }
}

/// What tells checkpoints of one fingerprint apart.
fn variant(attempt: &Attempt, plan: &Plan) -> String {
    let left_out = json!(attempt.left_out);
    let decisive = json!([CHECKPOINT_FORMAT, plan.n_shards, left_out]);
    sha256_hex(decisive.to_string().as_bytes())[..16].to_owned()
}

impl Checkpoints {
    /// The newest checkpoint of a kind: of the stage of that name, or of `als-00005` and the like.
    fn newest(&mut self, kind: &str) -> Option<(String, Seal)> {
        loop {
            let is_of_kind = |name: &&String| {
                name.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            };
            let name = self.names.iter().rev().find(is_of_kind)?.clone();
            match self.folder.read_seal(&name) {
                Ok(Some(seal)) => return Some((name, seal)),
                Ok(None) => {}
                Err(error) => tracing::warn!(error = one_line(&error), "a checkpoint is not used"),
            }
            self.names.remove(&name);
        }
    }

    /// Files that this run has recorded, if they are all there.
    fn find_written<T: DeserializeOwned>(
        &self,
        output: &Output,
        record: &str,
    ) -> Option<Written<T>> {
        if !self.names.contains(record) {
            return None;
        }
        let found = self.folder.read_record::<Written<T>>(record).and_then(|found| {
            let files = found.iter().flat_map(|written| &written.files).cloned();
            output.check_files(&files.collect::<Vec<_>>())?;
            Ok(found)
        });
        found.unwrap_or_else(|error| {
            tracing::warn!(error = one_line(&error), "tables are written again");
            None
        })
    }
}

impl Worker<'_> {
    /// Goes on from the newest checkpoint of a kind that all processes can read; `None` where there
    /// is none. Other collectives than those here may not be in `read`.
    pub(super) fn restore<T>(
        &mut self,
        kind: &str,
        read: impl Fn(&Sealed<'_>) -> Result<T>,
    ) -> Option<T> {
        loop {
            let checkpoints = self.checkpoints.as_mut()?;
            let first = self.shell.index == 0;
            let found = first.then(|| match checkpoints.newest(kind) {
                Some(found) => serde_json::to_vec(&found).expect("a seal is plain data").into(),
                None => bytes::Bytes::new(),
            });
            let found = self.shell.collectives.broadcast(0, found);
            if found.is_empty() {
                return None;
            }
            let (stage, seal): (String, Seal) =
                serde_json::from_slice(&found).expect("process 0 sends a seal");
            let folder = &checkpoints.folder;
            let sealed = Sealed { folder, stage: stage.clone(), seal };
            let result = read(&sealed);
            let all_read = self.shell.collectives.all_reduce_min(i64::from(result.is_ok())) == 1;
            match result {
                Ok(result) if all_read => return Some(result),
                Ok(_) => {}
                Err(error) => {
                    let error = one_line(error.as_ref());
                    tracing::warn!(stage, error, "a checkpoint is not used");
                }
            }
            checkpoints.names.remove(&stage);
        }
    }

    /// The same as a stage of its own.
    pub(super) fn restore_stage<T>(
        &mut self,
        name: &str,
        kind: &str,
        read: impl Fn(&Sealed<'_>) -> Result<T>,
    ) -> Option<T> {
        let start = self.usage();
        let restored = self.restore(kind, read)?;
        self.begin(name, None);
        self.resumed = true;
        self.end(name, &start);
        Some(restored)
    }

    /// Saves a checkpoint, of which each process writes its parts; says whether all went well.
    pub(super) fn save(
        &mut self,
        stage: &str,
        write: impl FnOnce(&Saving<'_>) -> Result<Vec<CheckpointPart>>,
    ) -> bool {
        let open = self.checkpoints.as_mut();
        let Some(checkpoints) = open.filter(|open| open.failures < FAILURES_MAX) else {
            return false;
        };
        let start = Instant::now();
        let warn = |error: String| tracing::warn!(stage, error, "a checkpoint is not written");
        let written = write(&Saving { folder: &checkpoints.folder, stage });
        let written = checkpoints.folder.settled(written);
        let written = written.map_err(|error| warn(one_line(error.as_ref())));
        let parts = written.as_ref().map_or_else(
            |()| Vec::new(),
            |parts| serde_json::to_vec(parts).expect("parts are plain data"),
        );
        let parts = self.shell.collectives.all_gather(parts.into());
        let parts = parts.iter().map(|of_process| serde_json::from_slice(of_process).ok());
        let parts: Option<Vec<Vec<CheckpointPart>>> = parts.collect();
        let sealed = (self.shell.index == 0).then(|| {
            let sealed = parts.is_some_and(|parts| {
                let seal = Seal::new(parts.into_iter().flatten().collect());
                let sealed = checkpoints.folder.put_seal(stage, &seal);
                sealed.map_err(|error| warn(one_line(&error))).is_ok()
            });
            vec![u8::from(sealed)].into()
        });
        let sealed = self.shell.collectives.broadcast(0, sealed)[..] == [1];
        match sealed {
            true => drop(checkpoints.names.insert(stage.to_owned())),
            false => checkpoints.failures += 1,
        }
        checkpoints.bytes += written.iter().flatten().map(|part| part.bytes).sum::<u64>();
        checkpoints.seconds += start.elapsed().as_secs_f64();
        sealed
    }

    /// Removes the checkpoints of a kind but the one of `stage`, which takes their place.
    pub(super) fn remove_all_but(&mut self, kind: &str, stage: &str) {
        let Some(checkpoints) = self.checkpoints.as_mut().filter(|_| self.shell.index == 0) else {
            return;
        };
        let is_older = |name: &&String| name.starts_with(kind) && *name != stage;
        let older: Vec<String> = checkpoints.names.iter().filter(is_older).cloned().collect();
        for stage in older {
            checkpoints.names.remove(&stage);
            if let Err(error) = checkpoints.folder.remove_stage(&stage) {
                tracing::warn!(stage, error = one_line(&error), "an old checkpoint stays");
            }
        }
    }

    /// Runs a stage that writes files, unless a process of the same run has done so: then the first
    /// one has the files, and the others none. What else `work` returns is equal on all processes.
    pub(super) fn written<T: Serialize + DeserializeOwned>(
        &mut self,
        (output, path): (&Output, &RunPath),
        stage: &str,
        total: Option<(u64, &'static str)>,
        work: impl FnOnce(&mut Self) -> Result<(Vec<PublishedFile>, T)>,
    ) -> Result<(Vec<PublishedFile>, T)> {
        let work = |worker: &mut Self| output.settled(work(worker));
        if self.checkpoints.is_none() {
            return self.stage(stage, total, work);
        }
        let record = path.file(&format!("{}.written", stage.replace(' ', "-")));
        if let Some(written) = self.find_written(output, stage, &record) {
            return Ok(written);
        }
        self.stage(stage, total, |worker| {
            let done = work(worker);
            let (files, more) = worker.agree(done)?;
            worker.note_written(&record, &files, &more);
            Ok((files, more))
        })
    }

    fn find_written<T: Serialize + DeserializeOwned>(
        &mut self,
        output: &Output,
        stage: &str,
        record: &str,
    ) -> Option<(Vec<PublishedFile>, T)> {
        let start = self.usage();
        let checkpoints = self.checkpoints.as_ref()?;
        let first = self.shell.index == 0;
        let written = if first { checkpoints.find_written::<T>(output, record) } else { None };
        let more = written.as_ref().map_or_else(Vec::new, |written| {
            serde_json::to_vec(&written.more).expect("what was read can be written")
        });
        let more = self.shell.collectives.broadcast(0, first.then(|| more.into()));
        if more.is_empty() {
            return None;
        }
        let more = serde_json::from_slice(&more).expect("process 0 sends what it read");
        self.begin(stage, None);
        self.resumed = true;
        self.end(stage, &start);
        Some((written.map_or_else(Vec::new, |written| written.files), more))
    }

    /// Records what all processes have written in a stage.
    fn note_written<T: Serialize>(&mut self, record: &str, files: &[PublishedFile], more: &T) {
        let files = serde_json::to_vec(files).expect("file entries are plain data");
        let files = self.shell.collectives.all_gather(files.into());
        let Some(checkpoints) = self.checkpoints.as_ref().filter(|_| self.shell.index == 0) else {
            return;
        };
        if checkpoints.failures >= FAILURES_MAX {
            return;
        }
        let entries = files.iter().map(|of_process| serde_json::from_slice(of_process));
        let files: Result<Vec<Vec<PublishedFile>>, _> = entries.collect();
        let files = files.expect("a peer sends file entries").into_iter().flatten().collect();
        if let Err(error) = checkpoints.folder.put_record(record, &Written { files, more }) {
            tracing::warn!(record, error = one_line(&error), "files are not recorded");
        }
    }

    /// What checkpoints cost since the last stage ended: bytes of this process, and seconds.
    pub(super) fn take_checkpoint_cost(&mut self) -> Option<(u64, f64)> {
        let checkpoints = self.checkpoints.as_mut().filter(|open| open.seconds > 0.0)?;
        let (bytes, seconds) = (&mut checkpoints.bytes, &mut checkpoints.seconds);
        Some((std::mem::take(bytes), std::mem::take(seconds)))
    }

    /// Removes all checkpoints of a run that is done.
    pub(super) fn remove_checkpoints(&mut self) {
        let Some(checkpoints) = self.checkpoints.as_ref().filter(|_| self.shell.index == 0) else {
            return;
        };
        if let Err(error) = checkpoints.folder.remove() {
            tracing::warn!(error = one_line(&error), "checkpoints stay; gc removes them");
        }
    }
}
