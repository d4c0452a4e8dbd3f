-- user_factors for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: user_id.
CREATE TABLE user_factors (
    user_id INT64 NOT NULL OPTIONS(description = "The user, as in the log."),
    user_idx INT64 NOT NULL OPTIONS(description = "shard * 2^32 + row in the shard. Belongs to this run."),
    embedding ARRAY<FLOAT64> OPTIONS(description = "The vector: `als.n_factors` finite numbers. Its type has that length, or is a plain list with `output.embeddings = \"list\"`."),
    history_digest INT64 NOT NULL OPTIONS(description = "Digest of the history that the vector and the list were made from: where it is that of an earlier run, nothing about the user is new."),
    PRIMARY KEY (user_id) NOT ENFORCED
)
OPTIONS(description = "The vector that ALS learned for each user with a history, to be held against those of `item_factors`. One file per shard: rows are sorted within a file.");
