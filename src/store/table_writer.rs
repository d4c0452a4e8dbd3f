//! Tables as Parquet: the same rows give the same bytes.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::schema::types::ColumnPath;
use sha2::{Digest, Sha256};

use super::error::PublishError;

/// Rows in every batch of a table file but its last, and in the batches that are read.
pub const BATCH_ROWS: usize = 65_536;

/// Rows in every row group of a table file but its last.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// The same where a row holds a vector: a row group is what readers and writers hold in memory.
const WIDE_ROW_GROUP_ROWS: usize = BATCH_ROWS;

/// A table file under construction, in memory.
///
/// Page boundaries follow the batches, so these are cut every [`BATCH_ROWS`] rows from the start
/// of the file. Nothing that differs between equal runs is written: no clock, no version of ours,
/// no metadata of the schema.
pub struct TableFile {
    table: String,
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
}

/// A finished table file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedFile {
    /// The table.
    pub table: String,
    /// The file.
    pub bytes: Bytes,
    /// Rows in it.
    pub rows: u64,
    /// Hex digest of `bytes`.
    pub sha256: String,
}

impl TableFile {
    /// Starts a file of `table`, whose rows come sorted by `sorted_by`, ascending, nulls last.
    ///
    /// # Errors
    /// When Parquet has no form for a column.
    ///
    /// # Panics
    /// If `sorted_by` names a column that is not there.
    pub fn new(table: &str, schema: &Schema, sorted_by: &[&str]) -> Result<Self, PublishError> {
        // Hardly a score comes twice: a dictionary of them takes time, and a tenth more bytes.
        let is_float = |field: &&FieldRef| field.data_type().is_floating();
        let floats = schema.fields().iter().filter(is_float);
        let leaf = |field: &FieldRef| ColumnPath::new(vec![field.name().clone()]);
        let properties = floats.fold(properties(ROW_GROUP_ROWS), |properties, field| {
            properties.set_column_dictionary_enabled(leaf(field), false)
        });
        Self::start(table, schema, sorted_by, properties)
    }

    /// The same for a table whose `vectors` column holds a list of floats in every row: its row
    /// groups are small, and its floats in no dictionary, since hardly one comes twice.
    ///
    /// # Errors
    /// As [`TableFile::new`].
    ///
    /// # Panics
    /// As [`TableFile::new`].
    pub fn with_vectors(
        table: &str,
        schema: &Schema,
        sorted_by: &[&str],
        vectors: &str,
    ) -> Result<Self, PublishError> {
        let leaf = ColumnPath::new(vec![vectors.to_owned(), "list".into(), "element".into()]);
        let properties = properties(WIDE_ROW_GROUP_ROWS)
            .set_column_dictionary_enabled(leaf.clone(), false)
            .set_column_statistics_enabled(leaf, EnabledStatistics::None);
        Self::start(table, schema, sorted_by, properties)
    }

    /// The same for a table of state, which no warehouse reads. Columns in `bare` are neither in a dictionary
    /// nor compressed, as that would make them little shorter: integers are stored as differences from row
    /// to row, bytes as they are.
    ///
    /// # Errors
    /// As [`TableFile::new`].
    ///
    /// # Panics
    /// If `sorted_by` or `bare` names a column that is not there.
    pub fn of_state(
        schema: &Schema,
        sorted_by: &[&str],
        bare: &[&str],
    ) -> Result<Self, PublishError> {
        let mut properties =
            properties(ROW_GROUP_ROWS).set_statistics_enabled(EnabledStatistics::None);
        for &name in bare {
            let field = schema.field_with_name(name).expect("a column of the table");
            let encoding = match field.data_type().is_integer() {
                true => Encoding::DELTA_BINARY_PACKED,
                false => Encoding::PLAIN,
            };
            let leaf = ColumnPath::new(vec![name.to_owned()]);
            properties = properties
                .set_column_compression(leaf.clone(), Compression::UNCOMPRESSED)
                .set_column_dictionary_enabled(leaf.clone(), false)
                .set_column_encoding(leaf, encoding);
        }
        Self::start("state", schema, sorted_by, properties)
    }

