-- Money is asked for by run and by day, every two seconds where a budget is set; the ledger is ordered by
-- fingerprint. So every part of it holds the columns of money once more, ordered by day and run. They are
-- written with the part and dropped with it: there is no second insert that a crash could lose, and none that
-- could count twice. What reads them has to take each call once, see `costs.py`: FINAL cannot use them.
ALTER TABLE answer_versions {on_cluster}
    MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild';

ALTER TABLE answer_versions {on_cluster} ADD PROJECTION IF NOT EXISTS money (
    SELECT
        answered_at,
        run_id,
        fingerprint,
        request_id,
        document_id,
        model,
        status,
        cost,
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens
    ORDER BY (toDate(answered_at, 'UTC'), assumeNotNull(run_id))
);

-- Which granules know a document: nothing is ordered by it.
ALTER TABLE answer_versions {on_cluster}
    ADD INDEX IF NOT EXISTS of_document document_id TYPE bloom_filter GRANULARITY 1;

-- For the rows that are there already, in the background: until then they are read as before.
ALTER TABLE answer_versions {on_cluster}
    MATERIALIZE PROJECTION money,
    MATERIALIZE INDEX of_document;

-- The condition on run_id reaches the ledger through GROUP BY only where the two are apart.
CREATE OR REPLACE VIEW run_progress {on_cluster} AS
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
    SELECT assumeNotNull(run) AS run_id, '' AS state, paid
    FROM (
        SELECT run_id AS run, any(cost) AS paid
        FROM answer_versions WHERE run_id IS NOT NULL
        GROUP BY run_id, fingerprint, request_id
    )
)
GROUP BY run_id;
