//! What a run saves on its way, so that another can go on where it died.
//!
//! Below `_checkpoints/<fingerprint>/<variant>/` every stage has a folder of parts and, once all of
//! them are there, a `_seal.json` that lists them with their digests. Bytes depend on the key alone
//! and on nothing of the run, so two runs of one key may write the same objects at the same time,
//! and writing one again is harmless. Files of a run are recorded by its own path.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use object_store::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::PublishError;
use super::output::{Output, to_json};
use super::runtime::IoRuntime;

/// The folder below an output in which checkpoints are kept, unless the spec has another.
pub(super) const CHECKPOINTS: &str = "_checkpoints";

/// The format of parts and seals: others are not read.
pub const CHECKPOINT_FORMAT: u32 = 4;

/// What every part starts with; the digest of the rest follows.
const MAGIC: &[u8; 8] = b"TMCHKPT1";

/// Bytes before the content of a part.
const HEADER_BYTES: usize = MAGIC.len() + 32;

/// What the name of a seal ends in.
const SEAL: &str = "_seal.json";

/// Where records lie: their names are paths of runs.
const RECORDS: &str = "runs/";

/// The checkpoints of runs with one key.
#[derive(Clone, Debug)]
pub struct CheckpointFolder {
    output: Output,
    /// Of all runs with one fingerprint.
    root: String,
    /// Of those that leave out the same files and deal users to as many shards.
    variant: String,
}

/// Says that all parts of a checkpoint are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    format: u32,
    /// In the order of their names.
    parts: Vec<CheckpointPart>,
}

/// One object of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckpointPart {
    /// Its name in the folder of the stage.
    pub name: String,
    /// Size, the header included.
    pub bytes: u64,
    /// Hex digest of the content.
    pub sha256: String,
}

impl Seal {
    /// The seal of these parts, in whatever order they come.
    pub fn new(mut parts: Vec<CheckpointPart>) -> Self {
        parts.sort_unstable();
        Self { format: CHECKPOINT_FORMAT, parts }
    }
}

impl CheckpointFolder {
    /// Below the output itself.
    pub fn of_output(output: &Output, fingerprint: &str, variant: &str) -> Self {
        let (root, variant) = (format!("{CHECKPOINTS}/{fingerprint}"), variant.to_owned());
        Self { output: output.apart(), root, variant }
    }

    /// Below a folder of its own, which is made if it is not there.
    ///
    /// # Errors
    /// As [`Output::create`].
    pub fn create(
        runtime: &IoRuntime,
        url: &str,
        base: &Path,
        (fingerprint, variant): (&str, &str),
    ) -> Result<Self, PublishError> {
        let output = Output::create(runtime, url, base)?;
        Ok(Self { output, root: fingerprint.to_owned(), variant: variant.to_owned() })
    }

