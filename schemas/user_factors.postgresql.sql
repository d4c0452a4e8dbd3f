-- user_factors for PostgreSQL; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, TEXT for strings, BYTEA for bytes in: user_id.
CREATE TABLE user_factors (
    user_id BIGINT NOT NULL,
    user_idx BIGINT NOT NULL,
    embedding REAL[] NOT NULL,
    history_digest BIGINT NOT NULL,
    PRIMARY KEY (user_id)
);
COMMENT ON TABLE user_factors IS 'The vector that ALS learned for each user with a history, to be held against those of `item_factors`. One file per shard: rows are sorted within a file.';
COMMENT ON COLUMN user_factors.user_id IS 'The user, as in the log.';
COMMENT ON COLUMN user_factors.user_idx IS 'shard * 2^32 + row in the shard. Belongs to this run.';
COMMENT ON COLUMN user_factors.embedding IS 'The vector: `als.n_factors` finite numbers. Its type has that length, or is a plain list with `output.embeddings = "list"`.';
COMMENT ON COLUMN user_factors.history_digest IS 'Digest of the history that the vector and the list were made from: where it is that of an earlier run, nothing about the user is new.';
