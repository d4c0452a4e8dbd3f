use std::fs;
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, Int64Type};
use jiff::civil::date;
use proptest::prelude::*;
use tempfile::TempDir;

use super::search::{Hit, nearest};
use super::tables::Tables;
use super::vectors::{Owners, UsersOf, VectorRows, item_files, scaled_to_one, user_files};
use crate::job::spec::{EmbeddingType, Output as OutputSpec, VectorType, Vectors, VectorsOf};
use crate::schema::IdTypes;
use crate::schema::vectors::Metric;
use crate::store::{
    IoRuntime, Location, Output, PublishedFile, RunPath, VectorFile, list_inputs, read_all,
};
use crate::types::{ByteIds, Histories, IdType, Ids, ItemLists};

const TYPES: [VectorType; 5] = [
    VectorType::FlatIp,
    VectorType::FlatL2,
    VectorType::Cosine,
    VectorType::Npy,
    VectorType::Fvecs,
];

/// An output in a folder of its own.
struct Run {
    folder: TempDir,
    runtime: IoRuntime,
    output: Output,
    path: RunPath,
}

impl Run {
    fn new() -> Self {
        let (folder, runtime) = (TempDir::new().unwrap(), IoRuntime::new().unwrap());
        let output = Output::create(&runtime, ".", folder.path()).unwrap();
        Self { folder, runtime, output, path: RunPath::new(date(2026, 11, 22), "run") }
    }

    fn tables(&self, ids: IdTypes) -> Tables<'_> {
        Tables { output: &self.output, path: &self.path, ids, has_times: true, changes: None }
    }

    fn bytes(&self, file: &PublishedFile) -> Vec<u8> {
        fs::read(self.folder.path().join(&file.path)).unwrap()
    }

    fn location(&self, file: &PublishedFile) -> Location {
        let path = self.folder.path().join(&file.path);
        Location::open(&self.runtime, path.to_str().unwrap(), Path::new("/")).unwrap()
    }

    fn open(&self, file: &PublishedFile) -> VectorFile {
        let location = self.location(file);
        VectorFile::open(&location, &list_inputs(&location).unwrap().files[0]).unwrap()
    }
}

fn spec(of: VectorsOf) -> OutputSpec {
    let vectors = TYPES.map(|kind| Vectors { of, kind }).to_vec();
    OutputSpec {
        url: "out/".into(),
        embeddings: EmbeddingType::FixedSizeList,
        vectors,
        delta: false,
    }
}

const IDS: IdTypes = IdTypes { user: IdType::Int64, item: IdType::Int64 };

fn names(ids: &[&str]) -> Ids {
    let mut bytes = ByteIds::default();
    ids.iter().for_each(|id| bytes.push(id.as_bytes()));
    Ids::Bytes(bytes)
}

/// Three vectors of 2 in rows of 4 floats.
const PADDED: [f32; 12] = [3.0, 4.0, 9.0, 9.0, 0.0, 0.0, 9.0, 9.0, 1.0, -1.0, 9.0, 9.0];

fn items<'a>(ids: &'a Ids, kept: &'a [u32]) -> VectorRows<'a> {
    VectorRows { n_factors: 2, stride: 4, rows: &PADDED, owners: Owners::Items(ids), kept }
}

fn shard(user_ids: Ids) -> Histories {
    Histories {
        shard: 17,
        user_ids,
        interactions: ItemLists::default(),
        affinities: Vec::new(),
        dislikes: ItemLists::default(),
        dislike_affinities: Vec::new(),
        seen: ItemLists::default(),
        segments: Vec::new(),
        facts: Vec::new(),
    }
}

fn all_vectors(file: &VectorFile) -> Vec<(i64, Vec<f32>)> {
    let blocks = file.blocks().map(Result::unwrap);
    let dimension = file.flat().dimension;
    blocks
        .flat_map(|block| {
            let rows = block.floats.chunks(dimension).map(<[f32]>::to_vec).collect::<Vec<_>>();
            block.ids.into_iter().zip(rows)
        })
        .collect()
}

