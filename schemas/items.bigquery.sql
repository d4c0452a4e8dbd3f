-- items for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: item_id.
CREATE TABLE items (
    item_id INT64 NOT NULL OPTIONS(description = "The item, as in the log."),
    item_idx INT64 OPTIONS(description = "Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear. Null where the item is not eligible."),
    title STRING OPTIONS(description = "Title from the items table; null where there is none."),
    events INT64 NOT NULL OPTIONS(description = "Events of the item in the window. Unit: events."),
    users INT64 NOT NULL OPTIONS(description = "Distinct users of those events. Unit: users."),
    first_event TIMESTAMP OPTIONS(description = "First event before `as_of`, whatever the window; null where there is none or the log has no times."),
    last_event TIMESTAMP OPTIONS(description = "Last event before `as_of`, whatever the window; null where there is none or the log has no times."),
    eligible BOOL NOT NULL OPTIONS(description = "Whether the models know the item."),
    reason STRING OPTIONS(description = "Why the item is not eligible: `too_few_users`, or `outside_window` where no event in the window has a weight; null where it is."),
    recommendable BOOL NOT NULL OPTIONS(description = "Whether `[items]` and `[deny]` let the item stand in lists. Those hold eligible items only."),
    PRIMARY KEY (item_id) NOT ENFORCED
)
OPTIONS(description = "Every item that occurs in the log with a valid row, whether it can be recommended, and why not.");
