-- The changes of each table for DuckDB 1.4 or later: they bring a copy of it from the generation that
-- changes_since in the manifest names to that of the manifest, and no other copy. See README.md.
-- Ids have the type they have in the log: here BIGINT.
-- Otherwise write INTEGER for int32, VARCHAR for strings, BLOB for bytes in: because_item_id, because_item_ids, item_id, item_ids, neighbor_id, user_id.
-- forget_users and forget_items are the lists that you gave to [delete]: what they name is in no
-- file, so it is deleted by them. Without such a list, leave the statement out.

-- items
DROP TABLE IF EXISTS items_changes;
CREATE TABLE items_changes (
    change VARCHAR NOT NULL,
    item_id BIGINT NOT NULL,
    item_idx BIGINT,
    title VARCHAR,
    events BIGINT,
    users BIGINT,
    first_event TIMESTAMPTZ,
    last_event TIMESTAMPTZ,
    eligible BOOLEAN,
    reason VARCHAR,
    recommendable BOOLEAN
);
-- Here load the files of items_changes.
BEGIN;
MERGE INTO items USING items_changes AS c ON items.item_id = c.item_id
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_idx = c.item_idx, title = c.title, events = c.events, users = c.users, first_event = c.first_event, last_event = c.last_event, eligible = c.eligible, reason = c.reason, recommendable = c.recommendable
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (item_id, item_idx, title, events, users, first_event, last_event, eligible, reason, recommendable)
    VALUES (c.item_id, c.item_idx, c.title, c.events, c.users, c.first_event, c.last_event, c.eligible, c.reason, c.recommendable);
DELETE FROM items WHERE item_id IN (SELECT item_id FROM forget_items);
COMMIT;

-- users
DROP TABLE IF EXISTS users_changes;
CREATE TABLE users_changes (
    change VARCHAR NOT NULL,
    user_id BIGINT NOT NULL,
    user_idx BIGINT,
    segment VARCHAR,
    events BIGINT,
    items BIGINT,
    first_event TIMESTAMPTZ,
    last_event TIMESTAMPTZ,
    eligible BOOLEAN,
    reason VARCHAR
);
-- Here load the files of users_changes.
BEGIN;
MERGE INTO users USING users_changes AS c ON users.user_id = c.user_id
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET user_idx = c.user_idx, segment = c.segment, events = c.events, items = c.items, first_event = c.first_event, last_event = c.last_event, eligible = c.eligible, reason = c.reason
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (user_id, user_idx, segment, events, items, first_event, last_event, eligible, reason)
    VALUES (c.user_id, c.user_idx, c.segment, c.events, c.items, c.first_event, c.last_event, c.eligible, c.reason);
DELETE FROM users WHERE user_id IN (SELECT user_id FROM forget_users);
COMMIT;

-- item_popularity
DROP TABLE IF EXISTS item_popularity_changes;
CREATE TABLE item_popularity_changes (
    change VARCHAR NOT NULL,
    item_id BIGINT NOT NULL,
    item_idx BIGINT,
    events BIGINT,
    users BIGINT,
    weight DOUBLE,
    weight_decayed DOUBLE,
    trend FLOAT,
    rank INTEGER
);
-- Here load the files of item_popularity_changes.
BEGIN;
MERGE INTO item_popularity USING item_popularity_changes AS c ON item_popularity.item_id = c.item_id
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_idx = c.item_idx, events = c.events, users = c.users, weight = c.weight, weight_decayed = c.weight_decayed, trend = c.trend, rank = c.rank
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (item_id, item_idx, events, users, weight, weight_decayed, trend, rank)
    VALUES (c.item_id, c.item_idx, c.events, c.users, c.weight, c.weight_decayed, c.trend, c.rank);
DELETE FROM item_popularity WHERE item_id IN (SELECT item_id FROM forget_items);
COMMIT;

-- item_popularity_by_segment
DROP TABLE IF EXISTS item_popularity_by_segment_changes;
CREATE TABLE item_popularity_by_segment_changes (
    change VARCHAR NOT NULL,
    segment VARCHAR NOT NULL,
    item_id BIGINT NOT NULL,
    item_idx BIGINT,
    events BIGINT,
    users BIGINT,
    weight DOUBLE,
    weight_decayed DOUBLE,
    trend FLOAT,
    rank INTEGER
);
-- Here load the files of item_popularity_by_segment_changes.
BEGIN;
MERGE INTO item_popularity_by_segment USING item_popularity_by_segment_changes AS c ON item_popularity_by_segment.segment = c.segment AND item_popularity_by_segment.item_id = c.item_id
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_idx = c.item_idx, events = c.events, users = c.users, weight = c.weight, weight_decayed = c.weight_decayed, trend = c.trend, rank = c.rank
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (segment, item_id, item_idx, events, users, weight, weight_decayed, trend, rank)
    VALUES (c.segment, c.item_id, c.item_idx, c.events, c.users, c.weight, c.weight_decayed, c.trend, c.rank);
