//! Reading a published run back, byte for byte.

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::PublishError;
use super::log::{Current, snapshot_generation};
use super::manifest::PublishedFile;
use super::output::Output;
use super::state::StateManifest;

/// Files hashed at a time.
const FILES_AT_ONCE: usize = 4;

/// What was found out about a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The run.
    pub run: Current,
    /// Files whose size and hash were compared.
    pub files: usize,
    /// Bytes read for that.
    pub bytes: u64,
    /// What is not as it was published, a line each; empty for a sound run.
    pub problems: Vec<String>,
}

impl Output {
    /// Reads all files of a published run, and holds size and SHA-256 against the manifest, the
    /// manifest against the log, and the log against what was derived from it.
    ///
    /// `advance` is told of the bytes read.
    ///
    /// # Errors
    /// When the log or the manifest cannot be read. What is wrong with files is a problem, no error.
    pub fn verify(
        &self,
        run: &Current,
        advance: &(dyn Fn(u64) + Sync),
    ) -> Result<Verification, PublishError> {
        let mut problems = self.check_log()?;
        let manifest = self.read_manifest(run)?;
        let checks = manifest.files.iter().map(|file| async move {
            let found = self.hash(file, advance).await;
            (file, found)
        });
        let checks = stream::iter(checks).buffered(FILES_AT_ONCE).collect::<Vec<_>>();
        for (file, found) in self.runtime.wait(checks) {
            problems.extend(problem_of(file, found));
        }
        let bytes = manifest.files.iter().map(|file| file.bytes).sum();
        Ok(Verification { run: run.clone(), files: manifest.files.len(), bytes, problems })
    }

    /// Reads all files of a state, and holds size and SHA-256 against what was written; what is wrong, a
    /// line each. `advance` is told of the bytes read.
    pub fn verify_state(
        &self,
        state: &StateManifest,
        advance: &(dyn Fn(u64) + Sync),
    ) -> Vec<String> {
        let checks = state.parts.iter().map(|part| async move {
            let found = self.hash(&part.file, advance).await;
            problem_of(&part.file, found)
        });
        let checks = stream::iter(checks).buffered(FILES_AT_ONCE).collect::<Vec<_>>();
        self.runtime.wait(checks).into_iter().flatten().collect()
    }

    /// Holds snapshots and `current.json` against the entries of the log.
    fn check_log(&self) -> Result<Vec<String>, PublishError> {
        let mut problems = Vec::new();
        let log = self.read_log_entries()?;
        let snapshots = self.list("_log")?;
        let is_snapshot = |path: &str| snapshot_generation(path).is_some();
        if snapshots.iter().any(|object| is_snapshot(object.location.as_ref()))
            && self.read_log()? != log
        {
            problems.push("a snapshot of the log differs from its entries; delete it".to_owned());
        }
        let mirror = self.get("current.json")?;
        let mirror: Option<Current> = mirror.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if mirror.as_ref() != log.current() {
            let behind =
                "current.json is not what the log says; \"tidemill runs --repair\" mends it";
            problems.push(behind.to_owned());
        }
        Ok(problems)
    }

    async fn hash(
        &self,
        file: &PublishedFile,
        advance: &(dyn Fn(u64) + Sync),
    ) -> object_store::Result<(u64, String)> {
        let found = self.store.get(&Key::parse(&file.path)?).await?;
        let mut parts = found.into_stream();
        let (mut bytes, mut digest) = (0, Sha256::new());
        while let Some(part) = parts.try_next().await? {
            digest.update(&part);
            bytes += part.len() as u64;
            advance(part.len() as u64);
        }
        Ok((bytes, format!("{:x}", digest.finalize())))
    }
}

fn problem_of(file: &PublishedFile, found: object_store::Result<(u64, String)>) -> Option<String> {
    let path = &file.path;
    match found {
        Ok((bytes, _)) if bytes != file.bytes => {
            Some(format!("\"{path}\" has {bytes} bytes, published with {}", file.bytes))
        }
        Ok((_, sha256)) if sha256 != file.sha256 => {
            Some(format!("\"{path}\" has SHA-256 {sha256}, published with {}", file.sha256))
        }
        Ok(_) => None,
        Err(object_store::Error::NotFound { .. }) => Some(format!("\"{path}\" is missing")),
        Err(error) => Some(format!("\"{path}\" cannot be read: {error}")),
    }
}
