//! The section about where results go, and in which files beside the tables.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the results are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Folder or prefix of the published tables, runs and log. One job owns it.
    #[schemars(length(min = 1), example = &"s3://shop-recs/nightly/")]
    pub url: String,
    /// Type of the `embedding` column of `item_factors` and `user_factors`.
    #[serde(default)]
    #[schemars(example = &"list")]
    pub embeddings: EmbeddingType,
    /// Whether to keep a Delta Lake log of each table, in `tables/<table>/_delta_log/`, so that
    /// readers of Delta tables see the current run. It is never checkpointed: good for thousands of
    /// runs.
    #[serde(default)]
    #[schemars(example = true)]
    pub delta: bool,
    /// Vector files for retrieval systems, one `[[output.vectors]]` each. They lie beside the
    /// manifest, in `runs/<logical_date>/<run_id>/vectors/`: one file of items, one per shard of
    /// users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-default" = "none"))]
    pub vectors: Vec<Vectors>,
}

/// Type of a column of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingType {
    /// A list whose type holds its length, which vector stores such as LanceDB take for a vector.
    #[default]
    FixedSizeList,
    /// A plain list, for readers that refuse the other.
    List,
}

/// A vector file of the factors, for retrieval systems. Vectors have the order of the rows of the
/// table. Where ids are written they are the ids of the log if these are integers, else
/// `item_idx` or `user_idx`; ids that count up from 0 are left out, as FAISS counts likewise. An
/// id of -1 is what FAISS calls "no result".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vectors {
    /// Whose vectors.
    #[schemars(example = &"item_factors")]
    pub of: VectorsOf,
    /// Kind of file.
    #[serde(rename = "type")]
    #[schemars(example = &"flat_ip")]
    pub kind: VectorType,
}

/// Whose vectors a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VectorsOf {
    /// Items with a history.
    ItemFactors,
    /// Users with a history.
    UserFactors,
}

impl VectorsOf {
    /// Name of the table that holds the same vectors, as in the spec.
    pub fn table(self) -> &'static str {
        match self {
            Self::ItemFactors => "item_factors",
            Self::UserFactors => "user_factors",
        }
    }
}

/// Kind of a vector file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VectorType {
    /// FAISS index that finds the highest inner products, exactly: what the model's scores are.
    FlatIp,
    /// FAISS index that finds the smallest Euclidean distances, exactly.
    FlatL2,
    /// The vectors brought to length 1, in a FAISS index of inner products: finds the smallest
    /// angles. Bring a query to length 1 to read its scores as cosines. A vector of zeros stays.
    Cosine,
    /// NumPy array of float32, one row per vector; without ids.
    Npy,
    /// Rows of a dimension and float32s, as in the TEXMEX data sets; without ids.
    Fvecs,
}

impl VectorType {
    /// Name in the spec and in the `table` of the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlatIp => "flat_ip",
            Self::FlatL2 => "flat_l2",
            Self::Cosine => "cosine",
            Self::Npy => "npy",
            Self::Fvecs => "fvecs",
        }
    }

    /// How the names of such files end.
    pub fn ending(self) -> &'static str {
        match self {
            Self::FlatIp => "flat_ip.faiss",
            Self::FlatL2 => "flat_l2.faiss",
            Self::Cosine => "cosine.faiss",
            Self::Npy => "npy",
            Self::Fvecs => "fvecs",
        }
    }
}

impl Vectors {
    /// What its files are called in the manifest, where tables have their own names.
    pub fn name(&self) -> String {
        format!("{}.{}", self.of.table(), self.kind.name())
    }
}
