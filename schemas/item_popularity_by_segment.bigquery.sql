-- item_popularity_by_segment for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: item_id.
CREATE TABLE item_popularity_by_segment (
    segment STRING NOT NULL OPTIONS(description = "Segment from the users table."),
    item_id INT64 NOT NULL OPTIONS(description = "The item, as in the log."),
    item_idx INT64 NOT NULL OPTIONS(description = "Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear."),
    events INT64 NOT NULL OPTIONS(description = "Events of the segment's users with the item. Unit: events."),
    users INT64 NOT NULL OPTIONS(description = "Distinct users of those events. Unit: users."),
    weight FLOAT64 NOT NULL OPTIONS(description = "Sum of the weights of those events. Unit: event weight."),
    weight_decayed FLOAT64 NOT NULL OPTIONS(description = "The same, each weight halved per half-life between the event and `as_of`; equal to `weight` without a half-life. Unit: event weight at as_of."),
    trend FLOAT64 NOT NULL OPTIONS(description = "Weight in the newer half of the window over that in the older half, `popularity.trend_prior` added to both: above 1 grows, below 1 fades. A half without events counts as 0. Unit: ratio."),
    rank INT64 NOT NULL OPTIONS(description = "Place in the segment by popularity, from 1; ties go to the lower item id."),
    PRIMARY KEY (segment, item_id) NOT ENFORCED
)
OPTIONS(description = "How popular each eligible item is among the users of one segment; written where the users table gives segments. Items without an event in a segment have no row there.");