#[test]
fn items_have_a_table_and_every_file_that_is_asked_for() {
    let run = Run::new();
    let ids = Ids::Int(vec![10, 20, 40]);
    let files = item_files(
        &run.tables(IDS),
        &spec(VectorsOf::ItemFactors),
        &items(&ids, &[0, 1, 2]),
        |_| true,
    )
    .unwrap();
    let found: Vec<_> = files.iter().map(|file| (file.table.as_str(), file.rows)).collect();
    let expected = ["", ".flat_ip", ".flat_l2", ".cosine", ".npy", ".fvecs"];
    let expected = expected.map(|ending| format!("item_factors{ending}"));
    assert_eq!(found, expected.each_ref().map(|name| (name.as_str(), 3)));
    let vectors = "runs/2026-11-22/run/vectors/item_factors";
    for (file, ending) in
        files[1..].iter().zip(["flat_ip.faiss", "flat_l2.faiss", "cosine.faiss", "npy", "fvecs"])
    {
        assert_eq!(file.path, format!("{vectors}.{ending}"));
        assert_eq!(file.bytes, run.bytes(file).len() as u64);
    }
    let plain = [(10, vec![3.0, 4.0]), (20, vec![0.0, 0.0]), (40, vec![1.0, -1.0])];
    assert_eq!(all_vectors(&run.open(&files[1])), plain);
    assert_eq!(all_vectors(&run.open(&files[2])), plain);
    assert_eq!(run.open(&files[2]).flat().metric, Metric::L2);
    let half = 0.5_f32.sqrt();
    let scaled = [(10, vec![0.6, 0.8]), (20, vec![0.0, 0.0]), (40, vec![half, -half])];
    assert_eq!(all_vectors(&run.open(&files[3])), scaled);
    assert_eq!(run.bytes(&files[4]).len(), 128 + 24);
    assert_eq!(run.bytes(&files[5]).len(), 3 * 12);
}

#[test]
fn a_table_of_factors_has_the_rows_that_are_kept() {
    let run = Run::new();
    let shard = shard(names(&["ann", "bo", "cy"]));
    let users = VectorRows {
        owners: Owners::Users(UsersOf { shard: &shard, n_shards: 64, digests: &[7, 8, 9] }),
        ..items(&shard.user_ids, &[0, 2])
    };
    let ids = IdTypes { user: IdType::Utf8, ..IDS };
    for embeddings in [EmbeddingType::FixedSizeList, EmbeddingType::List] {
        let spec = OutputSpec { embeddings, ..spec(VectorsOf::ItemFactors) };
        let files = user_files(&run.tables(ids), &spec, &users).unwrap();
        assert_eq!(files.len(), 1, "vector files of items are not made from users");
        assert!(files[0].path.ends_with("run_id=run/part-00017-of-00064.parquet"));
        let location = run.location(&files[0]);
        let batches = read_all(&location, &list_inputs(&location).unwrap().files[0], None).unwrap();
        let [batch] = &batches[..] else { panic!("one batch") };
        assert_eq!(batch.column(0).as_string::<i32>().value(1), "cy");
        assert_eq!(
            batch.column(1).as_primitive::<Int64Type>().values(),
            &[17 << 32, (17 << 32) + 2]
        );
        let last = match embeddings {
            EmbeddingType::FixedSizeList => batch.column(2).as_fixed_size_list().value(1),
            EmbeddingType::List => batch.column(2).as_list::<i32>().value(1),
        };
        assert_eq!(last.as_primitive::<Float32Type>().values(), &[1.0, -1.0]);
        assert_eq!(batch.column(3).as_primitive::<Int64Type>().values(), &[7, 9]);
    }
}

#[test]
fn ids_that_are_no_integers_are_published_indices() {
    let run = Run::new();
    let shard = shard(names(&["ann", "bo", "cy"]));
    let users = VectorRows {
        owners: Owners::Users(UsersOf { shard: &shard, n_shards: 64, digests: &[7, 8, 9] }),
        ..items(&shard.user_ids, &[0, 2])
    };
    let ids = IdTypes { user: IdType::Utf8, ..IDS };
    let files = user_files(&run.tables(ids), &spec(VectorsOf::UserFactors), &users).unwrap();
    let path = "runs/2026-11-22/run/vectors/user_factors.part-00017-of-00064.flat_ip.faiss";
    assert_eq!(files[1].path, path);
    let found = all_vectors(&run.open(&files[1]));
    assert_eq!(found, [(17 << 32, vec![3.0, 4.0]), ((17 << 32) + 2, vec![1.0, -1.0])]);
}

#[test]
fn ids_that_count_from_zero_need_no_map() {
    let run = Run::new();
    for (ids, kept, mapped) in [
        (names(&["a", "b", "c"]), &[0, 1, 2][..], false),
        (names(&["a", "b", "c"]), &[0, 2], true),
        (Ids::Int(vec![0, 1, 2]), &[0, 1, 2], false),
        (Ids::Int(vec![1, 2, 3]), &[0, 1, 2], true),
        (Ids::Int(vec![1, 2, 3]), &[], false),
    ] {
        let tables = run.tables(IdTypes {
            item: if matches!(ids, Ids::Int(_)) { IdType::Int64 } else { IdType::Utf8 },
            ..IDS
        });
        let rows = items(&ids, kept);
        let files = item_files(&tables, &spec(VectorsOf::ItemFactors), &rows, |_| true).unwrap();
        assert_eq!(run.open(&files[1]).flat().ids_at.is_some(), mapped, "{ids:?} {kept:?}");
    }
}

