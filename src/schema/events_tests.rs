use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, Date32Array, Date64Array, Decimal128Array,
    DictionaryArray, Float32Array, Float64Array, Int8Array, Int64Array, LargeStringArray,
    NullArray, PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray, StringViewArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Int8Type, Int16Type, Int32Type, Int64Type, Schema, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use jiff::tz::TimeZone;

use super::events::*;
use super::{ColumnError, IdColumn};
use crate::types::{IdRef, IdType};

/// 2024-10-04 00:00 UTC, in seconds.
const DAY: i64 = 1_728_000_000;
const HOUR_US: i64 = 3_600_000_000;

fn utc(unit: Option<&str>) -> TimeReader {
    TimeReader::new(unit, TimeZone::UTC)
}

fn amsterdam() -> TimeReader {
    TimeReader::new(None, TimeZone::get("Europe/Amsterdam").unwrap())
}

fn micros(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_microsecond()
}

fn local(text: &str) -> i64 {
    micros(&format!("{text}Z"))
}

fn read(reader: &mut TimeReader, array: impl Array + 'static) -> Vec<i64> {
    let array: ArrayRef = Arc::new(array);
    reader.check("t", array.data_type()).unwrap();
    reader.read(&array).unwrap()
}

#[test]
fn every_unit_of_a_timestamp_is_brought_to_microseconds() {
    let (odd, even) = (DAY * 1_000_000 + 123_456, DAY * 1_000_000);
    let mut reader = utc(None);
    assert_eq!(read(&mut reader, TimestampSecondArray::from(vec![DAY])), [even]);
    let millis = TimestampMillisecondArray::from(vec![DAY * 1_000 + 123]);
    assert_eq!(read(&mut reader, millis), [even + 123_000]);
    assert_eq!(read(&mut reader, TimestampMicrosecondArray::from(vec![odd])), [odd]);
    let nanos = TimestampNanosecondArray::from(vec![odd * 1_000 + 999, -1, -1_000, -1_001]);
    assert_eq!(read(&mut reader, nanos), [odd, -1, -1, -2], "rounded down, also before 1970");
    let day = DAY / 86_400;
    assert_eq!(read(&mut reader, Date32Array::from(vec![day as i32, -1])), [even, -86_400_000_000]);
    assert_eq!(read(&mut reader, Date64Array::from(vec![DAY * 1_000])), [even]);
}

/// Two integers of one width as times.
fn integers<T: ArrowPrimitiveType>(unit: &str, values: [i64; 2]) -> Vec<i64> {
    let wide: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
    let array = cast(&wide, &T::DATA_TYPE).unwrap();
    assert_eq!(array.null_count(), 0, "the values fit the type");
    let narrow = array.as_any().downcast_ref::<PrimitiveArray<T>>().unwrap().clone();
    read(&mut utc(Some(unit)), narrow)
}

#[test]
fn integers_count_the_unit_of_the_spec() {
    let seconds = [DAY * 1_000_000, 0];
    assert_eq!(integers::<Int64Type>("s", [DAY, 0]), seconds);
    assert_eq!(integers::<Int32Type>("s", [DAY, 0]), seconds);
    assert_eq!(integers::<UInt32Type>("s", [DAY, 0]), seconds);
    assert_eq!(integers::<UInt64Type>("ms", [DAY * 1_000, 0]), seconds);
    assert_eq!(integers::<Int64Type>("us", [DAY * 1_000_000, 0]), seconds);
    assert_eq!(integers::<Int64Type>("ns", [DAY * 1_000_000_000, 0]), seconds);
    assert_eq!(integers::<Int64Type>("ns", [1_999, -1]), [1, -1]);
    assert_eq!(integers::<Int8Type>("s", [100, -100]), [100_000_000, -100_000_000]);
    assert_eq!(integers::<Int16Type>("ms", [1, -1]), [1_000, -1_000]);
    assert_eq!(integers::<UInt8Type>("s", [255, 0]), [255_000_000, 0]);
    assert_eq!(integers::<UInt16Type>("us", [65_535, 0]), [65_535, 0]);
}

