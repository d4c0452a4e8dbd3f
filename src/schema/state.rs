//! The tables of stored state: keys of ids, and rows of the logs by key.

use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BinaryArray, BinaryViewArray, Int32Array, PrimitiveArray, RecordBatch,
};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, Int32Type, Schema};

use super::{IdColumn, IdRows, SchemaError, id_data_type};
use crate::types::{IdType, Ids};

/// The columns of a run of rows: packed blocks of some rows each, and how often each of them is there: 1, or
/// -1 where they take back what earlier runs have.
pub fn row_schema() -> Schema {
    Schema::new(vec![
        Field::new("copies", DataType::Int32, false),
        Field::new("rows", DataType::BinaryView, false),
    ])
}

/// Blocks of rows as a record batch.
///
/// # Errors
/// None that a caller can cause.
pub fn row_batch(blocks: &[(i32, Vec<u8>)]) -> Result<RecordBatch, SchemaError> {
    let copies: Int32Array = blocks.iter().map(|(copies, _)| Some(*copies)).collect();
    let rows = BinaryViewArray::from_iter_values(blocks.iter().map(|(_, rows)| rows));
    batch(row_schema(), vec![Arc::new(copies), Arc::new(rows)])
}

/// The blocks of a batch that [`row_batch`] made.
///
/// # Errors
/// `NotOurs` for a batch of other columns, or with nulls.
pub fn read_rows(batch: &RecordBatch) -> Result<impl Iterator<Item = (i32, &[u8])>, SchemaError> {
    let rows = bytes(batch, "rows")?;
    let copies = column::<Int32Type>(batch, "copies")?;
    Ok(copies.iter().copied().zip(rows.iter().flatten()))
}

/// The columns of a table of keys.
pub fn key_schema(id_type: IdType) -> Schema {
    Schema::new(vec![
        Field::new("key", DataType::Int32, false),
        Field::new("id", id_data_type(id_type), false),
    ])
}

/// Keys and their ids as a record batch.
///
/// # Errors
/// As of [`ids_array`](super::ids_array).
pub fn key_batch(keys: &[u32], ids: &Ids, id_type: IdType) -> Result<RecordBatch, SchemaError> {
    let of_keys = keys.iter().map(|&key| Some(key as i32)).collect::<Int32Array>();
    batch(key_schema(id_type), vec![Arc::new(of_keys), IdRows::all(ids).to_array(id_type)?])
}

/// Appends the keys and ids of a batch that [`key_batch`] made.
///
/// # Errors
/// `NotOurs` for a batch of other columns, or with nulls.
pub fn read_keys(
    batch: &RecordBatch,
    keys: &mut Vec<u32>,
    ids: &mut Ids,
) -> Result<(), SchemaError> {
    keys.extend(column::<Int32Type>(batch, "key")?.iter().map(|&key| key as u32));
    read_ids(batch, ids)
}

/// Appends the ids of a batch.
fn read_ids(batch: &RecordBatch, ids: &mut Ids) -> Result<(), SchemaError> {
    let column = batch.column_by_name("id").ok_or(SchemaError::NotOurs { column: "id" })?;
    let column = IdColumn::try_new(column)?;
    let is_int = matches!(ids, Ids::Int(_));
    if column.null_count() > 0 || column.id_type().is_int() != is_int {
        return Err(SchemaError::NotOurs { column: "id" });
    }
    (0..column.len()).for_each(|row| ids.push(column.get(row)));
    Ok(())
}

/// The columns of a table of histories, by user: the ids, and the codes of items, two bytes each.
pub fn history_schema(id_type: IdType) -> Schema {
    Schema::new(vec![
        Field::new("id", id_data_type(id_type), false),
        Field::new("codes", DataType::Binary, false),
    ])
}

/// Users and their histories as a record batch.
///
/// # Errors
/// As of [`ids_array`](super::ids_array).
pub fn history_batch<'a>(
    ids: &Ids,
    histories: impl Iterator<Item = &'a [u16]>,
    id_type: IdType,
) -> Result<RecordBatch, SchemaError> {
    let bytes = |codes: &[u16]| codes.iter().flat_map(|code| code.to_le_bytes()).collect();
    let codes = BinaryArray::from_iter_values(histories.map(bytes).collect::<Vec<Vec<u8>>>());
    let columns: Vec<Arc<dyn Array>> = vec![IdRows::all(ids).to_array(id_type)?, Arc::new(codes)];
    batch(history_schema(id_type), columns)
}

/// Appends the users of a batch that [`history_batch`] made to `ids`, their codes to `codes` and where each
/// history ends to `ends`.
///
/// # Errors
/// `NotOurs` for a batch of other columns, or with nulls.
pub fn read_histories(
    batch: &RecordBatch,
    (ids, ends, codes): (&mut Ids, &mut Vec<u32>, &mut Vec<u16>),
) -> Result<(), SchemaError> {
    read_ids(batch, ids)?;
    let column = batch.column_by_name("codes").and_then(|codes| codes.as_binary_opt::<i32>());
    let column = column.filter(|codes| codes.null_count() == 0);
    for history in column.ok_or(SchemaError::NotOurs { column: "codes" })?.iter().flatten() {
        let (history, []) = history.as_chunks::<2>() else {
            return Err(SchemaError::NotOurs { column: "codes" });
        };
        codes.extend(history.iter().map(|code| u16::from_le_bytes(*code)));
        ends.push(codes.len() as u32);
    }
    Ok(())
}

/// A group of counts of pairs: its number, where its tiles end, and its words.
pub type PairGroup<'a> = (usize, &'a [u32], &'a [[u8; 8]]);

