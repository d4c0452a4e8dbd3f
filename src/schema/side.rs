//! Columns of the tables beside the logs: titles, segments, filters.

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use super::{ColumnError, IdColumn};

/// A column of ids.
///
/// # Errors
/// The column is missing or cannot hold ids.
pub fn id_column(batch: &RecordBatch, name: &str) -> Result<IdColumn, ColumnError> {
    let array =
        batch.column_by_name(name).ok_or_else(|| ColumnError::missing(name, &batch.schema()))?;
    IdColumn::try_new(array).map_err(|source| ColumnError::Ids { column: name.to_owned(), source })
}

/// A column as text: numbers in decimal, booleans as `true` and `false`.
///
/// # Errors
/// The column is missing or has no text form.
pub fn text_column(batch: &RecordBatch, name: &str) -> Result<StringArray, ColumnError> {
    let array =
        batch.column_by_name(name).ok_or_else(|| ColumnError::missing(name, &batch.schema()))?;
    Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
}
