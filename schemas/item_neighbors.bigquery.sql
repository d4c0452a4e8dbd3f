-- item_neighbors for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: item_id, neighbor_id.
CREATE TABLE item_neighbors (
    item_id INT64 NOT NULL OPTIONS(description = "The item, as in the log."),
    rank INT64 NOT NULL OPTIONS(description = "Place in the list, from 1 without gaps."),
    neighbor_id INT64 NOT NULL OPTIONS(description = "The similar item; never the item itself."),
    score FLOAT64 NOT NULL OPTIONS(description = "Similarity, above 0. Ties go to the lower item id. Compare within one item's list."),
    support INT64 NOT NULL OPTIONS(description = "Users who interacted with both. Unit: users."),
    PRIMARY KEY (item_id, rank) NOT ENFORCED
)
OPTIONS(description = "Per eligible item, the items that the same users interact with, most similar first. An item without a neighbor has no row.");
