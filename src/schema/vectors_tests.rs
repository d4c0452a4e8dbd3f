use proptest::prelude::*;

use super::vectors::*;

const WORKED_EXAMPLE: &str = "
    49 78 4d 32 02 00 00 00 02 00 00 00 00 00 00 00
    00 00 10 00 00 00 00 00 00 00 10 00 00 00 00 00
    01 00 00 00 00 49 78 46 49 02 00 00 00 02 00 00
    00 00 00 00 00 00 00 10 00 00 00 00 00 00 00 10
    00 00 00 00 00 01 00 00 00 00 04 00 00 00 00 00
    00 00 00 00 80 3f 00 00 00 40 00 00 40 40 00 00
    80 40 02 00 00 00 00 00 00 00 07 00 00 00 00 00
    00 00 09 00 00 00 00 00 00 00";

fn worked_example() -> Vec<u8> {
    let bytes = WORKED_EXAMPLE.split_whitespace();
    bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn flat(metric: Metric, with_ids: bool, n_rows: usize, dimension: usize) -> VectorLayout {
    VectorLayout { format: VectorFormat::Flat { metric, with_ids }, n_rows, dimension }
}

/// A whole file, as a writer puts it together.
fn file(layout: VectorLayout, values: &[f32], ids: &[i64]) -> Vec<u8> {
    let mut out = layout.header();
    for row in values.chunks(layout.dimension) {
        out.extend(layout.row_header());
        push_floats(&mut out, row);
    }
    if let Some(header) = layout.ids_header() {
        out.extend(header);
        out.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    }
    out
}

fn parse(bytes: &[u8]) -> Result<FlatFile, LayoutError> {
    parse_flat(&bytes[..bytes.len().min(FLAT_PREFIX_BYTES)], bytes.len() as u64)
}

/// An IndexIDMap2 over an IndexFlatIP, as faiss-cpu 1.15.1 serializes it.
#[test]
fn the_worked_example_byte_for_byte() {
    let layout = flat(Metric::InnerProduct, true, 2, 2);
    let bytes = file(layout, &[1.0, 2.0, 3.0, 4.0], &[7, 9]);
    assert_eq!((bytes.len(), &bytes), (122, &worked_example()));
    let expected = FlatFile {
        metric: Metric::InnerProduct,
        n_rows: 2,
        dimension: 2,
        floats_at: 82,
        ids_at: Some(106),
    };
    assert_eq!(parse(&bytes), Ok(expected));
}

#[test]
fn a_flat_index_without_ids_starts_at_its_own_type() {
    let bytes = file(flat(Metric::L2, false, 2, 2), &[1.0, 2.0, 3.0, 4.0], &[]);
    assert_eq!(&bytes[..8], b"IxF2\x02\0\0\0");
    assert_eq!(bytes[32..45], [1, 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(&bytes).unwrap().floats_at, 45);
}

/// The bytes of `numpy.save` of float32 arrays, NumPy 2.4.
#[test]
fn npy_headers_equal_those_of_numpy() {
    let cases = [
        ((2, 2), "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", 58),
        ((0, 3), "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", 58),
        ((123_456, 128), "{'descr': '<f4', 'fortran_order': False, 'shape': (123456, 128), }", 51),
    ];
    for ((n_rows, dimension), text, n_spaces) in cases {
        let layout = VectorLayout { format: VectorFormat::Npy, n_rows, dimension };
        let mut expected = b"\x93NUMPY\x01\x00v\x00".to_vec();
        expected.extend(text.as_bytes());
        expected.extend(" ".repeat(n_spaces).as_bytes());
        expected.push(b'\n');
        assert_eq!((layout.header(), expected.len()), (expected, 128));
    }
    let layout =
        VectorLayout { format: VectorFormat::Npy, n_rows: usize::MAX, dimension: DIMENSION_MAX };
    assert_eq!(layout.header().len(), 128);
}

#[test]
fn fvecs_rows_start_with_their_dimension() {
    let layout = VectorLayout { format: VectorFormat::Fvecs, n_rows: 2, dimension: 1 };
    let expected = [1, 0, 0, 0, 0, 0, 0x80, 0x3f, 1, 0, 0, 0, 0, 0, 0, 0x40];
    assert_eq!(file(layout, &[1.0, 2.0], &[]), expected);
}

#[track_caller]
fn refuses(change: impl FnOnce(&mut Vec<u8>), says: &str) {
    let mut bytes = worked_example();
    change(&mut bytes);
    let message = parse(&bytes).unwrap_err().to_string();
    assert!(message.contains(says) && !message.contains('\n'), "{message}");
}

fn put(at: usize, value: &[u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + value.len()].copy_from_slice(value)
}

#[test]
fn headers_that_lie_are_refused_with_their_place() {
    refuses(|bytes| bytes.truncate(0), "it has 0 bytes, too few for the header");
    refuses(|bytes| bytes.truncate(60), "it has 60 bytes, too few");
    refuses(|bytes| bytes.truncate(121), "declares 122 bytes and it has 121");
    refuses(|bytes| bytes.push(0), "declares 122 bytes and it has 123");
    refuses(put(0, b"IwFl"), "it holds \"IwFl\" at byte 0, and only FAISS flat indexes");
    refuses(put(0, b"\x93NUM"), "it holds \"\\x93NUM\" at byte 0");
    refuses(put(37, b"IxSQ"), "it holds \"IxSQ\" at byte 37");
    refuses(put(37, b"IxF2"), "the metric at byte 70 is 0, expected 1");
    refuses(put(41, &[0; 4]), "the dimension at byte 41 is 0, expected 1 to 1048576");
    refuses(put(41, &i32::MAX.to_le_bytes()), "the dimension at byte 41 is 2147483647");
    refuses(put(4, &[3]), "the dimension at byte 4 is 3, expected 2");
    refuses(put(8, &[3]), "the number of vectors at byte 8 is 3, expected 2");
    refuses(put(45, &(-1_i64).to_le_bytes()), "the number of vectors at byte 45 is -1");
    refuses(put(74, &[5]), "the number of floats at byte 74 is 5, expected 4");
    // Numbers whose products leave 64 bits.
    refuses(
        |bytes| {
            put(8, &i64::MAX.to_le_bytes())(bytes);
            put(45, &i64::MAX.to_le_bytes())(bytes);
        },
        "the number of floats at byte 74 is 4, expected 18446744073709551614",
    );
}

#[test]
fn faiss_writes_another_type_for_a_map_without_lookup() {
    let mut bytes = worked_example();
    put(0, b"IxMp")(&mut bytes);
    assert_eq!(parse(&bytes), parse(&worked_example()));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        dimension in 1_usize..6,
        values in prop::collection::vec(any::<f32>(), 0..60),
        l2 in any::<bool>(),
        with_ids in any::<bool>(),
        first_id in any::<i32>(),
    ) {
        let n_rows = values.len() / dimension;
        let values = &values[..n_rows * dimension];
        let ids: Vec<i64> = (0..n_rows as i64).map(|row| i64::from(first_id) - row).collect();
        let metric = if l2 { Metric::L2 } else { Metric::InnerProduct };
        let bytes = file(flat(metric, with_ids, n_rows, dimension), values, &ids);
        let read = parse(&bytes).unwrap();
        prop_assert_eq!((read.metric, read.n_rows, read.dimension), (metric, n_rows as u64, dimension));
        let end = read.floats_at as usize + 4 * values.len();
        let found: Vec<u32> =
            floats(&bytes[read.floats_at as usize..end]).map(f32::to_bits).collect();
        prop_assert_eq!(found, values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        prop_assert_eq!(read.ids_at.is_some(), with_ids);
        if let Some(ids_at) = read.ids_at {
            prop_assert_eq!(vector_ids(&bytes[ids_at as usize..]).collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn no_header_makes_it_panic(
        changes in prop::collection::vec((0_usize..122, any::<u8>()), 0..12),
        length in 0_usize..130,
    ) {
        let mut bytes = worked_example();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.resize(length, 0);
        if let Ok(read) = parse(&bytes) {
            let floats = 4 * u128::from(read.n_rows) * read.dimension as u128;
            prop_assert!(u128::from(read.floats_at) + floats <= bytes.len() as u128);
        }
    }
}
