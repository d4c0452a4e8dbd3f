//! Rows of every published table as plain columns, and their way into a record batch.
//!
//! Ids are rows of a dictionary ([`IdRows`]) and strings are borrowed, so nothing is allocated per
//! row. The fields stand in the order of the table's columns. All columns of a batch have one
//! length: `into_batch` fails otherwise.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;

use super::table::element_field;
use super::{Embeddings, IdRows, IdTypes, OptionalIdRows, SchemaError, Table, tables};

/// What put an item into a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The ranker that multiplies factors.
    Als,
    /// The ranker that sums the scores of the user's history items' neighbors.
    ItemNeighbors,
    /// The ranker that knows popularity only.
    Popularity,
    /// No ranker: the place was left empty and filled from the fallback.
    Fallback,
}

impl Source {
    /// The name in the `source` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Als => "als",
            Self::ItemNeighbors => "item_neighbors",
            Self::Popularity => "popularity",
            Self::Fallback => "fallback",
        }
    }
}

/// Rows of [`tables::ITEMS`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct ItemRows<'a> {
    pub item: IdRows<'a>,
    pub item_idx: Vec<Option<i64>>,
    pub title: Vec<Option<&'a str>>,
    pub events: Vec<i64>,
    pub users: Vec<i64>,
    pub first_event: Vec<Option<i64>>,
    pub last_event: Vec<Option<i64>>,
    pub eligible: Vec<bool>,
    pub reason: Vec<Option<&'a str>>,
    pub recommendable: Vec<bool>,
}

impl ItemRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.item.to_array(ids.item)?,
            Arc::new(Int64Array::from(self.item_idx)),
            Arc::new(StringArray::from(self.title)),
            Arc::new(Int64Array::from(self.events)),
            Arc::new(Int64Array::from(self.users)),
            times(self.first_event),
            times(self.last_event),
            Arc::new(BooleanArray::from(self.eligible)),
            Arc::new(StringArray::from(self.reason)),
            Arc::new(BooleanArray::from(self.recommendable)),
        ];
        batch(&tables::ITEMS, ids, columns)
    }
}

/// Rows of [`tables::USERS`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct UserRows<'a> {
    pub user: IdRows<'a>,
    pub user_idx: Vec<Option<i64>>,
    pub segment: Vec<Option<&'a str>>,
    pub events: Vec<i64>,
    pub items: Vec<i64>,
    pub first_event: Vec<Option<i64>>,
    pub last_event: Vec<Option<i64>>,
    pub eligible: Vec<bool>,
    pub reason: Vec<Option<&'a str>>,
}

impl UserRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.user.to_array(ids.user)?,
            Arc::new(Int64Array::from(self.user_idx)),
            Arc::new(StringArray::from(self.segment)),
            Arc::new(Int64Array::from(self.events)),
            Arc::new(Int64Array::from(self.items)),
            times(self.first_event),
            times(self.last_event),
            Arc::new(BooleanArray::from(self.eligible)),
            Arc::new(StringArray::from(self.reason)),
        ];
        batch(&tables::USERS, ids, columns)
    }
}

/// Rows of [`tables::ITEM_POPULARITY`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct ItemPopularityRows<'a> {
    pub item: IdRows<'a>,
    pub item_idx: Vec<i64>,
    pub events: Vec<i64>,
    pub users: Vec<i64>,
    pub weight: Vec<f64>,
    pub weight_decayed: Vec<f64>,
    pub trend: Vec<f32>,
    pub rank: Vec<i32>,
}

impl ItemPopularityRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns = self.into_columns(ids)?;
        batch(&tables::ITEM_POPULARITY, ids, columns)
    }

    fn into_columns(self, ids: IdTypes) -> Result<Vec<ArrayRef>, SchemaError> {
        Ok(vec![
            self.item.to_array(ids.item)?,
            Arc::new(Int64Array::from(self.item_idx)),
            Arc::new(Int64Array::from(self.events)),
            Arc::new(Int64Array::from(self.users)),
            Arc::new(Float64Array::from(self.weight)),
            Arc::new(Float64Array::from(self.weight_decayed)),
            Arc::new(Float32Array::from(self.trend)),
            Arc::new(Int32Array::from(self.rank)),
        ])
    }
}