/// The columns of a table of counts of pairs, by group of rows: where its tiles end, four bytes each, and its
/// words of eight bytes.
pub fn pair_count_schema() -> Schema {
    Schema::new(vec![
        Field::new("group", DataType::Int32, false),
        Field::new("ends", DataType::BinaryView, false),
        Field::new("words", DataType::BinaryView, false),
    ])
}

/// Groups of counts as a record batch.
///
/// # Errors
/// None that a caller can cause.
pub fn pair_count_batch(groups: &[PairGroup<'_>]) -> Result<RecordBatch, SchemaError> {
    let numbers = groups.iter().map(|(group, ..)| Some(*group as i32)).collect::<Int32Array>();
    let bytes = |ends: &[u32]| ends.iter().flat_map(|end| end.to_le_bytes()).collect();
    let ends: Vec<Vec<u8>> = groups.iter().map(|(_, ends, _)| bytes(ends)).collect();
    let words = groups.iter().map(|(.., words)| words.as_flattened());
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(numbers),
        Arc::new(BinaryViewArray::from_iter_values(ends)),
        Arc::new(BinaryViewArray::from_iter_values(words)),
    ];
    batch(pair_count_schema(), columns)
}

/// Gives the groups of a batch that [`pair_count_batch`] made, as they lie there.
///
/// # Errors
/// `NotOurs` for a batch of other columns, or with nulls.
pub fn read_pair_counts(
    batch: &RecordBatch,
    mut give: impl FnMut(PairGroup<'_>),
) -> Result<(), SchemaError> {
    let (ends, words) = (bytes(batch, "ends")?, bytes(batch, "words")?);
    let mut of_group = Vec::new();
    for (at, &group) in column::<Int32Type>(batch, "group")?.iter().enumerate() {
        let (ends, []) = ends.value(at).as_chunks::<4>() else {
            return Err(SchemaError::NotOurs { column: "ends" });
        };
        let (words, []) = words.value(at).as_chunks::<8>() else {
            return Err(SchemaError::NotOurs { column: "words" });
        };
        of_group.clear();
        of_group.extend(ends.iter().map(|end| u32::from_le_bytes(*end)));
        give((group as usize, &of_group, words));
    }
    Ok(())
}

/// Bytes that stay where a file has them.
fn bytes<'a>(
    batch: &'a RecordBatch,
    name: &'static str,
) -> Result<&'a BinaryViewArray, SchemaError> {
    let found = batch.column_by_name(name).filter(|found| found.null_count() == 0);
    let found = found.and_then(|found| found.as_any().downcast_ref());
    found.ok_or(SchemaError::NotOurs { column: name })
}

fn column<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    name: &'static str,
) -> Result<&'a [T::Native], SchemaError> {
    let found = batch.column_by_name(name).filter(|found| found.null_count() == 0);
    let found = found.and_then(|found| found.as_primitive_opt::<T>());
    found
        .map(|found: &PrimitiveArray<T>| &found.values()[..])
        .ok_or(SchemaError::NotOurs { column: name })
}

fn batch(schema: Schema, columns: Vec<Arc<dyn Array>>) -> Result<RecordBatch, SchemaError> {
    RecordBatch::try_new(Arc::new(schema), columns)
        .map_err(|source| SchemaError::Batch { table: "state", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_rows_come_back() {
        let blocks = vec![(1, vec![3, 0]), (-1, vec![]), (1, vec![255])];
        let batch = row_batch(&blocks).unwrap();
        let found = read_rows(&batch).unwrap().map(|(copies, rows)| (copies, rows.to_vec()));
        assert_eq!(found.collect::<Vec<_>>(), blocks);
    }

    #[test]
    fn histories_and_counts_come_back() {
        let ids = Ids::Int(vec![7, -1]);
        let histories = [&[3u16, 65_535, 0][..], &[]];
        let batch = history_batch(&ids, histories.into_iter(), IdType::Int32).unwrap();
        let (mut found, mut ends, mut codes) = (Ids::Int(vec![]), vec![], vec![]);
        read_histories(&batch, (&mut found, &mut ends, &mut codes)).unwrap();
        assert_eq!((found, ends, codes), (ids, vec![3, 3], vec![3, 65_535, 0]));

        let groups: [PairGroup<'_>; 2] =
            [(4, &[0, 2], &[[1; 8], [0, 9, 0, 0, 0, 0, 0, 255]]), (9, &[], &[])];
        let batch = pair_count_batch(&groups).unwrap();
        let mut n_found = 0;
        read_pair_counts(&batch, |found| {
            assert_eq!(found, groups[n_found]);
            n_found += 1;
        })
        .unwrap();
        assert_eq!(n_found, 2);
        let other = key_batch(&[1], &Ids::Int(vec![1]), IdType::Int64).unwrap();
        assert!(read_pair_counts(&other, |_| ()).is_err());
    }

    #[test]
    fn keys_come_back_and_other_tables_do_not() {
        let mut ids = Ids::new(IdType::Utf8);
        ["a", "", "ö"].iter().for_each(|id| ids.push(crate::types::IdRef::Bytes(id.as_bytes())));
        let batch = key_batch(&[4, 5, 9], &ids, IdType::Utf8).unwrap();
        let (mut keys, mut found) = (vec![1], Ids::new(IdType::Utf8));
        found.push(crate::types::IdRef::Bytes(b"before"));
        read_keys(&batch, &mut keys, &mut found).unwrap();
        assert_eq!(keys, [1, 4, 5, 9]);
        assert_eq!(found.take(1..4), ids);
        let mut ints = Ids::new(IdType::Int64);
        assert!(read_keys(&batch, &mut keys, &mut ints).is_err());
        assert!(read_rows(&batch).is_err());
    }
}
