use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use jiff::civil::date;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::search::{SearchArgs, search};
use crate::run::exit_code;
use crate::schema::vectors::{Metric, VectorFormat, VectorLayout};
use crate::schema::{
    Embeddings, IdRows, IdTypes, ItemFactorRows, ItemRows, Table, UserFactorRows, UserRows, tables,
};
use crate::store::{
    FORMAT, IoRuntime, Manifest, Output, PublishedFile, RunPath, TableFile, VectorWriter, put_file,
};
use crate::types::{ByteIds, IdType, Ids, shard_of};

const N_SHARDS: u32 = 2;
const TITLES: [Option<&str>; 4] = [Some("Tide"), Some("Rope"), None, Some("Sail")];

/// Item `b` is not eligible, so `c` and `d` have the indices 1 and 2.
const ITEM_VECTORS: [[f32; 2]; 3] = [[1.0, 0.0], [3.0, 0.0], [2.0, 2.0]];
const KEPT: [u32; 3] = [0, 2, 3];

/// A published run with factors and vector files.
struct Run {
    folder: TempDir,
}

fn text_ids(ids: &[&str]) -> Ids {
    let mut bytes = ByteIds::default();
    ids.iter().for_each(|id| bytes.push(id.as_bytes()));
    Ids::Bytes(bytes)
}

/// Writes the files of one run.
struct Writer {
    output: Output,
    path: RunPath,
    types: IdTypes,
    embeddings: Embeddings,
    files: Vec<PublishedFile>,
}

impl Writer {
    fn put(&mut self, table: &Table, batch: &RecordBatch, part: u32, n_parts: u32) {
        let mut file = TableFile::new(table.name, &batch.schema(), table.key).unwrap();
        file.write(batch).unwrap();
        let path = self.path.table_part(table.name, part, n_parts);
        self.files.push(put_file(&self.output, &path, file.finish().unwrap()).unwrap());
    }

    fn items(&mut self, ids: &Ids) {
        let n_items = ids.len();
        let idx = [Some(0), None, Some(1), Some(2)];
        let rows = ItemRows {
            item: IdRows::all(ids),
            item_idx: idx.to_vec(),
            title: TITLES.to_vec(),
            events: vec![1; n_items],
            users: vec![1; n_items],
            first_event: vec![None; n_items],
            last_event: vec![None; n_items],
            eligible: idx.map(|idx| idx.is_some()).to_vec(),
            reason: idx.map(|idx| idx.is_none().then_some("too_few_users")).to_vec(),
            recommendable: vec![true; n_items],
        };
        self.put(&tables::ITEMS, &rows.into_batch(self.types).unwrap(), 0, 1);
        let rows = ItemFactorRows {
            item: IdRows { ids, rows: KEPT.to_vec() },
            item_idx: vec![0, 1, 2],
            embedding: ITEM_VECTORS.concat(),
        };
        let rows = rows.into_batch(self.types, self.embeddings).unwrap();
        self.put(&tables::ITEM_FACTORS, &rows, 0, 1);
    }

    /// Each user's vector is (-1, row in the shard).
    fn users(&mut self, ids: &Ids) {
        for shard in 0..N_SHARDS {
            let mine: Vec<u32> = (0..ids.len() as u32)
                .filter(|&row| shard_of(ids.get(row as usize), N_SHARDS) == shard)
                .collect();
            let n_users = mine.len();
            let idx = |row: usize| (i64::from(shard) << 32) | row as i64;
            let rows = UserRows {
                user: IdRows { ids, rows: mine.clone() },
                user_idx: (0..n_users).map(|row| Some(idx(row))).collect(),
                segment: vec![None; n_users],
                events: vec![1; n_users],
                items: vec![1; n_users],
                first_event: vec![None; n_users],
                last_event: vec![None; n_users],
                eligible: vec![true; n_users],
                reason: vec![None; n_users],
            };
            self.put(&tables::USERS, &rows.into_batch(self.types).unwrap(), shard, N_SHARDS);
            let embedding: Vec<f32> = (0..n_users).flat_map(|row| [-1.0, row as f32]).collect();
            let rows = UserFactorRows {
                user: IdRows { ids, rows: mine },
                user_idx: (0..n_users).map(idx).collect(),
                history_digest: vec![0; n_users],
                embedding: embedding.clone(),
            };
            let rows = rows.into_batch(self.types, self.embeddings).unwrap();
            self.put(&tables::USER_FACTORS, &rows, shard, N_SHARDS);
            let name = format!("user_factors.part-{shard:05}-of-{N_SHARDS:05}.flat_l2.faiss");
            let vectors: Vec<&[f32]> = embedding.chunks(2).collect();
            let vector_ids = (0..n_users).map(idx).collect();
            self.vectors(&name, "user_factors.flat_l2", Metric::L2, &vectors, vector_ids);
        }
    }

