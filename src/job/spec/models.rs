//! Sections about what is computed: history, models, lists.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::Days;
use crate::schema::Source;

/// Which events count, and how much.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// Events older than this before `as_of` do not count (but an item seen earlier still counts
    /// as seen, see `top_k.exclude_seen_days`). Needs a time column.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = 180, extend("x-default" = "no limit"))]
    pub window_days: Option<Days>,
    /// An event loses half of its weight each time this much time passes. Needs a time column.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = 30, extend("x-default" = "no decay"))]
    pub half_life_days: Option<Days>,
    /// Items kept in one user's history, the newest first. A guard against robots; the cut is
    /// counted and reported.
    #[schemars(range(min = 1, max = 1_000_000), extend("x-unit" = "items"), example = 500)]
    pub interactions_per_user_max: usize,
    /// Items with fewer distinct users than this are left out of every model.
    #[schemars(range(min = 1, max = 1_000_000_000), extend("x-unit" = "users"), example = 5)]
    pub users_per_item_min: u32,
}

impl Default for History {
    fn default() -> Self {
        Self {
            window_days: None,
            half_life_days: None,
            interactions_per_user_max: 1000,
            users_per_item_min: 1,
        }
    }
}

/// How popular each item is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Popularity {
    /// The trend of an item is the weight in the newer half of the window over that in the older
    /// half, with this much added to both: the larger, the more events a trend needs.
    #[schemars(
        extend("exclusiveMinimum" = 0, "x-unit" = "weight"),
        range(max = 1_000_000_000_000_i64),
        example = 50.0
    )]
    pub trend_prior: f64,
}

impl Default for Popularity {
    fn default() -> Self {
        Self { trend_prior: 10.0 }
    }
}

/// Weights that take popularity out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Debias {
    /// The propensity of an item is (its popularity / that of the most popular item) to this
    /// power: 0 treats all items alike, 1 takes clicks as proportional to exposure.
    #[schemars(range(min = 0, max = 10), example = 0.75)]
    pub propensity_exponent: f64,
    /// Propensities below this are raised to it, so that no inverse weight exceeds 1 / this.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1), example = 0.05)]
    pub propensity_min: f64,
    /// What the popularity is counted in.
    #[schemars(example = &"events")]
    pub popularity: Counted,
}

impl Default for Debias {
    fn default() -> Self {
        Self { propensity_exponent: 0.5, propensity_min: 0.01, popularity: Counted::Users }
    }
}

/// What a popularity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Distinct users.
    Users,
    /// Events.
    Events,
}

/// Which items go with which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ItemNeighbors {
    /// The measure by which two items are alike.
    #[schemars(example = &"cosine")]
    pub similarity: Similarity,
    /// What a user contributes to a pair.
    #[schemars(example = &"affinity")]
    pub weights: HistoryWeights,
    /// Added to the denominator of the cosine, so that pairs with few users score lower: 0 is the
    /// plain cosine.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64), example = 10.0)]
    pub shrinkage: f64,
    /// Pairs that fewer users share are dropped.
    #[schemars(range(min = 1, max = 1_000_000_000), extend("x-unit" = "users"), example = 3)]
    pub users_per_pair_min: u32,
    /// Neighbors kept for each item, the best first.
    #[schemars(range(min = 1, max = 10_000), extend("x-unit" = "items"), example = 50)]
    pub n_neighbors: usize,
}

impl Default for ItemNeighbors {
    fn default() -> Self {
        Self {
            similarity: Similarity::Cosine,
            weights: HistoryWeights::Binary,
            shrinkage: 0.0,
            users_per_pair_min: 1,
            n_neighbors: 100,
        }
    }
}

/// The measure by which two items are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// The cosine of the angle between the columns of the two items.
    Cosine,
}

/// What one item of a user's history counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HistoryWeights {
    /// Each item counts 1, however often and whenever.
    Binary,
    /// Each item counts its summed and decayed weight.
    Affinity,
}

