//! Parquet files: footers, and row groups as record batches.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use futures::FutureExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
};
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

use super::error::ReadError;
use super::list::InputFile;
use super::location::Location;
use super::object::PlannedObject;
use super::table_writer::BATCH_ROWS;

/// Footers asked for at a time.
const FOOTERS_AT_ONCE: usize = 8;

/// Most bytes that the projected columns of one row group may declare, unpacked.
const ROW_GROUP_BYTES_MAX: u64 = 1 << 30;

/// Past this many declared bytes, more than a thousandfold compression is taken for a bomb.
const BOMB_BYTES: u64 = 64 << 20;
const BOMB_RATIO: u64 = 1000;

type Cause = Box<dyn Error + Send + Sync>;

/// The footer of one file: schema, row groups, statistics.
#[derive(Clone, Debug)]
pub struct Footer(ArrowReaderMetadata);

impl Footer {
    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        self.0.schema()
    }

    /// The footer as Parquet has it.
    pub fn metadata(&self) -> &Arc<ParquetMetaData> {
        self.0.metadata()
    }

    /// Number of row groups.
    pub fn n_row_groups(&self) -> usize {
        self.metadata().num_row_groups()
    }

    /// Rows in one row group.
    pub fn row_group_rows(&self, row_group: usize) -> u64 {
        let rows = self.metadata().row_group(row_group).num_rows();
        rows.try_into().expect("negative counts are refused when the footer is read")
    }

    /// The least and the largest value of a column of one row group, an array of one row each: bounds of
    /// the values, perhaps wide ones. `None` where the footer does not say.
    pub fn bounds(&self, row_group: usize, column: &str) -> Option<[ArrayRef; 2]> {
        let metadata = self.metadata();
        let schema = metadata.file_metadata().schema_descr();
        let found = StatisticsConverter::try_new(column, self.schema(), schema).ok()?;
        let of = || [metadata.row_group(row_group)];
        let bounds = [found.row_group_mins(of()).ok()?, found.row_group_maxes(of()).ok()?];
        bounds.iter().all(|bound| bound.null_count() == 0).then_some(bounds)
    }

    /// Rows in the file.
    pub fn n_rows(&self) -> u64 {
        (0..self.n_row_groups()).map(|row_group| self.row_group_rows(row_group)).sum()
    }
}

/// Reads the footer of one file.
///
/// # Errors
/// [`ReadError`] for what is no Parquet file, empty, truncated, corrupt or replaced.
pub fn footer(location: &Location, file: &InputFile) -> Result<Footer, ReadError> {
    location.runtime.wait(load_footer(location, file))
}

/// Reads the footers of many files, in their order, some at a time.
///
/// # Errors
/// As [`footer`], for the first file in order that fails.
pub fn footers(location: &Location, files: &[InputFile]) -> Result<Vec<Footer>, ReadError> {
    let loads = files.iter().map(|file| load_footer(location, file));
    location.runtime.wait_for_all(FOOTERS_AT_ONCE, loads)
}

/// Reads all rows of one file, which has to fit in memory: for small side tables.
///
/// `columns` as in [`read_row_group`]; `None` for all of them.
///
/// # Errors
/// As [`footer`] and [`read_row_group`].
pub fn read_all(
    location: &Location,
    file: &InputFile,
    columns: Option<&[&str]>,
) -> Result<Vec<RecordBatch>, ReadError> {
    let footer = footer(location, file)?;
    let schema = footer.schema().clone();
    let all: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let columns = columns.unwrap_or(&all);
    let mut batches = Vec::new();
    for row_group in 0..footer.n_row_groups() {
        for batch in read_row_group(location, file, &footer, row_group, columns)? {
            batches.push(batch?);
        }
    }
    Ok(batches)
}

/// Fetches the named columns of one row group, to be decoded as the result is iterated.
///
/// Batches hold [`BATCH_ROWS`] rows, the last fewer, and the columns in the order of the file.
/// Holds the compressed columns of the row group until it is dropped; other columns are not read,
/// so damage to them is not noticed.
///
/// # Errors
/// [`ReadError::NoColumn`], [`ReadError::TooLarge`], [`ReadError::Replaced`], and whatever the
/// store says.
///
/// # Panics
/// If `row_group` is out of range.
pub fn read_row_group(
    location: &Location,
    file: &InputFile,
    footer: &Footer,
    row_group: usize,
    columns: &[&str],
) -> Result<RowGroupReader, ReadError> {
    let fetch = fetch(location, file, footer, &footer.0, row_group, columns, BATCH_ROWS);
    location.runtime.wait(fetch)
}

