-- item_popularity_by_segment for DuckDB; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BLOB for bytes in: item_id.
CREATE TABLE item_popularity_by_segment (
    segment VARCHAR NOT NULL,
    item_id BIGINT NOT NULL,
    item_idx BIGINT NOT NULL,
    events BIGINT NOT NULL,
    users BIGINT NOT NULL,
    weight DOUBLE NOT NULL,
    weight_decayed DOUBLE NOT NULL,
    trend FLOAT NOT NULL,
    rank INTEGER NOT NULL,
    PRIMARY KEY (segment, item_id)
);
COMMENT ON TABLE item_popularity_by_segment IS 'How popular each eligible item is among the users of one segment; written where the users table gives segments. Items without an event in a segment have no row there.';
COMMENT ON COLUMN item_popularity_by_segment.segment IS 'Segment from the users table.';
COMMENT ON COLUMN item_popularity_by_segment.item_id IS 'The item, as in the log.';
COMMENT ON COLUMN item_popularity_by_segment.item_idx IS 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.';
COMMENT ON COLUMN item_popularity_by_segment.events IS 'Events of the segment''s users with the item. Unit: events.';
COMMENT ON COLUMN item_popularity_by_segment.users IS 'Distinct users of those events. Unit: users.';
COMMENT ON COLUMN item_popularity_by_segment.weight IS 'Sum of the weights of those events. Unit: event weight.';
COMMENT ON COLUMN item_popularity_by_segment.weight_decayed IS 'The same, each weight halved per half-life between the event and `as_of`; equal to `weight` without a half-life. Unit: event weight at as_of.';
COMMENT ON COLUMN item_popularity_by_segment.trend IS 'Weight in the newer half of the window over that in the older half, `popularity.trend_prior` added to both: above 1 grows, below 1 fades. A half without events counts as 0. Unit: ratio.';
COMMENT ON COLUMN item_popularity_by_segment.rank IS 'Place in the segment by popularity, from 1; ties go to the lower item id.';
