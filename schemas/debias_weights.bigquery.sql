-- debias_weights for BigQuery; the rows of one run.
-- Ids have the type they have in the log: here INT64.
-- Otherwise write STRING for strings, BYTES for bytes in: item_id.
CREATE TABLE debias_weights (
    item_id INT64 NOT NULL OPTIONS(description = "The item, as in the log."),
    item_idx INT64 NOT NULL OPTIONS(description = "Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear."),
    propensity FLOAT64 NOT NULL OPTIONS(description = "Chance of having been shown, relative to the most popular item: a power of popularity, in [`debias.propensity_min`, 1]. Unit: probability."),
    ips_weight FLOAT64 NOT NULL OPTIONS(description = "1 / propensity, at least 1: weigh an interaction by it."),
    discount FLOAT64 NOT NULL OPTIONS(description = "1 / sqrt(popularity + 1), in (0, 1]: multiply a score that is at least 0 by it."),
    PRIMARY KEY (item_id) NOT ENFORCED
)
OPTIONS(description = "Per eligible item, what corrects for popular items being shown more: for training and evaluation elsewhere, and for `top_k.debias`.");
