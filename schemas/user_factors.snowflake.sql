-- user_factors for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: user_id.
CREATE TABLE user_factors (
    user_id BIGINT NOT NULL COMMENT 'The user, as in the log.',
    user_idx BIGINT NOT NULL COMMENT 'shard * 2^32 + row in the shard. Belongs to this run.',
    embedding ARRAY NOT NULL COMMENT 'The vector: `als.n_factors` finite numbers. Its type has that length, or is a plain list with `output.embeddings = "list"`.',
    history_digest BIGINT NOT NULL COMMENT 'Digest of the history that the vector and the list were made from: where it is that of an earlier run, nothing about the user is new.',
    PRIMARY KEY (user_id)
)
COMMENT = 'The vector that ALS learned for each user with a history, to be held against those of `item_factors`. One file per shard: rows are sorted within a file.';
