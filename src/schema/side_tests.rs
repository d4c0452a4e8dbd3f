use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, DictionaryArray, Float64Array, Int32Array,
    ListArray, RecordBatch, StringArray, UInt64Array,
};
use arrow::datatypes::{Int8Type, Int32Type};

use super::{id_column, text_column};
use crate::types::IdRef;

fn batch(array: impl Array + 'static) -> RecordBatch {
    let array: ArrayRef = Arc::new(array);
    RecordBatch::try_from_iter_with_nullable([("sku", array, true)]).unwrap()
}

fn texts(array: impl Array + 'static) -> Vec<Option<String>> {
    let texts = text_column(&batch(array), "sku").unwrap();
    texts.iter().map(|text| text.map(str::to_owned)).collect()
}

#[test]
fn columns_of_any_plain_type_have_a_text() {
    let some = |text: &str| Some(text.to_owned());
    let flags = BooleanArray::from(vec![Some(true), Some(false), None]);
    assert_eq!(texts(flags), [some("true"), some("false"), None]);
    assert_eq!(texts(Int32Array::from(vec![Some(-7), None])), [some("-7"), None]);
    assert_eq!(texts(UInt64Array::from(vec![u64::MAX])), [some("18446744073709551615")]);
    assert_eq!(texts(Float64Array::from(vec![0.5])), [some("0.5")]);
    assert_eq!(texts(Date32Array::from(vec![20_000])), [some("2024-10-04")]);
    let dictionary: DictionaryArray<Int8Type> = [Some("b"), None, Some("b")].into_iter().collect();
    assert_eq!(texts(dictionary), [some("b"), None, some("b")]);
}

#[test]
fn a_column_without_a_text_is_refused() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
    let columns = arrow::array::StructArray::from(batch(lists));
    assert!(text_column(&batch(columns), "sku").is_err());
    let error = text_column(&batch(StringArray::from(vec!["x"])), "skv").unwrap_err().to_string();
    assert!(error.contains("\"skv\", did you mean \"sku\"?"), "{error}");
}

#[test]
fn ids_are_read_by_name() {
    let ids = id_column(&batch(StringArray::from(vec![Some("x"), None])), "sku").unwrap();
    assert_eq!([ids.get_opt(0), ids.get_opt(1)], [Some(IdRef::Bytes(b"x")), None]);
    let error = id_column(&batch(Float64Array::from(vec![1.0])), "sku").unwrap_err().to_string();
    assert!(error.contains("column \"sku\" cannot hold ids"), "{error}");
    let error = id_column(&batch(Float64Array::from(vec![1.0])), "id").unwrap_err().to_string();
    assert!(error.contains("\"id\"") && error.contains("the file has sku"), "{error}");
}
