-- debias_weights for PostgreSQL; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, TEXT for strings, BYTEA for bytes in: item_id.
CREATE TABLE debias_weights (
    item_id BIGINT NOT NULL,
    item_idx BIGINT NOT NULL,
    propensity REAL NOT NULL,
    ips_weight REAL NOT NULL,
    discount REAL NOT NULL,
    PRIMARY KEY (item_id)
);
COMMENT ON TABLE debias_weights IS 'Per eligible item, what corrects for popular items being shown more: for training and evaluation elsewhere, and for `top_k.debias`.';
COMMENT ON COLUMN debias_weights.item_id IS 'The item, as in the log.';
COMMENT ON COLUMN debias_weights.item_idx IS 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.';
COMMENT ON COLUMN debias_weights.propensity IS 'Chance of having been shown, relative to the most popular item: a power of popularity, in [`debias.propensity_min`, 1]. Unit: probability.';
COMMENT ON COLUMN debias_weights.ips_weight IS '1 / propensity, at least 1: weigh an interaction by it.';
COMMENT ON COLUMN debias_weights.discount IS '1 / sqrt(popularity + 1), in (0, 1]: multiply a score that is at least 0 by it.';