DELETE FROM item_popularity_by_segment WHERE item_id IN (SELECT item_id FROM forget_items);
COMMIT;

-- debias_weights
DROP TABLE IF EXISTS debias_weights_changes;
CREATE TABLE debias_weights_changes (
    change VARCHAR NOT NULL,
    item_id BIGINT NOT NULL,
    item_idx BIGINT,
    propensity FLOAT,
    ips_weight FLOAT,
    discount FLOAT
);
-- Here load the files of debias_weights_changes.
BEGIN;
MERGE INTO debias_weights USING debias_weights_changes AS c ON debias_weights.item_id = c.item_id
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_idx = c.item_idx, propensity = c.propensity, ips_weight = c.ips_weight, discount = c.discount
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (item_id, item_idx, propensity, ips_weight, discount)
    VALUES (c.item_id, c.item_idx, c.propensity, c.ips_weight, c.discount);
DELETE FROM debias_weights WHERE item_id IN (SELECT item_id FROM forget_items);
COMMIT;

-- item_neighbors
DROP TABLE IF EXISTS item_neighbors_changes;
CREATE TABLE item_neighbors_changes (
    change VARCHAR NOT NULL,
    item_id BIGINT NOT NULL,
    rank INTEGER NOT NULL,
    neighbor_id BIGINT,
    score FLOAT,
    support BIGINT
);
-- Here load the files of item_neighbors_changes.
BEGIN;
MERGE INTO item_neighbors USING item_neighbors_changes AS c ON item_neighbors.item_id = c.item_id AND item_neighbors.rank = c.rank
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET neighbor_id = c.neighbor_id, score = c.score, support = c.support
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (item_id, rank, neighbor_id, score, support)
    VALUES (c.item_id, c.rank, c.neighbor_id, c.score, c.support);
DELETE FROM item_neighbors WHERE item_id IN (SELECT item_id FROM forget_items);
COMMIT;

-- user_top_k
DROP TABLE IF EXISTS user_top_k_changes;
CREATE TABLE user_top_k_changes (
    change VARCHAR NOT NULL,
    user_id BIGINT NOT NULL,
    rank INTEGER NOT NULL,
    item_id BIGINT,
    score FLOAT,
    source VARCHAR,
    because_item_id BIGINT
);
-- Here load the files of user_top_k_changes.
BEGIN;
MERGE INTO user_top_k USING user_top_k_changes AS c ON user_top_k.user_id = c.user_id AND user_top_k.rank = c.rank
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_id = c.item_id, score = c.score, source = c.source, because_item_id = c.because_item_id
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (user_id, rank, item_id, score, source, because_item_id)
    VALUES (c.user_id, c.rank, c.item_id, c.score, c.source, c.because_item_id);
DELETE FROM user_top_k WHERE user_id IN (SELECT user_id FROM forget_users);
COMMIT;

-- user_top_k_lists
DROP TABLE IF EXISTS user_top_k_lists_changes;
CREATE TABLE user_top_k_lists_changes (
    change VARCHAR NOT NULL,
    user_id BIGINT NOT NULL,
    item_ids BIGINT[],
    scores FLOAT[],
    sources VARCHAR[],
    because_item_ids BIGINT[]
);
-- Here load the files of user_top_k_lists_changes.
BEGIN;
MERGE INTO user_top_k_lists USING user_top_k_lists_changes AS c ON user_top_k_lists.user_id = c.user_id
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_ids = c.item_ids, scores = c.scores, sources = c.sources, because_item_ids = c.because_item_ids
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (user_id, item_ids, scores, sources, because_item_ids)
    VALUES (c.user_id, c.item_ids, c.scores, c.sources, c.because_item_ids);
DELETE FROM user_top_k_lists WHERE user_id IN (SELECT user_id FROM forget_users);
COMMIT;

-- default_top_k
DROP TABLE IF EXISTS default_top_k_changes;
CREATE TABLE default_top_k_changes (
    change VARCHAR NOT NULL,
    segment VARCHAR NOT NULL,
    rank INTEGER NOT NULL,
    item_id BIGINT,
    score FLOAT
);
-- Here load the files of default_top_k_changes.
BEGIN;
MERGE INTO default_top_k USING default_top_k_changes AS c ON default_top_k.segment = c.segment AND default_top_k.rank = c.rank
WHEN MATCHED AND c.change = 'delete' THEN DELETE
WHEN MATCHED THEN UPDATE SET item_id = c.item_id, score = c.score
WHEN NOT MATCHED AND c.change = 'upsert' THEN INSERT (segment, rank, item_id, score)
    VALUES (c.segment, c.rank, c.item_id, c.score);
COMMIT;
