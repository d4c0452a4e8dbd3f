//! Files and row groups asked for before they are needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::OnceCell;

use super::ahead::Ahead;
use super::error::ReadError;
use super::list::InputFile;
use super::location::Location;
use super::object::PlannedObject;
use super::reader::{Footer, RowGroupReader, fetch_as_stored, load_footer};
use super::runtime::IoRuntime;

/// A file whose footer is read when a row group of it is first asked for.
#[derive(Clone, Debug)]
pub struct OpenFile {
    location: Location,
    file: InputFile,
    footer: Arc<OnceCell<Footer>>,
}

/// A row group that is about to be read.
#[derive(Clone, Debug)]
pub struct RowGroupRequest {
    /// The file.
    pub file: OpenFile,
    /// Which of its row groups.
    pub row_group: usize,
    /// The columns that are read.
    pub columns: Vec<String>,
    /// About as many bytes as it has in the file.
    pub bytes: u64,
}

/// Row groups that are about to be read, roughly in their order, each once, by several threads.
#[derive(Debug)]
pub struct RowGroups(Ahead<Result<RowGroupReader, ReadError>>);

impl OpenFile {
    /// Nothing is read yet.
    pub fn new(location: &Location, file: InputFile) -> Self {
        Self { location: location.clone(), file, footer: Arc::default() }
    }
}

impl RowGroupRequest {
    async fn fetch(&self, batch_rows: usize) -> Result<RowGroupReader, ReadError> {
        let OpenFile { location, file, footer } = &self.file;
        let footer = footer.get_or_try_init(|| load_footer(location, file)).await?;
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        fetch_as_stored(location, file, footer, self.row_group, &columns, batch_rows).await
    }
}

impl RowGroups {
    /// Nothing is read yet. Batches will hold `batch_rows`.
    pub fn new(runtime: &IoRuntime, requests: Vec<RowGroupRequest>, batch_rows: usize) -> Self {
        let is_on_disk = requests.iter().all(|request| request.file.location.is_on_disk);
        let bytes = requests.iter().map(|request| request.bytes).collect();
        let fetch = move |place: usize| {
            let request = requests[place].clone();
            async move { request.fetch(batch_rows).await }.boxed()
        };
        Self(Ahead::new(runtime, is_on_disk, bytes, fetch))
    }

    /// A row group, to be decoded as the result is iterated: see [`read_row_group`], but texts come as
    /// dictionaries where the row group holds a column so and in no other way.
    ///
    /// # Errors
    /// As [`read_row_group`] and [`footer`].
    ///
    /// # Panics
    /// If it was taken before.
    ///
    /// [`read_row_group`]: super::read_row_group
    /// [`footer`]: super::footer
    pub fn take(&self, place: usize) -> Result<RowGroupReader, ReadError> {
        self.0.take(place).expect("a row group is taken once")
    }
}

/// Larger files are read a row group at a time, when it is their turn.
const WHOLE_BYTES_MAX: u64 = 16 << 20;

/// Files that are about to be read through, roughly in their order, each once, by several threads.
#[derive(Debug)]
pub struct FilesAhead {
    location: Location,
    places: BTreeMap<String, usize>,
    files: Ahead<object_store::Result<Bytes>>,
}

impl FilesAhead {
    /// Nothing is read yet.
    pub fn new<'f>(location: &Location, files: impl IntoIterator<Item = &'f InputFile>) -> Self {
        let is_small = |file: &&InputFile| file.bytes <= WHOLE_BYTES_MAX;
        let files: Vec<&InputFile> = files.into_iter().filter(is_small).collect();
        let places = files.iter().map(|file| file.key.clone()).zip(0..).collect();
        let bytes = files.iter().map(|file| file.bytes).collect();
        let files: Vec<InputFile> = files.into_iter().cloned().collect();
        let of = location.clone();
        let fetch = move |place: usize| {
            let object = PlannedObject::new(&of, &files[place]);
            let bytes = files[place].bytes;
            async move { object?.fetch(0..bytes).await }.boxed()
        };
        let files = Ahead::new(&location.runtime, location.is_on_disk, bytes, fetch);
        Self { location: location.clone(), places, files }
    }

    /// Where to read a file: in memory if all of it was fetched, else where it is.
    pub fn open(&self, file: &InputFile) -> (Location, InputFile) {
        let place = self.places.get(&file.key).filter(|_| !self.location.is_on_disk);
        let fetched = place.and_then(|&place| self.files.take(place)).and_then(Result::ok);
        // What went wrong is told by the reader, who asks again.
        let held = fetched.and_then(|bytes| self.location.holding(&file.key, bytes));
        match held {
            Some(held) => (held, InputFile { etag: None, ..file.clone() }),
            None => (self.location.clone(), file.clone()),
        }
    }
}
