//! FAISS flat files, read block by block: memory holds one block, whatever the file's size.

use std::ops::Range;

use super::error::ReadError;
use super::list::InputFile;
use super::location::Location;
use super::object::PlannedObject;
use super::reader::store_error;
use super::runtime::IoRuntime;
use crate::schema::vectors::{FLAT_PREFIX_BYTES, FlatFile, floats, parse_flat, vector_ids};

/// Bytes of vectors, or of ids, that are in memory at a time; one vector at least.
const BLOCK_BYTES: u64 = 1 << 20;

/// A FAISS flat file, its header checked.
pub struct VectorFile {
    object: PlannedObject,
    runtime: IoRuntime,
    url: String,
    flat: FlatFile,
}

/// Consecutive vectors of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorBlock {
    /// Their ids.
    pub ids: Vec<i64>,
    /// Their floats, row after row.
    pub floats: Vec<f32>,
}

impl VectorFile {
    /// Opens a file of `location` and reads its header.
    ///
    /// # Errors
    /// [`ReadError::Empty`], [`ReadError::NotFlat`] for what is no flat index or contradicts itself,
    /// and whatever the store says.
    pub fn open(location: &Location, file: &InputFile) -> Result<Self, ReadError> {
        let url = file.url.clone();
        let object =
            PlannedObject::new(location, file).map_err(|error| store_error(&url, error))?;
        let runtime = location.runtime.clone();
        if file.bytes == 0 {
            return Err(ReadError::Empty { url });
        }
        let prefix = runtime.wait(object.fetch(0..file.bytes.min(FLAT_PREFIX_BYTES as u64)));
        let prefix = prefix.map_err(|error| store_error(&url, error))?;
        match parse_flat(&prefix, file.bytes) {
            Ok(flat) => Ok(Self { object, runtime, url, flat }),
            Err(source) => Err(ReadError::NotFlat { url, source }),
        }
    }

    /// What the file holds.
    pub fn flat(&self) -> &FlatFile {
        &self.flat
    }

    /// All vectors, in the order of the file.
    pub fn blocks(&self) -> impl Iterator<Item = Result<VectorBlock, ReadError>> + '_ {
        let rows_per_block = (BLOCK_BYTES / self.row_bytes()).max(1);
        self.ranges(rows_per_block).map(|rows| {
            Ok(VectorBlock { ids: self.ids(rows.clone())?, floats: self.floats(rows)? })
        })
    }

    /// The vector of `id`; the last one where the file has several, as FAISS does it.
    ///
    /// # Errors
    /// Whatever the store says.
    pub fn find(&self, id: i64) -> Result<Option<Vec<f32>>, ReadError> {
        let mut found = None;
        if self.flat.ids_at.is_some() {
            for rows in self.ranges(BLOCK_BYTES / 8) {
                let place = self.ids(rows.clone())?.iter().rposition(|other| *other == id);
                found = place.map(|place| rows.start + place as u64).or(found);
            }
        } else {
            found = u64::try_from(id).ok().filter(|row| *row < self.flat.n_rows);
        }
        found.map(|row| self.floats(row..row + 1)).transpose()
    }

    fn ranges(&self, rows_per_range: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let n_rows = self.flat.n_rows;
        let starts = (0..n_rows.div_ceil(rows_per_range)).map(move |range| range * rows_per_range);
        starts.map(move |start| start..n_rows.min(start + rows_per_range))
    }

    fn row_bytes(&self) -> u64 {
        4 * self.flat.dimension as u64
    }

    fn floats(&self, rows: Range<u64>) -> Result<Vec<f32>, ReadError> {
        let bytes = self.fetch(self.flat.floats_at, self.row_bytes(), rows)?;
        Ok(floats(&bytes).collect())
    }

    fn ids(&self, rows: Range<u64>) -> Result<Vec<i64>, ReadError> {
        match self.flat.ids_at {
            Some(ids_at) => Ok(vector_ids(&self.fetch(ids_at, 8, rows)?).collect()),
            None => Ok(rows.map(|row| row as i64).collect()),
        }
    }

    fn fetch(
        &self,
        start: u64,
        row_bytes: u64,
        rows: Range<u64>,
    ) -> Result<bytes::Bytes, ReadError> {
        let range = start + rows.start * row_bytes..start + rows.end * row_bytes;
        let fetched = self.runtime.wait(self.object.fetch(range));
        fetched.map_err(|error| store_error(&self.url, error))
    }
}
