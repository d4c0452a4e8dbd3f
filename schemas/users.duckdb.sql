-- users for DuckDB; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BLOB for bytes in: user_id.
CREATE TABLE users (
    user_id BIGINT NOT NULL,
    user_idx BIGINT,
    segment VARCHAR,
    events BIGINT NOT NULL,
    items BIGINT NOT NULL,
    first_event TIMESTAMPTZ,
    last_event TIMESTAMPTZ,
    eligible BOOLEAN NOT NULL,
    reason VARCHAR,
    PRIMARY KEY (user_id)
);
COMMENT ON TABLE users IS 'Every user who occurs in the log with a valid row, whether there is a history to recommend from, and why not. One file per shard: rows are sorted within a file.';
COMMENT ON COLUMN users.user_id IS 'The user, as in the log.';
COMMENT ON COLUMN users.user_idx IS 'shard * 2^32 + row in the shard. Belongs to this run. Null where the user is not eligible.';
COMMENT ON COLUMN users.segment IS 'Segment from the users table; null where there is none.';
COMMENT ON COLUMN users.events IS 'Events of the user in the window. Unit: events.';
COMMENT ON COLUMN users.items IS 'Distinct items kept in the user''s history. Unit: items.';
COMMENT ON COLUMN users.first_event IS 'First event before `as_of`, whatever the window; null where there is none or the log has no times.';
COMMENT ON COLUMN users.last_event IS 'Last event before `as_of`, whatever the window; null where there is none or the log has no times.';
COMMENT ON COLUMN users.eligible IS 'Whether the user has a history to recommend from.';
COMMENT ON COLUMN users.reason IS 'Why the user is not eligible: `outside_window` where no event in the window has a weight, `items_with_too_few_users` where no item is left; null where they are.';
