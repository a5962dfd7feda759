-- Index of the dead-letter topic: the key is where the record first was, dlq_* is where its copy is.
CREATE TABLE IF NOT EXISTS dead_letter_versions {on_cluster} (
    kafka_topic LowCardinality(String),
    kafka_partition UInt32,
    kafka_offset UInt64,
    dlq_topic LowCardinality(String),
    dlq_partition UInt32,
    dlq_offset UInt64,
    document_id String CODEC(ZSTD(1)),
    document_version UInt128,
    run_id Nullable(UUID),
    reason LowCardinality(String),
    message String CODEC(ZSTD(1)),
    stage LowCardinality(String),
    attempts UInt16,
    first_failed_at DateTime64(3, 'UTC'),
    failed_at DateTime64(3, 'UTC'),
    replay_count UInt16,
    state LowCardinality(String),
    version UInt64
) ENGINE = {engine}ReplacingMergeTree(version)
ORDER BY (kafka_topic, kafka_partition, kafka_offset)
SETTINGS index_granularity = 1024, {durability};

-- An entry is resolved once the document has been stored as new as the event that failed, or newer.
-- An event that could not be decoded has no document: it is never resolved that way.
CREATE VIEW IF NOT EXISTS dead_letters {on_cluster} AS
SELECT
    d.kafka_topic AS kafka_topic,
    d.kafka_partition AS kafka_partition,
    d.kafka_offset AS kafka_offset,
    d.dlq_topic AS dlq_topic,
    d.dlq_partition AS dlq_partition,
    d.dlq_offset AS dlq_offset,
    d.document_id AS document_id,
    d.document_version AS document_version,
    d.run_id AS run_id,
    d.reason AS reason,
    d.message AS message,
    d.stage AS stage,
    d.attempts AS attempts,
    d.first_failed_at AS first_failed_at,
    d.failed_at AS failed_at,
    d.replay_count AS replay_count,
    if(d.state IN ('open', 'replayed') AND s.stored = 1 AND s.version >= d.document_version,
       'resolved', d.state) AS state
FROM (SELECT * FROM dead_letter_versions FINAL) AS d
LEFT JOIN (
    SELECT document_id, max(summary_versions.version) AS version, toUInt8(1) AS stored
    FROM summary_versions
    WHERE document_id IN (SELECT document_id FROM dead_letter_versions)
    GROUP BY document_id
) AS s ON s.document_id = d.document_id;

-- One row per failed step, for dashboards.
CREATE TABLE IF NOT EXISTS failures {on_cluster} (
    failed_at DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    document_id String CODEC(ZSTD(1)),
    run_id Nullable(UUID),
    attempt UInt16,
    reason LowCardinality(String),
    stage LowCardinality(String),
    disposition LowCardinality(String),
    message String CODEC(ZSTD(1)),
    worker LowCardinality(String)
) ENGINE = {engine}MergeTree
PARTITION BY toYYYYMM(failed_at)
ORDER BY (failed_at, document_id)
TTL toDateTime(failed_at) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1, {durability};
