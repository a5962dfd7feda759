"""The whole of docsum on one machine: Kafka, the ClickHouse engine, the local model and their supervisor."""
