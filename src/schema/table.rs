//! What a table declares, and the Arrow schema that follows from it.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};

use super::ids::id_data_type;
use crate::types::IdType;

/// The name of the elements of a list, as the Parquet format wants it.
const ELEMENT: &str = "element";

/// What the name of a table of changes ends with, behind that of its table.
pub const CHANGES_SUFFIX: &str = "_changes";

/// The first column of a table of changes: what became of the row.
pub const CHANGE: &str = "change";

/// A published table.
#[derive(Debug)]
pub struct Table {
    /// Its name, which is also the name of its folder and of its files in `schemas/`.
    pub name: &'static str,
    /// What it is for, in a sentence or three.
    pub doc: &'static str,
    /// The columns that identify a row. Rows of a file are sorted by them, ascending: integers by
    /// value, strings and bytes by their bytes. They are required and come first.
    pub key: &'static [&'static str],
    /// All columns, in order.
    pub columns: &'static [Column],
    /// A query that shows what the table answers.
    pub example: &'static str,
}

/// A column of a published table.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type, ids left open.
    pub kind: Kind,
    /// Whether it may hold nulls.
    pub nullable: bool,
    /// The unit of its values; empty where there is none.
    pub unit: &'static str,
    /// What a value means, and what a null means where there may be one.
    pub meaning: &'static str,
}

/// The type of a column. Ids come back in the type they came in, so theirs is known per run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A user id.
    UserId,
    /// An item id.
    ItemId,
    /// A 64-bit signed integer.
    Int64,
    /// A 32-bit signed integer.
    Int32,
    /// A 32-bit float, never NaN.
    Float32,
    /// A 64-bit float, never NaN.
    Float64,
    /// True or false.
    Bool,
    /// A string.
    Utf8,
    /// An instant: microseconds since 1970 in UTC.
    TimestampUs,
    /// A list whose elements are never null.
    ListOf(&'static Kind),
    /// A list whose elements may be null.
    ListOfNullable(&'static Kind),
    /// A vector of 32-bit floats, all of one length, which is known per run: see [`Embeddings`].
    Embedding,
}

/// The type of the embeddings of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embeddings {
    /// Their length.
    pub n_factors: usize,
    /// Whether the type holds the length, as vector stores want it, or is a list like any other.
    pub fixed_size: bool,
}

/// The types of the ids of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdTypes {
    /// The type of user ids.
    pub user: IdType,
    /// The type of item ids.
    pub item: IdType,
}

impl Table {
    /// The Arrow schema of this table: exact nullability, and no metadata, since equal rows must
    /// give equal bytes. Embeddings are lists.
    pub fn arrow_schema(&self, ids: IdTypes) -> SchemaRef {
        let field =
            |column: &Column| Field::new(column.name, column.kind.data_type(ids), column.nullable);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The same with embeddings of a chosen type.
    pub fn arrow_schema_with(&self, ids: IdTypes, embeddings: Embeddings) -> SchemaRef {
        let field = |column: &Column| {
            let data_type = match column.kind {
                Kind::Embedding => embeddings.data_type(),
                kind => kind.data_type(ids),
            };
            Field::new(column.name, data_type, column.nullable)
        };
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The name of the table of its changes.
    pub fn changes_name(&self) -> String {
        format!("{}{CHANGES_SUFFIX}", self.name)
    }

    /// The Arrow schema of the table of its changes: [`CHANGE`], then the columns of this table, of
    /// which those outside the key are null in a row that is deleted.
    pub fn changes_schema(&self, ids: IdTypes) -> SchemaRef {
        let change = Field::new(CHANGE, DataType::Utf8, false);
        let fields = self.columns.iter().map(|column| {
            let is_key = self.key.contains(&column.name);
            Field::new(column.name, column.kind.data_type(ids), !is_key)
        });
        Arc::new(Schema::new(std::iter::once(change).chain(fields).collect::<Vec<_>>()))
    }

    /// Positions of the key columns, in the order in which rows are sorted.
    pub fn key_positions(&self) -> Vec<usize> {
        self.key.iter().map(|name| self.position(name).expect("a key is a column")).collect()
    }

    /// The position of a column.
    pub fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }
}

impl Kind {
    /// The Arrow type of this kind, given the types of ids; of an embedding, a list.
    pub fn data_type(self, ids: IdTypes) -> DataType {
        match self {
            Self::UserId => id_data_type(ids.user),
            Self::ItemId => id_data_type(ids.item),
            Self::Int64 => DataType::Int64,
            Self::Int32 => DataType::Int32,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Bool => DataType::Boolean,
            Self::Utf8 => DataType::Utf8,
            Self::TimestampUs => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::ListOf(of) => list_type(*of, false, ids),
            Self::ListOfNullable(of) => list_type(*of, true, ids),
            Self::Embedding => list_type(Self::Float32, false, ids),
        }
    }
}

impl Embeddings {
    /// The Arrow type. Its elements are never null.
    ///
    /// # Panics
    /// If the length is beyond the range of Arrow's lengths.
    pub fn data_type(self) -> DataType {
        let element = element_field(DataType::Float32, false);
        if self.fixed_size {
            DataType::FixedSizeList(element, self.length())
        } else {
            DataType::List(element)
        }
    }

    fn length(self) -> i32 {
        i32::try_from(self.n_factors).expect("a spec allows far fewer factors than 2^31")
    }

    /// `values`, vectors end to end, as an array.
    ///
    /// # Panics
    /// If a vector is not whole.
    pub(super) fn array(self, values: Vec<f32>) -> ArrayRef {
        let element = element_field(DataType::Float32, false);
        let n_rows = values.len() / self.n_factors;
        assert!(n_rows * self.n_factors == values.len(), "{} factors, not whole", values.len());
        let values = Arc::new(Float32Array::from(values));
        if self.fixed_size {
            return Arc::new(FixedSizeListArray::new(element, self.length(), values, None));
        }
        let offsets = OffsetBuffer::<i32>::from_repeated_length(self.n_factors, n_rows);
        Arc::new(ListArray::new(element, offsets, values, None))
    }
}

fn list_type(of: Kind, nullable: bool, ids: IdTypes) -> DataType {
    DataType::List(element_field(of.data_type(ids), nullable))
}

/// The field of a list's elements.
pub(super) fn element_field(data_type: DataType, nullable: bool) -> FieldRef {
    Arc::new(Field::new(ELEMENT, data_type, nullable))
}