    fn start(
        table: &str,
        schema: &Schema,
        sorted_by: &[&str],
        properties: WriterPropertiesBuilder,
    ) -> Result<Self, PublishError> {
        let schema = Arc::new(Schema::new(schema.fields().clone()));
        let writer = sorting_columns(&schema, sorted_by)
            .and_then(|sorting| {
                let properties = properties.set_sorting_columns(sorting).build();
                ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))
            })
            .map_err(|source| encode_error(table, source))?;
        Ok(Self { table: table.to_owned(), schema, writer, rows: 0 })
    }

    /// Appends the next [`BATCH_ROWS`] rows, or the last ones.
    ///
    /// # Errors
    /// When Parquet refuses a value.
    ///
    /// # Panics
    /// If a batch is larger than that, or follows one that was smaller: its pages would depend on
    /// how the caller cut the rows. If it has other columns than the file, which the encoder would
    /// drop or mix up without a word.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), PublishError> {
        let whole = self.rows.is_multiple_of(BATCH_ROWS as u64) && batch.num_rows() <= BATCH_ROWS;
        assert!(whole, "batches of table {:?} are not cut every {BATCH_ROWS} rows", self.table);
        let same = batch.schema_ref().fields() == self.schema.fields();
        assert!(same, "a batch of table {:?} has other columns", self.table);
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch).map_err(|source| encode_error(&self.table, source))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When Parquet refuses the footer.
    pub fn finish(self) -> Result<EncodedFile, PublishError> {
        let Self { table, writer, rows, .. } = self;
        let bytes = writer.into_inner().map_err(|source| encode_error(&table, source))?;
        Ok(EncodedFile { sha256: sha256_hex(&bytes), bytes: bytes.into(), table, rows })
    }
}

impl EncodedFile {
    /// The rows as they were written, in batches of `n` at most, decoded as they are asked for.
    ///
    /// # Errors
    /// [`PublishError::Encode`] for what was not written by this version.
    pub fn batches(
        &self,
        n: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, PublishError>> + use<'_>, PublishError>
    {
        batches(&self.table, self.bytes.clone(), n)
    }
}

/// The rows in the bytes of a file of `table`, in batches of `n` at most, decoded as they are asked for.
pub(super) fn batches<'t>(
    table: &'t str,
    bytes: Bytes,
    n: usize,
) -> Result<impl Iterator<Item = Result<RecordBatch, PublishError>> + use<'t>, PublishError> {
    let error = move |source: ParquetError| encode_error(table, source);
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .and_then(|builder| builder.with_batch_size(n).build())
        .map_err(error)?;
    Ok(reader.map(move |batch| batch.map_err(|source| error(source.into()))))
}

/// Every setting that moves a byte is written out: a new default of the library must not. Version 1
/// pages, since not every warehouse reads the delta encodings of version 2.
fn properties(row_group_rows: usize) -> WriterPropertiesBuilder {
    let level = ZstdLevel::try_new(3).expect("3 is a zstd level");
    WriterProperties::builder()
        .set_created_by("tidemill".to_owned())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(level))
        .set_dictionary_enabled(true)
        .set_dictionary_page_size_limit(1 << 20)
        .set_data_page_size_limit(1 << 20)
        .set_data_page_row_count_limit(20_000)
        .set_write_batch_size(1024)
        .set_max_row_group_row_count(Some(row_group_rows))
        .set_max_row_group_bytes(None)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(64))
        .set_column_index_truncate_length(Some(64))
}

fn sorting_columns(
    schema: &SchemaRef,
    sorted_by: &[&str],
) -> Result<Option<Vec<SortingColumn>>, ParquetError> {
    let leaves = ArrowSchemaConverter::new().convert(schema)?;
    let column = |name: &&str| {
        let leaf = leaves.columns().iter().position(|leaf| leaf.path().string() == *name);
        let leaf = leaf.unwrap_or_else(|| panic!("no column {name:?} to be sorted by"));
        SortingColumn { column_idx: leaf as i32, descending: false, nulls_first: false }
    };
    Ok((!sorted_by.is_empty()).then(|| sorted_by.iter().map(column).collect()))
}

pub(super) fn encode_error(table: &str, source: ParquetError) -> PublishError {
    PublishError::Encode { table: table.to_owned(), source }
}

/// The SHA-256 of `bytes` in hex.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
