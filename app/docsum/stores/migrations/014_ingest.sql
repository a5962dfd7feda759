-- What `docsum ingest` has announced last of every document of a source; a later look at the source counts.
CREATE TABLE IF NOT EXISTS ingest_cursor_versions {on_cluster} (
    source LowCardinality(String),
    document_id String CODEC(ZSTD(1)),
    source_version String CODEC(ZSTD(1)),
    scan UInt64,
    seen_at DateTime64(3, 'UTC'),
    gone Bool
) ENGINE = {engine}ReplacingMergeTree(scan)
ORDER BY (source, document_id)
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS ingest_cursors {on_cluster} AS
SELECT * FROM ingest_cursor_versions FINAL;
