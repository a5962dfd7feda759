-- Until when a run of the batch lane waits for the half price: what no batch has by then is bought live.
ALTER TABLE run_versions {on_cluster} ADD COLUMN IF NOT EXISTS batch_by Nullable(DateTime64(3, 'UTC'));

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
    batch_by
FROM run_versions AS v FINAL;
