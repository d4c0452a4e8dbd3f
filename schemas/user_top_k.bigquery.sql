-- user_top_k for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: user_id, item_id, because_item_id.
CREATE TABLE user_top_k (
    user_id INT64 NOT NULL OPTIONS(description = "The user, as in the log."),
    rank INT64 NOT NULL OPTIONS(description = "Place in the list, from 1 without gaps."),
    item_id INT64 NOT NULL OPTIONS(description = "The recommended item; once per user."),
    score FLOAT64 NOT NULL OPTIONS(description = "Higher is better. Compare within one user's list only."),
    source STRING NOT NULL OPTIONS(description = "What put the item there: `item_neighbors`, `popularity`, or `fallback` for a place that no ranker filled."),
    because_item_id INT64 OPTIONS(description = "The item of the user's history that contributed most; null where none did, and everywhere with `top_k.because = false`."),
    PRIMARY KEY (user_id, rank) NOT ENFORCED
)
OPTIONS(description = "The recommendations of each user, one row per place. A user has fewer rows than `k` when nothing is left to recommend. Visitors who have no row get `default_top_k`. One file per shard: rows are sorted within a file.");