    fn vectors(
        &mut self,
        name: &str,
        table: &str,
        metric: Metric,
        vectors: &[&[f32]],
        ids: Vec<i64>,
    ) {
        let format = VectorFormat::Flat { metric, with_ids: true };
        let layout = VectorLayout { format, n_rows: vectors.len(), dimension: 2 };
        let mut writer = VectorWriter::new(&self.output, &self.path.vectors(name), layout);
        vectors.iter().for_each(|vector| writer.push(vector).unwrap());
        self.files.push(writer.finish(table, ids.into_iter()).unwrap());
    }

    fn item_vectors(&mut self, vector_ids: &[i64]) {
        let vectors = ITEM_VECTORS.each_ref().map(|vector| &vector[..]);
        let scaled = ITEM_VECTORS.map(|vector| crate::run::scaled_to_one(&vector));
        let scaled = scaled.each_ref().map(|vector| &vector[..]);
        for (kind, metric, vectors) in [
            ("flat_ip", Metric::InnerProduct, vectors),
            ("flat_l2", Metric::L2, vectors),
            ("cosine", Metric::InnerProduct, scaled),
        ] {
            let name = format!("item_factors.{kind}");
            self.vectors(&format!("{name}.faiss"), &name, metric, &vectors, vector_ids.to_vec());
        }
    }

    fn publish(self) {
        let manifest = Manifest {
            format: FORMAT,
            run_id: "run".to_owned(),
            logical_date: "2026-11-22".to_owned(),
            as_of: "2026-11-23T00:00:00Z".to_owned(),
            spec_sha256: String::new(),
            input: Vec::new(),
            fingerprint: "f".to_owned(),
            code_version: "0.1.0".to_owned(),
            instruction_set: "any".to_owned(),
            embedding_space_id: None,
            shards: N_SHARDS,
            files: self.files,
            counts: Default::default(),
            gates: Vec::new(),
            stages: Vec::new(),
            delta: false,
            state: None,
            changes_since: None,
            unchanged_since: None,
            fit_start: None,
            nonce: "n".to_owned(),
        };
        self.output.publish(&self.path, &manifest, "2026-11-23T01:02:03Z", false).unwrap();
    }
}

impl Run {
    fn new(items: &Ids, vector_ids: &[i64], fixed_size: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let output =
            Output::create(&IoRuntime::new().unwrap(), "shop/out/", folder.path()).unwrap();
        let item = if matches!(items, Ids::Int(_)) { IdType::Int64 } else { IdType::Utf8 };
        let mut writer = Writer {
            output,
            path: RunPath::new(date(2026, 11, 22), "run"),
            types: IdTypes { user: IdType::Utf8, item },
            embeddings: Embeddings { n_factors: 2, fixed_size },
            files: Vec::new(),
        };
        writer.items(items);
        writer.item_vectors(vector_ids);
        let users: Vec<String> = (0..20).map(|user| format!("u{user:02}")).collect();
        writer.users(&text_ids(&users.iter().map(String::as_str).collect::<Vec<_>>()));
        writer.publish();
        Self { folder }
    }

    fn of_text_ids() -> Self {
        Self::new(&text_ids(&["a", "b", "c", "d"]), &[0, 1, 2], true)
    }

    fn of_integer_ids() -> Self {
        Self::new(&Ids::Int(vec![-5, 10, 20, 30]), &[-5, 20, 30], false)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("shop/out/runs/2026-11-22/run/vectors").join(name)
    }

    fn items_file(&self, kind: &str) -> PathBuf {
        self.file(&format!("item_factors.{kind}.faiss"))
    }
}

#[derive(Clone, Copy)]
enum With<'a> {
    Item(&'a str),
    User(&'a str),
}

fn args(file: &Path, with: With<'_>, json: bool) -> SearchArgs {
    let (item, user) = match with {
        With::Item(item) => (Some(item.to_owned()), None),
        With::User(user) => (None, Some(user.to_owned())),
    };
    SearchArgs { file: file.display().to_string(), item, user, k: 10, json }
}

/// Ids and scores that are found.
fn found(file: &Path, with: With<'_>) -> Vec<(String, f64)> {
    let shown: Value = serde_json::from_str(&search(&args(file, with, true)).unwrap()).unwrap();
    let hits = shown["hits"].as_array().unwrap();
    for (rank, hit) in (1..).zip(hits) {
        assert_eq!(hit["rank"], json!(rank));
    }
    hits.iter()
        .map(|hit| (hit["id"].as_str().unwrap().to_owned(), hit["score"].as_f64().unwrap()))
        .collect()
}

fn expected(hits: &[(&str, f64)]) -> Vec<(String, f64)> {
    hits.iter().map(|(id, score)| ((*id).to_owned(), *score)).collect()
}

#[track_caller]
fn refused(file: &Path, with: With<'_>, code: u8, says: &str) {
    let error = search(&args(file, with, false)).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains(says) && !message.contains('\n'), "{message}");
    assert_eq!(exit_code(&error), code, "{message}");
}

