use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, Int32Array, Int64Array, NullArray, StringArray,
    UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use proptest::prelude::*;

use super::{IdColumn, IdRows, OptionalIdRows, SchemaError, id_data_type, id_type_of, ids_array};
use crate::types::{ByteIds, IdRef, IdType, Ids};

const ID_TYPES: [IdType; 6] = [
    IdType::Int32,
    IdType::Int64,
    IdType::Utf8,
    IdType::LargeUtf8,
    IdType::Binary,
    IdType::LargeBinary,
];

fn dictionary_of(id_type: IdType) -> Ids {
    if id_type.is_int() {
        return Ids::Int(vec![-7, 0, 42, i64::from(i32::MAX)]);
    }
    let mut ids = ByteIds::default();
    ["", "a", "blåhaj", "a string that no view holds inline"]
        .iter()
        .for_each(|id| ids.push(id.as_bytes()));
    Ids::Bytes(ids)
}

fn assert_ids(array: &ArrayRef, ids: &Ids, rows: &[Option<usize>]) {
    let column = IdColumn::try_new(array).unwrap();
    assert_eq!(column.len(), rows.len());
    assert_eq!(column.is_empty(), rows.is_empty());
    assert_eq!(column.null_count(), rows.iter().filter(|row| row.is_none()).count());
    for (at, row) in rows.iter().enumerate() {
        assert_eq!(column.get_opt(at), row.map(|row| ids.get(row)), "{}", array.data_type());
        assert_eq!(column.is_null(at), row.is_none());
    }
}

#[test]
fn every_id_type_survives_the_round_trip() {
    for id_type in ID_TYPES {
        let ids = dictionary_of(id_type);
        for rows in [vec![], vec![Some(3), Some(0), Some(2), Some(2)], vec![None, Some(1), None]] {
            let array = ids_array(&ids, rows.iter().copied(), id_type).unwrap();
            assert_eq!(*array.data_type(), id_data_type(id_type));
            assert_eq!(IdColumn::try_new(&array).unwrap().id_type(), id_type);
            assert_eq!(array.nulls().is_some(), rows.contains(&None), "no idle null buffer");
            assert_ids(&array, &ids, &rows);
        }
    }
}

#[test]
fn rows_of_a_dictionary_become_arrays() {
    let ids = dictionary_of(IdType::Utf8);
    let all = IdRows::all(&ids).to_array(IdType::Utf8).unwrap();
    assert_ids(&all, &ids, &[Some(0), Some(1), Some(2), Some(3)]);
    let some = OptionalIdRows { ids: &ids, rows: vec![None, Some(3)] };
    assert_ids(&some.to_array(IdType::LargeBinary).unwrap(), &ids, &[None, Some(3)]);
}

#[test]
fn narrow_integers_are_widened() {
    let ids = Ids::Int(vec![0, 1, 127]);
    let rows = [Some(2), None, Some(0), Some(1)];
    let wide = ids_array(&ids, rows.into_iter(), IdType::Int64).unwrap();
    use DataType::*;
    for (data_type, id_type) in [
        (Int8, IdType::Int32),
        (Int16, IdType::Int32),
        (Int32, IdType::Int32),
        (UInt8, IdType::Int32),
        (UInt16, IdType::Int32),
        (UInt32, IdType::Int64),
        (Int64, IdType::Int64),
    ] {
        let array = cast(&wide, &data_type).unwrap();
        assert_eq!(id_type_of(&data_type).unwrap(), id_type);
        assert_ids(&array, &ids, &rows);
    }
}

#[test]
fn views_and_fixed_sizes_are_read() {
    let ids = dictionary_of(IdType::Utf8);
    let rows = [Some(3), None, Some(0), Some(2)];
    let strings = ids_array(&ids, rows.into_iter(), IdType::Utf8).unwrap();
    for (data_type, id_type) in
        [(DataType::Utf8View, IdType::Utf8), (DataType::BinaryView, IdType::Binary)]
    {
        assert_eq!(id_type_of(&data_type).unwrap(), id_type);
        assert_ids(&cast(&strings, &data_type).unwrap(), &ids, &rows);
    }

    let fixed = [Some(b"ab"), None, Some(b"cd")].into_iter();
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed, 2).unwrap();
    let column = IdColumn::try_new(&(Arc::new(fixed) as ArrayRef)).unwrap();
    assert_eq!(column.id_type(), IdType::Binary);
    assert_eq!(column.get_opt(1), None);
    assert_eq!(column.get(2), IdRef::Bytes(b"cd"));
}

