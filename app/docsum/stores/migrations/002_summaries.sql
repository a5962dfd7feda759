-- Every version of every document's summary; a tombstone has is_deleted = 1.
CREATE TABLE IF NOT EXISTS summary_versions {on_cluster} (
    document_id String CODEC(ZSTD(1)),
    version UInt128,
    is_deleted UInt8,
    state LowCardinality(String),
    source_version String CODEC(ZSTD(1)),
    uri String CODEC(ZSTD(1)),
    title String CODEC(ZSTD(1)),
    summary String CODEC(ZSTD(3)),
    key_points Array(String) CODEC(ZSTD(3)),
    language LowCardinality(String),
    document_type LowCardinality(String),
    warnings Array(String) CODEC(ZSTD(1)),
    model LowCardinality(String),
    recipe LowCardinality(String),
    fingerprint String CODEC(ZSTD(1)),
    input_tokens UInt32,
    output_tokens UInt32,
    cost Decimal(18, 9),
    reused Bool,
    attributes Map(String, String) CODEC(ZSTD(1)),
    run_id Nullable(UUID),
    kafka_topic LowCardinality(String),
    kafka_partition UInt32,
    kafka_offset UInt64,
    occurred_at DateTime64(3, 'UTC'),
    written_at DateTime64(3, 'UTC')
) ENGINE = {engine}ReplacingMergeTree(version, is_deleted)
ORDER BY document_id
SETTINGS index_granularity = 256, {durability};

-- The newest summary of every document that was not deleted.
CREATE VIEW IF NOT EXISTS summaries {on_cluster} AS
SELECT * EXCEPT (is_deleted) FROM summary_versions FINAL;
