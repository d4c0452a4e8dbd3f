//! The declarations of all published tables.

use super::Kind::*;
use super::{Column, Kind, Table};

/// Every published table, in the order in which they are documented.
pub static ALL: [&Table; 12] = [
    &ITEMS,
    &USERS,
    &ITEM_POPULARITY,
    &ITEM_POPULARITY_BY_SEGMENT,
    &DEBIAS_WEIGHTS,
    &ITEM_NEIGHBORS,
    &USER_TOP_K,
    &USER_TOP_K_LISTS,
    &DEFAULT_TOP_K,
    &ITEM_FACTORS,
    &USER_FACTORS,
    &REJECTS,
];

/// The table of that name.
pub fn by_name(name: &str) -> Option<&'static Table> {
    ALL.into_iter().find(|table| table.name == name)
}

/// Whether a run tells the changes of a table beside it. Factors change entirely with each fit, and
/// rejects are places in the files of one run.
pub fn has_changes(table: &Table) -> bool {
    !matches!(table.name, "item_factors" | "user_factors" | "rejects")
}

/// Whether a table has a file for each shard of the users.
pub fn is_of_shards(table: &Table) -> bool {
    table.key[0] == "user_id"
}

/// The segment that stands for every visitor.
pub const EVERY_SEGMENT: &str = "*";

/// The column of the vectors.
pub const EMBEDDING: &str = "embedding";

const fn required(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    meaning: &'static str,
) -> Column {
    Column { name, kind, nullable: false, unit, meaning }
}

const fn nullable(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    meaning: &'static str,
) -> Column {
    Column { name, kind, nullable: true, unit, meaning }
}

const ITEM_ID: Column = required("item_id", ItemId, "", "The item, as in the log.");
const USER_ID: Column = required("user_id", UserId, "", "The user, as in the log.");
const ITEM_IDX: Column = required("item_idx", Int64, "", ITEM_IDX_MEANING);
const ITEM_IDX_MEANING: &str = "Rank of the id among the eligible items, from 0. Belongs to this \
    run: it shifts when items appear.";
const RANK: Column = required("rank", Int32, "", "Place in the list, from 1 without gaps.");

/// Every item of the log.
pub static ITEMS: Table = Table {
    name: "items",
    doc: "Every item that occurs in the log with a valid row, whether it can be recommended, and \
          why not.",
    key: &["item_id"],
    columns: &[
        ITEM_ID,
        nullable(
            "item_idx",
            Int64,
            "",
            "Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when \
             items appear. Null where the item is not eligible.",
        ),
        nullable("title", Utf8, "", "Title from the items table; null where there is none."),
        required("events", Int64, "events", "Events of the item in the window."),
        required("users", Int64, "users", "Distinct users of those events."),
        nullable("first_event", TimestampUs, "", FIRST_EVENT),
        nullable("last_event", TimestampUs, "", LAST_EVENT),
        required("eligible", Bool, "", "Whether the models know the item."),
        nullable(
            "reason",
            Utf8,
            "",
            "Why the item is not eligible: `too_few_users`, or `outside_window` where no event in the \
             window has a weight; null where it is.",
        ),
        required(
            "recommendable",
            Bool,
            "",
            "Whether `[items]` and `[deny]` let the item stand in lists. Those hold eligible items only.",
        ),
    ],
    example: "SELECT reason, count(*) AS n_items FROM items GROUP BY reason ORDER BY n_items DESC;",
};

const FIRST_EVENT: &str = "First event before `as_of`, whatever the window; null where there is none \
    or the log has no times.";
const LAST_EVENT: &str = "Last event before `as_of`, whatever the window; null where there is none or \
    the log has no times.";

/// Every user of the log.
pub static USERS: Table = Table {
    name: "users",
    doc: "Every user who occurs in the log with a valid row, whether there is a history to \
          recommend from, and why not. One file per shard: rows are sorted within a file.",
    key: &["user_id"],
    columns: &[
        USER_ID,
        nullable(
            "user_idx",
            Int64,
            "",
            "shard * 2^32 + row in the shard. Belongs to this run. Null where the user is not \
             eligible.",
        ),
        nullable("segment", Utf8, "", "Segment from the users table; null where there is none."),
        required("events", Int64, "events", "Events of the user in the window."),
        required("items", Int64, "items", "Distinct items kept in the user's history."),
        nullable("first_event", TimestampUs, "", FIRST_EVENT),
        nullable("last_event", TimestampUs, "", LAST_EVENT),
        required("eligible", Bool, "", "Whether the user has a history to recommend from."),
        nullable(
            "reason",
            Utf8,
            "",
            "Why the user is not eligible: `outside_window` where no event in the window has a \
             weight, `items_with_too_few_users` where no item is left; null where they are.",
        ),
    ],
    example: "SELECT segment, count(*) AS n_users, avg(items) AS items_mean FROM users \
              WHERE eligible GROUP BY segment;",
};

