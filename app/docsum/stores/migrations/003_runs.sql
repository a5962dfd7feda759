-- What was asked.
CREATE TABLE IF NOT EXISTS run_versions {on_cluster} (
    run_id UUID,
    name String,
    source String,
    recipe String,
    lane LowCardinality(String),
    state LowCardinality(String),
    created_at DateTime64(3, 'UTC'),
    updated_at DateTime64(3, 'UTC'),
    document_limit Nullable(UInt64),
    force Bool,
    listed UInt64,
    unreadable UInt64
) ENGINE = {engine}ReplacingMergeTree(updated_at)
ORDER BY run_id
SETTINGS index_granularity = 1024, {durability};

-- A publisher refreshes its run every 5 s: one that has been silent for 30 s is gone.
CREATE VIEW IF NOT EXISTS runs {on_cluster} AS
SELECT
    run_id,
    name,
    source,
    recipe,
    lane,
    if(v.state = 'publishing' AND v.updated_at < now64(3) - INTERVAL 30 SECOND,
       'publishing-interrupted', v.state) AS state,
    created_at,
    updated_at,
    document_limit,
    force,
    listed,
    unreadable
FROM run_versions AS v FINAL;

-- The state of every document in every run; the version makes a final state win, whatever the order.
CREATE TABLE IF NOT EXISTS run_document_versions {on_cluster} (
    run_id UUID,
    document_id String CODEC(ZSTD(1)),
    state LowCardinality(String),
    uri String CODEC(ZSTD(1)),
    attempt UInt16,
    reason LowCardinality(String),
    message String CODEC(ZSTD(1)),
    written_at DateTime64(3, 'UTC'),
    version UInt64
) ENGINE = {engine}ReplacingMergeTree(version)
ORDER BY (run_id, document_id)
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS run_documents {on_cluster} AS
SELECT * EXCEPT (version) FROM run_document_versions FINAL;

-- Exact counts of every run, and what it has cost so far.
CREATE VIEW IF NOT EXISTS run_progress {on_cluster} AS
SELECT
    run_id,
    countIf(state = 'queued') AS queued,
    countIf(state = 'retrying') AS retrying,
    countIf(state = 'held') AS held,
    countIf(state = 'done') AS done_count,
    countIf(state = 'dead_lettered') AS failed_count,
    countIf(state = 'skipped') AS skipped_count,
    countIf(state = 'cancelled') AS cancelled,
    countIf(state IN ('queued', 'retrying', 'held')) AS remaining,
    sum(paid) AS cost,
    now64(3, 'UTC') AS as_of
FROM (
    SELECT run_id, state, toDecimal64(0, 9) AS paid FROM run_document_versions FINAL
    UNION ALL
    SELECT assumeNotNull(run_id) AS run_id, '' AS state, cost AS paid
    FROM answer_versions FINAL WHERE run_id IS NOT NULL
)
GROUP BY run_id;
