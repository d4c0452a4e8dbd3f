//! What can go wrong between rows and Arrow.

use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use thiserror::Error;

use crate::types::IdType;

/// Why a column or a batch cannot be converted.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// Arrow's unsigned 64-bit integers have no counterpart in most warehouses.
    #[error("ids of type UInt64 do not fit any published type; cast them to int64 or string")]
    UnsignedIds,
    /// A type that is neither an integer, a string nor bytes.
    #[error("ids of type \"{found}\" are not supported; cast them to int64, string or binary")]
    UnsupportedIds {
        /// The type that was found.
        found: DataType,
    },
    /// An integer id above or below the range of its column.
    #[error("id \"{id}\" does not fit {id_type:?}; let the ids be int64 in every input")]
    IdOutOfRange {
        /// The id.
        id: i64,
        /// The type of the column.
        id_type: IdType,
    },
    /// More bytes in one array than 32-bit offsets can address.
    #[error("{bytes} bytes of ids do not fit one {id_type:?} array; write fewer rows per batch")]
    OffsetOverflow {
        /// Bytes up to the id that did not fit.
        bytes: usize,
        /// The type of the column.
        id_type: IdType,
    },
    /// Arrow could not convert an id column.
    #[error("ids of type \"{found}\" cannot be read")]
    ReadIds {
        /// The type that was found.
        found: DataType,
        /// What Arrow said.
        source: ArrowError,
    },
    /// The columns of a batch differ in length, or a required one holds a null.
    #[error("rows of table \"{table}\" do not form a batch")]
    Batch {
        /// The table's name.
        table: &'static str,
        /// What Arrow said.
        source: ArrowError,
    },
    /// Rows of a table that has a key are not sorted by it, or one key is there twice.
    #[error("rows of table \"{table}\" are not in the order of their key")]
    Unsorted {
        /// The table's name.
        table: &'static str,
    },
    /// A column of stored state is missing, of another type, or holds a null.
    #[error("stored state has no usable column \"{column}\"")]
    NotOurs {
        /// The column's name.
        column: &'static str,
    },
}