/// As [`read_row_group`], but texts come as dictionaries where the row group holds a column so and in
/// no other way: what is made of an id is made once of each that differs. Batches hold `batch_rows`.
pub(super) async fn fetch_as_stored(
    location: &Location,
    file: &InputFile,
    footer: &Footer,
    row_group: usize,
    columns: &[&str],
    batch_rows: usize,
) -> Result<RowGroupReader, ReadError> {
    let as_stored = with_dictionaries(footer, row_group, columns);
    let metadata = as_stored.as_ref().unwrap_or(&footer.0);
    fetch(location, file, footer, metadata, row_group, columns, batch_rows).await
}

/// The footer with a dictionary in the place of each column of text that is one in a row group;
/// `None` if there is none.
fn with_dictionaries(
    footer: &Footer,
    row_group: usize,
    columns: &[&str],
) -> Option<ArrowReaderMetadata> {
    let group = footer.metadata().row_group(row_group);
    let is_dictionary = |name: &str| {
        let mut chunks = group.columns().iter();
        let chunk = chunks.find(|chunk| chunk.column_path().parts() == [name.to_owned()]);
        let pages = chunk.and_then(|chunk| chunk.page_encoding_stats_mask());
        pages.is_some_and(|pages| {
            pages.is_only(Encoding::RLE_DICTIONARY) || pages.is_only(Encoding::PLAIN_DICTIONARY)
        })
    };
    let mut found = false;
    let as_stored = |field: &FieldRef| -> FieldRef {
        let is_text = matches!(
            field.data_type(),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary
        );
        if !is_text || !columns.contains(&field.name().as_str()) || !is_dictionary(field.name()) {
            return field.clone();
        }
        found = true;
        let values = Box::new(field.data_type().clone());
        let data_type = DataType::Dictionary(Box::new(DataType::Int32), values);
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    };
    let fields: Fields = footer.schema().fields().iter().map(as_stored).collect();
    if !found {
        return None;
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, footer.schema().metadata().clone()));
    let options =
        ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Skip).with_schema(schema);
    // A column that Arrow does not take in another type than its own is read in that.
    ArrowReaderMetadata::try_new(Arc::clone(footer.metadata()), options).ok()
}

async fn fetch(
    location: &Location,
    file: &InputFile,
    footer: &Footer,
    metadata: &ArrowReaderMetadata,
    row_group: usize,
    columns: &[&str],
    batch_rows: usize,
) -> Result<RowGroupReader, ReadError> {
    let mask = projection(file, footer, columns)?;
    let rows_left = footer.row_group_rows(row_group);
    check_size(file, footer, row_group, &mask)?;
    let place = Place { url: file.url.clone(), row_group };
    let object = planned(location, file)?;
    let fetch = async {
        let mut stream =
            ParquetRecordBatchStreamBuilder::new_with_metadata(object, metadata.clone())
                .with_projection(mask)
                .with_row_groups(vec![row_group])
                .with_batch_size(batch_rows)
                .build()?;
        stream.next_row_group().await
    };
    let reader = match AssertUnwindSafe(fetch).catch_unwind().await {
        Ok(reader) => reader.map_err(|error| place.error(error))?,
        Err(panic) => return Err(place.corrupt(panic_message(&*panic))),
    };
    Ok(RowGroupReader { reader, place, rows_left })
}

/// The batches of one row group. Ends after the first error.
pub struct RowGroupReader {
    reader: Option<ParquetRecordBatchReader>,
    place: Place,
    rows_left: u64,
}

impl Iterator for RowGroupReader {
    type Item = Result<RecordBatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Decoders panic on some corrupt pages; a panic here would end a whole cluster.
        let reader = self.reader.as_mut();
        let decoded = catch_unwind(AssertUnwindSafe(|| reader?.next()));
        let error = match decoded {
            Ok(Some(Ok(batch))) if batch.num_rows() as u64 <= self.rows_left => {
                self.rows_left -= batch.num_rows() as u64;
                return Some(Ok(batch));
            }
            Ok(Some(Ok(_))) => self.place.corrupt("more rows than the footer declares".into()),
            Ok(Some(Err(error))) => self.place.corrupt(error.into()),
            Ok(None) if self.rows_left == 0 => return None,
            // Missing rows would look like the end of the data to everything downstream.
            Ok(None) => self.place.corrupt("fewer rows than the footer declares".into()),
            Err(panic) => self.place.corrupt(panic_message(&*panic)),
        };
        self.reader = None;
        self.rows_left = 0;
        Some(Err(error))
    }
}

/// Where a row group is, for messages.
struct Place {
    url: String,
    row_group: usize,
}

impl Place {
    fn corrupt(&self, source: Cause) -> ReadError {
        let (url, row_group) = (self.url.clone(), self.row_group);
        ReadError::CorruptRowGroup { url, row_group, source }
    }

    fn error(&self, error: ParquetError) -> ReadError {
        let store_error = |error| store_error(&self.url, error);
        external(error).map_or_else(|error| self.corrupt(error.into()), store_error)
    }
}