#[test]
fn a_time_that_is_missing_or_cannot_be_real_is_invalid() {
    let invalid = [TIME_INVALID; 2];
    let null = TimestampMicrosecondArray::from(vec![None, Some(i64::MIN)]);
    assert_eq!(read(&mut utc(None), null), invalid);
    // Ones that overflow on the way are no other time by accident.
    assert_eq!(read(&mut utc(Some("s")), Int64Array::from(vec![i64::MAX, i64::MIN])), invalid);
    assert_eq!(read(&mut utc(Some("s")), UInt64Array::from(vec![u64::MAX, 1 << 63])), invalid);
    let seconds = TimestampSecondArray::from(vec![i64::MAX / 1_000, 1 << 50]);
    assert_eq!(read(&mut utc(None), seconds), invalid);
    assert_eq!(read(&mut utc(None), Date32Array::from(vec![i32::MAX, i32::MIN])), invalid);
    let (first, end) = (micros("1900-01-01T00:00:00Z"), micros("2100-01-01T00:00:00Z"));
    let ends = TimestampMicrosecondArray::from(vec![first - 1, first, end - 1, end]);
    assert_eq!(read(&mut utc(None), ends), [TIME_INVALID, first, end - 1, TIME_INVALID]);
    // Milliseconds taken for seconds are far in the future, seconds taken for milliseconds are not.
    assert_eq!(read(&mut utc(Some("s")), Int64Array::from(vec![DAY * 1_000])), [TIME_INVALID]);
}

#[test]
fn a_timestamp_with_a_zone_is_an_instant_and_one_without_is_the_job_s() {
    let hours = vec![DAY * 1_000_000, DAY * 1_000_000 + 12 * HOUR_US];
    for zone in ["UTC", "+05:00", "America/New_York"] {
        let zoned = TimestampMicrosecondArray::from(hours.clone()).with_timezone(zone);
        assert_eq!(read(&mut amsterdam(), zoned), hours, "{zone}");
    }
    let summer: Vec<i64> = hours.iter().map(|time| time - 2 * HOUR_US).collect();
    let naive = TimestampMicrosecondArray::from(hours.clone());
    assert_eq!(read(&mut amsterdam(), naive.clone()), summer);
    assert_eq!(read(&mut utc(None), naive), hours);
    let date = Date32Array::from(vec![(DAY / 86_400) as i32]);
    assert_eq!(read(&mut amsterdam(), date), summer[..1]);
    // Integers count from 1970 UTC, whatever the zone of the job.
    let zone = TimeZone::get("Europe/Amsterdam").unwrap();
    let epoch = read(&mut TimeReader::new(Some("us"), zone), Int64Array::from(hours.clone()));
    assert_eq!(epoch, hours);
}

#[test]
fn gaps_and_folds_of_a_zone_have_one_instant_each() {
    let walls = [
        ("2024-03-31T01:59:59.999999", "2024-03-31T00:59:59.999999Z"),
        ("2024-03-31T02:30:00", "2024-03-31T01:30:00Z"), // In the gap: an hour later.
        ("2024-03-31T03:00:00", "2024-03-31T01:00:00Z"),
        ("2024-10-27T01:59:59", "2024-10-26T23:59:59Z"),
        ("2024-10-27T02:30:00", "2024-10-27T00:30:00Z"), // In the fold: the first of two.
        ("2024-10-27T03:00:00", "2024-10-27T02:00:00Z"),
        ("2024-03-31T01:59:59.999999", "2024-03-31T00:59:59.999999Z"),
    ];
    let naive: Vec<i64> = walls.iter().map(|(wall, _)| local(wall)).collect();
    let expected: Vec<i64> = walls.iter().map(|(_, instant)| micros(instant)).collect();
    assert_eq!(read(&mut amsterdam(), TimestampMicrosecondArray::from(naive)), expected);
    // Kathmandu is 5:45 ahead of UTC.
    let kathmandu = TimeZone::get("Asia/Kathmandu").unwrap();
    let noon = TimestampMicrosecondArray::from(vec![local("2024-10-04T12:00:00")]);
    let read = read(&mut TimeReader::new(None, kathmandu), noon);
    assert_eq!(read, [micros("2024-10-04T06:15:00Z")]);
}

#[test]
fn only_times_are_taken_for_times() {
    let reader = utc(Some("s"));
    for array in [
        Arc::new(Float64Array::from(vec![1.0])) as ArrayRef,
        Arc::new(StringArray::from(vec!["2024-10-04"])),
        Arc::new(BooleanArray::from(vec![true])),
        Arc::new(Time64MicrosecondArray::from(vec![1])),
        Arc::new(NullArray::new(1)),
    ] {
        let error = reader.check("t", array.data_type()).unwrap_err().to_string();
        assert!(error.starts_with("column \"t\" is "), "{error}");
        assert!(error.contains("expected a timestamp, a date or an integer"), "{error}");
    }
    let error = utc(None).check("t", &DataType::Int64).unwrap_err().to_string();
    assert!(error.contains("time_unit = \"s\""), "{error}");
}

