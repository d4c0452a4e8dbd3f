-- default_top_k for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: item_id.
CREATE TABLE default_top_k (
    segment VARCHAR NOT NULL COMMENT 'Segment from the users table, or `*` for every visitor.',
    rank INTEGER NOT NULL COMMENT 'Place in the list, from 1 without gaps.',
    item_id BIGINT NOT NULL COMMENT 'The recommended item; once per segment.',
    score FLOAT NOT NULL COMMENT 'Higher is better. Compare within one segment only.',
    PRIMARY KEY (segment, rank)
)
COMMENT = 'What to show to visitors who have no row in `user_top_k`, by segment. The segment `*` is for every visitor.';
