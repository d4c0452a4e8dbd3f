//! What can be wrong with a mapped column of an input.

use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use thiserror::Error;

use super::SchemaError;

/// Why a mapped column cannot be read. The file is named by whoever knows it.
#[derive(Debug, Error)]
pub enum ColumnError {
    /// No column of this name.
    #[error(
        "there is no column \"{column}\"{}; the file has {}",
        nearest.as_ref().map(|near| format!(", did you mean \"{near}\"?")).unwrap_or_default(),
        known.join(", ")
    )]
    Missing {
        /// The name in the spec.
        column: String,
        /// The column that is spelled most alike, if any is close.
        nearest: Option<String>,
        /// The columns of the file.
        known: Vec<String>,
    },
    /// A type that cannot be read as what the column is mapped to.
    #[error("column \"{column}\" is {found}, expected {expected}; cast it upstream")]
    Unexpected {
        /// The column.
        column: String,
        /// Its type.
        found: DataType,
        /// What can be read.
        expected: &'static str,
    },
    /// Integers as times, without a unit.
    #[error(
        "column \"{column}\" holds integers; say what they count with time_unit = \"s\", \"ms\", \
         \"us\" or \"ns\""
    )]
    NoTimeUnit {
        /// The column.
        column: String,
    },
    /// Ids of a type that cannot be published.
    #[error("column \"{column}\" cannot hold ids")]
    Ids {
        /// The column.
        column: String,
        /// Why not.
        source: SchemaError,
    },
    /// Arrow could not convert the values.
    #[error("the values cannot be converted")]
    Convert(#[from] ArrowError),
}

impl ColumnError {
    /// The column is not in the file; names the one that looks most like it.
    pub fn missing(column: &str, schema: &Schema) -> Self {
        let known: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let closest = known.iter().max_by(|a, b| {
            let likeness = |name: &str| strsim::jaro_winkler(name, column);
            likeness(a).total_cmp(&likeness(b))
        });
        let nearest = closest.filter(|name| strsim::jaro_winkler(name, column) > 0.75).cloned();
        Self::Missing { column: column.to_owned(), nearest, known }
    }

    /// The column has another type than can be read.
    pub fn unexpected(column: &str, found: &DataType, expected: &'static str) -> Self {
        Self::Unexpected { column: column.to_owned(), found: found.clone(), expected }
    }
}
