//! What is different between two states of a table: whole rows to put in, and keys to take out.

use std::ops::Range;

use arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, Row, RowConverter, Rows, SortField};

use super::{IdColumn, IdTypes, Kind, SchemaError, Table};
use crate::types::IdRef;

/// A row that is new, or different in any column.
pub const UPSERT: &str = "upsert";

/// A key that is no longer there.
pub const DELETE: &str = "delete";

/// Rows that are looked at together: rows of lists are long, and stand here in two forms.
pub const ROWS_AT_ONCE: usize = 8_192;

/// The keys that a part of a table holds: each bound is the columns of one key.
#[derive(Clone, Debug, Default)]
pub struct KeyRange {
    /// The first of them; none where nothing is too low.
    pub from: Option<Vec<ArrayRef>>,
    /// The first that is too high; none where nothing is.
    pub until: Option<Vec<ArrayRef>>,
}

/// Tells the changes of one table.
pub struct Differ<'a> {
    table: &'static Table,
    schema: SchemaRef,
    of_changes: SchemaRef,
    /// Of keys, and of all other columns. Their rows are equal if all values are, floats by their bits.
    keys: RowConverter,
    others: RowConverter,
    is_gone: &'a dyn Fn(Kind, IdRef<'_>) -> bool,
}

/// A row of the earlier state, or of the new one.
type Pick = (usize, usize);

const OLD: usize = 0;
const NEW: usize = 1;

impl<'a> Differ<'a> {
    /// `is_gone`: whether an id may not be told, not even to take its rows out.
    ///
    /// # Errors
    /// When Arrow does not compare values of a column.
    pub fn new(
        table: &'static Table,
        ids: IdTypes,
        is_gone: &'a dyn Fn(Kind, IdRef<'_>) -> bool,
    ) -> Result<Self, SchemaError> {
        let schema = table.arrow_schema(ids);
        let n_keys = table.key.len();
        let converter = |columns: Range<usize>| {
            let fields = schema.fields()[columns].iter();
            let fields = fields.map(|field| SortField::new(field.data_type().clone()));
            RowConverter::new(fields.collect()).map_err(|source| batch_error(table, source))
        };
        let (keys, others) = (converter(0..n_keys)?, converter(n_keys..table.columns.len())?);
        let of_changes = table.changes_schema(ids);
        Ok(Self { table, schema, of_changes, keys, others, is_gone })
    }

    /// Gives the changes from `old` to `new`, in the order of their keys, some rows at a time. Both come
    /// sorted by key; of `old`, only keys in `range` count.
    ///
    /// Holds a batch of each side.
    ///
    /// # Errors
    /// [`SchemaError::Unsorted`], and those of `old`, `new` and `give`.
    pub fn changes<E: From<SchemaError>>(
        &self,
        old: impl Iterator<Item = Result<RecordBatch, E>>,
        new: impl Iterator<Item = Result<RecordBatch, E>>,
        range: &KeyRange,
        mut give: impl FnMut(RecordBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut old = Side::new(self, old, self.bounds(range)?)?;
        let mut new = Side::new(self, new, [None, None])?;
        loop {
            old.fill(self)?;
            new.fill(self)?;
            let picks = self.picks(&mut old.rows, &mut new.rows);
            if !picks.is_empty() {
                let rows = self.rows(&old.rows.batch, &new.rows.batch, picks)?;
                give(rows)?;
            }
            if old.rows.is_spent() && new.rows.is_spent() && old.is_over && new.is_over {
                return Ok(());
            }
        }
    }

    fn bounds(&self, range: &KeyRange) -> Result<[Option<OwnedRow>; 2], SchemaError> {
        let bound = |key: &Option<Vec<ArrayRef>>| {
            let rows = key.as_ref().map(|key| self.keys.convert_columns(key)).transpose();
            let rows = rows.map_err(|source| batch_error(self.table, source))?;
            Ok::<_, SchemaError>(rows.map(|rows| rows.row(0).owned()))
        };
        Ok([bound(&range.from)?, bound(&range.until)?])
    }

    /// Walks both sides until the rows of one are spent, or those of both where a side has no more.
    fn picks(&self, old: &mut Looked, new: &mut Looked) -> Vec<Pick> {
        let mut picks = Vec::new();
        let (has_old, has_new) = (!old.is_spent(), !new.is_spent());
        loop {
            let order = match (old.key(), new.key()) {
                (None, None) => return picks,
                (Some(_), None) if has_new => return picks,
                (None, Some(_)) if has_old => return picks,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => old.cmp(&new),
            };
            if order.is_lt() {
                picks.push((OLD, old.at));
            } else if order.is_gt() || old.others.row(old.at) != new.others.row(new.at) {
                picks.push((NEW, new.at));
            }
            old.at += usize::from(order.is_le());
            new.at += usize::from(order.is_ge());
        }
    }

    /// Rows of the table of changes.
    fn rows(
        &self,
        old: &RecordBatch,
        new: &RecordBatch,
        picks: Vec<Pick>,
    ) -> Result<RecordBatch, SchemaError> {
        let picks = self.without_gone(old, picks)?;
        let told = |&(side, _): &Pick| if side == OLD { DELETE } else { UPSERT };
        let mut columns: Vec<ArrayRef> =
            vec![std::sync::Arc::new(StringArray::from_iter_values(picks.iter().map(told)))];
        // Beside the key, a row that is taken out has nothing but nulls.
        let no_row = |&(side, row): &Pick| if side == OLD { (OLD, 0) } else { (side, row) };
        let others: Vec<Pick> = picks.iter().map(no_row).collect();
        let columns_of = |at: usize| match at < self.table.key.len() {
            true => interleave(&[old.column(at).as_ref(), new.column(at).as_ref()], &picks),
            false => {
                let null = new_null_array(new.column(at).data_type(), 1);
                interleave(&[null.as_ref(), new.column(at).as_ref()], &others)
            }
        };
        let made = (0..self.table.columns.len()).map(columns_of).collect::<Result<Vec<_>, _>>();
        let batch = made.and_then(|made| {
            columns.extend(made);
            RecordBatch::try_new(self.of_changes.clone(), columns)
        });
        batch.map_err(|source| batch_error(self.table, source))
    }

    /// Leaves out the keys that may not be told.
    fn without_gone(
        &self,
        old: &RecordBatch,
        mut picks: Vec<Pick>,
    ) -> Result<Vec<Pick>, SchemaError> {
        let is_id = |kind| matches!(kind, Kind::UserId | Kind::ItemId);
        for at in self.table.key_positions() {
            let kind = self.table.columns[at].kind;
            if is_id(kind) {
                let ids = IdColumn::try_new(old.column(at))?;
                picks.retain(|&(side, row)| side == NEW || !(self.is_gone)(kind, ids.get(row)));
            }
        }
        Ok(picks)
    }
}