#[test]
fn processes_share_the_files_of_items() {
    let ids = Ids::Int(vec![10, 20, 40]);
    let kept: Vec<u32> = (0..3).collect();
    let spec = spec(VectorsOf::ItemFactors);
    let written = |mine: &dyn Fn(usize) -> bool| {
        let run = Run::new();
        let mut files = item_files(&run.tables(IDS), &spec, &items(&ids, &kept), mine).unwrap();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        files
    };
    let mut shared = written(&|file| file % 2 == 0);
    shared.extend(written(&|file| file % 2 == 1));
    shared.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(shared, written(&|_| true));
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let run = Run::new();
    let ids = Ids::Int(vec![10, 20, 40]);
    for value in [f32::NAN, f32::INFINITY] {
        let mut floats = PADDED;
        floats[9] = value;
        let rows = VectorRows { rows: &floats, ..items(&ids, &[0, 2]) };
        for kind in TYPES {
            let file = Vectors { of: VectorsOf::ItemFactors, kind };
            let error = super::vectors::write_vectors(&run.tables(IDS), &file, &rows).unwrap_err();
            let message = format!("{error:#}");
            assert!(message.contains(" of row 1 of \"./runs/2026-11-22/run/vectors/"), "{message}");
            assert_eq!(super::exit_code(&error), 65);
        }
    }
}

#[test]
fn lengths_neither_overflow_nor_vanish() {
    for vector in [[f32::MAX, f32::MAX], [1e-45, 1e-45], [1.0, 1.0]] {
        assert_eq!(scaled_to_one(&vector), [0.5_f32.sqrt(); 2], "{vector:?}");
    }
    assert_eq!(scaled_to_one(&[0.0, -0.0]), [0.0, 0.0]);
}

/// Every vector scored, sorted and cut.
fn slow_nearest(
    vectors: &[(i64, Vec<f32>)],
    query: &[f32],
    metric: Metric,
    k: usize,
    leave_out: Option<i64>,
) -> Vec<Hit> {
    let score = |vector: &[f32]| {
        let pairs = query.iter().zip(vector).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let terms = pairs.map(|(a, b)| match metric {
            Metric::InnerProduct => a * b,
            Metric::L2 => (a - b) * (a - b),
        });
        terms.fold(0.0, |sum, term| sum + term) as f32
    };
    let others = vectors.iter().filter(|(id, _)| Some(*id) != leave_out);
    let mut hits: Vec<Hit> =
        others.map(|(id, vector)| Hit { id: *id, score: score(vector) }).collect();
    hits.sort_by(|a, b| {
        let nearer = b.score.partial_cmp(&a.score).unwrap();
        let nearer = if metric == Metric::L2 { nearer.reverse() } else { nearer };
        nearer.then(a.id.cmp(&b.id))
    });
    hits.truncate(k);
    hits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Few distinct values, so that ties are common; ids in no order.
    #[test]
    fn search_equals_sorting_all(
        floats in prop::collection::vec(-2_i8..3, 0..240),
        query in prop::collection::vec(-2_i8..3, 3),
        l2 in any::<bool>(),
        k in 0_usize..30,
        stride in 1_i64..97,
        leave_out in prop::option::of(0_i64..80),
    ) {
        thread_local!(static RUN: Run = Run::new());
        let metric = if l2 { Metric::L2 } else { Metric::InnerProduct };
        let vectors: Vec<(i64, Vec<f32>)> = floats
            .chunks_exact(3)
            .enumerate()
            .map(|(row, row_floats)| {
                ((row as i64 * stride) % 97, row_floats.iter().map(|&x| f32::from(x)).collect())
            })
            .collect();
        let query: Vec<f32> = query.into_iter().map(f32::from).collect();
        let expected = slow_nearest(&vectors, &query, metric, k, leave_out);
        let found = RUN.with(|run| {
            let ids = Ids::Int(vectors.iter().map(|(id, _)| *id).collect());
            let flat: Vec<f32> = vectors.iter().flat_map(|(_, vector)| vector.clone()).collect();
            let kept: Vec<u32> = (0..vectors.len() as u32).collect();
            let rows = VectorRows {
                n_factors: 3, stride: 3, rows: &flat, owners: Owners::Items(&ids), kept: &kept,
            };
            let kind = if l2 { VectorType::FlatL2 } else { VectorType::FlatIp };
            let file = Vectors { of: VectorsOf::ItemFactors, kind };
            let file = super::vectors::write_vectors(&run.tables(IDS), &file, &rows).unwrap();
            nearest(&run.open(&file), &query, k, leave_out).unwrap()
        });
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn a_query_of_another_dimension_is_refused() {
    let run = Run::new();
    let ids = Ids::Int(vec![10, 20, 40]);
    let file = Vectors { of: VectorsOf::ItemFactors, kind: VectorType::FlatIp };
    let rows = items(&ids, &[0, 1, 2]);
    let file = super::vectors::write_vectors(&run.tables(IDS), &file, &rows).unwrap();
    let message = nearest(&run.open(&file), &[1.0], 3, None).unwrap_err().to_string();
    assert!(message.contains("the query has 1 dimensions and"), "{message}");
}
