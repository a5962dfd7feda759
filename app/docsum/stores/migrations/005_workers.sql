-- Heartbeats: one row a worker stays.
CREATE TABLE IF NOT EXISTS worker_versions {on_cluster} (
    worker String,
    host String,
    pid UInt32,
    lane LowCardinality(String),
    started_at DateTime64(3, 'UTC'),
    beat_at DateTime64(3, 'UTC'),
    partitions Array(String),
    in_flight UInt32,
    holds Array(String),
    stopped Bool
) ENGINE = {engine}ReplacingMergeTree(beat_at)
ORDER BY worker
TTL toDateTime(beat_at) + INTERVAL 30 DAY
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS workers {on_cluster} AS
SELECT * FROM worker_versions FINAL;