/// Popularity of eligible items.
pub static ITEM_POPULARITY: Table = Table {
    name: "item_popularity",
    doc: "How popular each eligible item is, among all users.",
    key: &["item_id"],
    columns: &[
        ITEM_ID,
        ITEM_IDX,
        required("events", Int64, "events", "Events of the item in the window."),
        required("users", Int64, "users", "Distinct users of those events."),
        required("weight", Float64, "event weight", "Sum of the weights of those events."),
        required("weight_decayed", Float64, "event weight at as_of", WEIGHT_DECAYED),
        required("trend", Float32, "ratio", TREND),
        required("rank", Int32, "", POPULARITY_RANK),
    ],
    example: "SELECT item_id, users, trend FROM item_popularity ORDER BY rank LIMIT 20;",
};

const WEIGHT_DECAYED: &str = "The same, each weight halved per half-life between the event and \
    `as_of`; equal to `weight` without a half-life.";
const TREND: &str = "Weight in the newer half of the window over that in the older half, \
    `popularity.trend_prior` added to both: above 1 grows, below 1 fades. A half without events \
    counts as 0.";
const POPULARITY_RANK: &str = "Place by popularity, from 1; ties go to the lower item id.";

/// Popularity of eligible items by segment.
pub static ITEM_POPULARITY_BY_SEGMENT: Table = Table {
    name: "item_popularity_by_segment",
    doc: "How popular each eligible item is among the users of one segment; written where the \
          users table gives segments. Items without an event in a segment have no row there.",
    key: &["segment", "item_id"],
    columns: &[
        required("segment", Utf8, "", "Segment from the users table."),
        ITEM_ID,
        ITEM_IDX,
        required("events", Int64, "events", "Events of the segment's users with the item."),
        required("users", Int64, "users", "Distinct users of those events."),
        required("weight", Float64, "event weight", "Sum of the weights of those events."),
        required("weight_decayed", Float64, "event weight at as_of", WEIGHT_DECAYED),
        required("trend", Float32, "ratio", TREND),
        required(
            "rank",
            Int32,
            "",
            "Place in the segment by popularity, from 1; ties go to the \
                                     lower item id.",
        ),
    ],
    example: "SELECT segment, item_id, rank FROM item_popularity_by_segment WHERE rank <= 3 \
              ORDER BY segment, rank;",
};

/// Weights against popularity bias.
pub static DEBIAS_WEIGHTS: Table = Table {
    name: "debias_weights",
    doc: "Per eligible item, what corrects for popular items being shown more: for training and \
          evaluation elsewhere, and for `top_k.debias`.",
    key: &["item_id"],
    columns: &[
        ITEM_ID,
        ITEM_IDX,
        required(
            "propensity",
            Float32,
            "probability",
            "Chance of having been shown, relative to the most popular item: a power of \
             popularity, in [`debias.propensity_min`, 1].",
        ),
        required(
            "ips_weight",
            Float32,
            "",
            "1 / propensity, at least 1: weigh an interaction by it.",
        ),
        required(
            "discount",
            Float32,
            "",
            "1 / sqrt(popularity + 1), in (0, 1]: multiply a score that is at least 0 by it.",
        ),
    ],
    example: "SELECT item_id, ips_weight FROM debias_weights ORDER BY ips_weight DESC LIMIT 20;",
};

/// Similar items.
pub static ITEM_NEIGHBORS: Table = Table {
    name: "item_neighbors",
    doc: "Per eligible item, the items that the same users interact with, most similar first. An \
          item without a neighbor has no row.",
    key: &["item_id", "rank"],
    columns: &[
        ITEM_ID,
        RANK,
        required("neighbor_id", ItemId, "", "The similar item; never the item itself."),
        required(
            "score",
            Float32,
            "",
            "Similarity, above 0. Ties go to the lower item id. Compare within one item's list.",
        ),
        required("support", Int64, "users", "Users who interacted with both."),
    ],
    example: "SELECT neighbor_id, score, support FROM item_neighbors WHERE item_id = 42 \
              ORDER BY rank;",
};

/// Recommendations, one row per place.
pub static USER_TOP_K: Table = Table {
    name: "user_top_k",
    doc: "The recommendations of each user, one row per place. A user has fewer rows than `k` when \
          nothing is left to recommend. Visitors who have no row get `default_top_k`. One file per \
          shard: rows are sorted within a file.",
    key: &["user_id", "rank"],
    columns: &[
        USER_ID,
        RANK,
        required("item_id", ItemId, "", "The recommended item; once per user."),
        required("score", Float32, "", SCORE),
        required("source", Utf8, "", SOURCE),
        nullable(
            "because_item_id",
            ItemId,
            "",
            "The item of the user's history that contributed most; null where none did, and \
             everywhere with `top_k.because = false`.",
        ),
    ],
    example: "SELECT rank, item_id, source FROM user_top_k WHERE user_id = 42 ORDER BY rank;",
};

