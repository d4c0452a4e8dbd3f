-- items for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: item_id.
CREATE TABLE items (
    item_id BIGINT NOT NULL COMMENT 'The item, as in the log.',
    item_idx BIGINT COMMENT 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear. Null where the item is not eligible.',
    title VARCHAR COMMENT 'Title from the items table; null where there is none.',
    events BIGINT NOT NULL COMMENT 'Events of the item in the window. Unit: events.',
    users BIGINT NOT NULL COMMENT 'Distinct users of those events. Unit: users.',
    first_event TIMESTAMP_LTZ COMMENT 'First event before `as_of`, whatever the window; null where there is none or the log has no times.',
    last_event TIMESTAMP_LTZ COMMENT 'Last event before `as_of`, whatever the window; null where there is none or the log has no times.',
    eligible BOOLEAN NOT NULL COMMENT 'Whether the models know the item.',
    reason VARCHAR COMMENT 'Why the item is not eligible: `too_few_users`, or `outside_window` where no event in the window has a weight; null where it is.',
    recommendable BOOLEAN NOT NULL COMMENT 'Whether `[items]` and `[deny]` let the item stand in lists. Those hold eligible items only.',
    PRIMARY KEY (item_id)
)
COMMENT = 'Every item that occurs in the log with a valid row, whether it can be recommended, and why not.';