#[test]
fn lengths_of_texts_are_told_of_all_values() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "abc", "ab", "of more than twelve"]));
    let fixed = [Some(b"ab"), None, Some(b"cd")].into_iter();
    let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed, 2).unwrap();
    let column = |array: &ArrayRef| IdColumn::try_new(array).unwrap();
    let dictionary = DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into());
    for data_type in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View, dictionary] {
        let column = column(&cast(&text, &data_type).unwrap());
        assert!(column.are_texts_of(1..=19), "{data_type}");
        assert!(!column.are_texts_of(2..=19) && !column.are_texts_of(1..=18), "{data_type}");
    }
    // A slice does not know of what it leaves out.
    assert!(column(&text.slice(1, 2)).are_texts_of(2..=3));
    let fixed = column(&(Arc::new(fixed) as ArrayRef));
    assert!(fixed.are_texts_of(2..=2) && !fixed.are_texts_of(3..=9));
    let ints = column(&(Arc::new(Int32Array::from(vec![1])) as ArrayRef));
    assert!(!ints.are_texts_of(0..=9));
}

#[test]
fn dictionaries_are_read_by_their_keys() {
    for id_type in ID_TYPES {
        let ids = dictionary_of(id_type);
        let rows = [Some(1), None, Some(3), Some(1), Some(0)];
        let plain = ids_array(&ids, rows.into_iter(), id_type).unwrap();
        for keys in [DataType::Int8, DataType::UInt16, DataType::Int32, DataType::UInt64] {
            let data_type = DataType::Dictionary(keys.into(), id_data_type(id_type).into());
            let array = cast(&plain, &data_type).unwrap();
            assert_eq!(IdColumn::try_new(&array).unwrap().id_type(), id_type);
            assert_ids(&array, &ids, &rows);
            assert_ids(&array.slice(1, 3), &ids, &rows[1..4]);
        }
    }
}

#[test]
fn a_null_may_hide_in_a_dictionarys_values() {
    let values = Arc::new(StringArray::from(vec![Some("a"), None]));
    let keys = Int32Array::from(vec![Some(0), Some(1), None]);
    let array = arrow::array::DictionaryArray::new(keys, values);
    let column = IdColumn::try_new(&(Arc::new(array) as ArrayRef)).unwrap();
    assert_eq!(column.null_count(), 2);
    assert_eq!(
        [column.get_opt(0), column.get_opt(1), column.get_opt(2)],
        [Some(IdRef::Bytes(b"a")), None, None]
    );
}

#[test]
fn sliced_arrays_keep_their_rows() {
    let array = (Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])) as ArrayRef).slice(1, 2);
    assert_ids(&array, &Ids::Int(vec![3]), &[None, Some(0)]);
    let array = (Arc::new(StringArray::from(vec!["x", "yy", "zzz"])) as ArrayRef).slice(2, 1);
    assert_eq!(IdColumn::try_new(&array).unwrap().get(0), IdRef::Bytes(b"zzz"));
}

#[test]
fn what_is_no_id_is_refused_with_advice() {
    let unsigned = Arc::new(UInt64Array::from(vec![1])) as ArrayRef;
    let error = IdColumn::try_new(&unsigned).unwrap_err();
    assert!(matches!(error, SchemaError::UnsignedIds));
    assert!(error.to_string().ends_with("cast them to int64 or string"));
    let error = IdColumn::try_new(&(Arc::new(NullArray::new(3)) as ArrayRef)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ids of type \"Null\" are not supported; cast them to int64, string or binary"
    );
    for data_type in [
        DataType::Float64,
        DataType::Boolean,
        DataType::Date32,
        DataType::Decimal128(38, 0),
        DataType::Dictionary(DataType::Int8.into(), DataType::UInt64.into()),
    ] {
        assert!(id_type_of(&data_type).is_err(), "{data_type}");
    }
}

#[test]
fn an_id_that_does_not_fit_is_an_error() {
    let ids = Ids::Int(vec![1, 1 << 40]);
    let error = ids_array(&ids, [Some(1)].into_iter(), IdType::Int32).unwrap_err();
    assert_eq!(
        error.to_string(),
        "id \"1099511627776\" does not fit Int32; let the ids be int64 in every input"
    );
    assert!(ids_array(&ids, [None, Some(0)].into_iter(), IdType::Int32).is_ok());
}

#[test]
#[should_panic(expected = "both integers or both bytes")]
fn kinds_are_never_mixed() {
    let _ = ids_array(&Ids::Int(vec![1]), [Some(0)].into_iter(), IdType::Utf8);
}

proptest! {
    #[test]
    fn any_bytes_survive(
        ids in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..20),
        picks in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 0..50),
        is_large: bool,
    ) {
        let mut bytes = ByteIds::default();
        ids.iter().for_each(|id| bytes.push(id));
        let rows: Vec<_> = picks.iter().map(|pick| pick.map(|pick| pick.index(ids.len()))).collect();
        let id_type = if is_large { IdType::LargeBinary } else { IdType::Binary };
        let ids = Ids::Bytes(bytes);
        assert_ids(&ids_array(&ids, rows.iter().copied(), id_type).unwrap(), &ids, &rows);
    }
}
