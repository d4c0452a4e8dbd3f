-- user_top_k for DuckDB; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BLOB for bytes in: user_id, item_id, because_item_id.
CREATE TABLE user_top_k (
    user_id BIGINT NOT NULL,
    rank INTEGER NOT NULL,
    item_id BIGINT NOT NULL,
    score FLOAT NOT NULL,
    source VARCHAR NOT NULL,
    because_item_id BIGINT,
    PRIMARY KEY (user_id, rank)
);
COMMENT ON TABLE user_top_k IS 'The recommendations of each user, one row per place. A user has fewer rows than `k` when nothing is left to recommend. Visitors who have no row get `default_top_k`. One file per shard: rows are sorted within a file.';
COMMENT ON COLUMN user_top_k.user_id IS 'The user, as in the log.';
COMMENT ON COLUMN user_top_k.rank IS 'Place in the list, from 1 without gaps.';
COMMENT ON COLUMN user_top_k.item_id IS 'The recommended item; once per user.';
COMMENT ON COLUMN user_top_k.score IS 'Higher is better. Compare within one user''s list only.';
COMMENT ON COLUMN user_top_k.source IS 'What put the item there: `item_neighbors`, `popularity`, or `fallback` for a place that no ranker filled.';
COMMENT ON COLUMN user_top_k.because_item_id IS 'The item of the user''s history that contributed most; null where none did, and everywhere with `top_k.because = false`.';