/// Rows of [`tables::ITEM_POPULARITY_BY_SEGMENT`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct ItemPopularityBySegmentRows<'a> {
    pub segment: Vec<&'a str>,
    pub popularity: ItemPopularityRows<'a>,
}

impl ItemPopularityBySegmentRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(self.segment))];
        columns.extend(self.popularity.into_columns(ids)?);
        batch(&tables::ITEM_POPULARITY_BY_SEGMENT, ids, columns)
    }
}

/// Rows of [`tables::DEBIAS_WEIGHTS`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct DebiasWeightRows<'a> {
    pub item: IdRows<'a>,
    pub item_idx: Vec<i64>,
    pub propensity: Vec<f32>,
    pub ips_weight: Vec<f32>,
    pub discount: Vec<f32>,
}

impl DebiasWeightRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.item.to_array(ids.item)?,
            Arc::new(Int64Array::from(self.item_idx)),
            Arc::new(Float32Array::from(self.propensity)),
            Arc::new(Float32Array::from(self.ips_weight)),
            Arc::new(Float32Array::from(self.discount)),
        ];
        batch(&tables::DEBIAS_WEIGHTS, ids, columns)
    }
}

/// Rows of [`tables::ITEM_NEIGHBORS`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct ItemNeighborRows<'a> {
    pub item: IdRows<'a>,
    pub rank: Vec<i32>,
    pub neighbor: IdRows<'a>,
    pub score: Vec<f32>,
    pub support: Vec<i64>,
}

impl ItemNeighborRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.item.to_array(ids.item)?,
            Arc::new(Int32Array::from(self.rank)),
            self.neighbor.to_array(ids.item)?,
            Arc::new(Float32Array::from(self.score)),
            Arc::new(Int64Array::from(self.support)),
        ];
        batch(&tables::ITEM_NEIGHBORS, ids, columns)
    }
}

/// Rows of [`tables::USER_TOP_K`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct UserTopKRows<'a> {
    pub user: IdRows<'a>,
    pub rank: Vec<i32>,
    pub item: IdRows<'a>,
    pub score: Vec<f32>,
    pub source: Vec<Source>,
    pub because_item: OptionalIdRows<'a>,
}

impl UserTopKRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.user.to_array(ids.user)?,
            Arc::new(Int32Array::from(self.rank)),
            self.item.to_array(ids.item)?,
            Arc::new(Float32Array::from(self.score)),
            sources(&self.source),
            self.because_item.to_array(ids.item)?,
        ];
        batch(&tables::USER_TOP_K, ids, columns)
    }
}

/// Rows of [`tables::USER_TOP_K_LISTS`]: the lists end to end, in the order of the users.
#[derive(Clone, Debug)]
pub struct UserTopKListRows<'a> {
    /// One row per user.
    pub user: IdRows<'a>,
    /// Per user, the length of the list: the sum is the length of each column below.
    pub list_lengths: Vec<usize>,
    /// The recommended items.
    pub item: IdRows<'a>,
    /// Their scores.
    pub score: Vec<f32>,
    /// What put them there.
    pub source: Vec<Source>,
    /// The history items that contributed most.
    pub because_item: OptionalIdRows<'a>,
}

impl UserTopKListRows<'_> {
    /// The rows as a record batch.
    ///
    /// # Panics
    /// If `list_lengths` do not add up to the length of the columns.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let offsets = OffsetBuffer::<i32>::from_lengths(self.list_lengths);
        let columns = vec![
            self.user.to_array(ids.user)?,
            list(&offsets, self.item.to_array(ids.item)?, false),
            list(&offsets, Arc::new(Float32Array::from(self.score)), false),
            list(&offsets, sources(&self.source), false),
            list(&offsets, self.because_item.to_array(ids.item)?, true),
        ];
        batch(&tables::USER_TOP_K_LISTS, ids, columns)
    }
}

