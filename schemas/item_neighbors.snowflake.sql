-- item_neighbors for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: item_id, neighbor_id.
CREATE TABLE item_neighbors (
    item_id BIGINT NOT NULL COMMENT 'The item, as in the log.',
    rank INTEGER NOT NULL COMMENT 'Place in the list, from 1 without gaps.',
    neighbor_id BIGINT NOT NULL COMMENT 'The similar item; never the item itself.',
    score FLOAT NOT NULL COMMENT 'Similarity, above 0. Ties go to the lower item id. Compare within one item''s list.',
    support BIGINT NOT NULL COMMENT 'Users who interacted with both. Unit: users.',
    PRIMARY KEY (item_id, rank)
)
COMMENT = 'Per eligible item, the items that the same users interact with, most similar first. An item without a neighbor has no row.';
