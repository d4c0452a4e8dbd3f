-- item_popularity_by_segment for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: item_id.
CREATE TABLE item_popularity_by_segment (
    segment VARCHAR NOT NULL COMMENT 'Segment from the users table.',
    item_id BIGINT NOT NULL COMMENT 'The item, as in the log.',
    item_idx BIGINT NOT NULL COMMENT 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.',
    events BIGINT NOT NULL COMMENT 'Events of the segment''s users with the item. Unit: events.',
    users BIGINT NOT NULL COMMENT 'Distinct users of those events. Unit: users.',
    weight FLOAT NOT NULL COMMENT 'Sum of the weights of those events. Unit: event weight.',
    weight_decayed FLOAT NOT NULL COMMENT 'The same, each weight halved per half-life between the event and `as_of`; equal to `weight` without a half-life. Unit: event weight at as_of.',
    trend FLOAT NOT NULL COMMENT 'Weight in the newer half of the window over that in the older half, `popularity.trend_prior` added to both: above 1 grows, below 1 fades. A half without events counts as 0. Unit: ratio.',
    rank INTEGER NOT NULL COMMENT 'Place in the segment by popularity, from 1; ties go to the lower item id.',
    PRIMARY KEY (segment, item_id)
)
COMMENT = 'How popular each eligible item is among the users of one segment; written where the users table gives segments. Items without an event in a segment have no row there.';
