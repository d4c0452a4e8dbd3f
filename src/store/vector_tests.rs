use std::fs;
use std::path::Path;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::schema::vectors::{Metric, VectorFormat, VectorLayout};

const PATH: &str = "runs/2026-11-22/run/vectors/item_factors.flat_ip.faiss";

struct Folder {
    folder: TempDir,
    runtime: IoRuntime,
}

impl Folder {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), runtime: IoRuntime::new().unwrap() }
    }

    fn output(&self) -> Output {
        Output::create(&self.runtime, "out/", self.folder.path()).unwrap()
    }

    /// Writes rows whose floats count up from 0.
    fn write(&self, layout: VectorLayout, ids: &[i64]) -> (PublishedFile, Vec<u8>) {
        let output = self.output();
        let mut writer = VectorWriter::new(&output, PATH, layout);
        for row in 0..layout.n_rows {
            writer.push(&vector(row, layout.dimension)).unwrap();
        }
        let file = writer.finish("item_factors.flat_ip", ids.iter().copied()).unwrap();
        let bytes = fs::read(self.folder.path().join("out").join(&file.path)).unwrap();
        (file, bytes)
    }

    fn open(&self, bytes: &[u8]) -> Result<VectorFile, ReadError> {
        let path = self.folder.path().join("file.faiss");
        fs::write(&path, bytes).unwrap();
        let location =
            Location::open(&self.runtime, path.to_str().unwrap(), Path::new("/")).unwrap();
        VectorFile::open(&location, &list_inputs(&location).unwrap().files[0])
    }

    /// Every file below, temporary ones too.
    fn n_files(&self) -> usize {
        fn count(folder: &Path) -> usize {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(self.folder.path())
    }
}

fn vector(row: usize, dimension: usize) -> Vec<f32> {
    (0..dimension).map(|column| (row * dimension + column) as f32).collect()
}

fn flat(n_rows: usize, dimension: usize, with_ids: bool) -> VectorLayout {
    let format = VectorFormat::Flat { metric: Metric::InnerProduct, with_ids };
    VectorLayout { format, n_rows, dimension }
}

#[test]
fn the_manifest_entry_tells_size_rows_and_digest() {
    // Two whole parts and a rest; then less than one part.
    for (n_rows, dimension) in [(70_000, 64), (3, 64), (0, 5)] {
        let folder = Folder::new();
        let ids: Vec<i64> = (0..n_rows as i64).map(|row| 3 * row - 7).collect();
        let (file, bytes) = folder.write(flat(n_rows, dimension, true), &ids);
        assert_eq!(bytes.len(), 90 + 4 * n_rows * dimension + 8 * n_rows);
        let expected = PublishedFile {
            path: PATH.to_owned(),
            table: "item_factors.flat_ip".to_owned(),
            bytes: bytes.len() as u64,
            rows: n_rows as u64,
            sha256: format!("{:x}", Sha256::digest(&bytes)),
        };
        assert_eq!((file, folder.n_files()), (expected, 1));
        check_reading(&folder.open(&bytes).unwrap(), &ids, dimension);
    }
}

#[track_caller]
fn check_reading(file: &VectorFile, ids: &[i64], dimension: usize) {
    let mut row = 0;
    for block in file.blocks() {
        let block = block.unwrap();
        assert!(4 * block.floats.len() <= 1 << 20);
        assert_eq!(block.floats.len(), block.ids.len() * dimension);
        for (id, floats) in block.ids.iter().zip(block.floats.chunks(dimension)) {
            assert_eq!((*id, floats), (ids[row], &vector(row, dimension)[..]));
            row += 1;
        }
    }
    assert_eq!(row, ids.len());
    for row in [0, ids.len() / 2, ids.len().saturating_sub(1)] {
        let Some(id) = ids.get(row) else { continue };
        assert_eq!(file.find(*id).unwrap(), Some(vector(row, dimension)));
    }
    assert_eq!(file.find(-1_000_000).unwrap(), None);
    assert_eq!(file.find(i64::MAX).unwrap(), None);
}

#[test]
fn without_ids_a_row_is_its_id() {
    let folder = Folder::new();
    let (_, bytes) = folder.write(flat(5, 3, false), &[]);
    check_reading(&folder.open(&bytes).unwrap(), &[0, 1, 2, 3, 4], 3);
}

#[test]
fn of_a_repeated_id_the_last_vector_is_found() {
    let folder = Folder::new();
    let (_, bytes) = folder.write(flat(3, 2, true), &[7, 7, 1]);
    assert_eq!(folder.open(&bytes).unwrap().find(7).unwrap(), Some(vector(1, 2)));
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_row_and_nothing_is_left() {
    let folder = Folder::new();
    let output = folder.output();
    let mut writer = VectorWriter::new(&output, PATH, flat(100_000, 64, false));
    (0..70_000).for_each(|row| writer.push(&vector(row, 64)).unwrap());
    let mut bad = vector(0, 64);
    bad[3] = f32::NEG_INFINITY;
    let message = writer.push(&bad).unwrap_err().to_string();
    assert!(message.contains("value 3 of row 70000 of \"out/runs/2026-11-22/run/"), "{message}");
    assert_eq!(folder.n_files(), 1, "parts of the file are there while it is written");
    drop(writer);
    assert_eq!(folder.n_files(), 0);
}

#[test]
#[should_panic(expected = "1 vectors, 2 in the header")]
fn a_file_that_lacks_rows_is_a_defect() {
    let folder = Folder::new();
    let output = folder.output();
    let mut writer = VectorWriter::new(&output, PATH, flat(2, 1, false));
    writer.push(&[1.0]).unwrap();
    let _ = writer.finish("t", std::iter::empty());
}

#[test]
fn what_is_no_flat_file_is_refused_in_one_line() {
    let folder = Folder::new();
    let says = |bytes: &[u8], words: &[&str]| {
        let Err(error) = folder.open(bytes) else { panic!("it was read") };
        let message = format!("{:#}", anyhow::Error::from(error));
        assert!(!message.contains('\n') && message.contains("file.faiss"), "{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "{message}"));
    };
    let (_, bytes) = folder.write(flat(5, 3, true), &[0, 1, 2, 3, 4]);
    says(b"", &["is empty"]);
    says(&bytes[..50], &["cannot be searched: it has 50 bytes, too few for the header"]);
    says(&bytes[..bytes.len() - 1], &["declares 190 bytes and it has 189"]);
    says(b"\x93NUMPY\x01\x00v\x00 and so on, for more than 37 bytes", &["\\x93NUM", "IxFI"]);
}

proptest! {
    #[test]
    fn no_file_makes_reading_panic(
        changes in prop::collection::vec((0_usize..190, any::<u8>()), 1..6),
        length in 0_usize..200,
    ) {
        let folder = Folder::new();
        let (_, mut bytes) = folder.write(flat(5, 3, true), &[0, 1, 2, 3, 4]);
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        if length < 190 {
            bytes.truncate(length);
        }
        if let Ok(file) = folder.open(&bytes) {
            file.blocks().for_each(|block| drop(block.unwrap()));
            file.find(3).unwrap();
        }
    }
}
