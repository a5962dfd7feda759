-- Runs that the API publishes: by whom, why the publisher ended, who is told of the end, which request it was.
ALTER TABLE run_versions {on_cluster}
    ADD COLUMN IF NOT EXISTS publisher LowCardinality(String),
    ADD COLUMN IF NOT EXISTS problem String CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS webhook String CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS request String;

-- A view keeps the columns that its table had when it was made.
CREATE OR REPLACE VIEW runs {on_cluster} AS
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
    unreadable,
    batch_by,
    publisher,
    problem,
    webhook,
    request
FROM run_versions AS v FINAL;

-- Who may use the API: the digest of each token, never the token.
CREATE TABLE IF NOT EXISTS token_versions {on_cluster} (
    name String,
    digest String,
    scopes Array(LowCardinality(String)),
    created_at DateTime64(3, 'UTC'),
    created_by String,
    revoked Bool,
    changed_at DateTime64(3, 'UTC')
) ENGINE = {engine}ReplacingMergeTree(changed_at)
ORDER BY name
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS tokens {on_cluster} AS
SELECT * FROM token_versions FINAL;

-- What was told, or is still to be told, to whom: one row a message, its newest state.
CREATE TABLE IF NOT EXISTS webhook_delivery_versions {on_cluster} (
    message_id String,
    run_id UUID,
    event LowCardinality(String),
    url String CODEC(ZSTD(1)),
    body String CODEC(ZSTD(1)),
    state LowCardinality(String),
    attempts UInt16,
    next_attempt_at DateTime64(3, 'UTC'),
    answer String CODEC(ZSTD(1)),
    created_at DateTime64(3, 'UTC'),
    changed_at DateTime64(3, 'UTC')
) ENGINE = {engine}ReplacingMergeTree(changed_at)
ORDER BY (run_id, message_id)
SETTINGS index_granularity = 1024, {durability};

CREATE VIEW IF NOT EXISTS webhook_deliveries {on_cluster} AS
SELECT * FROM webhook_delivery_versions FINAL;
