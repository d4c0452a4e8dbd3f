//! Ids as Arrow types and arrays.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, GenericBinaryArray, GenericStringArray, NullBufferBuilder, OffsetSizeTrait,
    PrimitiveArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Int32Type, Int64Type};

use super::SchemaError;
use crate::types::{ByteIds, IdType, Ids};

/// The Arrow type in which ids of `id_type` are published.
pub fn id_data_type(id_type: IdType) -> DataType {
    match id_type {
        IdType::Int32 => DataType::Int32,
        IdType::Int64 => DataType::Int64,
        IdType::Utf8 => DataType::Utf8,
        IdType::LargeUtf8 => DataType::LargeUtf8,
        IdType::Binary => DataType::Binary,
        IdType::LargeBinary => DataType::LargeBinary,
    }
}

/// The type in which ids that arrive as `data_type` are published: the narrowest signed integer
/// that holds them all, or the plain string or binary type behind a view, a fixed size or a
/// dictionary.
///
/// # Errors
/// `UnsignedIds` for `UInt64`, `UnsupportedIds` for what is no integer, string or bytes.
pub fn id_type_of(data_type: &DataType) -> Result<IdType, SchemaError> {
    use DataType::*;
    match data_type {
        Int8 | Int16 | Int32 | UInt8 | UInt16 => Ok(IdType::Int32),
        Int64 | UInt32 => Ok(IdType::Int64),
        UInt64 => Err(SchemaError::UnsignedIds),
        Utf8 | Utf8View => Ok(IdType::Utf8),
        LargeUtf8 => Ok(IdType::LargeUtf8),
        Binary | BinaryView | FixedSizeBinary(_) => Ok(IdType::Binary),
        LargeBinary => Ok(IdType::LargeBinary),
        Dictionary(_, values) if !matches!(**values, Dictionary(..)) => id_type_of(values),
        _ => Err(SchemaError::UnsupportedIds { found: data_type.clone() }),
    }
}

/// A column of ids as rows of a dictionary, so that an id that occurs often is held once.
#[derive(Clone, Debug)]
pub struct IdRows<'a> {
    /// The dictionary.
    pub ids: &'a Ids,
    /// Per row of the column, a row of the dictionary.
    pub rows: Vec<u32>,
}

impl<'a> IdRows<'a> {
    /// Every id of `ids`, in order.
    pub fn all(ids: &'a Ids) -> Self {
        let n_ids = u32::try_from(ids.len()).expect("a dictionary has fewer than 2^32 ids");
        Self { ids, rows: (0..n_ids).collect() }
    }

    /// The column as an Arrow array; errors as of [`ids_array`].
    pub fn to_array(&self, id_type: IdType) -> Result<ArrayRef, SchemaError> {
        ids_array(self.ids, self.rows.iter().map(|&row| Some(row as usize)), id_type)
    }
}

/// As [`IdRows`], with nulls.
#[derive(Clone, Debug)]
pub struct OptionalIdRows<'a> {
    /// The dictionary.
    pub ids: &'a Ids,
    /// Per row of the column, a row of the dictionary or a null.
    pub rows: Vec<Option<u32>>,
}

impl OptionalIdRows<'_> {
    /// The column as an Arrow array; errors as of [`ids_array`].
    pub fn to_array(&self, id_type: IdType) -> Result<ArrayRef, SchemaError> {
        ids_array(self.ids, self.rows.iter().map(|row| row.map(|row| row as usize)), id_type)
    }
}

/// The ids at `rows` of `ids`, as an array of `id_type`; `None` is a null.
///
/// The array has no null buffer where there is no null. One pass, no allocation per row.
///
/// # Errors
/// `IdOutOfRange` where an integer does not fit `Int32`, `OffsetOverflow` where the bytes do not
/// fit 32-bit offsets.
///
/// # Panics
/// If `ids` are integers and `id_type` is not or the reverse, if ids that shall be strings are not
/// UTF-8, or if a row is out of range.
pub fn ids_array(
    ids: &Ids,
    rows: impl Iterator<Item = Option<usize>>,
    id_type: IdType,
) -> Result<ArrayRef, SchemaError> {
    match (ids, id_type) {
        (Ids::Int(ids), IdType::Int32) => int_array::<Int32Type>(ids, rows, id_type),
        (Ids::Int(ids), IdType::Int64) => int_array::<Int64Type>(ids, rows, id_type),
        (Ids::Bytes(ids), IdType::Utf8) => string_array::<i32>(ids, rows, id_type),
        (Ids::Bytes(ids), IdType::LargeUtf8) => string_array::<i64>(ids, rows, id_type),
        (Ids::Bytes(ids), IdType::Binary) => Ok(Arc::new(bytes_array::<i32>(ids, rows, id_type)?)),
        (Ids::Bytes(ids), IdType::LargeBinary) => {
            Ok(Arc::new(bytes_array::<i64>(ids, rows, id_type)?))
        }
        _ => panic!("ids and their type are both integers or both bytes"),
    }
}

fn int_array<T: ArrowPrimitiveType>(
    ids: &[i64],
    rows: impl Iterator<Item = Option<usize>>,
    id_type: IdType,
) -> Result<ArrayRef, SchemaError>
where
    T::Native: TryFrom<i64>,
{
    let mut values: Vec<T::Native> = Vec::with_capacity(rows.size_hint().0);
    let mut valid = NullBufferBuilder::new(rows.size_hint().0);
    for row in rows {
        let id = row.map_or(0, |row| ids[row]);
        let value = id.try_into().map_err(|_| SchemaError::IdOutOfRange { id, id_type })?;
        values.push(value);
        valid.append(row.is_some());
    }
    Ok(Arc::new(PrimitiveArray::<T>::new(values.into(), valid.finish())))
}

fn string_array<O: OffsetSizeTrait>(
    ids: &ByteIds,
    rows: impl Iterator<Item = Option<usize>>,
    id_type: IdType,
) -> Result<ArrayRef, SchemaError> {
    let bytes = bytes_array::<O>(ids, rows, id_type)?;
    let strings = GenericStringArray::<O>::try_from_binary(bytes);
    Ok(Arc::new(strings.expect("ids of a string type were read from strings")))
}

fn bytes_array<O: OffsetSizeTrait>(
    ids: &ByteIds,
    rows: impl Iterator<Item = Option<usize>>,
    id_type: IdType,
) -> Result<GenericBinaryArray<O>, SchemaError> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut offsets: Vec<O> = Vec::with_capacity(rows.size_hint().0 + 1);
    offsets.push(O::default());
    let mut valid = NullBufferBuilder::new(rows.size_hint().0);
    for row in rows {
        if let Some(row) = row {
            bytes.extend_from_slice(ids.get(row));
        }
        let end = O::from_usize(bytes.len());
        offsets.push(end.ok_or(SchemaError::OffsetOverflow { bytes: bytes.len(), id_type })?);
        valid.append(row.is_some());
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(GenericBinaryArray::new(offsets, Buffer::from_vec(bytes), valid.finish()))
}
