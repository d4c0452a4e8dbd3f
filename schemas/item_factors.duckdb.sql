-- item_factors for DuckDB; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BLOB for bytes in: item_id.
CREATE TABLE item_factors (
    item_id BIGINT NOT NULL,
    item_idx BIGINT NOT NULL,
    embedding FLOAT[] NOT NULL,
    PRIMARY KEY (item_id)
);
COMMENT ON TABLE item_factors IS 'The vector that ALS learned for each item with a history, for vector stores: the score of a user and an item is the inner product of their vectors. Compare vectors only where the manifests have one `embedding_space_id`.';
COMMENT ON COLUMN item_factors.item_id IS 'The item, as in the log.';
COMMENT ON COLUMN item_factors.item_idx IS 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.';
COMMENT ON COLUMN item_factors.embedding IS 'The vector: `als.n_factors` finite numbers. Its type has that length, or is a plain list with `output.embeddings = "list"`.';
