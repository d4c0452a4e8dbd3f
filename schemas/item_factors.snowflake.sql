-- item_factors for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: item_id.
CREATE TABLE item_factors (
    item_id BIGINT NOT NULL COMMENT 'The item, as in the log.',
    item_idx BIGINT NOT NULL COMMENT 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.',
    embedding ARRAY NOT NULL COMMENT 'The vector: `als.n_factors` finite numbers. Its type has that length, or is a plain list with `output.embeddings = "list"`.',
    PRIMARY KEY (item_id)
)
COMMENT = 'The vector that ALS learned for each item with a history, for vector stores: the score of a user and an item is the inner product of their vectors. Compare vectors only where the manifests have one `embedding_space_id`.';
