-- user_top_k_lists for PostgreSQL; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, TEXT for strings, BYTEA for bytes in: user_id, item_ids, because_item_ids.
CREATE TABLE user_top_k_lists (
    user_id BIGINT NOT NULL,
    item_ids BIGINT[] NOT NULL,
    scores REAL[] NOT NULL,
    sources TEXT[] NOT NULL,
    because_item_ids BIGINT[] NOT NULL,
    PRIMARY KEY (user_id)
);
COMMENT ON TABLE user_top_k_lists IS 'The same recommendations as `user_top_k`, one row per user, for key-value stores; written with `top_k.shape = "lists"`. The lists of a row have one length, best first. BigQuery has no arrays that hold nulls: load `user_top_k` there.';
COMMENT ON COLUMN user_top_k_lists.user_id IS 'The user, as in the log.';
COMMENT ON COLUMN user_top_k_lists.item_ids IS 'The recommended items, best first.';
COMMENT ON COLUMN user_top_k_lists.scores IS 'Their scores: higher is better. Compare within one user''s list only.';
COMMENT ON COLUMN user_top_k_lists.sources IS 'What put each item there, as in `user_top_k`.';
COMMENT ON COLUMN user_top_k_lists.because_item_ids IS 'Per place, the item of the user''s history that contributed most; a null element where none did, and everywhere with `top_k.because = false`.';
