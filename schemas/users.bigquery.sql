-- users for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: user_id.
CREATE TABLE users (
    user_id INT64 NOT NULL OPTIONS(description = "The user, as in the log."),
    user_idx INT64 OPTIONS(description = "shard * 2^32 + row in the shard. Belongs to this run. Null where the user is not eligible."),
    segment STRING OPTIONS(description = "Segment from the users table; null where there is none."),
    events INT64 NOT NULL OPTIONS(description = "Events of the user in the window. Unit: events."),
    items INT64 NOT NULL OPTIONS(description = "Distinct items kept in the user's history. Unit: items."),
    first_event TIMESTAMP OPTIONS(description = "First event before `as_of`, whatever the window; null where there is none or the log has no times."),
    last_event TIMESTAMP OPTIONS(description = "Last event before `as_of`, whatever the window; null where there is none or the log has no times."),
    eligible BOOL NOT NULL OPTIONS(description = "Whether the user has a history to recommend from."),
    reason STRING OPTIONS(description = "Why the user is not eligible: `outside_window` where no event in the window has a weight, `items_with_too_few_users` where no item is left; null where they are."),
    PRIMARY KEY (user_id) NOT ENFORCED
)
OPTIONS(description = "Every user who occurs in the log with a valid row, whether there is a history to recommend from, and why not. One file per shard: rows are sorted within a file.");