fn names() -> EventColumns {
    EventColumns {
        user: "user".into(),
        item: "item".into(),
        time: None,
        event: Some("event".into()),
        value: Some("value".into()),
        id: None,
    }
}

fn log(event: ArrayRef, value: ArrayRef) -> RecordBatch {
    let ids = |from: i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(from..from + event.len() as i64))
    };
    let columns = [("user", ids(0)), ("item", ids(10)), ("event", event.clone()), ("value", value)];
    let nullable = columns.map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(nullable).unwrap()
}

fn read_log(
    log: &RecordBatch,
    kinds: &[&str],
) -> Result<(EventBatch, BTreeMap<String, u64>), ColumnError> {
    let kinds: Vec<String> = kinds.iter().map(|&kind| kind.to_owned()).collect();
    let mut unlisted = BTreeMap::new();
    let mut count = |event: &str, n: u64| *unlisted.entry(event.to_owned()).or_default() += n;
    let batch = read_batch(log, &names(), &kinds, &mut utc(None), &mut count)?;
    Ok((batch, unlisted))
}

fn ones(n_rows: usize) -> ArrayRef {
    Arc::new(Float64Array::from(vec![1.0; n_rows]))
}

fn buys(n_rows: usize) -> ArrayRef {
    Arc::new(StringArray::from(vec!["buy"; n_rows]))
}

#[test]
fn event_types_of_every_encoding_become_codes() {
    let words = [Some("view"), None, Some("buy"), Some("scroll"), Some("scroll")];
    let arrays: [ArrayRef; 5] = [
        Arc::new(StringArray::from(words.to_vec())),
        Arc::new(LargeStringArray::from(words.to_vec())),
        Arc::new(StringViewArray::from(words.to_vec())),
        Arc::new(words.into_iter().collect::<DictionaryArray<Int8Type>>()),
        {
            let plain: ArrayRef = Arc::new(LargeStringArray::from(words.to_vec()));
            let of = DataType::Dictionary(DataType::UInt16.into(), DataType::LargeUtf8.into());
            cast(&plain, &of).unwrap()
        },
    ];
    for array in arrays {
        let (batch, unlisted) = read_log(&log(array, ones(5)), &["buy", "view"]).unwrap();
        assert_eq!(batch.kinds, [1, KIND_UNLISTED, 0, KIND_UNLISTED, KIND_UNLISTED]);
        let expected = [("(null)".to_owned(), 1), ("scroll".to_owned(), 2)];
        assert_eq!(unlisted, BTreeMap::from(expected));
    }
}

#[test]
fn event_types_may_be_numbers() {
    let events: ArrayRef = Arc::new(Int8Array::from(vec![Some(2), Some(1), None]));
    let (batch, _) = read_log(&log(events, ones(3)), &["1", "2"]).unwrap();
    assert_eq!(batch.kinds, [1, 0, KIND_UNLISTED]);
}

#[test]
fn a_dictionary_may_hold_nulls_repeats_and_nothing() {
    let words = StringArray::from(vec![Some("buy"), None, Some("buy"), Some("never")]);
    let keys = Int8Array::from(vec![Some(0), Some(1), Some(2), None]);
    let array: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(words)));
    let (batch, unlisted) = read_log(&log(array, ones(4)), &["buy"]).unwrap();
    assert_eq!(batch.kinds, [0, KIND_UNLISTED, 0, KIND_UNLISTED]);
    assert_eq!(unlisted, BTreeMap::from([("(null)".to_owned(), 2)]));

    // What a reader makes of a row group without a single value.
    let empty = StringArray::from(Vec::<&str>::new());
    let keys = Int8Array::from(vec![None, None]);
    let nothing: ArrayRef = Arc::new(DictionaryArray::new(keys, Arc::new(empty)));
    let (batch, unlisted) = read_log(&log(nothing.clone(), ones(2)), &["buy"]).unwrap();
    assert_eq!(batch.kinds, [KIND_UNLISTED; 2]);
    assert_eq!(unlisted, BTreeMap::from([("(null)".to_owned(), 2)]));
    let ids = IdColumn::try_new(&nothing).unwrap();
    assert_eq!([ids.get_opt(0), ids.get_opt(1)], [None, None]);
}

