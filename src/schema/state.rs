//! The tables of stored state: keys of ids, and rows of the logs by key.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BinaryArray, Float32Array, Int32Array, Int64Array, LargeBinaryArray,
    LargeBinaryBuilder, PrimitiveArray, RecordBatch,
};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Float32Type, Int32Type, Int64Type, Schema,
};

use super::{IdColumn, IdRows, SchemaError, id_data_type};
use crate::types::{IdType, Ids, LogRow};

/// What the rows of a run are sorted by: all columns but the last.
pub const ROW_KEY: [&str; 8] =
    ["user_key", "item_key", "time", "kind", "value", "id_low", "id_high", "file"];

/// Columns of numbers that grow along a run: they are stored as differences.
pub const ROW_DIFFERENCES: [&str; 3] = ["user_key", "item_key", "time"];

/// The columns of a run of rows: [`ROW_KEY`] and `copies`, how many equal rows there are more, or fewer,
/// than in the runs before.
pub fn row_schema() -> Schema {
    let types = ROW_KEY.map(|name| match name {
        "user_key" | "item_key" | "kind" | "file" => DataType::Int32,
        "value" => DataType::Float32,
        _ => DataType::Int64,
    });
    let columns = ROW_KEY.into_iter().zip(types).chain([("copies", DataType::Int64)]);
    let fields = columns.map(|(name, data_type)| Field::new(name, data_type, false));
    Schema::new(fields.collect::<Vec<_>>())
}

/// Rows and their copies as a record batch. `tick_us`: the unit of the column `time`, a divisor of all
/// times.
///
/// # Errors
/// None that a caller can cause.
pub fn row_batch(rows: &[(LogRow, i64)], tick_us: i64) -> Result<RecordBatch, SchemaError> {
    let int32 = |of: fn(&LogRow) -> u32| -> Arc<dyn Array> {
        Arc::new(rows.iter().map(|(row, _)| Some(of(row) as i32)).collect::<Int32Array>())
    };
    let int64 = |of: &dyn Fn(&LogRow) -> i64| -> Arc<dyn Array> {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(row, _)| of(row))))
    };
    let value = |(row, _): &(LogRow, i64)| f32::from_bits(row.value_bits);
    let columns: Vec<Arc<dyn Array>> = vec![
        int32(|row| row.user),
        int32(|row| row.item),
        int64(&|row| row.time_us / tick_us),
        int32(|row| row.kind.into()),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(value))),
        int64(&|row| row.digest[0] as i64),
        int64(&|row| row.digest[1] as i64),
        int32(|row| row.file),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, copies)| *copies))),
    ];
    batch(row_schema(), columns)
}

