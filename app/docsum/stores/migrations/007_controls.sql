-- What is wanted of a run, of all work (target 0) or of the live events (target 1).
CREATE TABLE IF NOT EXISTS control_versions {on_cluster} (
    target UUID,
    state LowCardinality(String),
    reason String CODEC(ZSTD(1)),
    budget Nullable(Decimal(18, 9)),
    unguarded Bool,
    changed_at DateTime64(3, 'UTC')
) ENGINE = {engine}ReplacingMergeTree(changed_at)
ORDER BY target
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS controls {on_cluster} AS
SELECT * FROM control_versions FINAL;
