-- default_top_k for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: item_id.
CREATE TABLE default_top_k (
    segment STRING NOT NULL OPTIONS(description = "Segment from the users table, or `*` for every visitor."),
    rank INT64 NOT NULL OPTIONS(description = "Place in the list, from 1 without gaps."),
    item_id INT64 NOT NULL OPTIONS(description = "The recommended item; once per segment."),
    score FLOAT64 NOT NULL OPTIONS(description = "Higher is better. Compare within one segment only."),
    PRIMARY KEY (segment, rank) NOT ENFORCED
)
OPTIONS(description = "What to show to visitors who have no row in `user_top_k`, by segment. The segment `*` is for every visitor.");