/// The rows of a batch, borrowed.
pub struct StoredRows<'a> {
    int32: [&'a [i32]; 4],
    int64: [&'a [i64]; 4],
    values: &'a [f32],
    tick_us: i64,
}

impl<'a> StoredRows<'a> {
    /// Rows of a batch that [`row_batch`] made with the same `tick_us`.
    ///
    /// # Errors
    /// `NotOurs` for a batch of other columns, or with nulls.
    pub fn try_new(batch: &'a RecordBatch, tick_us: i64) -> Result<Self, SchemaError> {
        let values = column::<Float32Type>(batch, "value")?;
        let int32 = |name| column::<Int32Type>(batch, name);
        let int64 = |name| column::<Int64Type>(batch, name);
        Ok(Self {
            int32: [int32("user_key")?, int32("item_key")?, int32("kind")?, int32("file")?],
            int64: [int64("time")?, int64("id_low")?, int64("id_high")?, int64("copies")?],
            values,
            tick_us,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Keys of users and of items, kinds and numbers of files, by row.
    pub fn numbers(&self) -> [&'a [i32]; 4] {
        self.int32
    }

    /// Values by row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Times of some rows, in microseconds since 1970.
    pub fn times(&self, rows: Range<usize>) -> impl Iterator<Item = i64> + 'a {
        let tick_us = self.tick_us;
        self.int64[0][rows].iter().map(move |ticks| ticks.wrapping_mul(tick_us))
    }

    /// Digests of event ids of some rows.
    pub fn digests(&self, rows: Range<usize>) -> impl Iterator<Item = u128> + 'a {
        let [_, low, high, _] = self.int64;
        low[rows.clone()]
            .iter()
            .zip(&high[rows])
            .map(|(&low, &high)| u128::from(low as u64) | u128::from(high as u64) << 64)
    }

    /// Whether every row is there once.
    pub fn are_single(&self) -> bool {
        self.int64[3].iter().all(|&copies| copies == 1)
    }

    /// One row and its copies.
    #[inline]
    pub fn get(&self, at: usize) -> (LogRow, i64) {
        let [users, items, kinds, files] = self.int32;
        let [times, low, high, copies] = self.int64;
        let row = LogRow {
            user: users[at] as u32,
            item: items[at] as u32,
            time_us: times[at].wrapping_mul(self.tick_us),
            kind: kinds[at] as u8,
            value_bits: self.values[at].to_bits(),
            digest: [low[at] as u64, high[at] as u64],
            file: files[at] as u32,
        };
        (row, copies[at])
    }
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

/// The columns of a table of counts of pairs, by group of rows: digits by block, and bit planes of eight
/// bytes.
pub fn pair_count_schema() -> Schema {
    Schema::new(vec![
        Field::new("group", DataType::Int32, false),
        Field::new("digits", DataType::LargeBinary, false),
        Field::new("planes", DataType::LargeBinary, false),
    ])
}

/// Groups of counts as a record batch.
///
/// # Errors
/// None that a caller can cause.
pub fn pair_count_batch(groups: &[(usize, &[u8], &[u64])]) -> Result<RecordBatch, SchemaError> {
    let numbers = groups.iter().map(|(group, ..)| Some(*group as i32)).collect::<Int32Array>();
    let digits = LargeBinaryArray::from_iter_values(groups.iter().map(|(_, digits, _)| *digits));
    let mut planes = LargeBinaryBuilder::new();
    let mut bytes: Vec<u8> = Vec::new();
    for (.., words) in groups {
        bytes.clear();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        planes.append_value(&bytes);
    }
    let columns: Vec<Arc<dyn Array>> =
        vec![Arc::new(numbers), Arc::new(digits), Arc::new(planes.finish())];
    batch(pair_count_schema(), columns)
}

/// Gives the groups of a batch that [`pair_count_batch`] made.
///
/// # Errors
/// `NotOurs` for a batch of other columns, or with nulls.
pub fn read_pair_counts(
    batch: &RecordBatch,
    mut give: impl FnMut(usize, &[u8], Vec<u64>),
) -> Result<(), SchemaError> {
    let bytes = |name: &'static str| {
        let found = batch.column_by_name(name).filter(|found| found.null_count() == 0);
        let found = found.and_then(|found| found.as_binary_opt::<i64>());
        found.ok_or(SchemaError::NotOurs { column: name })
    };
    let (digits, planes) = (bytes("digits")?, bytes("planes")?);
    for (at, &group) in column::<Int32Type>(batch, "group")?.iter().enumerate() {
        let (words, []) = planes.value(at).as_chunks::<8>() else {
            return Err(SchemaError::NotOurs { column: "planes" });
        };
        // With room for what is added: most blocks keep their digits.
        let mut planes = Vec::with_capacity(words.len() + words.len() / 16);
        planes.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        give(group as usize, digits.value(at), planes);
    }
    Ok(())
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

    fn row(at: u32) -> (LogRow, i64) {
        let row = LogRow {
            user: at / 3,
            item: 7 - at % 3,
            time_us: i64::from(at) * 5_000_000 - 11_000_000,
            kind: 3,
            value_bits: (at as f32 - 1.5).to_bits(),
            digest: [u64::MAX - u64::from(at), 1 << 63],
            file: 9 * at,
        };
        (row, 1 - 2 * i64::from(at % 2))
    }

    #[test]
    fn rows_come_back() {
        let rows: Vec<_> = (0..20).map(row).collect();
        for tick_us in [1, 1_000_000] {
            let batch = row_batch(&rows, tick_us).unwrap();
            let stored = StoredRows::try_new(&batch, tick_us).unwrap();
            assert_eq!((0..stored.len()).map(|at| stored.get(at)).collect::<Vec<_>>(), rows);
        }
    }

    #[test]
    fn histories_and_counts_come_back() {
        let ids = Ids::Int(vec![7, -1]);
        let histories = [&[3u16, 65_535, 0][..], &[]];
        let batch = history_batch(&ids, histories.into_iter(), IdType::Int32).unwrap();
        let (mut found, mut ends, mut codes) = (Ids::Int(vec![]), vec![], vec![]);
        read_histories(&batch, (&mut found, &mut ends, &mut codes)).unwrap();
        assert_eq!((found, ends, codes), (ids, vec![3, 3], vec![3, 65_535, 0]));

        let batch = pair_count_batch(&[(4, &[0, 2], &[1 << 63, 5]), (9, &[], &[])]).unwrap();
        let mut found = Vec::new();
        let give = |group, digits: &[u8], planes| found.push((group, digits.to_vec(), planes));
        read_pair_counts(&batch, give).unwrap();
        assert_eq!(found, [(4, vec![0, 2], vec![1 << 63, 5]), (9, vec![], vec![])]);
        let other = key_batch(&[1], &Ids::Int(vec![1]), IdType::Int64).unwrap();
        assert!(read_pair_counts(&other, |_, _, _| ()).is_err());
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
        assert!(StoredRows::try_new(&batch, 1).is_err());
    }
}
