-- item_neighbors for PostgreSQL; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, TEXT for strings, BYTEA for bytes in: item_id, neighbor_id.
CREATE TABLE item_neighbors (
    item_id BIGINT NOT NULL,
    rank INTEGER NOT NULL,
    neighbor_id BIGINT NOT NULL,
    score REAL NOT NULL,
    support BIGINT NOT NULL,
    PRIMARY KEY (item_id, rank)
);
COMMENT ON TABLE item_neighbors IS 'Per eligible item, the items that the same users interact with, most similar first. An item without a neighbor has no row.';
COMMENT ON COLUMN item_neighbors.item_id IS 'The item, as in the log.';
COMMENT ON COLUMN item_neighbors.rank IS 'Place in the list, from 1 without gaps.';
COMMENT ON COLUMN item_neighbors.neighbor_id IS 'The similar item; never the item itself.';
COMMENT ON COLUMN item_neighbors.score IS 'Similarity, above 0. Ties go to the lower item id. Compare within one item''s list.';
COMMENT ON COLUMN item_neighbors.support IS 'Users who interacted with both. Unit: users.';