#[test]
fn items_are_found_by_the_ids_of_the_log() {
    let run = Run::of_text_ids();
    let near = |kind, item| found(&run.items_file(kind), With::Item(item));
    assert_eq!(near("flat_ip", "c"), expected(&[("d", 6.0), ("a", 3.0)]));
    assert_eq!(near("flat_l2", "a"), expected(&[("c", 4.0), ("d", 5.0)]));
    let half = f64::from(0.5_f32.sqrt());
    assert_eq!(near("cosine", "a"), expected(&[("c", 1.0), ("d", half)]));
    let run = Run::of_integer_ids();
    let near = |kind, item| found(&run.items_file(kind), With::Item(item));
    assert_eq!(near("flat_ip", "20"), expected(&[("30", 6.0), ("-5", 3.0)]));
    assert_eq!(near("flat_l2", "-5"), expected(&[("20", 4.0), ("30", 5.0)]));
}

#[test]
fn a_users_row_is_the_query() {
    let run = Run::of_text_ids();
    // The first user of a shard has the vector (-1, 0).
    let hits = found(&run.items_file("flat_ip"), With::User("u00"));
    assert_eq!(hits, expected(&[("a", -1.0), ("d", -2.0), ("c", -3.0)]));
    let hits = found(&run.items_file("cosine"), With::User("u00"));
    let half = f64::from(0.5_f32.sqrt());
    // Ties go to the lower id: a before c.
    assert_eq!(hits, expected(&[("d", -half), ("a", -1.0), ("c", -1.0)]));
}

#[test]
fn users_are_found_in_their_file() {
    let run = Run::of_text_ids();
    let shard = shard_of(text_ids(&["u00"]).get(0), N_SHARDS);
    let file = run.file(&format!("user_factors.part-{shard:05}-of-{N_SHARDS:05}.flat_l2.faiss"));
    let hits = found(&file, With::User("u00"));
    // Row i of a shard has the vector (-1, i); the user itself is left out.
    let scores: Vec<f64> = hits.iter().map(|(_, score)| *score).collect();
    assert_eq!(scores, (1..=scores.len()).map(|i| (i * i) as f64).collect::<Vec<_>>());
    assert!(hits.is_sorted_by(|a, b| a.0 < b.0) && hits.iter().all(|hit| *hit.0 > *"u00"));
    let items = found(&file, With::Item("a"));
    assert_eq!(items[0], ("u00".to_owned(), 4.0));
}

#[test]
fn text_has_titles() {
    let run = Run::of_text_ids();
    let shown = search(&args(&run.items_file("flat_ip"), With::User("u00"), false)).unwrap();
    let expected = "nearest to user u00, by inner product\n    1  -1.000000    Tide [a]\n    2  \
                    -2.000000    Sail [d]\n    3  -3.000000    c";
    assert_eq!(shown, expected);
}

#[test]
fn a_file_on_its_own_is_searched_by_its_own_ids() {
    let run = Run::of_integer_ids();
    let copy = run.folder.path().join("copy.faiss");
    fs::copy(run.items_file("flat_ip"), &copy).unwrap();
    assert_eq!(found(&copy, With::Item("-5")), expected(&[("20", 3.0), ("30", 2.0)]));
    refused(&copy, With::Item("a"), 64, "\"a\" is not an integer, and this file is on its own");
    refused(&copy, With::Item("10"), 66, "the file has no vector of id 10");
    let unlisted = run.file("unlisted.faiss");
    fs::copy(run.items_file("flat_ip"), &unlisted).unwrap();
    assert_eq!(found(&unlisted, With::User("30"))[0], ("20".to_owned(), 6.0));
}

#[test]
fn what_cannot_be_searched_is_told() {
    let run = Run::of_text_ids();
    let file = run.items_file("flat_ip");
    refused(
        &file,
        With::Item("b"),
        66,
        "item \"b\" has no row in the run's table \"item_factors\"",
    );
    refused(&file, With::User("nobody"), 66, "user \"nobody\" has no row in");
    refused(&run.file("absent.faiss"), With::Item("a"), 66, "absent.faiss\" cannot be read");
    refused(&run.file(""), With::Item("a"), 64, "is a folder; name a vector file in it");
    let npy = run.file("item_factors.npy");
    fs::write(&npy, [b"\x93NUMPY\x01\x00v\x00{".as_slice(), &[b' '; 200]].concat()).unwrap();
    refused(&npy, With::Item("a"), 65, "it holds \"\\x93NUM\" at byte 0");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..100]).unwrap();
    refused(&file, With::Item("a"), 65, "declares 138 bytes and it has 100; copy it again");
}
