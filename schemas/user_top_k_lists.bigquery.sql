-- user_top_k_lists for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: user_id, item_ids, because_item_ids.
CREATE TABLE user_top_k_lists (
    user_id INT64 NOT NULL OPTIONS(description = "The user, as in the log."),
    item_ids ARRAY<INT64> OPTIONS(description = "The recommended items, best first."),
    scores ARRAY<FLOAT64> OPTIONS(description = "Their scores: higher is better. Compare within one user's list only."),
    sources ARRAY<STRING> OPTIONS(description = "What put each item there, as in `user_top_k`."),
    because_item_ids ARRAY<INT64> OPTIONS(description = "Per place, the item of the user's history that contributed most; a null element where none did, and everywhere with `top_k.because = false`."),
    PRIMARY KEY (user_id) NOT ENFORCED
)
OPTIONS(description = "The same recommendations as `user_top_k`, one row per user, for key-value stores; written with `top_k.shape = \"lists\"`. The lists of a row have one length, best first. BigQuery has no arrays that hold nulls: load `user_top_k` there.");
