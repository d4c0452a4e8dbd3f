-- item_popularity for PostgreSQL; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, TEXT for strings, BYTEA for bytes in: item_id.
CREATE TABLE item_popularity (
    item_id BIGINT NOT NULL,
    item_idx BIGINT NOT NULL,
    events BIGINT NOT NULL,
    users BIGINT NOT NULL,
    weight DOUBLE PRECISION NOT NULL,
    weight_decayed DOUBLE PRECISION NOT NULL,
    trend REAL NOT NULL,
    rank INTEGER NOT NULL,
    PRIMARY KEY (item_id)
);
COMMENT ON TABLE item_popularity IS 'How popular each eligible item is, among all users.';
COMMENT ON COLUMN item_popularity.item_id IS 'The item, as in the log.';
COMMENT ON COLUMN item_popularity.item_idx IS 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.';
COMMENT ON COLUMN item_popularity.events IS 'Events of the item in the window. Unit: events.';
COMMENT ON COLUMN item_popularity.users IS 'Distinct users of those events. Unit: users.';
COMMENT ON COLUMN item_popularity.weight IS 'Sum of the weights of those events. Unit: event weight.';
COMMENT ON COLUMN item_popularity.weight_decayed IS 'The same, each weight halved per half-life between the event and `as_of`; equal to `weight` without a half-life. Unit: event weight at as_of.';
COMMENT ON COLUMN item_popularity.trend IS 'Weight in the newer half of the window over that in the older half, `popularity.trend_prior` added to both: above 1 grows, below 1 fades. A half without events counts as 0. Unit: ratio.';
COMMENT ON COLUMN item_popularity.rank IS 'Place by popularity, from 1; ties go to the lower item id.';
