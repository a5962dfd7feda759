-- How much of a long document was read, and in how many parts.
ALTER TABLE summary_versions {on_cluster}
    ADD COLUMN IF NOT EXISTS chunks UInt32 DEFAULT 1 AFTER reused,
    ADD COLUMN IF NOT EXISTS coverage Float32 DEFAULT 1 AFTER chunks,
    ADD COLUMN IF NOT EXISTS truncated Bool DEFAULT false AFTER coverage;

-- A view keeps the columns that its table had when it was made.
CREATE OR REPLACE VIEW summaries {on_cluster} AS
SELECT * EXCEPT (is_deleted) FROM summary_versions FINAL;
