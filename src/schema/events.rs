//! Record batches of an interaction log as typed columns.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, RecordBatchOptions,
    StringArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use jiff::tz::TimeZone;

use super::{ColumnError, IdColumn, id_type_of};
use crate::types::IdType;

/// Names of the mapped columns of one log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EventColumns {
    /// Who.
    pub user: String,
    /// What.
    pub item: String,
    /// When.
    pub time: Option<String>,
    /// Which kind of event.
    pub event: Option<String>,
    /// How much.
    pub value: Option<String>,
    /// What makes two rows the same event.
    pub id: Option<String>,
}

impl EventColumns {
    /// All mapped names, without repetition.
    pub fn names(&self) -> Vec<&str> {
        let optional = [&self.time, &self.event, &self.value, &self.id];
        let mut names = vec![self.user.as_str(), self.item.as_str()];
        for name in optional.into_iter().flatten() {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

/// How times of one log become microseconds since 1970 UTC.
#[derive(Clone, Debug)]
pub struct TimeReader {
    /// Microseconds per unit of an integer column, as (multiplier, divisor).
    integer_scale: Option<(i64, i64)>,
    zone: TimeZone,
    /// Offset of the zone in the quarter hour last asked for: zones change at quarter hours.
    cached: (i64, i64),
}

/// A time that is missing or cannot be represented.
pub const TIME_INVALID: i64 = i64::MIN;

impl TimeReader {
    /// `integer_unit`: `s`, `ms`, `us` or `ns`. `zone`: of timestamps without one.
    pub fn new(integer_unit: Option<&str>, zone: TimeZone) -> Self {
        let integer_scale = integer_unit.map(|unit| match unit {
            "s" => (1_000_000, 1),
            "ms" => (1_000, 1),
            "us" => (1, 1),
            _ => (1, 1_000),
        });
        Self { integer_scale, zone, cached: (i64::MIN, 0) }
    }

    /// Whether a column of this type can be read; the message says what to do if not.
    pub fn check(&self, column: &str, data_type: &DataType) -> Result<(), ColumnError> {
        match data_type {
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Ok(()),
            t if t.is_integer() && self.integer_scale.is_some() => Ok(()),
            t if t.is_integer() => Err(ColumnError::NoTimeUnit { column: column.to_owned() }),
            t => Err(ColumnError::unexpected(column, t, "a timestamp, a date or an integer")),
        }
    }

    /// Microseconds since 1970 UTC per row, [`TIME_INVALID`] for null and out of range.
    pub fn read(&mut self, array: &ArrayRef) -> Result<Vec<i64>, ColumnError> {
        let (scale, naive) = match array.data_type() {
            DataType::Timestamp(unit, zone) => (unit_scale(unit), zone.is_none()),
            DataType::Date32 => ((crate::types::DAY_US, 1), true),
            DataType::Date64 => ((1_000, 1), true),
            _ => (self.integer_scale.unwrap_or((1, 1)), false),
        };
        let integers = match array.data_type() {
            DataType::Date32 => cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?,
            _ => cast(array, &DataType::Int64)?,
        };
        let integers: &Int64Array = integers.as_primitive();
        let mut times = in_us(integers.values(), scale);
        if let Some(nulls) = integers.nulls() {
            let is_null = |row: usize| nulls.is_null(row);
            (0..times.len()).filter(|&row| is_null(row)).for_each(|row| times[row] = TIME_INVALID);
        }
        if naive && self.zone != TimeZone::UTC {
            let valid = times.iter_mut().filter(|time| **time != TIME_INVALID);
            valid.for_each(|time| *time = self.utc_of(*time));
        }
        Ok(times)
    }

    /// The instant of a wall-clock time: in a gap the later, in a fold the earlier one.
    fn utc_of(&mut self, local_us: i64) -> i64 {
        const QUARTER_US: i64 = 900_000_000;
        let quarter = local_us.div_euclid(QUARTER_US);
        if self.cached.0 != quarter {
            let wall = jiff::Timestamp::from_microsecond(quarter * QUARTER_US)
                .map(|instant| TimeZone::UTC.to_datetime(instant));
            let instant = wall.and_then(|wall| self.zone.to_timestamp(wall));
            let offset =
                instant.map_or(0, |instant| quarter * QUARTER_US - instant.as_microsecond());
            self.cached = (quarter, offset);
        }
        local_us - self.cached.1
    }
}

/// Numbers as microseconds, [`TIME_INVALID`] out of range.
fn in_us(integers: &[i64], (multiplier, divisor): (i64, i64)) -> Vec<i64> {
    let valid = |time: i64| match (TIME_MIN_US..TIME_MAX_US).contains(&time) {
        true => time,
        false => TIME_INVALID,
    };
    match (multiplier, divisor) {
        (1, 1) => integers.iter().map(|&time| valid(time)).collect(),
        (_, 1) => {
            let time = |&time: &i64| time.checked_mul(multiplier).map_or(TIME_INVALID, valid);
            integers.iter().map(time).collect()
        }
        _ => integers.iter().map(|time| valid(time.div_euclid(divisor))).collect(),
    }
}

/// Times from 1900 up to 2100 are taken for real.
const TIME_MIN_US: i64 = -2_208_988_800_000_000;
const TIME_MAX_US: i64 = 4_102_444_800_000_000;

fn unit_scale(unit: &TimeUnit) -> (i64, i64) {
    match unit {
        TimeUnit::Second => (1_000_000, 1),
        TimeUnit::Millisecond => (1_000, 1),
        TimeUnit::Microsecond => (1, 1),
        TimeUnit::Nanosecond => (1, 1_000),
    }
}

/// Kind code of a row whose event type has no weight.
pub const KIND_UNLISTED: u8 = u8::MAX;

/// The columns of one batch.
pub struct EventBatch {
    /// Who.
    pub users: IdColumn,
    /// What.
    pub items: IdColumn,
    /// Index into the kinds of the log, [`KIND_UNLISTED`] for others; all 0 without the column.
    pub kinds: Vec<u8>,
    /// Microseconds since 1970 UTC, [`TIME_INVALID`] for null and out of range.
    pub times: Option<Vec<i64>>,
    /// Values; null where missing.
    pub values: Option<Float64Array>,
    /// Event ids.
    pub ids: Option<IdColumn>,
}

/// Reads the mapped columns of a batch.
///
/// `kinds` are the names of the log's event types in the order of their codes; `unlisted` is told
/// of every other name and how often it stands there.
///
/// # Errors
/// A mapped column is missing or has a type that cannot be read.
pub fn read_batch(
    batch: &RecordBatch,
    columns: &EventColumns,
    kinds: &[String],
    times: &mut TimeReader,
    unlisted: &mut dyn FnMut(&str, u64),
) -> Result<EventBatch, ColumnError> {
    let column = |name: &str| {
        let found = batch.column_by_name(name);
        found.ok_or_else(|| ColumnError::missing(name, &batch.schema()))
    };
    let optional = |name: &Option<String>| name.as_deref().map(column).transpose();
    let ids = |name: &str| {
        IdColumn::try_new(column(name)?)
            .map_err(|source| ColumnError::Ids { column: name.to_owned(), source })
    };
    let time = optional(&columns.time)?.map(|array| times.read(array)).transpose()?;
    let values = optional(&columns.value)?.map(read_values).transpose()?;
    let kinds = match optional(&columns.event)? {
        Some(array) => read_kinds(array, kinds, unlisted)?,
        None => vec![0; batch.num_rows()],
    };
    Ok(EventBatch {
        users: ids(&columns.user)?,
        items: ids(&columns.item)?,
        kinds,
        times: time,
        values,
        ids: columns.id.as_deref().map(ids).transpose()?,
    })
}

/// Holds the mapped columns against a file's schema before anything is read; returns the types of
/// user and item ids.
///
/// `folder_keys` are keys of hive folders: they stand for columns that the file lacks.
///
/// # Errors
/// The first mapped column that is missing or has a type that cannot be read.
pub fn check_columns(
    schema: &Schema,
    columns: &EventColumns,
    times: &TimeReader,
    folder_keys: &[&str],
) -> Result<(IdType, IdType), ColumnError> {
    let data_type = |name: &str| match schema.field_with_name(name) {
        Ok(field) => Ok(field.data_type().clone()),
        Err(_) if folder_keys.contains(&name) => Ok(DataType::Utf8),
        Err(_) => Err(ColumnError::missing(name, schema)),
    };
    let id = |name: &str| {
        id_type_of(&data_type(name)?)
            .map_err(|source| ColumnError::Ids { column: name.to_owned(), source })
    };
    let types = (id(&columns.user)?, id(&columns.item)?);
    if let Some(name) = &columns.time {
        times.check(name, &data_type(name)?)?;
    }
    if let Some(name) = &columns.event {
        check_event(name, &data_type(name)?)?;
    }
    if let Some(name) = &columns.value {
        check_value(name, &data_type(name)?)?;
    }
    if let Some(name) = &columns.id {
        id(name)?;
    }
    Ok(types)
}

/// The batch with a constant column for each of `names` that is a key of the file's folders.
pub fn with_folder_columns(
    batch: &RecordBatch,
    folder_keys: &std::collections::BTreeMap<String, String>,
    names: &[&str],
) -> Result<RecordBatch, ColumnError> {
    let mut fields = batch.schema().fields().to_vec();
    let mut arrays = batch.columns().to_vec();
    for name in names.iter().filter(|name| batch.column_by_name(name).is_none()) {
        let Some(value) = folder_keys.get(*name) else { continue };
        fields.push(Arc::new(Field::new(*name, DataType::Utf8, false)));
        let values = std::iter::repeat_n(value.as_str(), batch.num_rows());
        arrays.push(Arc::new(StringArray::from_iter_values(values)));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let schema = Arc::new(Schema::new(fields));
    Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
}

/// Whether a column of this type can be a value.
fn check_value(column: &str, data_type: &DataType) -> Result<(), ColumnError> {
    if data_type.is_numeric() || matches!(data_type, DataType::Boolean) {
        return Ok(());
    }
    Err(ColumnError::unexpected(column, data_type, "a number"))
}

/// Whether a column of this type can name event types.
fn check_event(column: &str, data_type: &DataType) -> Result<(), ColumnError> {
    let value_type = match data_type {
        DataType::Dictionary(_, value_type) => value_type,
        other => other,
    };
    if matches!(value_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        || value_type.is_integer()
    {
        return Ok(());
    }
    Err(ColumnError::unexpected(column, data_type, "a string or an integer"))
}

fn read_values(array: &ArrayRef) -> Result<Float64Array, ColumnError> {
    Ok(cast(array, &DataType::Float64)?.as_primitive().clone())
}

fn read_kinds(
    array: &ArrayRef,
    kinds: &[String],
    unlisted: &mut dyn FnMut(&str, u64),
) -> Result<Vec<u8>, ColumnError> {
    let code_of = |name: Option<&str>| {
        name.and_then(|name| kinds.iter().position(|kind| kind == name))
            .map_or(KIND_UNLISTED, |kind| kind as u8)
    };
    // The keys as they are: of a dictionary without values, no row has one.
    let (keys, names) = match array.as_any_dictionary_opt() {
        Some(dictionary) => {
            let keys = cast(dictionary.keys(), &DataType::Int64)?;
            let keys = keys.as_primitive::<Int64Type>().values().clone();
            (Some(keys), cast(dictionary.values(), &DataType::Utf8)?)
        }
        None => (None, cast(array, &DataType::Utf8)?),
    };
    let names = names.as_string::<i32>();
    let name_at = |row: usize| {
        let place = keys.as_ref().map_or(row, |keys| keys[row] as usize);
        (!array.is_null(row) && !names.is_null(place)).then(|| names.value(place))
    };
    let by_key: Vec<u8> = match keys {
        Some(_) => names.iter().map(code_of).collect(),
        None => Vec::new(),
    };
    let codes: Vec<u8> = match &keys {
        Some(keys) if array.null_count() == 0 => {
            keys.iter().map(|&key| by_key[key as usize]).collect()
        }
        Some(keys) => {
            let code = |row: usize| match array.is_null(row) {
                true => KIND_UNLISTED,
                false => by_key[keys[row] as usize],
            };
            (0..array.len()).map(code).collect()
        }
        None => (0..array.len()).map(|row| code_of(name_at(row))).collect(),
    };
    if codes.contains(&KIND_UNLISTED) {
        let rows = (0..codes.len()).filter(|&row| codes[row] == KIND_UNLISTED);
        rows.for_each(|row| unlisted(name_at(row).unwrap_or("(null)"), 1));
    }
    Ok(codes)
}
