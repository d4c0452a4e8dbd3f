-- user_top_k for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: user_id, item_id, because_item_id.
CREATE TABLE user_top_k (
    user_id BIGINT NOT NULL COMMENT 'The user, as in the log.',
    rank INTEGER NOT NULL COMMENT 'Place in the list, from 1 without gaps.',
    item_id BIGINT NOT NULL COMMENT 'The recommended item; once per user.',
    score FLOAT NOT NULL COMMENT 'Higher is better. Compare within one user''s list only.',
    source VARCHAR NOT NULL COMMENT 'What put the item there: `item_neighbors`, `popularity`, or `fallback` for a place that no ranker filled.',
    because_item_id BIGINT COMMENT 'The item of the user''s history that contributed most; null where none did, and everywhere with `top_k.because = false`.',
    PRIMARY KEY (user_id, rank)
)
COMMENT = 'The recommendations of each user, one row per place. A user has fewer rows than `k` when nothing is left to recommend. Visitors who have no row get `default_top_k`. One file per shard: rows are sorted within a file.';
