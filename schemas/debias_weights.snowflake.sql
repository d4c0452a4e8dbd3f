-- debias_weights for Snowflake; the rows of one run.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BINARY for bytes in: item_id.
CREATE TABLE debias_weights (
    item_id BIGINT NOT NULL COMMENT 'The item, as in the log.',
    item_idx BIGINT NOT NULL COMMENT 'Rank of the id among the eligible items, from 0. Belongs to this run: it shifts when items appear.',
    propensity FLOAT NOT NULL COMMENT 'Chance of having been shown, relative to the most popular item: a power of popularity, in [`debias.propensity_min`, 1]. Unit: probability.',
    ips_weight FLOAT NOT NULL COMMENT '1 / propensity, at least 1: weigh an interaction by it.',
    discount FLOAT NOT NULL COMMENT '1 / sqrt(popularity + 1), in (0, 1]: multiply a score that is at least 0 by it.',
    PRIMARY KEY (item_id)
)
COMMENT = 'Per eligible item, what corrects for popular items being shown more: for training and evaluation elsewhere, and for `top_k.debias`.';
