use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::*;

fn rows(from: usize, to: usize) -> RecordBatch {
    let score = |row: usize| (!row.is_multiple_of(7)).then_some(row as f32 / 8.0);
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("user_id", Arc::new(Int64Array::from_iter_values(from as i64..to as i64)), false),
        (
            "item_id",
            Arc::new(StringArray::from_iter_values((from..to).map(|i| format!("i{}", i % 100)))),
            false,
        ),
        ("score", Arc::new(Float32Array::from_iter((from..to).map(score))), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn encode(n: usize) -> EncodedFile {
    let schema = rows(0, 0).schema();
    let mut file = TableFile::new("user_top_k", &schema, &["user_id", "item_id"]).unwrap();
    for from in (0..n).step_by(BATCH_ROWS) {
        file.write(&rows(from, n.min(from + BATCH_ROWS))).unwrap();
    }
    file.finish().unwrap()
}

#[test]
fn equal_rows_give_equal_bytes() {
    let file = encode(200_000);
    assert_eq!(file, encode(200_000));
    assert_eq!((file.rows, file.sha256.len()), (200_000, 64));
}

#[test]
fn metadata_of_the_schema_is_not_written() {
    let schema = rows(0, 0).schema();
    let metadata = std::collections::HashMap::from([("host".to_owned(), "a1".to_owned())]);
    let marked = schema.as_ref().clone().with_metadata(metadata);
    let encode = |schema| TableFile::new("items", schema, &[]).unwrap().finish().unwrap();
    assert_eq!(encode(&schema), encode(&marked));
}

#[test]
fn the_footer_says_how_it_was_written() {
    let reader = SerializedFileReader::new(encode(1_200_000).bytes).unwrap();
    let footer = reader.metadata();
    assert_eq!(footer.file_metadata().created_by(), Some("tidemill"));
    assert_eq!(footer.file_metadata().version(), 1);
    let groups: Vec<_> = footer.row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [1 << 20, 1_200_000 - (1 << 20)]);
    let sorting = footer.row_group(0).sorting_columns().unwrap();
    let sorting: Vec<_> =
        sorting.iter().map(|column| (column.column_idx, column.descending)).collect();
    assert_eq!(sorting, [(0, false), (1, false)]);
    assert!(footer.row_group(0).column(0).statistics().is_some());
}

/// The footer of a file of `n` rows with vectors of 3 floats.
fn vectors_footer(n: usize) -> std::sync::Arc<parquet::file::metadata::ParquetMetaData> {
    let values = Arc::new(Float32Array::from_iter_values((0..3 * n).map(|i| (i % 5) as f32)));
    let element = Arc::new(Field::new("element", DataType::Float32, false));
    let vectors = Arc::new(FixedSizeListArray::new(element, 3, values, None)) as ArrayRef;
    let ids = Arc::new(Int64Array::from_iter_values(0..n as i64)) as ArrayRef;
    let rows = [("item_id", ids, false), ("embedding", vectors, false)];
    let rows = RecordBatch::try_from_iter_with_nullable(rows).unwrap();
    let file = TableFile::with_vectors("item_factors", &rows.schema(), &["item_id"], "embedding");
    let mut file = file.unwrap();
    for from in (0..n).step_by(BATCH_ROWS) {
        file.write(&rows.slice(from, BATCH_ROWS.min(n - from))).unwrap();
    }
    let bytes = file.finish().unwrap().bytes;
    SerializedFileReader::new(bytes).unwrap().metadata().clone().into()
}

#[test]
fn vectors_have_small_row_groups_and_no_dictionary() {
    let footer = vectors_footer(100_000);
    let groups: Vec<_> = footer.row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [65_536, 34_464]);
    let column = footer.row_group(0).column(1);
    assert_eq!(column.column_path().string(), "embedding.list.element");
    assert!(column.dictionary_page_offset().is_none() && column.statistics().is_none());
    assert!(footer.row_group(0).column(0).statistics().is_some());
}

#[test]
fn a_table_without_rows_is_a_file_too() {
    let file = encode(0);
    assert_eq!(file.rows, 0);
    let reader = SerializedFileReader::new(Bytes::clone(&file.bytes)).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
}

#[test]
#[should_panic(expected = "are not cut every 65536 rows")]
fn rows_after_a_short_batch_are_refused() {
    let mut file = TableFile::new("items", &rows(0, 0).schema(), &[]).unwrap();
    file.write(&rows(0, 10)).unwrap();
    let _ = file.write(&rows(10, 20));
}

#[test]
#[should_panic(expected = "a batch of table \"items\" has other columns")]
fn a_batch_with_other_columns_is_refused() {
    let mut file = TableFile::new("items", &rows(0, 0).schema(), &[]).unwrap();
    let _ = file.write(&rows(0, 10).project(&[0]).unwrap());
}