#[test]
fn values_of_every_number_type_are_read_as_they_are() {
    let values = |array: ArrayRef| {
        check_columns(&log(buys(array.len()), array.clone()).schema(), &names(), &utc(None), &[])?;
        let (batch, _) = read_log(&log(buys(array.len()), array), &["buy"])?;
        Ok::<_, ColumnError>(batch.values.unwrap())
    };
    // What a value is worth is for the caller to say: nothing is replaced here.
    let floats = [Some(-0.5), None, Some(f32::NAN), Some(f32::INFINITY)];
    let floats = values(Arc::new(Float32Array::from(floats.to_vec()))).unwrap();
    assert_eq!((floats.value(0), floats.is_null(1)), (-0.5, true));
    assert!(floats.value(2).is_nan() && floats.value(3) == f64::INFINITY);
    let large = values(Arc::new(UInt64Array::from(vec![u64::MAX]))).unwrap();
    assert_eq!(large.value(0), 2f64.powi(64));
    let cents = Decimal128Array::from(vec![Some(1_999), None]).with_precision_and_scale(10, 2);
    let cents = values(Arc::new(cents.unwrap())).unwrap();
    assert_eq!((cents.value(0), cents.is_null(1)), (19.99, true));
    let flags = values(Arc::new(BooleanArray::from(vec![true, false]))).unwrap();
    assert_eq!(flags.values(), &[1.0, 0.0]);
    for wrong in [buys(1), Arc::new(TimestampSecondArray::from(vec![1])) as ArrayRef] {
        let error = values(wrong).unwrap_err().to_string();
        assert!(error.contains("\"value\"") && error.contains("a number"), "{error}");
    }
}

#[test]
fn columns_are_held_against_the_schema_before_anything_is_read() {
    let schema = log(buys(1), ones(1)).schema();
    let check = |columns: &EventColumns, keys: &[&str]| {
        check_columns(&schema, columns, &utc(None), keys).map_err(|error| error.to_string())
    };
    assert_eq!(check(&names(), &[]), Ok((IdType::Int64, IdType::Int64)));
    // A folder key stands for a column of strings.
    let by_folder = EventColumns { user: "shop".into(), ..names() };
    assert_eq!(check(&by_folder, &["shop"]), Ok((IdType::Utf8, IdType::Int64)));
    let missing = check(&by_folder, &[]).unwrap_err();
    assert!(missing.contains("\"shop\"") && missing.contains("user, item, event, value"));
    for (columns, expected) in [
        (EventColumns { time: Some("item".into()), ..names() }, "time_unit"),
        (EventColumns { event: Some("value".into()), ..names() }, "a string or an integer"),
        (EventColumns { value: Some("event".into()), ..names() }, "a number"),
        (EventColumns { id: Some("value".into()), ..names() }, "cannot hold ids"),
        (EventColumns { user: "value".into(), ..names() }, "cannot hold ids"),
        (EventColumns { id: Some("itme".into()), ..names() }, "did you mean \"item\"?"),
    ] {
        let error = check(&columns, &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let renamed = EventColumns { user: "usr".into(), ..names() };
    let error = read_batch(&log(buys(1), ones(1)), &renamed, &[], &mut utc(None), &mut |_, _| ());
    assert!(matches!(error, Err(ColumnError::Missing { .. })));
}

#[test]
fn folder_keys_become_columns_where_the_file_has_none() {
    let log = log(buys(2), ones(2));
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let keys = BTreeMap::from([text("event", "view"), text("shop", "nl"), text("dt", "x")]);
    let with = with_folder_columns(&log, &keys, &["user", "event", "shop", "other"]).unwrap();
    let names: Vec<String> = with.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["user", "item", "event", "value", "shop"], "the file's own column wins");
    let shops = IdColumn::try_new(with.column(4)).unwrap();
    assert_eq!([shops.get(0), shops.get(1)], [IdRef::Bytes(b"nl"); 2]);
    // A file may hold none of the mapped columns and still has rows.
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let bare = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options);
    let with = with_folder_columns(&bare.unwrap(), &keys, &["shop"]).unwrap();
    assert_eq!((with.num_rows(), with.num_columns()), (3, 1));
}
