-- What a worker waits for, what its calls in flight will cost, and what it decodes or extracts right now.
ALTER TABLE worker_versions {on_cluster}
    ADD COLUMN IF NOT EXISTS breakers Array(String) AFTER holds,
    ADD COLUMN IF NOT EXISTS gate String AFTER breakers,
    ADD COLUMN IF NOT EXISTS cost_in_flight Decimal(18, 9) AFTER gate,
    ADD COLUMN IF NOT EXISTS at_risk Array(Tuple(String, String, UInt32, UInt64)) AFTER cost_in_flight,
    ADD COLUMN IF NOT EXISTS alone Bool AFTER at_risk;

-- A view keeps the columns that its table had when it was made.
CREATE OR REPLACE VIEW workers {on_cluster} AS
SELECT * FROM worker_versions FINAL;

-- What was decoded or extracted in workers that ended without a word; each death once, whoever finds it.
CREATE TABLE IF NOT EXISTS worker_death_versions {on_cluster} (
    worker String,
    started_at DateTime64(3, 'UTC'),
    died_at DateTime64(3, 'UTC'),
    stage LowCardinality(String),
    kafka_topic LowCardinality(String),
    kafka_partition UInt32,
    kafka_offset UInt64,
    alone Bool
) ENGINE = {engine}ReplacingMergeTree(died_at)
ORDER BY (kafka_topic, kafka_partition, kafka_offset, stage, worker, started_at)
TTL toDateTime(died_at) + INTERVAL 30 DAY
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS worker_deaths {on_cluster} AS
SELECT * FROM worker_death_versions FINAL;
