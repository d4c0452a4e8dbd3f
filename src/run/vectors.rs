//! What a model learned, published: tables of factors, and the vector files that the spec asks for.

use anyhow::Result;
use arrow::array::RecordBatch;
use rayon::prelude::*;

use super::tables::{ITEMS_PER_PART, Tables};
use crate::job::spec::{EmbeddingType, Output as OutputSpec, VectorType, Vectors, VectorsOf};
use crate::schema::vectors::{Metric, VectorFormat, VectorLayout};
use crate::schema::{Embeddings, IdRows, ItemFactorRows, Table, UserFactorRows, tables};
use crate::store::{BATCH_ROWS, PublishedFile, TableFile, VectorWriter};
use crate::types::{Histories, Ids};

/// The factors of all items, or of the users of one shard.
#[derive(Clone, Copy)]
pub(super) struct VectorRows<'a> {
    /// Floats of a vector.
    pub(super) n_factors: usize,
    /// Floats from the start of a row to that of the next: rows may be padded.
    pub(super) stride: usize,
    /// The rows of all owners, end to end.
    pub(super) rows: &'a [f32],
    /// Whose they are: row i belongs to the i-th of them.
    pub(super) owners: Owners<'a>,
    /// The rows that are published, ascending: those of owners with a history.
    pub(super) kept: &'a [u32],
}

/// Those whom vectors belong to.
#[derive(Clone, Copy)]
pub(super) enum Owners<'a> {
    /// The items kept, by their index.
    Items(&'a Ids),
    /// The users of a shard.
    Users(UsersOf<'a>),
}

/// The users of a shard.
#[derive(Clone, Copy)]
pub(super) struct UsersOf<'a> {
    pub(super) shard: &'a Histories,
    pub(super) n_shards: u32,
    /// Digests of their histories.
    pub(super) digests: &'a [i64],
}

impl VectorRows<'_> {
    fn vector(&self, row: u32) -> &[f32] {
        let start = row as usize * self.stride;
        &self.rows[start..start + self.n_factors]
    }

    /// The index that tables publish for a row.
    fn published_idx(&self, row: u32) -> i64 {
        match self.owners {
            Owners::Items(_) => i64::from(row),
            Owners::Users(of) => of.shard.published_idx(row as usize),
        }
    }

    /// The id of a row in a vector file: its own where it is an integer, else the published index.
    fn vector_id(&self, row: u32) -> i64 {
        let ids = match self.owners {
            Owners::Items(ids) => ids,
            Owners::Users(of) => &of.shard.user_ids,
        };
        match ids {
            Ids::Int(ids) => ids[row as usize],
            Ids::Bytes(_) => self.published_idx(row),
        }
    }

    fn vector_ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.kept.iter().map(|&row| self.vector_id(row))
    }

    fn of(&self) -> VectorsOf {
        match self.owners {
            Owners::Items(_) => VectorsOf::ItemFactors,
            Owners::Users(..) => VectorsOf::UserFactors,
        }
    }

    fn table(&self) -> &'static Table {
        match self.owners {
            Owners::Items(_) => &tables::ITEM_FACTORS,
            Owners::Users(..) => &tables::USER_FACTORS,
        }
    }
}

/// Writes the table `item_factors` and the vector files of items, as far as `mine` says that this
/// process writes the file of that number.
///
/// The table is cut by items, as `item_neighbors` is; each vector file is whole.
pub(super) fn item_files(
    tables: &Tables<'_>,
    spec: &OutputSpec,
    items: &VectorRows<'_>,
    mine: impl Fn(usize) -> bool,
) -> Result<Vec<PublishedFile>> {
    let n_parts = items.kept.len().div_ceil(ITEMS_PER_PART).max(1);
    let parts: Vec<usize> = (0..n_parts).filter(|&part| mine(part)).collect();
    let embeddings = embeddings(spec, items);
    let table = parts.into_par_iter().map(|part| {
        let start = part * ITEMS_PER_PART;
        let end = items.kept.len().min(start + ITEMS_PER_PART);
        let items = VectorRows { kept: &items.kept[start..end], ..*items };
        write_table(tables, &items, embeddings, part as u32, n_parts as u32)
    });
    let mut files: Vec<PublishedFile> = table.collect::<Result<_>>()?;
    let asked = vector_files(spec, items);
    let asked: Vec<_> = asked.enumerate().filter(|(number, _)| mine(*number)).collect();
    let vectors = asked.into_par_iter().map(|(_, file)| write_vectors(tables, file, items));
    files.extend(vectors.collect::<Result<Vec<_>>>()?);
    Ok(files)
}

