-- Every paid call, usable or not: the money ledger and the reuse index. Kept for ever.
-- The same answer written again is the same row: nothing is counted twice.
-- Granularity: a look-up that finds something reads a whole granule of long texts.
CREATE TABLE IF NOT EXISTS answer_versions {on_cluster} (
    fingerprint String CODEC(ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    model LowCardinality(String),
    raw String CODEC(ZSTD(3)),
    input_tokens UInt32,
    output_tokens UInt32,
    cache_read_tokens UInt32,
    cache_write_tokens UInt32,
    cost Decimal(18, 9),
    price_version LowCardinality(String),
    status LowCardinality(String),
    answered_at DateTime64(3, 'UTC'),
    latency_ms UInt32,
    document_id String CODEC(ZSTD(1)),
    run_id Nullable(UUID),
    chunk UInt32,
    lane LowCardinality(String),
    detail String CODEC(ZSTD(1))
) ENGINE = {engine}ReplacingMergeTree
ORDER BY (fingerprint, request_id)
SETTINGS index_granularity = 256, {durability};

CREATE VIEW IF NOT EXISTS answers {on_cluster} AS
SELECT * FROM answer_versions FINAL;