/// The lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopK {
    /// Longest list a user gets. Lists are shorter only when nothing is left to recommend.
    #[schemars(range(min = 1, max = 10_000), extend("x-unit" = "items"), example = 20)]
    pub k: usize,
    /// Which rankers propose items, and the weight of each. A ranker needs its section.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("x-default" = "1.0 each for `als` and `item_neighbors` if their sections are present, else `{ popularity = 1.0 }`"),
        example = serde_json::json!({"als": 1.0, "item_neighbors": 0.5})
    )]
    pub candidates: Option<Candidates>,
    /// How the rankers are brought together.
    #[schemars(example = &"scaled_score")]
    pub combine: Combine,
    /// The constant c of `combine = "reciprocal_rank"`: the larger, the less the first few ranks
    /// stand out.
    #[schemars(range(min = 0, max = 1_000_000), example = 20)]
    pub reciprocal_rank_constant: f64,
    /// Items that each ranker proposes per user before they are combined, at least `k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 1, max = 100_000),
        extend("x-unit" = "items", "x-default" = "4 × `k`, at least 200"),
        example = 500
    )]
    pub n_candidates: Option<usize>,
    /// What an item of the history counts when the scores of its neighbors are summed up.
    #[schemars(example = &"affinity")]
    pub history_weights: HistoryWeights,
    /// Items the user already had are left out: `true` after any event, `false` never, or after
    /// events of the types listed. Looks at the whole log, not only at the window.
    #[schemars(example = serde_json::json!(["purchase"]))]
    pub exclude_seen: ExcludeSeen,
    /// Items come back this long after they were last seen. Needs a time column.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = 365, extend("x-default" = "never"))]
    pub exclude_seen_days: Option<Days>,
    /// Multiply the scores, scaled to 0..1 within each user, by the popularity discount
    /// 1/√(popularity + 1). Needs `[debias]`.
    #[schemars(example = true)]
    pub debias: bool,
    /// What fills the places that the candidates leave empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("x-default" = "`\"popularity\"` if `[popularity]` is present, else `\"none\"`"),
        example = &"popularity"
    )]
    pub fallback: Option<Fallback>,
    /// Say of each entry which item of the history adds most to its score. `false` leaves
    /// `because_item_id` empty in every row and saves the work, which is much of that of the lists
    /// where `als` is a ranker; the lists are the same.
    #[schemars(example = false)]
    pub because: bool,
    /// Shape of the published table `user_top_k`.
    #[schemars(example = &"lists")]
    pub shape: Shape,
}

impl Default for TopK {
    fn default() -> Self {
        Self {
            k: 50,
            candidates: None,
            combine: Combine::ReciprocalRank,
            reciprocal_rank_constant: 60.0,
            n_candidates: None,
            history_weights: HistoryWeights::Binary,
            exclude_seen: ExcludeSeen::Any(true),
            exclude_seen_days: None,
            debias: false,
            fallback: None,
            because: true,
            shape: Shape::Rows,
        }
    }
}

impl TopK {
    /// Items that each ranker proposes per user before they are combined.
    pub fn n_candidates(&self) -> usize {
        self.n_candidates.unwrap_or_else(|| (4 * self.k).max(200))
    }
}

/// Weights of the rankers; a ranker without a weight does not run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Candidates {
    /// The items with the largest product of factors. Needs `[als]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1_000_000), example = 1.0)]
    pub als: Option<f64>,
    /// Neighbors of the items in the user's history, scores summed up. Needs `[item_neighbors]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1_000_000), example = 1.0)]
    pub item_neighbors: Option<f64>,
    /// The most popular items of the user's segment; of all users for a user without one. Needs
    /// `[popularity]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1_000_000), example = 0.1)]
    pub popularity: Option<f64>,
}

impl Candidates {
    /// The rankers that run, in a fixed order, with their weights.
    pub fn rankers(&self) -> impl Iterator<Item = (Ranker, f64)> + use<> {
        let rankers = [
            (Ranker::Als, self.als),
            (Ranker::ItemNeighbors, self.item_neighbors),
            (Ranker::Popularity, self.popularity),
        ];
        rankers.into_iter().filter_map(|(ranker, weight)| weight.map(|weight| (ranker, weight)))
    }
}

/// A source of candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ranker {
    /// The largest products of factors.
    Als,
    /// Neighbors of the items in the history.
    ItemNeighbors,
    /// The most popular items.
    Popularity,
}

impl Ranker {
    /// What the lists say of its items.
    pub fn source(self) -> Source {
        match self {
            Self::Als => Source::Als,
            Self::ItemNeighbors => Source::ItemNeighbors,
            Self::Popularity => Source::Popularity,
        }
    }

    /// Name in the spec, also of its section: the one that stands in the lists.
    pub fn name(self) -> &'static str {
        self.source().as_str()
    }
}

/// How rankers are brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Sum of weight / (c + rank) over the rankers that propose the item: robust, takes no notice
    /// of the scores.
    ReciprocalRank,
    /// Sum of weight × score, each ranker's scores brought to 0..1 within the user.
    ScaledScore,
}

/// Which items count as already had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ExcludeSeen {
    /// After any event, or never.
    Any(bool),
    /// After an event of one of these types.
    Events(#[schemars(length(min = 1))] Vec<String>),
}

impl ExcludeSeen {
    /// Whether an event of this type makes its item a seen one.
    pub fn covers(&self, event: &str) -> bool {
        match self {
            Self::Any(any) => *any,
            Self::Events(types) => types.iter().any(|listed| listed == event),
        }
    }
}

/// What fills empty places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// The most popular items of the user's segment, then those of all users. Needs
    /// `[popularity]`.
    Popularity,
    /// Nothing: lists stay short, and users without a history get none.
    None,
}

/// Shape of the lists table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// One row per user and rank, for warehouses.
    Rows,
    /// One row per user with list columns, for key-value stores.
    Lists,
}