/// Rows of [`tables::DEFAULT_TOP_K`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct DefaultTopKRows<'a> {
    pub segment: Vec<&'a str>,
    pub rank: Vec<i32>,
    pub item: IdRows<'a>,
    pub score: Vec<f32>,
}

impl DefaultTopKRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(self.segment)),
            Arc::new(Int32Array::from(self.rank)),
            self.item.to_array(ids.item)?,
            Arc::new(Float32Array::from(self.score)),
        ];
        batch(&tables::DEFAULT_TOP_K, ids, columns)
    }
}

/// Rows of [`tables::ITEM_FACTORS`]: the vectors end to end.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct ItemFactorRows<'a> {
    pub item: IdRows<'a>,
    pub item_idx: Vec<i64>,
    pub embedding: Vec<f32>,
}

impl ItemFactorRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(
        self,
        ids: IdTypes,
        embeddings: Embeddings,
    ) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.item.to_array(ids.item)?,
            Arc::new(Int64Array::from(self.item_idx)),
            embeddings.array(self.embedding),
        ];
        factors_batch(&tables::ITEM_FACTORS, ids, embeddings, columns)
    }
}

/// Rows of [`tables::USER_FACTORS`]: the vectors end to end.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct UserFactorRows<'a> {
    pub user: IdRows<'a>,
    pub user_idx: Vec<i64>,
    pub embedding: Vec<f32>,
    pub history_digest: Vec<i64>,
}

impl UserFactorRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(
        self,
        ids: IdTypes,
        embeddings: Embeddings,
    ) -> Result<RecordBatch, SchemaError> {
        let columns = vec![
            self.user.to_array(ids.user)?,
            Arc::new(Int64Array::from(self.user_idx)),
            embeddings.array(self.embedding),
            Arc::new(Int64Array::from(self.history_digest)),
        ];
        factors_batch(&tables::USER_FACTORS, ids, embeddings, columns)
    }
}

/// Rows of [`tables::REJECTS`].
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the columns are documented where the table is declared")]
pub struct RejectRows<'a> {
    pub file: Vec<&'a str>,
    pub row_group: Vec<i32>,
    pub reason: Vec<&'a str>,
    pub count: Vec<i64>,
    pub first_row: Vec<i64>,
}

impl RejectRows<'_> {
    /// The rows as a record batch.
    pub fn into_batch(self, ids: IdTypes) -> Result<RecordBatch, SchemaError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(self.file)),
            Arc::new(Int32Array::from(self.row_group)),
            Arc::new(StringArray::from(self.reason)),
            Arc::new(Int64Array::from(self.count)),
            Arc::new(Int64Array::from(self.first_row)),
        ];
        batch(&tables::REJECTS, ids, columns)
    }
}

fn batch(table: &Table, ids: IdTypes, columns: Vec<ArrayRef>) -> Result<RecordBatch, SchemaError> {
    RecordBatch::try_new(table.arrow_schema(ids), columns)
        .map_err(|source| SchemaError::Batch { table: table.name, source })
}

fn factors_batch(
    table: &Table,
    ids: IdTypes,
    embeddings: Embeddings,
    columns: Vec<ArrayRef>,
) -> Result<RecordBatch, SchemaError> {
    RecordBatch::try_new(table.arrow_schema_with(ids, embeddings), columns)
        .map_err(|source| SchemaError::Batch { table: table.name, source })
}

fn times(times: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
}

fn list(offsets: &OffsetBuffer<i32>, elements: ArrayRef, nullable: bool) -> ArrayRef {
    let field = element_field(elements.data_type().clone(), nullable);
    Arc::new(ListArray::new(field, offsets.clone(), elements, None))
}

fn sources(sources: &[Source]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(sources.iter().map(|source| source.as_str())))
}