pub(super) async fn load_footer(
    location: &Location,
    file: &InputFile,
) -> Result<Footer, ReadError> {
    let mut object = planned(location, file)?;
    if file.bytes == 0 {
        return Err(ReadError::Empty { url: file.url.clone() });
    }
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Skip);
    let load = ArrowReaderMetadata::load_async(&mut object, options);
    let cause = match AssertUnwindSafe(load).catch_unwind().await {
        Ok(Ok(metadata)) => match refuse_counts(&metadata) {
            None => return Ok(Footer(metadata)),
            Some(cause) => cause,
        },
        Ok(Err(error)) => match external(error) {
            Ok(error) => return Err(store_error(&file.url, error)),
            Err(error) => error.into(),
        },
        Err(panic) => panic_message(&*panic),
    };
    Err(explain_footer(&object, file, cause).await)
}

/// What is wrong with row counts that cannot be.
fn refuse_counts(metadata: &ArrowReaderMetadata) -> Option<Cause> {
    let mut rows = metadata.metadata().row_groups().iter().map(|group| group.num_rows());
    let total = rows.try_fold(0_i64, |sum, rows| sum.checked_add(rows).filter(|_| rows >= 0));
    total.is_none().then(|| "a negative or overflowing number of rows".into())
}

/// Says what a file is that has no usable footer, by its first and last four bytes.
async fn explain_footer(object: &PlannedObject, file: &InputFile, source: Cause) -> ReadError {
    const MAGIC: &[u8] = b"PAR1";
    let url = file.url.clone();
    let head = object.get(0..file.bytes.min(4)).await;
    let tail = object.get(file.bytes.saturating_sub(4)..file.bytes).await;
    match (head, tail) {
        (_, Ok(tail)) if tail == MAGIC => ReadError::CorruptFooter { url, source },
        (Ok(head), Ok(_)) if head == MAGIC => ReadError::Truncated { url },
        (Ok(_), Ok(_)) => ReadError::NotParquet { url },
        (Err(_), _) | (_, Err(_)) => ReadError::CorruptFooter { url, source },
    }
}

fn projection(
    file: &InputFile,
    footer: &Footer,
    columns: &[&str],
) -> Result<ProjectionMask, ReadError> {
    let fields = footer.schema().fields();
    let root = |column: &&str| {
        fields.iter().position(|field| field.name() == column).ok_or_else(|| {
            let found: Vec<_> =
                fields.iter().map(|field| format!("\"{}\"", field.name())).collect();
            let (url, column) = (file.url.clone(), column.to_string());
            ReadError::NoColumn { url, column, found: found.join(", ") }
        })
    };
    let roots = columns.iter().map(root).collect::<Result<Vec<_>, _>>()?;
    Ok(ProjectionMask::roots(footer.0.parquet_schema(), roots))
}

/// Refuses a row group by what its footer declares, before anything is unpacked.
fn check_size(
    file: &InputFile,
    footer: &Footer,
    row_group: usize,
    mask: &ProjectionMask,
) -> Result<(), ReadError> {
    let (mut bytes, mut compressed) = (0_u64, 0_u64);
    for (leaf, column) in footer.metadata().row_group(row_group).columns().iter().enumerate() {
        if mask.leaf_included(leaf) {
            // A negative size is nonsense, and refused as too large.
            bytes = bytes.saturating_add(column.uncompressed_size() as u64);
            compressed = compressed.saturating_add(column.compressed_size() as u64);
        }
    }
    let bomb = bytes > BOMB_BYTES && bytes / BOMB_RATIO > compressed;
    if bytes > ROW_GROUP_BYTES_MAX || bomb {
        let url = file.url.clone();
        return Err(ReadError::TooLarge { url, row_group, bytes, compressed });
    }
    Ok(())
}

fn planned(location: &Location, file: &InputFile) -> Result<PlannedObject, ReadError> {
    PlannedObject::new(location, file).map_err(|error| store_error(&file.url, error))
}

/// The store's error inside a Parquet error, or the Parquet error if it is one of its own.
fn external(error: ParquetError) -> Result<object_store::Error, ParquetError> {
    match error {
        ParquetError::External(inner) => match inner.downcast() {
            Ok(error) => Ok(*error),
            Err(inner) => Err(ParquetError::External(inner)),
        },
        other => Err(other),
    }
}

pub(super) fn store_error(url: &str, source: object_store::Error) -> ReadError {
    use object_store::Error::{NotFound, Precondition};
    let url = url.to_owned();
    match source {
        Precondition { .. } | NotFound { .. } => ReadError::Replaced { url, source },
        _ => ReadError::Store { url, source },
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> Cause {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the decoder panicked: {}", text.as_deref().unwrap_or("no message")).into()
}
