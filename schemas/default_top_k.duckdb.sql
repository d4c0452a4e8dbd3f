-- default_top_k for DuckDB; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BLOB for bytes in: item_id.
CREATE TABLE default_top_k (
    segment VARCHAR NOT NULL,
    rank INTEGER NOT NULL,
    item_id BIGINT NOT NULL,
    score FLOAT NOT NULL,
    PRIMARY KEY (segment, rank)
);
COMMENT ON TABLE default_top_k IS 'What to show to visitors who have no row in `user_top_k`, by segment. The segment `*` is for every visitor.';
COMMENT ON COLUMN default_top_k.segment IS 'Segment from the users table, or `*` for every visitor.';
COMMENT ON COLUMN default_top_k.rank IS 'Place in the list, from 1 without gaps.';
COMMENT ON COLUMN default_top_k.item_id IS 'The recommended item; once per segment.';
COMMENT ON COLUMN default_top_k.score IS 'Higher is better. Compare within one segment only.';
