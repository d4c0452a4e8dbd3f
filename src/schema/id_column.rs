//! Reading ids out of whatever Arrow type they came in.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, FixedSizeBinaryArray, LargeBinaryArray,
    OffsetSizeTrait,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};

use super::{SchemaError, ids::id_type_of};
use crate::types::{IdRef, IdType};

/// A column of ids of any accepted type, with fast access by row.
///
/// Integers are widened to 64 bits once per batch and strings are seen as bytes without a copy;
/// a dictionary's values are converted once, not once per row.
#[derive(Clone, Debug)]
pub struct IdColumn {
    id_type: IdType,
    n_rows: usize,
    nulls: Option<NullBuffer>,
    /// Of a dictionary: per row, the row in `values`.
    keys: Option<ScalarBuffer<i64>>,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Int(ScalarBuffer<i64>),
    Bytes(BinaryArray),
    LargeBytes(LargeBinaryArray),
    BytesView(BinaryViewArray),
    FixedBytes(FixedSizeBinaryArray),
}

impl IdColumn {
    /// Wraps an array of any type that [`id_type_of`] accepts.
    ///
    /// # Errors
    /// As [`id_type_of`].
    pub fn try_new(array: &ArrayRef) -> Result<Self, SchemaError> {
        let id_type = id_type_of(array.data_type())?;
        // Of a dictionary, a row is null by its key or by its value.
        let nulls = array.logical_nulls().filter(|nulls| nulls.null_count() > 0);
        let (keys, values) = match array.as_any_dictionary_opt() {
            Some(dictionary) => (Some(int64s(dictionary.keys())?), dictionary.values().as_ref()),
            None => (None, array.as_ref()),
        };
        Ok(Self { id_type, n_rows: array.len(), nulls, keys, values: Values::try_new(values)? })
    }

    /// The type in which these ids are published.
    pub fn id_type(&self) -> IdType {
        self.id_type
    }

    /// Number of rows.
    #[inline]
    pub fn len(&self) -> usize {
        self.n_rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.n_rows == 0
    }

    /// Number of rows without an id.
    pub fn null_count(&self) -> usize {
        self.nulls.as_ref().map_or(0, NullBuffer::null_count)
    }

    /// Whether a row has no id.
    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The ids of all rows, where they are integers and no dictionary; anything in null rows.
    pub fn ints(&self) -> Option<&[i64]> {
        match (&self.keys, &self.values) {
            (None, Values::Int(values)) => Some(values),
            _ => None,
        }
    }

    /// Of a dictionary, where the value of each row stands.
    pub fn keys(&self) -> Option<&[i64]> {
        self.keys.as_deref()
    }

    /// Number of values of a dictionary; of another column, of rows.
    pub fn n_values(&self) -> usize {
        match &self.values {
            Values::Int(values) => values.len(),
            Values::Bytes(values) => values.len(),
            Values::LargeBytes(values) => values.len(),
            Values::BytesView(values) => values.len(),
            Values::FixedBytes(values) => values.len(),
        }
    }

    /// Whether the ids of all rows, of a dictionary all its values, are texts of `lengths` bytes.
    ///
    /// False may also be said of a column whose other values stand in null rows.
    pub fn are_texts_of(&self, lengths: std::ops::RangeInclusive<usize>) -> bool {
        fn all<T: OffsetSizeTrait>(
            offsets: &[T],
            lengths: &std::ops::RangeInclusive<usize>,
        ) -> bool {
            let within = |pair: &[T]| lengths.contains(&(pair[1] - pair[0]).as_usize());
            // No early end, which would keep the loop from being a wide one.
            offsets.windows(2).fold(true, |are, pair| are & within(pair))
        }
        match &self.values {
            Values::Int(_) => false,
            Values::Bytes(values) => all(values.value_offsets(), &lengths),
            Values::LargeBytes(values) => all(values.value_offsets(), &lengths),
            Values::BytesView(values) => {
                values.lengths().all(|length| lengths.contains(&(length as usize)))
            }
            Values::FixedBytes(values) => lengths.contains(&(values.value_length() as usize)),
        }
    }

    /// One value of a dictionary.
    ///
    /// # Panics
    /// If there is no such value.
    #[inline]
    pub fn value(&self, place: usize) -> IdRef<'_> {
        match &self.values {
            Values::Int(values) => IdRef::Int(values[place]),
            Values::Bytes(values) => IdRef::Bytes(values.value(place)),
            Values::LargeBytes(values) => IdRef::Bytes(values.value(place)),
            Values::BytesView(values) => IdRef::Bytes(values.value(place)),
            Values::FixedBytes(values) => IdRef::Bytes(values.value(place)),
        }
    }

    /// Whether the values of both are the same memory, as in batches of one row group.
    pub fn shares_values(&self, other: &Self) -> bool {
        match (&self.values, &other.values) {
            (Values::Int(one), Values::Int(other)) => one.inner().ptr_eq(other.inner()),
            (Values::Bytes(one), Values::Bytes(other)) => {
                one.values().ptr_eq(other.values())
                    && one.offsets().inner().inner().ptr_eq(other.offsets().inner().inner())
            }
            (Values::LargeBytes(one), Values::LargeBytes(other)) => {
                one.values().ptr_eq(other.values())
                    && one.offsets().inner().inner().ptr_eq(other.offsets().inner().inner())
            }
            _ => false,
        }
    }

    /// The id of a row, or `None` where it has none.
    #[inline]
    pub fn get_opt(&self, row: usize) -> Option<IdRef<'_>> {
        (!self.is_null(row)).then(|| self.get(row))
    }

    /// The id of a row that is not null; of a null row, some id or a panic.
    ///
    /// # Panics
    /// If `row` is out of range.
    #[inline]
    pub fn get(&self, row: usize) -> IdRef<'_> {
        let row = self.keys.as_ref().map_or(row, |keys| keys[row] as usize);
        self.value(row)
    }

    /// The same of a text.
    ///
    /// # Panics
    /// If `row` is out of range, or ids are integers.
    #[inline]
    pub fn bytes(&self, row: usize) -> &[u8] {
        match self.get(row) {
            IdRef::Bytes(id) => id,
            IdRef::Int(_) => panic!("ids of this column are integers"),
        }
    }
}

impl Values {
    fn try_new(array: &dyn Array) -> Result<Self, SchemaError> {
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Bytes(array.as_string::<i32>().clone().into()),
            DataType::LargeUtf8 => Self::LargeBytes(array.as_string::<i64>().clone().into()),
            DataType::Utf8View => Self::BytesView(array.as_string_view().clone().to_binary_view()),
            DataType::Binary => Self::Bytes(array.as_binary::<i32>().clone()),
            DataType::LargeBinary => Self::LargeBytes(array.as_binary::<i64>().clone()),
            DataType::BinaryView => Self::BytesView(array.as_binary_view().clone()),
            DataType::FixedSizeBinary(_) => Self::FixedBytes(array.as_fixed_size_binary().clone()),
            _ => Self::Int(int64s(array)?),
        })
    }
}

/// Integers of any width as 64-bit integers; without a copy where they are that already.
fn int64s(array: &dyn Array) -> Result<ScalarBuffer<i64>, SchemaError> {
    let wide = cast(array, &DataType::Int64).map_err(|source| {
        let found = array.data_type().clone();
        SchemaError::ReadIds { found, source }
    })?;
    Ok(wide.as_primitive::<Int64Type>().values().clone())
}
