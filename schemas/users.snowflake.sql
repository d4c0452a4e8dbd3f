-- users for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: user_id.
CREATE TABLE users (
    user_id BIGINT NOT NULL COMMENT 'The user, as in the log.',
    user_idx BIGINT COMMENT 'shard * 2^32 + row in the shard. Belongs to this run. Null where the user is not eligible.',
    segment VARCHAR COMMENT 'Segment from the users table; null where there is none.',
    events BIGINT NOT NULL COMMENT 'Events of the user in the window. Unit: events.',
    items BIGINT NOT NULL COMMENT 'Distinct items kept in the user''s history. Unit: items.',
    first_event TIMESTAMP_LTZ COMMENT 'First event before `as_of`, whatever the window; null where there is none or the log has no times.',
    last_event TIMESTAMP_LTZ COMMENT 'Last event before `as_of`, whatever the window; null where there is none or the log has no times.',
    eligible BOOLEAN NOT NULL COMMENT 'Whether the user has a history to recommend from.',
    reason VARCHAR COMMENT 'Why the user is not eligible: `outside_window` where no event in the window has a weight, `items_with_too_few_users` where no item is left; null where they are.',
    PRIMARY KEY (user_id)
)
COMMENT = 'Every user who occurs in the log with a valid row, whether there is a history to recommend from, and why not. One file per shard: rows are sorted within a file.';
