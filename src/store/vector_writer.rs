//! Vector files, streamed: memory holds one part of a file, whatever the file's size.

use std::collections::VecDeque;

use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::error::PublishError;
use super::manifest::PublishedFile;
use super::output::{Output, PARTS_AT_ONCE};
use crate::schema::vectors::{VectorLayout, push_floats};

/// Bytes of every part but the last. Stores take 10,000 parts of one size, at least 5 MiB.
const PART_BYTES: usize = 8 << 20;

/// A vector file under construction; dropped before its end, nothing is left of it.
pub struct VectorWriter<'a> {
    file: Upload<'a>,
    layout: VectorLayout,
    row_header: Vec<u8>,
    rows: usize,
}

impl<'a> VectorWriter<'a> {
    /// Starts the file at `path`, which no other run uses.
    pub fn new(output: &'a Output, path: &str, layout: VectorLayout) -> Self {
        let mut file = Upload::new(output, path);
        file.buffer.extend(layout.header());
        Self { file, layout, row_header: layout.row_header(), rows: 0 }
    }

    /// Appends the next vector.
    ///
    /// # Errors
    /// [`PublishError::NotFinite`] for a value that no search can use; [`PublishError::Store`].
    ///
    /// # Panics
    /// If the vector has another dimension than the file, or the file has all its rows already.
    pub fn push(&mut self, vector: &[f32]) -> Result<(), PublishError> {
        let VectorLayout { n_rows, dimension, .. } = self.layout;
        assert!(vector.len() == dimension, "{} floats of {dimension}", vector.len());
        assert!(self.rows < n_rows, "a vector beyond the {n_rows} of the header");
        if let Some(column) = vector.iter().position(|value| !value.is_finite()) {
            let path = self.file.output.url_of(&self.file.path);
            return Err(PublishError::NotFinite { path, row: self.rows, column });
        }
        self.rows += 1;
        self.file.buffer.extend(&self.row_header);
        push_floats(&mut self.file.buffer, vector);
        self.file.send_full_parts()
    }

    /// Appends the ids where the layout has them, in the order of the vectors, and ends the file.
    ///
    /// `table` is what the file is called in the manifest.
    ///
    /// # Errors
    /// [`PublishError::Store`].
    ///
    /// # Panics
    /// If the file lacks vectors, or ids are more or fewer than vectors.
    pub fn finish(
        mut self,
        table: &str,
        ids: impl Iterator<Item = i64>,
    ) -> Result<PublishedFile, PublishError> {
        let n_rows = self.layout.n_rows;
        assert!(self.rows == n_rows, "{} vectors, {n_rows} in the header", self.rows);
        if let Some(header) = self.layout.ids_header() {
            self.file.buffer.extend(header);
            let mut n_ids = 0;
            for id in ids {
                n_ids += 1;
                self.file.buffer.extend(id.to_le_bytes());
                self.file.send_full_parts()?;
            }
            assert!(n_ids == n_rows, "{n_ids} ids of {n_rows} vectors");
        }
        self.file.finish(table, n_rows as u64)
    }
}

/// Bytes on their way to one object.
struct Upload<'a> {
    output: &'a Output,
    path: String,
    /// What is not sent yet.
    buffer: Vec<u8>,
    /// Absent until there is more than one part.
    parts: Option<Box<dyn MultipartUpload>>,
    /// Parts on their way.
    in_flight: VecDeque<JoinHandle<object_store::Result<()>>>,
    digest: Sha256,
    bytes: u64,
}

impl<'a> Upload<'a> {
    fn new(output: &'a Output, path: &str) -> Self {
        let (path, digest) = (path.to_owned(), Sha256::new());
        let in_flight = VecDeque::new();
        Self { output, path, buffer: Vec::new(), parts: None, in_flight, digest, bytes: 0 }
    }

    #[inline]
    fn send_full_parts(&mut self) -> Result<(), PublishError> {
        while self.buffer.len() >= PART_BYTES {
            let rest = self.buffer.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.buffer, rest);
            self.send_part(part)?;
        }
        Ok(())
    }

    fn send_part(&mut self, part: Vec<u8>) -> Result<(), PublishError> {
        self.count(&part);
        if self.parts.is_none() {
            let Self { output, path, .. } = self;
            let started = output
                .runtime
                .wait(async { output.store.put_multipart(&Key::parse(&*path)?).await });
            self.parts = Some(started.map_err(|source| output.store_error(path, source))?);
        }
        self.wait_until_in_flight(PARTS_AT_ONCE - 1)?;
        let parts = self.parts.as_mut().expect("it was started above");
        self.in_flight.push_back(self.output.runtime.spawn(parts.put_part(part.into())));
        Ok(())
    }

    /// Waits until no more than so many parts are on their way.
    fn wait_until_in_flight(&mut self, n_parts: usize) -> Result<(), PublishError> {
        while self.in_flight.len() > n_parts {
            let first = self.in_flight.pop_front().expect("it is not empty");
            let sent = self.output.runtime.wait(first).expect("sending a part does not panic");
            sent.map_err(|source| self.output.store_error(&self.path, source))?;
        }
        Ok(())
    }

    fn count(&mut self, part: &[u8]) {
        self.digest.update(part);
        self.bytes += part.len() as u64;
    }

    fn finish(mut self, table: &str, rows: u64) -> Result<PublishedFile, PublishError> {
        let last = std::mem::take(&mut self.buffer);
        if self.parts.is_none() {
            self.count(&last);
            self.output.put_behind(&self.path, last.into())?;
        } else {
            if !last.is_empty() {
                self.send_part(last)?;
            }
            self.wait_until_in_flight(0)?;
            let mut parts = self.parts.take().expect("it is not none");
            let (output, path, bytes) = (self.output, Key::from(self.path.as_str()), self.bytes);
            let completed = output.runtime.wait(async {
                let completed = parts.complete().await.map(drop);
                output.settle_upload(&path, bytes, completed).await
            });
            completed.map_err(|source| self.output.store_error(&self.path, source))?;
        }
        let sha256 = format!("{:x}", std::mem::take(&mut self.digest).finalize());
        let (path, table) = (self.path.clone(), table.to_owned());
        Ok(PublishedFile { path, table, bytes: self.bytes, rows, sha256 })
    }
}

impl Drop for Upload<'_> {
    /// Parts of a file that was given up would stay in an object store, and cost, for ever.
    fn drop(&mut self) {
        for part in self.in_flight.drain(..) {
            part.abort();
        }
        if let Some(mut parts) = self.parts.take() {
            let _ = self.output.runtime.wait(parts.abort());
        }
    }
}
