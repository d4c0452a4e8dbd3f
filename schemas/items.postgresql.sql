-- items for PostgreSQL; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, TEXT for strings, BYTEA for bytes in: item_id.
CREATE TABLE items (
    item_id BIGINT NOT NULL,
    item_idx BIGINT,
    title TEXT,
    events BIGINT NOT NULL,
    users BIGINT NOT NULL,
    first_event TIMESTAMPTZ,
    last_event TIMESTAMPTZ,
    eligible BOOLEAN NOT NULL,
    reason TEXT,
    recommendable BOOLEAN NOT NULL,
    PRIMARY KEY (item_id)
);
COMMENT ON TABLE items IS 'Every item that occurs in the log with a valid row, whether it can be recommended, and why not.';
COMMENT ON COLUMN items.item_id IS 'The item, as in the log.';
COMMENT ON COLUMN items.item_idx IS 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear. Null where the item is not eligible.';
COMMENT ON COLUMN items.title IS 'Title from the items table; null where there is none.';
COMMENT ON COLUMN items.events IS 'Events of the item in the window. Unit: events.';
COMMENT ON COLUMN items.users IS 'Distinct users of those events. Unit: users.';
COMMENT ON COLUMN items.first_event IS 'First event before `as_of`, whatever the window; null where there is none or the log has no times.';
COMMENT ON COLUMN items.last_event IS 'Last event before `as_of`, whatever the window; null where there is none or the log has no times.';
COMMENT ON COLUMN items.eligible IS 'Whether the models know the item.';
COMMENT ON COLUMN items.reason IS 'Why the item is not eligible: `too_few_users`, or `outside_window` where no event in the window has a weight; null where it is.';
COMMENT ON COLUMN items.recommendable IS 'Whether `[items]` and `[deny]` let the item stand in lists. Those hold eligible items only.';