/// Some rows of one side, in the forms in which they are compared.
struct Looked {
    batch: RecordBatch,
    keys: Rows,
    others: Rows,
    /// The first that was not walked past.
    at: usize,
    /// The first that no longer counts.
    end: usize,
}

impl Looked {
    fn new(differ: &Differ<'_>, batch: RecordBatch) -> Result<Self, SchemaError> {
        let (keys, others) = batch.columns().split_at(differ.table.key.len());
        let rows = |converter: &RowConverter, columns: &[ArrayRef]| {
            let rows = converter.convert_columns(columns);
            rows.map_err(|source| batch_error(differ.table, source))
        };
        let (keys, others) = (rows(&differ.keys, keys)?, rows(&differ.others, others)?);
        let end = batch.num_rows();
        Ok(Self { batch, keys, others, at: 0, end })
    }

    fn is_spent(&self) -> bool {
        self.at == self.end
    }

    fn key(&self) -> Option<Row<'_>> {
        (!self.is_spent()).then(|| self.keys.row(self.at))
    }

    /// How many rows have keys below a bound.
    fn n_below(&self, bound: &OwnedRow) -> usize {
        let (mut low, mut high) = (0, self.batch.num_rows());
        while low < high {
            let middle = low.midpoint(high);
            match self.keys.row(middle) < bound.row() {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

/// The rows of one side, as they come.
struct Side<I> {
    batches: I,
    /// What of the last batch was not looked at.
    rest: RecordBatch,
    rows: Looked,
    last: Option<OwnedRow>,
    from: Option<OwnedRow>,
    until: Option<OwnedRow>,
    /// Whether no more rows come.
    is_over: bool,
}

impl<E: From<SchemaError>, I: Iterator<Item = Result<RecordBatch, E>>> Side<I> {
    fn new(
        differ: &Differ<'_>,
        batches: I,
        [from, until]: [Option<OwnedRow>; 2],
    ) -> Result<Self, SchemaError> {
        let none = RecordBatch::new_empty(differ.schema.clone());
        let rows = Looked::new(differ, none.clone())?;
        Ok(Self { batches, rest: none, rows, last: None, from, until, is_over: false })
    }

    /// Makes sure that there are rows to look at, as long as some come.
    fn fill(&mut self, differ: &Differ<'_>) -> Result<(), E> {
        while self.rows.is_spent() && !self.is_over {
            if self.rest.num_rows() == 0 {
                match self.batches.next() {
                    Some(batch) => self.rest = with_fields(batch?, &differ.schema, differ.table)?,
                    None => self.is_over = true,
                }
            }
            let n = self.rest.num_rows().min(ROWS_AT_ONCE);
            let (now, later) = (0..n, n..self.rest.num_rows());
            let slice = |rows: Range<usize>| self.rest.slice(rows.start, rows.len());
            (self.rows, self.rest) = (Looked::new(differ, slice(now))?, slice(later));
            self.check_order(differ.table)?;
            self.keep_range();
        }
        Ok(())
    }

    fn check_order(&mut self, table: &'static Table) -> Result<(), SchemaError> {
        let Looked { keys, end, .. } = &self.rows;
        let Some(last_row) = end.checked_sub(1) else { return Ok(()) };
        let follows = self.last.as_ref().is_none_or(|last| last.row() < keys.row(0));
        let rises = (0..last_row).all(|row| keys.row(row) < keys.row(row + 1));
        self.last = Some(keys.row(last_row).owned());
        if follows && rises { Ok(()) } else { Err(SchemaError::Unsorted { table: table.name }) }
    }

    /// Passes by what is outside the range of keys.
    fn keep_range(&mut self) {
        if let Some(from) = &self.from {
            self.rows.at = self.rows.n_below(from);
        }
        if let Some(until) = &self.until {
            let n_below = self.rows.n_below(until);
            self.is_over |= n_below < self.rows.end;
            self.rows.end = n_below.max(self.rows.at);
        }
    }
}

/// A batch with the fields of the table, as a file may say other things beside them.
fn with_fields(
    batch: RecordBatch,
    schema: &SchemaRef,
    table: &'static Table,
) -> Result<RecordBatch, SchemaError> {
    RecordBatch::try_new(schema.clone(), batch.columns().to_vec())
        .map_err(|source| batch_error(table, source))
}

/// Whether a file has the columns of a table, of the same types in the same order.
pub fn has_columns(schema: &Schema, table: &Table, ids: IdTypes) -> bool {
    schema.fields() == table.arrow_schema(ids).fields()
}

fn batch_error(table: &'static Table, source: ArrowError) -> SchemaError {
    SchemaError::Batch { table: table.name, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{DefaultTopKRows, IdRows, tables};
    use crate::types::{IdType, Ids};

    const IDS: IdTypes = IdTypes { user: IdType::Utf8, item: IdType::Utf8 };

    fn rows(rows: &[(&str, i32, f32)]) -> RecordBatch {
        let mut ids = Ids::new(IdType::Utf8);
        ids.push(IdRef::Bytes(b"item"));
        let batch = DefaultTopKRows {
            segment: rows.iter().map(|row| row.0).collect(),
            rank: rows.iter().map(|row| row.1).collect(),
            item: IdRows { ids: &ids, rows: vec![0; rows.len()] },
            score: rows.iter().map(|row| row.2).collect(),
        };
        batch.into_batch(IDS).unwrap()
    }

    /// Changes between rows that come in batches, as text.
    fn changes(old: &[RecordBatch], new: &[RecordBatch]) -> Result<Vec<String>, SchemaError> {
        let is_gone = |_: Kind, _: IdRef<'_>| false;
        let differ = Differ::new(&tables::DEFAULT_TOP_K, IDS, &is_gone)?;
        let mut told = Vec::new();
        let (old, new) = (old.iter().cloned().map(Ok), new.iter().cloned().map(Ok));
        differ.changes(old, new, &KeyRange::default(), |rows| {
            let texts = rows.columns().iter().map(|column| {
                arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap()
            });
            let texts: Vec<ArrayRef> = texts.collect();
            let text = |row: usize, column: &ArrayRef| {
                let texts = arrow::array::AsArray::as_string::<i32>(column);
                let is_null = arrow::array::Array::is_null(texts, row);
                if is_null { "-" } else { texts.value(row) }.to_owned()
            };
            let line = |row| texts.iter().map(|column| text(row, column)).collect::<Vec<_>>();
            told.extend((0..rows.num_rows()).map(|row| line(row).join(" ")));
            Ok::<_, SchemaError>(())
        })?;
        Ok(told)
    }

    #[test]
    fn rows_that_differ_are_put_in_whole_and_keys_that_are_gone_taken_out() {
        let old = [rows(&[("a", 1, 0.0), ("a", 2, 1.0)]), rows(&[("b", 1, 3.0), ("c", 1, 1.0)])];
        let new = [rows(&[("a", 1, -0.0), ("a", 2, 1.0), ("aa", 1, 2.0)]), rows(&[("c", 1, 1.5)])];
        let wanted = [
            "upsert a 1 item -0.0",
            "upsert aa 1 item 2.0",
            "delete b 1 - -",
            "upsert c 1 item 1.5",
        ];
        assert_eq!(changes(&old, &new).unwrap(), wanted);
        assert_eq!(changes(&new, &new).unwrap(), [""; 0]);
        assert_eq!(changes(&[], &new[1..]).unwrap(), ["upsert c 1 item 1.5"]);
        assert_eq!(changes(&new[1..], &[]).unwrap(), ["delete c 1 - -"]);
        assert_eq!(changes(&[], &[]).unwrap(), [""; 0]);
    }

    #[test]
    fn rows_out_of_order_and_repeated_keys_are_refused() {
        let sound = [rows(&[("a", 1, 0.0), ("a", 2, 1.0)])];
        let unsorted = [rows(&[("b", 1, 0.0), ("a", 2, 1.0)])];
        let over_batches = [rows(&[("b", 1, 0.0)]), rows(&[("a", 2, 1.0)])];
        let twice = [rows(&[("a", 1, 0.0)]), rows(&[("a", 1, 1.0)])];
        for wrong in [&unsorted[..], &over_batches, &twice] {
            for found in [changes(wrong, &sound), changes(&sound, wrong)] {
                assert!(matches!(found, Err(SchemaError::Unsorted { .. })), "{found:?}");
            }
        }
    }
}