/// Writes the part of the table `user_factors` and of each vector file that one shard makes.
///
/// # Panics
/// If the owners are items.
pub(super) fn user_files(
    tables: &Tables<'_>,
    spec: &OutputSpec,
    users: &VectorRows<'_>,
) -> Result<Vec<PublishedFile>> {
    let Owners::Users(UsersOf { shard, n_shards, .. }) = users.owners else {
        panic!("items have no shard")
    };
    let embeddings = embeddings(spec, users);
    let table = write_table(tables, users, embeddings, shard.shard, n_shards);
    let vectors = vector_files(spec, users).map(|file| write_vectors(tables, file, users));
    std::iter::once(table).chain(vectors).collect()
}

/// The vector files that the spec asks for.
fn vector_files<'s>(
    spec: &'s OutputSpec,
    rows: &VectorRows<'_>,
) -> impl Iterator<Item = &'s Vectors> + use<'s> {
    let of = rows.of();
    spec.vectors.iter().filter(move |file| file.of == of)
}

fn embeddings(spec: &OutputSpec, rows: &VectorRows<'_>) -> Embeddings {
    let fixed_size = spec.embeddings == EmbeddingType::FixedSizeList;
    Embeddings { n_factors: rows.n_factors, fixed_size }
}

fn write_table(
    tables: &Tables<'_>,
    rows: &VectorRows<'_>,
    embeddings: Embeddings,
    part: u32,
    n_parts: u32,
) -> Result<PublishedFile> {
    let table = rows.table();
    let schema = table.arrow_schema_with(tables.ids, embeddings);
    let mut file = TableFile::with_vectors(table.name, &schema, table.key, tables::EMBEDDING)?;
    for kept in rows.kept.chunks(BATCH_ROWS) {
        file.write(&table_batch(tables, &VectorRows { kept, ..*rows }, embeddings)?)?;
    }
    tables.put(file, part, n_parts)
}

fn table_batch(
    tables: &Tables<'_>,
    rows: &VectorRows<'_>,
    embeddings: Embeddings,
) -> Result<RecordBatch> {
    let idx = rows.kept.iter().map(|&row| rows.published_idx(row)).collect();
    let mut embedding = Vec::with_capacity(rows.kept.len() * rows.n_factors);
    rows.kept.iter().for_each(|&row| embedding.extend(rows.vector(row)));
    let owners = |ids| IdRows { ids, rows: rows.kept.to_vec() };
    let batch = match rows.owners {
        Owners::Items(ids) => ItemFactorRows { item: owners(ids), item_idx: idx, embedding }
            .into_batch(tables.ids, embeddings),
        Owners::Users(UsersOf { shard, digests, .. }) => UserFactorRows {
            user: owners(&shard.user_ids),
            user_idx: idx,
            history_digest: rows.kept.iter().map(|&row| digests[row as usize]).collect(),
            embedding,
        }
        .into_batch(tables.ids, embeddings),
    };
    Ok(batch?)
}

/// Writes one vector file: of all items, or of a shard's users.
pub(super) fn write_vectors(
    tables: &Tables<'_>,
    file: &Vectors,
    rows: &VectorRows<'_>,
) -> Result<PublishedFile> {
    let path = tables.path.vectors(&file_name(file, rows));
    let layout = VectorLayout {
        format: format(file.kind, rows),
        n_rows: rows.kept.len(),
        dimension: rows.n_factors,
    };
    let mut writer = VectorWriter::new(tables.output, &path, layout);
    for &row in rows.kept {
        let vector = rows.vector(row);
        match file.kind {
            VectorType::Cosine => writer.push(&scaled_to_one(vector))?,
            _ => writer.push(vector)?,
        }
    }
    Ok(writer.finish(&file.name(), rows.vector_ids())?)
}

fn file_name(file: &Vectors, rows: &VectorRows<'_>) -> String {
    let (table, ending) = (file.of.table(), file.kind.ending());
    match rows.owners {
        Owners::Items(_) => format!("{table}.{ending}"),
        Owners::Users(UsersOf { shard, n_shards, .. }) => {
            format!("{table}.part-{:05}-of-{n_shards:05}.{ending}", shard.shard)
        }
    }
}

fn format(kind: VectorType, rows: &VectorRows<'_>) -> VectorFormat {
    let metric = match kind {
        VectorType::FlatIp | VectorType::Cosine => Metric::InnerProduct,
        VectorType::FlatL2 => Metric::L2,
        VectorType::Npy => return VectorFormat::Npy,
        VectorType::Fvecs => return VectorFormat::Fvecs,
    };
    // FAISS numbers vectors from 0 by itself, and spares a map of them in memory.
    let with_ids = !rows.vector_ids().eq(0..rows.kept.len() as i64);
    VectorFormat::Flat { metric, with_ids }
}

/// `vector` brought to length 1; zeros stay zeros.
///
/// The length is summed in f64, in the order of the factors, so it neither overflows nor depends on
/// the machine. Values that are not finite stay so.
pub fn scaled_to_one(vector: &[f32]) -> Vec<f32> {
    let squares = vector.iter().map(|&x| f64::from(x) * f64::from(x));
    let length = squares.sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}