    /// The stages that are sealed, and the names of records, which hold a `/`.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn names(&self) -> Result<BTreeSet<String>, PublishError> {
        let folder = self.path("");
        let name = |object: &ObjectMeta| {
            let path = object.location.as_ref().strip_prefix(&folder)?;
            let sealed = path.strip_suffix(SEAL).and_then(|stage| stage.strip_suffix('/'));
            let record = path.starts_with(RECORDS).then_some(path);
            sealed.or(record).map(str::to_owned)
        };
        let listed = self.output.list(folder.trim_end_matches('/'))?;
        Ok(listed.iter().filter_map(name).collect())
    }

    /// Writes a part, whose content `fill` appends. It is there once [`CheckpointFolder::settled`] says so.
    ///
    /// # Errors
    /// [`PublishError::Store`], also of a part that was begun before.
    pub fn put_part(
        &self,
        stage: &str,
        name: &str,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<CheckpointPart, PublishError> {
        let (bytes, sha256) = with_header(fill);
        let (name, n_bytes) = (name.to_owned(), bytes.len() as u64);
        self.output.put_behind(&self.path(&format!("{stage}/{name}")), bytes)?;
        Ok(CheckpointPart { name, bytes: n_bytes, sha256 })
    }

    /// As [`Output::settled`], of the parts that were begun.
    ///
    /// # Errors
    /// Those of `done`; [`PublishError::Store`].
    pub fn settled<T, E: From<PublishError>>(&self, done: Result<T, E>) -> Result<T, E> {
        self.output.settled(done)
    }

    /// Reads the content of a part that the seal lists.
    ///
    /// # Errors
    /// [`PublishError::Corrupt`] where it is missing or other than the seal says;
    /// [`PublishError::Store`].
    pub fn read_part(&self, stage: &str, seal: &Seal, name: &str) -> Result<Bytes, PublishError> {
        let path = self.path(&format!("{stage}/{name}"));
        let corrupt = |problem: &str| self.corrupt(&path, problem);
        let listed = seal.parts.iter().find(|part| part.name == name);
        let part = listed.ok_or_else(|| corrupt("it is not in the seal"))?;
        let bytes = self.output.get(&path)?.ok_or_else(|| corrupt("it is missing"))?;
        if bytes.len() as u64 != part.bytes {
            return Err(corrupt("its size is not the one in the seal"));
        }
        let (content, sha256) = without_header(bytes).ok_or_else(|| corrupt("it is damaged"))?;
        match sha256 == part.sha256 {
            true => Ok(content),
            false => Err(corrupt("its digest is not the one in the seal")),
        }
    }

    /// Seals a stage, all of whose parts are written. A seal that is there is of the same bytes, or
    /// was found damaged.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn put_seal(&self, stage: &str, seal: &Seal) -> Result<(), PublishError> {
        self.output.put(&self.path(&format!("{stage}/{SEAL}")), to_json(seal))
    }

    /// The seal of a stage; `None` where there is none.
    ///
    /// # Errors
    /// [`PublishError::Corrupt`] where it cannot be understood; [`PublishError::Store`].
    pub fn read_seal(&self, stage: &str) -> Result<Option<Seal>, PublishError> {
        let path = self.path(&format!("{stage}/{SEAL}"));
        let Some(bytes) = self.output.get(&path)? else { return Ok(None) };
        let seal: Option<Seal> = serde_json::from_slice(&bytes).ok();
        let seal = seal.filter(|seal| seal.format == CHECKPOINT_FORMAT);
        seal.map(Some).ok_or_else(|| self.corrupt(&path, "it is damaged, or of another format"))
    }

    /// Writes down something of one run, such as the files that it has written so far. The name
    /// is that of a file of the run ([`RunPath::file`]).
    ///
    /// [`RunPath::file`]: super::RunPath::file
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn put_record(&self, name: &str, record: &impl Serialize) -> Result<(), PublishError> {
        let (bytes, _) = with_header(|out| out.extend_from_slice(&to_json(record)));
        self.output.put(&self.path(name), bytes)
    }

    /// What was written down; `None` where there is nothing.
    ///
    /// # Errors
    /// [`PublishError::Corrupt`] where it is not what was written; [`PublishError::Store`].
    pub fn read_record<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, PublishError> {
        let path = self.path(name);
        let Some(bytes) = self.output.get(&path)? else { return Ok(None) };
        let content = without_header(bytes).map(|(content, _)| content);
        let record = content.and_then(|content| serde_json::from_slice(&content).ok());
        record.map(Some).ok_or_else(|| self.corrupt(&path, "it is damaged"))
    }

    /// Removes the checkpoint of a stage, its seal first.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn remove_stage(&self, stage: &str) -> Result<(), PublishError> {
        self.remove_below(&self.path(stage))
    }

    /// Removes all that runs with this fingerprint have saved.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    pub fn remove(&self) -> Result<(), PublishError> {
        self.remove_below(&self.root)?;
        if let (Some(disk), Some(_)) = (&self.output.folder, checkpoint_of(&self.path("x"))) {
            // The last one out; nobody else uses a folder of this name.
            let _ = std::fs::remove_dir(disk.join(CHECKPOINTS));
        }
        Ok(())
    }

    fn remove_below(&self, folder: &str) -> Result<(), PublishError> {
        let listed = self.output.list(folder)?;
        let is_seal = |object: &ObjectMeta| object.location.as_ref().ends_with(SEAL);
        let (seals, parts): (Vec<_>, Vec<_>) = listed.into_iter().partition(is_seal);
        for objects in [seals, parts] {
            self.output.delete_all(objects.into_iter().map(|object| object.location))?;
        }
        if let Some(disk) = &self.output.folder {
            // Empty folders, which object stores do not have; one that is not empty any more stays.
            let _ = remove_empty_folders(&disk.join(folder));
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.root, self.variant)
    }

    fn corrupt(&self, path: &str, problem: &str) -> PublishError {
        PublishError::Corrupt { path: self.output.url_of(path), source: problem.into() }
    }
}

fn with_header(fill: impl FnOnce(&mut Vec<u8>)) -> (Bytes, String) {
    let mut bytes = MAGIC.to_vec();
    bytes.resize(HEADER_BYTES, 0);
    fill(&mut bytes);
    let digest = Sha256::digest(&bytes[HEADER_BYTES..]);
    bytes[MAGIC.len()..HEADER_BYTES].copy_from_slice(&digest);
    (bytes.into(), format!("{digest:x}"))
}

