-- user_top_k_lists for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: user_id, item_ids, because_item_ids.
CREATE TABLE user_top_k_lists (
    user_id BIGINT NOT NULL COMMENT 'The user, as in the log.',
    item_ids ARRAY NOT NULL COMMENT 'The recommended items, best first.',
    scores ARRAY NOT NULL COMMENT 'Their scores: higher is better. Compare within one user''s list only.',
    sources ARRAY NOT NULL COMMENT 'What put each item there, as in `user_top_k`.',
    because_item_ids ARRAY NOT NULL COMMENT 'Per place, the item of the user''s history that contributed most; a null element where none did, and everywhere with `top_k.because = false`.',
    PRIMARY KEY (user_id)
)
COMMENT = 'The same recommendations as `user_top_k`, one row per user, for key-value stores; written with `top_k.shape = "lists"`. The lists of a row have one length, best first. BigQuery has no arrays that hold nulls: load `user_top_k` there.';
