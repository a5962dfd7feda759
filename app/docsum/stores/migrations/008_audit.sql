-- What people did that moved or dropped work.
CREATE TABLE IF NOT EXISTS audit {on_cluster} (
    at DateTime64(3, 'UTC'),
    who String,
    action LowCardinality(String),
    detail String CODEC(ZSTD(1)),
    count UInt64
) ENGINE = {engine}MergeTree
ORDER BY at
SETTINGS {durability};