/// The content and its digest; `None` where they do not belong together.
fn without_header(bytes: Bytes) -> Option<(Bytes, String)> {
    let header = bytes.get(..HEADER_BYTES)?;
    let content = bytes.slice(HEADER_BYTES..);
    let digest = Sha256::digest(&content);
    let is_ours = header.starts_with(MAGIC) && header[MAGIC.len()..] == digest[..];
    is_ours.then(|| (content, format!("{digest:x}")))
}

fn remove_empty_folders(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty_folders(&entry.path())?;
        }
    }
    std::fs::remove_dir(folder)
}

/// The checkpoints of a fingerprint, by the path of one of their objects below an output.
pub(super) fn checkpoint_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(CHECKPOINTS)?.strip_prefix('/')?;
    Some(rest.split_once('/')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(base: &Path, variant: &str) -> CheckpointFolder {
        let runtime = IoRuntime::new().unwrap();
        CheckpointFolder::create(&runtime, "saved/", base, ("f", variant)).unwrap()
    }

    #[test]
    fn what_is_sealed_is_read_and_what_was_changed_is_not() {
        let base = tempfile::tempdir().unwrap();
        let saved = folder(base.path(), "v");
        assert_eq!(saved.names().unwrap(), BTreeSet::new());
        assert_eq!(saved.read_seal("als-00005").unwrap(), None);
        let put = |name: &str| saved.put_part("als-00005", name, |out| out.extend(name.bytes()));
        let parts = ["b", "a", "c"].map(|name| put(name).unwrap());
        assert_eq!(saved.names().unwrap(), BTreeSet::new(), "without a seal there is nothing");
        saved.put_seal("als-00005", &Seal::new(parts.to_vec())).unwrap();
        saved.put_record("runs/d/r/x.written", &["x"]).unwrap();
        let names = saved.names().unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["als-00005", "runs/d/r/x.written"]);
        let seal = saved.read_seal("als-00005").unwrap().unwrap();
        assert_eq!(&saved.read_part("als-00005", &seal, "b").unwrap()[..], b"b");
        let record: Option<Vec<String>> = saved.read_record("runs/d/r/x.written").unwrap();
        assert_eq!(record.unwrap(), ["x"]);
        assert_eq!(saved.read_record::<Vec<String>>("runs/d/r/y.written").unwrap(), None);

        let disk = base.path().join("saved/f/v");
        let mut bytes = std::fs::read(disk.join("als-00005/b")).unwrap();
        *bytes.last_mut().unwrap() = b'x';
        std::fs::write(disk.join("als-00005/b"), bytes).unwrap();
        std::fs::copy(disk.join("als-00005/c"), disk.join("als-00005/a")).unwrap();
        std::fs::remove_file(disk.join("als-00005/c")).unwrap();
        std::fs::write(disk.join("runs/d/r/x.written"), "x").unwrap();
        for (name, problem) in [("a", "digest"), ("b", "damaged"), ("c", "missing"), ("d", "seal")]
        {
            let PublishError::Corrupt { source, .. } =
                saved.read_part("als-00005", &seal, name).unwrap_err()
            else {
                panic!("{name}");
            };
            assert!(source.to_string().contains(problem), "{name}: {source}");
        }
        assert!(saved.read_record::<Vec<String>>("runs/d/r/x.written").is_err());
        let newer = format!("{{\"format\":{},\"parts\":[]}}", CHECKPOINT_FORMAT + 1);
        std::fs::write(disk.join("als-00005").join(SEAL), newer).unwrap();
        assert!(saved.read_seal("als-00005").is_err());
    }

    #[test]
    fn removal_leaves_no_folder_and_nothing_of_others_is_touched() {
        let base = tempfile::tempdir().unwrap();
        let (saved, other) = (folder(base.path(), "v"), folder(base.path(), "w"));
        for stage in ["als-00005", "als-00010"] {
            let part = saved.put_part(stage, "common", |out| out.push(1)).unwrap();
            saved.put_seal(stage, &Seal::new(vec![part])).unwrap();
        }
        other.put_part("histories", "common", |_| {}).unwrap();
        saved.remove_stage("als-00005").unwrap();
        assert_eq!(saved.names().unwrap().into_iter().collect::<Vec<_>>(), ["als-00010"]);
        assert!(!base.path().join("saved/f/v/als-00005").exists());
        std::fs::create_dir_all(base.path().join("saved/g")).unwrap();
        saved.remove().unwrap();
        saved.remove().unwrap();
        let left = std::fs::read_dir(base.path().join("saved")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["g"]);
    }
}