const SCORE: &str = "Higher is better. Compare within one user's list only.";
const SOURCE: &str = "What put the item there: `item_neighbors`, `popularity`, or `fallback` for a \
    place that no ranker filled.";

/// Recommendations, one row per user.
pub static USER_TOP_K_LISTS: Table = Table {
    name: "user_top_k_lists",
    doc: "The same recommendations as `user_top_k`, one row per user, for key-value stores; \
          written with `top_k.shape = \"lists\"`. The lists of a row have one length, best first. BigQuery has no \
          arrays that hold nulls: load `user_top_k` there.",
    key: &["user_id"],
    columns: &[
        USER_ID,
        required("item_ids", ListOf(&ItemId), "", "The recommended items, best first."),
        required(
            "scores",
            ListOf(&Float32),
            "",
            "Their scores: higher is better. Compare within \
                                                  one user's list only.",
        ),
        required("sources", ListOf(&Utf8), "", "What put each item there, as in `user_top_k`."),
        required(
            "because_item_ids",
            ListOfNullable(&ItemId),
            "",
            "Per place, the item of the user's history that contributed most; a null element \
             where none did, and everywhere with `top_k.because = false`.",
        ),
    ],
    example: "SELECT item_ids, scores FROM user_top_k_lists WHERE user_id = 42;",
};

/// Recommendations for visitors without a row.
pub static DEFAULT_TOP_K: Table = Table {
    name: "default_top_k",
    doc: "What to show to visitors who have no row in `user_top_k`, by segment. The segment `*` is \
          for every visitor.",
    key: &["segment", "rank"],
    columns: &[
        required("segment", Utf8, "", "Segment from the users table, or `*` for every visitor."),
        RANK,
        required("item_id", ItemId, "", "The recommended item; once per segment."),
        required("score", Float32, "", "Higher is better. Compare within one segment only."),
    ],
    example: "SELECT rank, item_id FROM default_top_k WHERE segment = '*' ORDER BY rank;",
};

/// What ALS learned about items.
pub static ITEM_FACTORS: Table = Table {
    name: "item_factors",
    doc: "The vector that ALS learned for each item with a history, for vector stores: the score of \
          a user and an item is the inner product of their vectors. Compare vectors only where the \
          manifests have one `embedding_space_id`.",
    key: &["item_id"],
    columns: &[ITEM_ID, ITEM_IDX, required(EMBEDDING, Embedding, "", EMBEDDING_MEANING)],
    example: "SELECT b.item_id, list_inner_product(a.embedding, b.embedding) AS score \
              FROM item_factors AS a, item_factors AS b WHERE a.item_id = 42 \
              ORDER BY score DESC LIMIT 20;",
};

const EMBEDDING_MEANING: &str = "The vector: `als.n_factors` finite numbers. Its type has that length, or is a \
    plain list with `output.embeddings = \"list\"`.";

/// What ALS learned about users.
pub static USER_FACTORS: Table = Table {
    name: "user_factors",
    doc: "The vector that ALS learned for each user with a history, to be held against those of \
          `item_factors`. One file per shard: rows are sorted within a file.",
    key: &["user_id"],
    columns: &[
        USER_ID,
        required("user_idx", Int64, "", "shard * 2^32 + row in the shard. Belongs to this run."),
        required(EMBEDDING, Embedding, "", EMBEDDING_MEANING),
        required(
            "history_digest",
            Int64,
            "",
            "Digest of the history that the vector and the list were made from: where it is that of an \
             earlier run, nothing about the user is new.",
        ),
    ],
    example: "SELECT item_id, list_inner_product(u.embedding, i.embedding) AS score \
              FROM user_factors AS u, item_factors AS i WHERE user_id = 42 \
              ORDER BY score DESC LIMIT 20;",
};

/// Rows that could not be used.
pub static REJECTS: Table = Table {
    name: "rejects",
    doc: "Where rows of the input could not be used, and why: places only, never content. Rows \
          that are valid but do not count, such as those outside the window, are not here.",
    key: &["file", "row_group", "reason"],
    columns: &[
        required("file", Utf8, "", "The input file."),
        required("row_group", Int32, "", "The row group in the file, from 0."),
        required("reason", Utf8, "", "What is wrong with the rows."),
        required("count", Int64, "rows", "Rows of that row group with that reason."),
        required("first_row", Int64, "", "The first of them: its row number in the file, from 0."),
    ],
    example: "SELECT reason, sum(count) AS n_rows FROM rejects GROUP BY reason;",
};
