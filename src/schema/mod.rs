//! The columns of every input and output table, and the conversion between rows and Arrow.
//!
//! A table is declared once, in [`tables`]; its Arrow schema, the pages in `schemas/` and the DDL
//! for warehouses follow from the declaration. This is the only layer that knows column names.

pub mod changes;
mod column_error;
mod error;
mod events;
mod id_column;
mod ids;
pub mod inputs;
mod rows;
mod side;
pub mod state;
mod table;
pub mod tables;
pub mod vectors;

#[cfg(test)]
mod events_tests;
#[cfg(test)]
mod id_tests;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod rows_tests;
#[cfg(test)]
mod side_tests;
#[cfg(test)]
mod vectors_tests;

pub use column_error::ColumnError;
pub use error::SchemaError;
pub use events::{
    EventBatch, EventColumns, KIND_UNLISTED, TIME_INVALID, TimeReader, check_columns, read_batch,
    with_folder_columns,
};
pub use id_column::IdColumn;
pub use ids::{IdRows, OptionalIdRows, id_data_type, id_type_of, ids_array};
pub use rows::{
    DebiasWeightRows, DefaultTopKRows, ItemFactorRows, ItemNeighborRows,
    ItemPopularityBySegmentRows, ItemPopularityRows, ItemRows, RejectRows, Source, UserFactorRows,
    UserRows, UserTopKListRows, UserTopKRows,
};
pub use side::{id_column, text_column};
pub use table::{CHANGE, CHANGES_SUFFIX, Column, Embeddings, IdTypes, Kind, Table};
