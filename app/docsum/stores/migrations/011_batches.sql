-- The batch lane: what is bought at half the price is written down before it is asked for.
CREATE TABLE IF NOT EXISTS batch_versions {on_cluster} (
    intent String,
    kafka_partition UInt32,
    state LowCardinality(String),
    size UInt32,
    created_at DateTime64(3, 'UTC'),
    changed_at DateTime64(3, 'UTC'),
    provider_id String,
    ended_at Nullable(DateTime64(3, 'UTC')),
    succeeded UInt32,
    errored UInt32,
    canceled UInt32,
    expired UInt32,
    missing UInt32,
    cost Decimal(18, 9),
    detail String CODEC(ZSTD(1)),
    version UInt64
) ENGINE = {engine}ReplacingMergeTree(version)
ORDER BY intent
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS batches {on_cluster} AS
SELECT * FROM batch_versions FINAL;

CREATE TABLE IF NOT EXISTS batch_item_versions {on_cluster} (
    intent String,
    custom_id String CODEC(ZSTD(1)),
    fingerprint String CODEC(ZSTD(1)),
    document_id String CODEC(ZSTD(1)),
    version UInt128,
    run_id Nullable(UUID),
    chunk UInt32,
    model LowCardinality(String),
    input_tokens UInt32,
    output_tokens UInt32
) ENGINE = {engine}ReplacingMergeTree
ORDER BY (intent, custom_id)
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS batch_items {on_cluster} AS
SELECT * FROM batch_item_versions FINAL;
